"""Integrity tags on the read path: headers, rows, and the first fault of a job."""

import random
from binascii import crc_hqx
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Value

from m890.firmware import stored
from m890.hdl.config import preset
from m890.hdl.control.layouts import ENTRIES
from m890.hdl.kv.header import CHUNKS
from m890.hdl.kv.items import tile_beat_layout
from m890.hdl.kv.tags import FAULT, TagCheck, TagFaults, TagReader
from m890.hdl.layout import TAG_START, PageLayout
from m890.hdl.numerics.formats import Format
from m890.testbench.hdl.kv.bench import fields
from m890.testbench.hdl.kv.support import run, sink, source


def words(raw: np.ndarray, size: int) -> list[int]:
    return [int.from_bytes(beat.tobytes(), "little") for beat in raw.reshape(-1, size)]


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize("stall", [0.0, 0.9])
def test_headers(name: str, stall: float, seed: int) -> None:
    """Run forwards from what is offered, a half gives its tag; chunks without tags give nothing."""
    config, chance = preset(name), random.Random(seed)
    rng = np.random.default_rng(seed)
    dut = TagReader(config)
    headers, halves = [], {"k": [], "v": []}
    while len(headers) < 4 * CHUNKS:
        tiles = chance.randint(1, config.max_tiles)
        layout = PageLayout(config, chance.choice(list(Format)), tiles, chance.random() < 0.7)
        if not layout.header_beats:
            continue
        chunk = rng.integers(0, 256, layout.chunk_bytes, np.uint8)
        headers.append((layout, words(chunk[: layout.k_offset], config.port_bytes)))
        if layout.tags:
            for value, side in enumerate("kv"):
                half = stored.header(layout, chunk, value=bool(value))
                halves[side].append([row.tobytes() for row in half])
    got: dict[str, list[int]] = {"k": [], "v": []}
    waiting = 0

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

    run(
        dut,
        feed,
        *(
            lambda ctx, side=side: sink(ctx, getattr(dut, side), got[side].append, seed, stall)
            for side in "kv"
        ),
        until=lambda: all(len(got[side]) == len(halves[side]) for side in "kv"),
        limit=20000,
        after=10,
    )
    for side in "kv":
        for value, rows in zip(got[side], halves[side], strict=True):
            for lane, half in enumerate(rows):
                before = value >> 16 * lane & 0xFFFF
                assert crc_hqx(half[:-2], before) == int.from_bytes(half[-2:], "little")
    assert bool(waiting) == bool(stall)


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize("slow", ["", "i", "o", "chunk", "expected", "all"])
def test_rows(name: str, slow: str, seed: int) -> None:
    """Beats pass as they are; rows that are not what is expected are named, if they count."""
    config, chance = preset(name), random.Random(seed)
    lanes, rng = config.lanes, np.random.default_rng(seed)
    beats: list[dict[str, int]] = []
    chunks, expected, faults = [], [], []
    for number in range(20 if name == "tiny" else 8):
        tiles = chance.randint(1, config.max_tiles)
        layout = PageLayout(config, chance.choice(list(Format)), tiles, chance.random() < 0.7)
        rows = rng.integers(0, 256, (lanes, tiles * lanes * layout.coding.bits // 8), np.uint8)
        for tile in range(tiles):
            for row in rows:
                size = lanes * layout.coding.bits // 8
                part = chance.randrange(layout.coding.packed)
                port = rng.integers(0, 256, config.port_bytes, np.uint8)
                port[part * size : (part + 1) * size] = row[tile * size : (tile + 1) * size]
                beats.append(
                    {
                        "data": words(port, config.port_bytes)[0], "part": part,
                        "format": int(layout.format), "tags": layout.tags,
                    }
                )  # fmt: skip
        if not layout.tags:
            continue
        base = lanes * chance.randrange(1000)
        start = chance.choice([0, base, base + chance.randrange(lanes)])
        end = chance.choice([base + lanes, base + 10 * lanes, base + chance.randint(1, lanes)])
        chunk = {
            "ident": number % ENTRIES, "sequence": chance.randrange(1 << 16), "base_token": base,
            "start": start, "end": end, "tiles": tiles,
        }  # fmt: skip
        chunks.append(chunk)
        tags = [crc_hqx(row.tobytes(), TAG_START) for row in rows]
        for lane in range(lanes):
            if chance.random() < 0.4:
                tags[lane] ^= 1 << chance.randrange(16)
                if start <= base + lane < end:
                    faults.append((chunk["ident"], chunk["sequence"], base + lane))
        expected.append(tags)
    dut = TagCheck(config)
    passed: list[int] = []
    found: list[tuple[int, int, int]] = []

    async def watch(ctx: Any) -> None:
        while True:
            _, _, value = await ctx.tick().sample(Value.cast(dut.fault))
            fault = fields(FAULT, value)
            if fault["valid"]:
                word = fault["name"]
                found.append((fault["ident"], word & 0xFFFF, word >> 16))

    def stall(stream: str) -> float:
        return 0.7 if slow in (stream, "all") else 0.0

    run(
        dut,
        watch,
        lambda ctx: source(ctx, dut.i, beats, seed, stall("i")),
        lambda ctx: source(ctx, dut.chunk, chunks, seed + 1, stall("chunk")),
        lambda ctx: source(ctx, dut.expected, expected, seed + 2, stall("expected")),
        lambda ctx: sink(ctx, dut.o, passed.append, seed, stall("o")),
        until=lambda: len(passed) == len(beats),
        limit=50000,
        after=TagCheck.latency,
    )
    assert [fields(tile_beat_layout(config), value) for value in passed] == beats
    assert found == faults


def test_first_fault_of_a_job(seed: int) -> None:
    """K's first, else V's first; forgotten when the next job of that number begins."""
    chance, dut = random.Random(seed), TagFaults()
    first: dict[str, dict[int, tuple[int, int]]] = defaultdict(dict)

    async def drive(ctx: Any) -> None:
        for _ in range(2000):
            ctx.set(dut.clear, 0)
            for side in "kv":
                ident = chance.randrange(ENTRIES)
                name = (chance.randrange(99), chance.randrange(99))
                valid = chance.random() < 0.2
                ctx.set(
                    getattr(dut, side),
                    {
                        "valid": valid, "ident": ident,
                        "name": {"sequence": name[0], "token": name[1]},
                    },
                )  # fmt: skip
                if valid:
                    first[side].setdefault(ident, name)
            await ctx.tick()
            for side in "kv":
                ctx.set(getattr(dut, side).valid, 0)
            ident = chance.randrange(ENTRIES)
            ctx.set(dut.ident, ident)
            if chance.random() < 0.3:
                cleared = chance.randrange(ENTRIES)
                ctx.set(dut.clear, 1)
                ctx.set(dut.clear_ident, cleared)
                await ctx.tick()
                ctx.set(dut.clear, 0)
                for side in "kv":
                    first[side].pop(cleared, None)
            wanted = first["k"].get(ident) or first["v"].get(ident)
            assert ctx.get(dut.bad) == (wanted is not None)
            await ctx.tick()
            if wanted:
                assert (ctx.get(dut.name.sequence), ctx.get(dut.name.token)) == wanted
        finished.append(True)

    finished: list[bool] = []
    run(dut, drive, until=lambda: bool(finished), limit=20000)
