"""Rotation of beats against the golden model."""

import numpy as np
import pytest

from m890.hdl.numerics.formats import CODINGS, Format
from m890.hdl.numerics.hadamard import Rotate
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
@pytest.mark.parametrize("lanes", [8, 16, 32])
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
