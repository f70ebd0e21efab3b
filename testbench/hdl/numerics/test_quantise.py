"""Scales and codes of appended rows against the golden model."""

import numpy as np
import pytest

from m890.hdl.numerics.formats import CODINGS, Format
from m890.hdl.numerics.quantise import SCALE_ONE, Quantise, RowScale
from m890.sim.golden.append import append
from m890.testbench.hdl.numerics import numbers
from m890.testbench.hdl.numerics.pipelines import run_pipeline

SOURCES = [Format.BF16, Format.FP16]


def _rows(rng: np.random.Generator, source: Format, count: int, width: int) -> np.ndarray:
    """Rows of every magnitude: random bits, a narrow range of exponents, zeros, Inf and NaN."""
    man, field = CODINGS[source].man_bits, (1 << CODINGS[source].exp_bits) - 1
    rows = np.zeros((count, width), np.uint16)
    for row in rows:
        if rng.integers(8) == 0:
            row[:] = [numbers.raw16(rng, source) for _ in range(width)]
            continue
        top = int(rng.integers(field))
        fields = np.clip(top - rng.integers(0, 12, width), 0, field - 1)
        row[:] = (
            rng.integers(2, size=width) << 15 | fields << man | rng.integers(1 << man, size=width)
        )
        row[rng.random(width) < 0.1] &= 0x8000
        if rng.integers(4) == 0:
            row[int(rng.integers(width))] = int(rng.choice([field, field << 1 | 1])) << man | int(
                rng.integers(1 << man)
            )
    rows[0] = 0
    return rows


def _magnitudes(rows: np.ndarray, source: Format) -> np.ndarray:
    infinity = ((1 << CODINGS[source].exp_bits) - 1) << CODINGS[source].man_bits
    magnitude = rows & 0x7FFF
    return np.where(magnitude >= infinity, 0, magnitude).max(-1)


def _bf16_scales(scales: np.ndarray | None, count: int) -> np.ndarray:
    """Scales of rows of at most one group, as RowScale gives them."""
    if scales is None:
        return np.full(count, SCALE_ONE)
    return scales[:, 0].astype(np.int64) << 7 if scales.ndim == 2 else scales


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("format", Format)
def test_scale(rng: np.random.Generator, format: Format, source: Format) -> None:
    rows = _rows(rng, source, 1200, 3)
    dut = RowScale()
    got = run_pipeline(
        dut,
        {
            "amax": [int(x) for x in _magnitudes(rows, source)],
            "is_fp16": [int(source == Format.FP16)] * len(rows),
            "format": [format] * len(rows),
        },
        ["scale"],
        dut.latency,
    )["scale"]
    assert got == [int(x) for x in _bf16_scales(append(format, rows, source)[1], len(rows))]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("format", Format)
def test_codes(rng: np.random.Generator, format: Format, source: Format) -> None:
    lanes = 8
    rows = _rows(rng, source, 400, lanes)
    codes, scales, events = append(format, rows, source)
    scales = _bf16_scales(scales, len(rows))
    dut = Quantise(lanes)
    got = run_pipeline(
        dut,
        {
            "raw": [sum(int(x) << 16 * n for n, x in enumerate(row)) for row in rows],
            "is_fp16": [int(source == Format.FP16)] * len(rows),
            "scale": [int(x) for x in scales],
            "format": [format] * len(rows),
        },
        ["codes", "event"],
        dut.latency,
    )
    for n, row in enumerate(rows):
        word = [got["codes"][n] >> 16 * i & 0xFFFF for i in range(lanes)]
        assert word == [int(x) for x in codes[n]], f"{row} scale {scales[n]:#x}"
        assert got["event"][n] == events[n], f"{row}"
