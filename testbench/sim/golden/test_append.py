"""Quantisation of appended rows against the scalar reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m890.hdl.numerics.formats import CODINGS, Format
from m890.sim.golden import append
from m890.sim.golden.elements import decode, decode_float
from m890.testbench.sim.golden import reference as ref
from m890.testbench.sim.golden.compare import codes

SOURCES = [Format.BF16, Format.FP16]


def check(format: Format, source: Format, row: list[int]) -> None:
    got, scale, flag = append(format, np.array(row, np.uint16), source)
    expected = ref.append(row, source, format)
    assert (got.tolist(), None if scale is None else int(scale), bool(flag)) == expected


@given(st.sampled_from(list(Format)), st.sampled_from(SOURCES), st.data())
def test_rows_of_any_codes(format: Format, source: Format, data: st.DataObject) -> None:
    check(format, source, data.draw(st.lists(codes(source), min_size=1, max_size=8)))


@given(st.sampled_from(list(Format)), st.sampled_from(SOURCES), st.integers(-30, 14), st.data())
def test_rows_of_like_values(format: Format, source: Format, exp: int, data: st.DataObject) -> None:
    """Values that reach all quantisation steps, ties included."""
    steps = data.draw(st.lists(st.integers(-255, 255), min_size=2, max_size=8))
    check(format, source, _bits(np.ldexp(np.array(steps) / 128, exp), source))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("format", [Format.BF16, Format.FP16])
def test_every_code_of_16_bit_formats(format: Format, source: Format) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    got, scale, _ = append(format, every[:, None], source)
    assert scale is None
    for code in range(0, 1 << 16, 37):
        assert [int(got[code, 0])] == ref.append([code], source, format)[0], hex(code)


@pytest.mark.parametrize("format", [Format.E4M3, Format.E5M2, Format.INT8])
def test_quantisation_error(format: Format, rng: np.random.Generator) -> None:
    """A row comes back within half a step, and its scale never clips it."""
    rows = (rng.standard_normal((500, 64)) * np.exp2(rng.integers(-12, 12, (500, 1)))).astype(
        np.float16
    )
    got, scale, flag = append(format, rows.view(np.uint16), Format.FP16)
    assert scale is not None and not flag.any()
    element = decode(got, format)
    value = np.ldexp(element.sig.astype(np.float64), np.maximum(element.exp, -100))
    step = decode_float(scale, Format.BF16)[:, None]
    x = rows.astype(np.float64)
    assert np.abs(value).max() <= (CODINGS[format].qmax or 0)
    if format is Format.INT8:
        tolerance = (0.5 + 127 * 2**-16) * step
    else:
        man = CODINGS[format].man_bits
        tolerance = np.abs(x) * 2.0 ** -(man + 1) * 1.001 + step * 2.0 ** (
            -CODINGS[format].bias - man
        )
    assert (np.abs(value * step - x) <= tolerance).all()
    amax = np.abs(x).max(-1)
    qmax = CODINGS[format].qmax or 0
    assert (step[:, 0] * qmax >= amax).all()
    assert (step[:, 0] * qmax <= amax * (1 + 2**-6)).all()


def test_zeros_have_scale_one() -> None:
    got, scale, flag = append(Format.INT8, np.array([0, 0x8000, 0x7C00], np.uint16), Format.FP16)
    assert got.tolist() == [0, 0, 127]
    assert scale is not None and int(scale) == 0x3F80
    assert flag


def _bits(x: np.ndarray, source: Format) -> list[int]:
    if source is Format.FP16:
        return x.astype(np.float16).view(np.uint16).tolist()
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tolist()
