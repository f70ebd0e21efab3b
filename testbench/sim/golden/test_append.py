"""Quantisation of appended rows against the scalar reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m890.hdl.numerics.formats import CODINGS, GROUP, Format
from m890.sim.golden import append
from m890.sim.golden.elements import decode, decode_float, ungroup
from m890.testbench.sim.golden import reference as ref
from m890.testbench.sim.golden.compare import codes

SOURCES = [Format.BF16, Format.FP16]
GROUPED = [f for f in Format if CODINGS[f].grouped]


def check(format: Format, source: Format, row: list[int]) -> None:
    got, scale, flag = append(format, np.array(row, np.uint16), source)
    expected = ref.append(row, source, format)
    assert (got.tolist(), None if scale is None else scale.tolist(), bool(flag)) == expected


@given(st.sampled_from(list(Format)), st.sampled_from(SOURCES), st.data())
def test_rows_of_any_codes(format: Format, source: Format, data: st.DataObject) -> None:
    check(format, source, data.draw(st.lists(codes(source), min_size=1, max_size=8)))


@given(st.sampled_from(list(Format)), st.sampled_from(SOURCES), st.integers(-30, 14), st.data())
def test_rows_of_like_values(format: Format, source: Format, exp: int, data: st.DataObject) -> None:
    """Values that reach all quantisation steps, ties included."""
    steps = data.draw(st.lists(st.integers(-255, 255), min_size=2, max_size=8))
    check(format, source, _bits(np.ldexp(np.array(steps) / 128, exp), source))


@given(st.sampled_from(GROUPED), st.sampled_from(SOURCES), st.integers(1, 70), st.data())
def test_groups(format: Format, source: Format, width: int, data: st.DataObject) -> None:
    """Heads that are no multiple of 32, groups of very different size, some of zeros."""
    exps = data.draw(st.lists(st.integers(-20, 12), min_size=3, max_size=3))
    steps = data.draw(st.lists(st.integers(-63, 63), min_size=width, max_size=width))
    shift = np.repeat(exps, GROUP)[:width]
    shape = np.where(shift < -15, 0, np.array(steps)) / 32
    check(format, source, _bits(np.ldexp(shape, shift), source))


@pytest.mark.parametrize("format", GROUPED)
def test_group_error(format: Format, rng: np.random.Generator) -> None:
    """What is stored comes back exactly as codes times scale, at most half a step away."""
    rows = (rng.standard_normal((500, 96)) * np.exp2(rng.integers(-9, 9, (500, 1)))).astype(
        np.float16
    )
    got, scale, flag = append(format, rows.view(np.uint16), Format.FP16)
    assert scale is not None and scale.shape == (500, 3) and not flag.any()
    stored = decode_float(ungroup(got, scale, format), Format.BF16)
    unit = np.repeat(np.exp2(scale.astype(np.float64) - 127), GROUP, -1)
    x, qmax = rows.astype(np.float64), CODINGS[format].qmax or 0
    if format is Format.INT4:
        step = unit
    else:
        step = unit * np.exp2(np.clip(np.floor(np.log2(np.maximum(np.abs(x) / unit, 1))), 0, 2)) / 2
    clipped = np.abs(x) > qmax * unit
    assert (np.abs(stored - x)[~clipped] <= step[~clipped] / 2).all()
    assert (np.abs(stored)[clipped] == qmax * unit[clipped]).all()
    # The largest of a group is in the top octave of the codes.
    amax = np.abs(x).reshape(500, 3, GROUP).max(-1)
    assert (amax / unit[:, ::GROUP] >= 3.5).all() and (amax / unit[:, ::GROUP] < 8).all()


@pytest.mark.parametrize("format", GROUPED)
def test_every_code_and_scale(format: Format) -> None:
    code, scale = np.meshgrid(np.arange(16), np.arange(256))
    got = ungroup(code[..., None].astype(np.uint16), scale[..., None].astype(np.uint8), format)
    for c, s, bits in zip(code.flat, scale.flat, got.flat, strict=True):
        assert int(bits) == ref.ungroup(int(c), int(s), format), (c, s)


@pytest.mark.parametrize("format", GROUPED)
@pytest.mark.parametrize("source", SOURCES)
def test_append_writes_normal_numbers_only(format: Format, source: Format) -> None:
    """Any row of one element, from the least subnormal to the largest, is stored as a BF16."""
    every = np.arange(1 << 15, dtype=np.uint16)
    codes, scale, _ = append(format, every[:, None], source)
    bits = ungroup(codes, scale, format)[:, 0]  # type: ignore[arg-type]
    value = decode_float(bits, Format.BF16)
    assert np.isfinite(value).all()
    field = bits >> 7 & 0xFF
    assert ((field != 0) | (codes[:, 0] == 0)).all()


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
