"""Headers: scales of a chunk's tokens, with and without tags between them."""

import random
from typing import Any

import numpy as np
import pytest

from m890.firmware import stored
from m890.hdl.config import preset
from m890.hdl.kv.header import CHUNKS, HeaderReader
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.testbench.hdl.kv.support import run, sink


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize("stall", [0.0, 0.9])
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
