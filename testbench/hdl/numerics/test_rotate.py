"""Rotation of beats against the golden model."""

import math
from collections import deque
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal, Value
from amaranth.sim import Simulator

from m890.hdl.config import preset
from m890.hdl.numerics.formats import CODINGS, Format
from m890.hdl.numerics.rotate import BUFFERED, Rotate, RotateBeats
from m890.hdl.numerics.rotation import kv_shift, query_shift
from m890.sim.golden import rotate
from m890.testbench.hdl.numerics import numbers

SOURCES = [Format.BF16, Format.FP16]


def _blocks(rng: np.random.Generator, source: Format, count: int, lanes: int) -> np.ndarray:
    """Blocks of any codes, of close and of distant exponents, zeros, equal values, Inf and NaN."""
    man, field = CODINGS[source].man_bits, (1 << CODINGS[source].exp_bits) - 1
    blocks = np.zeros((count, lanes), np.uint16)
    for block in blocks:
        kind = int(rng.integers(8))
        if kind == 0:
            block[:] = [numbers.raw16(rng, source) for _ in range(lanes)]
            continue
        top = int(rng.choice(np.array([int(rng.integers(field)), field - 1, 3])))
        fields = np.clip(top - rng.integers(0, 1 + 4 * kind, lanes), 0, field - 1)
        mantissas = rng.integers(1 << man, size=lanes)
        if kind == 1:  # sums that cancel, or are beyond the range
            mantissas[:] = mantissas[0]
        block[:] = rng.integers(2, size=lanes) << 15 | fields << man | mantissas
        block[rng.random(lanes) < 0.2] &= 0x8000
        if rng.integers(8) == 0:
            block[int(rng.integers(lanes))] = field << man | int(rng.integers(1 << man))
    blocks[0], blocks[1] = 0, 0x8000
    return blocks


def _turned(
    dut: Rotate,
    rng: np.random.Generator,
    blocks: list[np.ndarray],
    sources: list[Format],
    gap: float,
) -> list[list[int]]:
    """The blocks that come out; words of a block follow each other, blocks come with gaps.

    Every word takes `latency` cycles.
    """
    width = len(Value.cast(dut.i)) // 16
    sent: list[int] = []
    out: list[int] = []
    got: list[int] = []

    async def feed(ctx: Any) -> None:
        cycle = 0
        for block, source in zip(blocks, sources, strict=True):
            while rng.random() < gap:
                ctx.set(dut.valid, 0)
                ctx.set(dut.i.as_value(), int(rng.integers(1 << 16)))
                await ctx.tick()
                cycle += 1
            ctx.set(dut.valid, 1)
            ctx.set(dut.is_fp16, source == Format.FP16)
            for at in range(0, len(block), width):
                ctx.set(dut.i.as_value(), _word(block[at : at + width]))
                sent.append(cycle)
                await ctx.tick()
                cycle += 1
        ctx.set(dut.valid, 0)
        await ctx.tick().repeat(dut.latency + 1)

    async def watch(ctx: Any) -> None:
        cycle = 0
        while True:
            if ctx.get(dut.o_valid):
                word = ctx.get(dut.o.as_value())
                got.extend(word >> 16 * n & 0xFFFF for n in range(width))
                out.append(cycle)
            await ctx.tick()
            cycle += 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(feed)
    simulator.add_testbench(watch, background=True)
    simulator.run()
    assert out == [cycle + dut.latency for cycle in sent]
    lanes = width * dut.words
    return [got[n : n + lanes] for n in range(0, len(got), lanes)]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("lanes", "width"), [(8, 1), (8, 4), (16, 2), (64, 16)])
def test_rotate(rng: np.random.Generator, source: Format, lanes: int, width: int) -> None:
    blocks = _blocks(rng, source, 300, lanes)
    for shift, golden in (
        (kv_shift(lanes), rotate.rotate_kv),
        (query_shift(lanes), rotate.rotate_query),
    ):
        dut = Rotate(lanes, width, shift)
        got = _turned(dut, rng, list(blocks), [source] * len(blocks), 0.2)
        for block, found, codes in zip(blocks, got, golden(blocks, source, lanes), strict=True):
            assert found == codes.tolist(), f"{block}"


def test_formats_may_alternate(rng: np.random.Generator) -> None:
    """The format travels with its block."""
    lanes = 8
    sources = [SOURCES[int(rng.integers(2))] for _ in range(200)]
    blocks = [_blocks(rng, s, 3, lanes)[2] for s in sources]
    got = _turned(Rotate(lanes, 2, kv_shift(lanes)), rng, blocks, sources, 0.2)
    for block, source, found in zip(blocks, sources, got, strict=True):
        assert found == rotate.rotate_kv(block, source, lanes).tolist()


def test_latency_is_that_of_the_docstring() -> None:
    for lanes, width in ((8, 1), (16, 2), (64, 16)):
        words, levels = lanes // width, math.ceil(math.log2(width) / 2)
        want = 11 + 2 * levels + 2 * (words - 1) + int(math.log2(words))
        assert Rotate(lanes, width, 0).latency == want


@pytest.mark.parametrize("built", [True, False])
def test_beats_with_and_without_rotation(rng: np.random.Generator, built: bool) -> None:
    """Rows, rotated or not, asked for as far ahead as there is room, beats with gaps.

    `enable` changes as soon as the last row is out. A core without the units passes everything.
    """
    config = preset("tiny").with_(rotation=built)
    lanes, rows = config.lanes, BUFFERED // config.max_tiles
    dut = RotateBeats(config, query_shift(lanes))
    jobs, want = [], []
    for _ in range(24):
        enable, tiles = int(rng.integers(2)), int(rng.integers(1, config.max_tiles + 1))
        blocks = _blocks(rng, Format.FP16, tiles * int(rng.integers(3, 2 * rows)), lanes)
        errors = rng.integers(0, 2, len(blocks)).tolist()
        turned = rotate.rotate_query(blocks, Format.FP16, lanes) if enable and built else blocks
        jobs.append((enable, tiles, blocks, errors))
        want += [(_word(b), int(n % tiles == tiles - 1), errors[n]) for n, b in enumerate(turned)]
    got: list[tuple[int, int, int]] = []
    asked: deque[int] = deque()  # tiles of rows that are asked for and have not come
    most = 0

    async def ask(ctx: Any) -> None:
        """Holds `ask` back at random, as a port does."""
        nonlocal most
        out = 0
        ctx.set(dut.is_fp16, 1)
        for enable, tiles, blocks, _ in jobs:
            ctx.set(dut.enable, enable)
            begins = out
            for row in range(len(blocks) // tiles):
                while rng.random() < 0.2 or not ctx.get(dut.may_ask):
                    await ctx.tick()
                ctx.set(dut.ask, 1)
                await ctx.tick()
                ctx.set(dut.ask, 0)
                asked.append(tiles)
                if enable:
                    most = max(most, row + 1 - (len(got) - begins) // tiles)
            out += len(blocks)
            while len(got) < out:
                await ctx.tick()

    async def feed(ctx: Any) -> None:
        for _, _, blocks, errors in jobs:
            for n, (block, error) in enumerate(zip(blocks, errors, strict=True)):
                while not asked or rng.random() < 0.1:
                    ctx.set(dut.data_valid, 0)
                    await ctx.tick()
                ctx.set(dut.data_valid, 1)
                ctx.set(dut.data, _word(block))
                ctx.set(dut.last, n % asked[0] == asked[0] - 1)
                ctx.set(dut.error, error)
                if n % asked[0] == asked[0] - 1:
                    asked.popleft()
                await ctx.tick()
            ctx.set(dut.data_valid, 0)

    async def watch(ctx: Any) -> None:
        while len(got) < len(want):
            _, _, valid, *beat = await ctx.tick().sample(
                dut.o_valid, dut.o_data, dut.o_last, dut.o_error
            )
            if valid:
                got.append((beat[0], beat[1], beat[2]))

    top = Module()
    top.submodules.dut = dut
    top.d.sync += Signal().eq(1)  # a clock, also where the unit needs none
    simulator = Simulator(top)
    simulator.add_clock(1e-6)
    simulator.add_testbench(ask)
    simulator.add_testbench(feed)
    simulator.add_testbench(watch)
    simulator.run_until(50000e-6)
    assert got == want
    assert (most == rows) == built, "rows under way at once"


def _word(block: np.ndarray) -> int:
    return int.from_bytes(block.astype("<u2").tobytes(), "little")
