"""Score, soft cap, bias, exp2 and the V scale against the scalar reference."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m890.hdl.numerics.formats import Format
from m890.sim.golden import score
from m890.testbench.sim.golden import reference as ref
from m890.testbench.sim.golden.compare import codes, fields, to_elements, value, wides

SCORES = wides(-380, 380)
BF16 = codes(Format.BF16)


def one(x: ref.Wide) -> np.ndarray:
    return np.array([np.nan if x is None else float(x)])


@given(SCORES, BF16)
def test_scale(s: ref.Wide, code: int) -> None:
    assert value(score.scale(one(s), np.array([code], np.uint16))) == [ref.scale(s, code)]


@given(wides(-30, 30), st.floats(2**-20, 2**20, width=32), st.sampled_from([1.0, -1.0]))
def test_soft_cap(s: ref.Wide, cap: float, sign: float) -> None:
    c = np.float32(cap * sign)
    inverse = np.float32(1) / c
    got = score.soft_cap(one(s), float(c), float(inverse))
    assert value(got) == [ref.soft_cap(s, Fraction(float(c)), Fraction(float(inverse)))]


def test_soft_cap_is_close_to_tanh(rng: np.random.Generator) -> None:
    s = rng.uniform(-300, 300, 20000).astype(np.float32).astype(np.float64)
    error = score.soft_cap(s, 50.0, float(np.float32(1 / 50))) - 50 * np.tanh(s / 50)
    assert np.abs(error).max() < 50 * 2**-17.8
    np.testing.assert_array_equal(score.soft_cap(np.zeros(3), 50.0, 0.02), 0)


@pytest.mark.parametrize("cap", [0.0, 1e-40, np.inf, np.nan])
def test_a_cap_that_is_no_normal_number_is_off(cap: float) -> None:
    np.testing.assert_array_equal(score.soft_cap(np.array([3.0, -7.5]), cap, 1.0), [3.0, -7.5])


@given(SCORES, st.sampled_from([Format.BF16, Format.FP16]), st.data())
def test_bias(s: ref.Wide, format: Format, data: st.DataObject) -> None:
    code = data.draw(codes(format))
    got, masked = score.add_bias(one(s), np.array([code], np.uint16), format)
    bias = ref.decode_float(code, format)
    assert masked[0] == (bias == -math.inf)
    if not masked[0]:
        assert value(got) == [None if isinstance(bias, float) else ref.add(s, Fraction(bias))]


EDGES = [
    3840,
    -3840,
    3839.9999,
    -3840.0001,
    3840.0001,
    0.0,
    1 - 2**-16,
    1 - 2**-17,
    -(2**-30),
    2**-40,
]


@given(st.one_of(wides(-40, 14), st.sampled_from(EDGES).map(lambda x: Fraction(x))))
def test_exp2(s: ref.Wide) -> None:
    s = ref.wide(s)
    power = score.exp2(one(s))
    p, event = ref.exp2(s)
    assert fields(power.p) == [p]
    for name in ("overflow", "underflow", "invalid"):
        assert bool(getattr(power, name)[0]) == (event == name)


def test_exp2_of_every_fraction() -> None:
    """All 65,536 fractions; the error bound is half a unit of 11 bits and the table's 2^-15."""
    s = np.arange(1 << 16) / 65536 - 7
    p = score.exp2(s).p
    expected = [ref.exp2(Fraction(float(x)))[0] for x in s]
    assert fields(p) == expected
    exact = np.exp2(s)
    got = np.ldexp(p.sig.astype(np.float64), p.exp)
    assert np.abs(got / exact - 1).max() < 2**-11 + 2**-15


@st.composite
def powers(draw: st.DrawFn) -> ref.Element:
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return ref.Element(0, 0, 0, False)
    if kind == 1:
        return ref.Element(0, 1024, 0, True)
    return ref.Element(0, draw(st.integers(1024, 2047)), draw(st.integers(-3840, 3840)), False)


@given(powers(), BF16)
def test_scale_of_p(p: ref.Element, code: int) -> None:
    got = score.scale_p(to_elements([p]), np.array([code], np.uint16))
    assert fields(got) == [ref.scale_p(p, code)]


def test_scale_of_p_broadcasts_and_keeps_masked_tokens_at_zero() -> None:
    p = to_elements([ref.Element(0, s, 3, False) for s in (1024, 0, 1536, 0)]).reshaped((2, 2))
    got = score.scale_p(p, np.array([[0x3F80, 0x7FC0]], np.uint16))  # 1, NaN
    assert got.nan is None
    np.testing.assert_array_equal(got.sig, p.sig)


def test_a_masked_nan_disappears() -> None:
    power = score.exp2(np.array([np.nan, 1.0]))
    p = score.mask(power.p, np.array([False, True]))
    assert p.nan is None
    np.testing.assert_array_equal(p.sig, [0, 1])
