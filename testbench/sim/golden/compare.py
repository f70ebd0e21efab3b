"""Between arrays of the golden model and values of the scalar reference; shared strategies."""

import numpy as np
from hypothesis import strategies as st

from m890.hdl.numerics.formats import CODINGS, Format
from m890.sim.golden.elements import Elements
from m890.sim.golden.wide import Wide
from m890.testbench.sim.golden import reference as ref


def to_reference(w: Wide) -> list[ref.Wide]:
    """Every value of a wide array, flat."""
    return [
        None if nan else (-1) ** int(sign) * int(sig) * ref.power(int(exp) - 23)
        for sign, sig, exp, nan in zip(*(f.ravel() for f in w.fields()), strict=True)
    ]


def to_wide(values: list[ref.Wide]) -> Wide:
    """A wide array of exact values (each of at most 24 bits)."""
    sign, sig, exp, nan = [], [], [], []
    for x in values:
        e = ref.floor_log2(abs(x)) if x else 0
        sign.append(x is not None and x < 0)
        sig.append(int(abs(x or 0) / ref.power(e - 23)))
        exp.append(e)
        nan.append(x is None)
    return Wide.from_fields(np.array(sign), np.array(sig), np.array(exp), np.array(nan))


def to_elements(elements: list[ref.Element]) -> Elements:
    sign, sig, exp, nan = (np.array(c) for c in zip(*elements, strict=True))
    return Elements.from_fields(sign, sig, exp, nan)


def fields(elements: Elements) -> list[ref.Element]:
    """Every element, flat, zeros as the reference writes them after a mask: all fields 0."""
    out = []
    for sign, sig, exp, nan in zip(*(f.ravel() for f in elements.fields()), strict=True):
        element = ref.Element(int(sign), int(sig), int(exp), bool(nan))
        out.append(element if sig else ref.Element(0, 0, 0, False))
    return out


def value(x: Wide | np.ndarray) -> list[ref.Wide]:
    """Float64 scores as exact fractions."""
    assert isinstance(x, np.ndarray)
    return [None if np.isnan(v) else ref.Fraction(float(v)) for v in x.ravel()]


@st.composite
def wides(draw: st.DrawFn, low: int = -4000, high: int = 4000) -> ref.Wide:
    """A wide float: any exponent, often sparse significands (ties), zero and NaN now and then."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.sampled_from([None, ref.ZERO]))
    exp = draw(st.integers(low, high) if kind < 4 else st.integers(-30, 30))
    sig = 1 << 23 | draw(
        st.one_of(
            st.integers(0, (1 << 23) - 1),
            st.integers(0, 22).map(lambda b: 1 << b),
            st.sampled_from([0, (1 << 23) - 1, 1 << 22]),
        )
    )
    return draw(st.sampled_from([1, -1])) * sig * ref.power(exp - 23)


def codes(format: Format) -> st.SearchStrategy[int]:
    """Codes of a format, its edges more often."""
    top = (1 << CODINGS[format].bits) - 1
    edges = {0, 1, top, top >> 1, (top >> 1) + 1}
    if format is not Format.INT8:
        coding = CODINGS[format]
        infinity = ((1 << coding.exp_bits) - 1) << coding.man_bits
        edges |= {infinity, infinity - 1, infinity + 1, 1 << coding.man_bits}
        edges |= {(1 << coding.man_bits) - 1, coding.bias << coding.man_bits}
    return st.one_of(st.integers(0, top), st.sampled_from(sorted(edges)))
