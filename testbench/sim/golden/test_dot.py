"""Decode and the fused dot product against the scalar reference."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m890.hdl.numerics.formats import CODINGS, ELEMENT_FORMATS, Format
from m890.sim.golden.dot import beats, dot
from m890.sim.golden.elements import decode, decode_scale
from m890.testbench.sim.golden import reference as ref
from m890.testbench.sim.golden.compare import codes, fields, to_elements, to_reference

TYPES = {
    Format.BF16: ml_dtypes.bfloat16,
    Format.FP16: np.float16,
    Format.E4M3: ml_dtypes.float8_e4m3fn,
    Format.E5M2: ml_dtypes.float8_e5m2,
    Format.INT8: np.int8,
}


@pytest.mark.parametrize("format", ELEMENT_FORMATS)
def test_every_code_decodes_to_its_value(format: Format) -> None:
    every = np.arange(1 << CODINGS[format].bits, dtype=np.uint16)
    element = decode(every, format)
    expected = [ref.decode(int(c), format) for c in every]
    assert fields(element) == [e if e.sig else ref.Element(0, 0, 0, False) for e in expected]
    numbers = every.astype(np.uint8 if CODINGS[format].bits == 8 else np.uint16)
    with np.errstate(invalid="ignore"):  # signalling NaN become quiet ones
        value = numbers.view(TYPES[format]).astype(np.float64)
    ours = np.ldexp(element.sig.astype(np.float64), element.exp)
    nan = np.zeros(every.shape, bool) if element.nan is None else element.nan
    np.testing.assert_array_equal(nan, ~np.isfinite(value))
    np.testing.assert_array_equal(ours[~nan], value[~nan])


def test_a_scale_has_no_sign_and_no_subnormals() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    element = decode_scale(every)
    for code in [0, 1, 0x7F, 0x80, 0x3F80, 0xBF80, 0x7F7F, 0x7F80, 0x7FFF, 0xFF80, 0x80FF]:
        sign, sig, exp, nan = (int(f[code]) for f in element.fields())
        got = None if nan else (-1) ** sign * sig * ref.power(exp - 10)
        assert got == ref.decode_scale(code), hex(code)


@st.composite
def operands(draw: st.DrawFn) -> tuple[list[ref.Element], list[ref.Element]]:
    """A beat: stationary queries or p of any exponent, streamed elements of any format."""
    lanes = draw(st.sampled_from([8, 16, 64]))
    format = draw(st.sampled_from(ELEMENT_FORMATS))
    b = [
        ref.decode(c, format) for c in draw(st.lists(codes(format), min_size=lanes, max_size=lanes))
    ]
    if draw(st.booleans()):
        source = draw(st.sampled_from([Format.BF16, Format.FP16]))
        chosen = draw(st.lists(codes(source), min_size=lanes, max_size=lanes))
        return [ref.decode(c, source) for c in chosen], b
    spread = draw(st.sampled_from([3, 60, 3900]))
    centre = draw(st.integers(-3900 + spread, 3900 - spread))
    sig = st.one_of(st.integers(1024, 2047), st.just(0))
    exp = st.integers(centre - spread, centre + spread)
    p = st.builds(lambda s, e: ref.Element(0, s, e if s else 0, False), sig, exp)
    return draw(st.lists(p, min_size=lanes, max_size=lanes)), b


@given(operands())
def test_dot_product(pair: tuple[list[ref.Element], list[ref.Element]]) -> None:
    a, b = pair
    assert to_reference(dot(to_elements(a), to_elements(b))) == [ref.dot(a, b)]


@pytest.mark.parametrize("query", [Format.BF16, Format.FP16])
@pytest.mark.parametrize("format", ELEMENT_FORMATS)
def test_dot_product_of_uniform_codes(
    query: Format, format: Format, rng: np.random.Generator
) -> None:
    """Every exponent meets every other; NaN in one beat of ten."""
    a = rng.integers(0, 1 << 16, (200, 16)).astype(np.uint16)
    b = rng.integers(0, 1 << CODINGS[format].bits, (200, 16)).astype(np.uint16)
    got = to_reference(dot(decode(a, query), decode(b, format)))
    for i in range(200):
        x, y = ([ref.decode(int(c), f) for c in row] for row, f in ((a[i], query), (b[i], format)))
        assert got[i] == ref.dot(x, y)


def test_zero_times_nan_is_zero_and_shifts_nothing() -> None:
    a = np.array([0, 0x3C00, 0x7C00, 0x3C00], np.uint16)  # 0, 1, Inf, 1 in FP16
    b = np.array([0x7E00, 0x0001, 0x8000, 0x0001], np.uint16)  # NaN, least, -0, least
    assert to_reference(dot(decode(a, Format.FP16), decode(b, Format.FP16))) == [ref.power(-23)]


def test_one_far_operand_changes_no_other_result(rng: np.random.Generator) -> None:
    """The two float32 ways (moderate or wide exponents) agree."""
    a = rng.standard_normal((16, 64)).astype(np.float16).view(np.uint16)
    b = rng.standard_normal((16, 64)).astype(np.float16).view(np.uint16)
    x, y = decode(a, Format.FP16), decode(b, Format.FP16)
    near = beats(x, y, 0)
    x.exp[:, 63] += 200
    far = beats(x, y, 0)
    np.testing.assert_array_equal(near.total, far.total)
    np.testing.assert_array_equal(near.exp[:63], far.exp[:63])
    assert far.exp[63] == near.exp[63] + 200
