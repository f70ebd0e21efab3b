"""Inverse rotation of O against the golden model, words with random gaps."""

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Value
from amaranth.sim import Simulator

from m890.hdl.attention.rotate_back import RotateBack
from m890.hdl.config import CoreConfig, preset
from m890.hdl.numerics.types import Wide
from m890.sim.golden.rotate import rotate_back
from m890.testbench.hdl.numerics import golden, numbers
from m890.testbench.hdl.numerics.pipelines import bits_of

TINY = preset("tiny")
CONFIGS = [
    TINY,
    TINY.with_(drain_lanes=1),
    TINY.with_(drain_lanes=4),
    TINY.with_(lanes=16, page_tokens=16, drain_lanes=8, rows=5),
]


def _tiles(rng: np.random.Generator, count: int, lanes: int) -> list[list[dict]]:
    """Tiles of close and of distant values, of zeros, with a NaN now and then."""
    tiles = [[{"sig": 0, "exp": 0, "sign": 0, "nan": 0}] * lanes]
    for _ in range(count):
        near = int(rng.choice([0, int(rng.integers(-3900, 3900))]))
        spread = int(rng.choice([0, 2, 12, 60]))
        nan = float(rng.choice([0, 0, 0.1]))
        tile = [numbers.wide(rng, near=near, spread=spread, nan=nan) for _ in range(lanes)]
        if rng.integers(8) == 0:  # sums that cancel
            tile = [tile[0] | {"sign": int(rng.integers(2))} for _ in range(lanes)]
        tiles.append(tile)
    return tiles


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.lanes}x{c.drain_lanes}")
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_tiles(rng: np.random.Generator, config: CoreConfig, share: float) -> None:
    lanes, width = config.lanes, config.drain_lanes
    tiles = _tiles(rng, 150, lanes)
    rows = rng.integers(0, config.rows, len(tiles)).tolist()
    dut = RotateBack(config)
    want = golden.bits(Wide, rotate_back(golden.wides([x for t in tiles for x in t]), lanes))
    bits = len(Value.cast(dut.o[0]))
    got: list[int] = []
    last_in: list[int] = []
    last_out: list[int] = []

    async def feed(ctx: Any) -> None:
        cycle = 0
        for row, tile in zip(rows, tiles, strict=True):
            for at in range(0, lanes, width):
                while rng.random() > share:
                    ctx.set(dut.valid, 0)
                    await ctx.tick()
                    cycle += 1
                word = sum(
                    bits_of(Wide, **x) << bits * n for n, x in enumerate(tile[at : at + width])
                )
                ctx.set(dut.valid, 1)
                ctx.set(dut.row, row)
                ctx.set(dut.i.as_value(), word)
                await ctx.tick()
                cycle += 1
            last_in.append(cycle - 1)
        ctx.set(dut.valid, 0)
        await ctx.tick().repeat(dut.latency + 1)

    async def watch(ctx: Any) -> None:
        before = None
        cycle = 0
        while True:
            if ctx.get(dut.o_valid):
                number = len(got) // lanes
                assert before == rows[number], "the row is not one cycle ahead"
                word = ctx.get(dut.o.as_value())
                got.extend(word >> bits * n & (1 << bits) - 1 for n in range(width))
                if len(got) % lanes == 0:
                    last_out.append(cycle)
            before = ctx.get(dut.o_row)
            await ctx.tick()
            cycle += 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(feed)
    simulator.add_testbench(watch, background=True)
    simulator.run()
    assert got == want
    assert {b - a for a, b in zip(last_in, last_out, strict=True)} == {dut.latency}
