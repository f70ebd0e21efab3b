"""Headers: scales of a chunk's tokens, with and without tags between them."""

import itertools
import random
from typing import Any

import numpy as np
import pytest

from m890.firmware import stored
from m890.hdl.config import preset
from m890.hdl.kv.header import CHUNKS, HeaderReader
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.hdl.numerics.quantise import beat_groups
from m890.testbench.hdl.kv.support import run, sink


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize("stall", [0.0, 0.97])
def test_scales(name: str, stall: float, seed: int) -> None:
    """Chunks of all kinds with a header; only reserved ones come, as late as they like."""
    config, chance = preset(name), random.Random(seed)
    rng = np.random.default_rng(seed)
    headers, expected = [], []
    while len(headers) < 4 * CHUNKS:
        layout = PageLayout(config, chance.choice(list(Format)), 2, chance.random() < 0.5)
        if not layout.header_beats or layout.coding.grouped:
            continue
        chunk = rng.integers(0, 256, layout.chunk_bytes, np.uint8)
        raw = chunk[: layout.k_offset].reshape(-1, config.port_bytes)
        headers.append((layout, [int.from_bytes(beat, "little") for beat in raw]))  # type: ignore
        if layout.coding.scaled:
            k, v = (stored.read_scales(layout, chunk, value=value) for value in (False, True))
            expected.append(np.concatenate([k, v]).tolist())  # type: ignore[arg-type]
    dut, got, waiting = HeaderReader(config), [], 0

    async def feed(ctx: Any) -> None:
        nonlocal waiting
        for layout, beats in headers:
            while not ctx.get(dut.room):
                waiting += 1
                await ctx.tick()
            ctx.set(dut.reserve_beats, len(beats))
            ctx.set(dut.reserve, 1)
            await ctx.tick()
            ctx.set(dut.reserve, 0)
            for n, beat in enumerate(beats):
                last = n == len(beats) - 1
                payload = {
                    "data": beat, "last": last, "beats": len(beats), "format": int(layout.format),
                    "tags": layout.tags,
                }  # fmt: skip
                ctx.set(dut.beat, payload)
                ctx.set(dut.valid, 1)
                await ctx.tick()
                ctx.set(dut.valid, 0)
                while chance.random() < 0.2:
                    await ctx.tick()

    def taken(value: int) -> None:
        got.append([value >> 16 * n & 0xFFFF for n in range(2 * config.lanes)])

    run(
        dut,
        feed,
        lambda ctx: sink(ctx, dut.scale, taken, seed, stall),
        until=lambda: len(got) == len(expected),
        limit=20000,
        after=10,
    )
    assert got == expected
    assert bool(waiting) == bool(stall)


@pytest.mark.parametrize("name", ["tiny", "small", "m890"])
@pytest.mark.parametrize("stall", [0.0, 0.7])
def test_group_scales(name: str, stall: float, seed: int) -> None:
    """Both sides look up every token and tile, each at its own pace; other headers between."""
    config, chance = preset(name), random.Random(seed)
    rng = np.random.default_rng(seed)
    dut = HeaderReader(config)
    groups = beat_groups(config.lanes)
    headers, chunks = [], []
    for _ in range(40 if name == "tiny" else 20):
        format = chance.choice([Format.INT4, Format.MXFP4, Format.MXFP4, Format.E4M3])
        tiles = chance.choice([1, 2, 3, config.max_tiles])
        layout = PageLayout(config, format, tiles, chance.random() < 0.5)
        chunk = rng.integers(0, 256, layout.chunk_bytes, np.uint8)
        raw = chunk[: layout.k_offset].reshape(-1, config.port_bytes)
        headers.append((layout, [int.from_bytes(beat, "little") for beat in raw]))  # type: ignore
        if layout.coding.grouped:
            chunks.append((layout, chunk))

    async def feed(ctx: Any) -> None:
        for layout, beats in headers:
            while not ctx.get(dut.room):
                await ctx.tick()
            ctx.set(dut.reserve_beats, len(beats))
            ctx.set(dut.reserve, 1)
            await ctx.tick()
            ctx.set(dut.reserve, 0)
            for n, beat in enumerate(beats):
                payload = {
                    "data": beat, "last": n == len(beats) - 1, "beats": len(beats),
                    "format": int(layout.format), "tags": layout.tags,
                }  # fmt: skip
                ctx.set(dut.beat, payload)
                ctx.set(dut.valid, 1)
                await ctx.tick()
                ctx.set(dut.valid, 0)

    ended = []

    def side(value: bool, seed: int) -> Any:
        name, wait = ("v" if value else "k"), random.Random(seed)
        look, there = getattr(dut, f"{name}_look"), getattr(dut, f"{name}_there")
        found = getattr(dut, f"{name}_group")

        async def read(ctx: Any) -> None:
            for layout, chunk in chunks:
                scales = stored.read_scales(layout, chunk, value=value)
                assert scales is not None
                for tile, token in itertools.product(range(layout.tiles), range(config.lanes)):
                    while not ctx.get(there) or wait.random() < stall:
                        await ctx.tick()
                    last = (tile + 1, token + 1) == (layout.tiles, config.lanes)
                    ctx.set(look.token, token)
                    ctx.set(look.tile, tile)
                    ctx.set(look.format, int(layout.format))
                    ctx.set(look.last, last)
                    ctx.set(look.valid, 1)
                    await ctx.tick()
                    ctx.set(look.valid, 0)
                    first = tile * config.lanes // 32
                    for n in range(groups):
                        got = ctx.get(found) >> 8 * n & 0xFF
                        assert got == scales[token, first + n], (layout, tile, token)
            ended.append(value)

        return read

    run(
        dut,
        feed,
        side(False, seed),
        side(True, seed + 1),
        lambda ctx: sink(ctx, dut.scale, lambda value: None),
        until=lambda: len(ended) == 2,
        limit=100000,
    )
