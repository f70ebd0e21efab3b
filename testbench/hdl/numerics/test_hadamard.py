"""Rotation of beats against the golden model."""

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from m890.hdl.config import preset
from m890.hdl.numerics.formats import CODINGS, Format
from m890.hdl.numerics.hadamard import Rotate, RotateBeats
from m890.hdl.numerics.rotation import kv_shift, query_shift
from m890.sim.golden import rotate
from m890.testbench.hdl.numerics import numbers
from m890.testbench.hdl.numerics.pipelines import run_pipeline

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


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("lanes", [8, 16, 64])
def test_rotate(rng: np.random.Generator, source: Format, lanes: int) -> None:
    blocks = _blocks(rng, source, 400, lanes)
    for shift, golden in (
        (kv_shift(lanes), rotate.rotate_kv),
        (query_shift(lanes), rotate.rotate_query),
    ):
        dut = Rotate(lanes, shift)
        got = run_pipeline(
            dut,
            {
                "i": [sum(int(x) << 16 * n for n, x in enumerate(block)) for block in blocks],
                "is_fp16": [int(source == Format.FP16)] * len(blocks),
            },
            ["o"],
            dut.latency,
        )["o"]
        want = golden(blocks, source, lanes)
        for block, word, codes in zip(blocks, got, want, strict=True):
            found = [word >> 16 * n & 0xFFFF for n in range(lanes)]
            assert found == codes.tolist(), f"{block}"


def test_formats_may_alternate(rng: np.random.Generator) -> None:
    """The format travels with its beat."""
    lanes = 8
    sources = [SOURCES[int(rng.integers(2))] for _ in range(200)]
    blocks = [_blocks(rng, s, 3, lanes)[2] for s in sources]
    dut = Rotate(lanes, kv_shift(lanes))
    got = run_pipeline(
        dut,
        {
            "i": [sum(int(x) << 16 * n for n, x in enumerate(block)) for block in blocks],
            "is_fp16": [int(s == Format.FP16) for s in sources],
        },
        ["o"],
        dut.latency,
    )["o"]
    for block, source, word in zip(blocks, sources, got, strict=True):
        want = rotate.rotate_kv(block, source, lanes)
        assert [word >> 16 * n & 0xFFFF for n in range(lanes)] == want.tolist()


@pytest.mark.parametrize("built", [True, False])
def test_beats_with_and_without_rotation(rng: np.random.Generator, built: bool) -> None:
    """Bursts with gaps, each rotated or not; the next begins as soon as the last one is out.

    A core without the units passes everything.
    """
    config = preset("tiny").with_(rotation=built)
    lanes = config.lanes
    dut = RotateBeats(config, query_shift(lanes))
    bursts, want = [], []
    for _ in range(40):
        enable = int(rng.integers(2))
        blocks = _blocks(rng, Format.FP16, int(rng.integers(3, 9)), lanes)
        flags = rng.integers(0, 2, (len(blocks), 2)).tolist()
        turned = rotate.rotate_query(blocks, Format.FP16, lanes) if enable and built else blocks
        bursts.append((enable, blocks, flags))
        want += [(_word(b), *f) for b, f in zip(turned, flags, strict=True)]
    got: list[tuple[int, int, int]] = []

    async def feed(ctx: Any) -> None:
        ctx.set(dut.is_fp16, 1)
        sent = 0
        for enable, blocks, flags in bursts:
            ctx.set(dut.enable, enable)
            for block, (last, error) in zip(blocks, flags, strict=True):
                while rng.random() < 0.3:
                    ctx.set(dut.data_valid, 0)
                    await ctx.tick()
                ctx.set(dut.data_valid, 1)
                ctx.set(dut.data, _word(block))
                ctx.set(dut.last, last)
                ctx.set(dut.error, error)
                await ctx.tick()
            ctx.set(dut.data_valid, 0)
            sent += len(blocks)
            while len(got) < sent:
                await ctx.tick()

    async def watch(ctx: Any) -> None:
        while True:
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
    simulator.add_testbench(feed)
    simulator.add_testbench(watch, background=True)
    simulator.run_until(5000e-6)
    assert got == want


def _word(block: np.ndarray) -> int:
    return int.from_bytes(block.astype("<u2").tobytes(), "little")
