"""The fetch buffer of K and V: chunks of every format and head size, against the page layout."""

import random
from typing import Any

import numpy as np
import pytest

from m890.firmware import stored
from m890.hdl.config import preset
from m890.hdl.kv.items import tile_beat_layout
from m890.hdl.kv.regroup import Regroup
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import CODINGS, Format
from m890.testbench.hdl.kv.bench import fields
from m890.testbench.hdl.kv.support import pick, run, sink, source


def tile_rows(layout: PageLayout, chunk: np.ndarray) -> list[list[int]]:
    """Codes of a chunk's K, tile by tile, token by token."""
    lanes = layout.config.lanes
    codes = stored.unpack(layout, stored.read_rows(layout, chunk, value=False))
    tiles = codes.reshape(lanes, layout.tiles, lanes).transpose(1, 0, 2)
    return tiles.reshape(-1, lanes).tolist()


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize(("write", "read"), [(0.0, 0.0), (0.6, 0.0), (0.0, 0.6), (0.3, 0.3)])
def test_chunks_in_order_of_the_array(name: str, write: float, read: float, seed: int) -> None:
    config, depth = preset(name), 4 * preset(name).lanes
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    chunks, beats, expected, looks = [], [], [], []
    for _ in range(12 if name == "tiny" else 4):
        layout = PageLayout(config, chance.choice(list(Format)), chance.randint(1, 7))
        chunk = rng.integers(0, 256, layout.chunk_bytes, np.uint8)
        region = chunk[layout.k_offset :][: layout.region_bytes]
        chunks.append({"format": int(layout.format), "tiles": layout.tiles})
        looks += [
            (token, tile, int(layout.format), (tile + 1, token + 1) == (layout.tiles, config.lanes))
            for tile in range(layout.tiles)
            for token in range(config.lanes)
        ]
        beats += [int.from_bytes(beat, "little") for beat in region.reshape(-1, config.port_bytes)]  # type: ignore[arg-type]
        expected += tile_rows(layout, chunk)
    dut = Regroup(config, depth)
    got: list[list[int]] = []
    looked: list[tuple] = []
    freed = 0

    async def fill(ctx: Any) -> None:
        """Beats come where there is room for them."""
        nonlocal freed
        held = 0
        coming = iter(beats)
        while True:
            come = held < depth and chance.random() >= write
            beat = next(coming, None) if come else None
            ctx.set(dut.write, beat is not None)
            ctx.set(dut.data, beat or 0)
            _, _, gone = await ctx.tick().sample(dut.freed)
            held += (beat is not None) - gone
            freed += gone

    async def scales(ctx: Any) -> None:
        """Look-ups are those of the element beats; where scales are missing, there are none."""
        look = dut.look
        while True:
            there = chance.random() >= read / 2
            ctx.set(dut.there, there)
            _, _, valid, *seen = await ctx.tick().sample(
                look.valid, look.token, look.tile, look.format, look.last
            )
            if valid:
                assert there or not CODINGS[Format(seen[2])].grouped
                looked.append(tuple(seen))

    def taken(value: int) -> None:
        got.append(pick(config, fields(tile_beat_layout(config), value)))

    cycles = run(
        dut,
        fill,
        scales,
        lambda ctx: source(ctx, dut.chunk, chunks),
        lambda ctx: sink(ctx, dut.o, taken, seed, read),
        until=lambda: len(got) == len(expected),
        limit=20 * len(expected),
        after=10,
    )
    assert got == expected
    assert looked == looks
    assert freed == len(beats)
    if not write and not read:
        assert cycles <= len(expected) + 4


def test_depth_is_checked() -> None:
    for depth in (4, 24):
        with pytest.raises(ValueError, match=f"a power of two of at least lanes, not {depth}"):
            Regroup(preset("tiny"), depth)
