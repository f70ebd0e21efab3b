"""The end of a job against the scalar reference: sum of slots, division, raw states."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m890.hdl.numerics.formats import OutputFormat
from m890.sim.golden import output
from m890.testbench.sim.golden import reference as ref
from m890.testbench.sim.golden.compare import to_reference, to_wide, wides

FORMATS = [OutputFormat.BF16, OutputFormat.FP16, OutputFormat.FP32]


@given(st.lists(wides(), min_size=8, max_size=8))
def test_sum_of_slots(slots: list[ref.Wide]) -> None:
    assert to_reference(output.sum_slots(to_wide(slots)[None])) == [ref.sum_slots(slots)]


@given(wides(), st.lists(wides(), min_size=1, max_size=8), st.sampled_from(FORMATS), st.data())
def test_normalise(
    total: ref.Wide, o: list[ref.Wide], format: OutputFormat, d: st.DataObject
) -> None:
    total = abs(total) if total else total
    if d.draw(st.booleans()) and total:  # near each other, as in real jobs
        o = [x if not x else total * x for x in o]
    o = [ref.wide(x) for x in o]
    got = output.normalise(to_wide([total]), to_wide(o)[None], format)
    assert got[0].tolist() == [ref.output(total, x, format.name) for x in o]


@given(st.integers(-160, 140), st.integers(1 << 23, (1 << 24) - 1), st.sampled_from(FORMATS))
def test_subnormal_and_infinite_outputs(exp: int, sig: int, format: OutputFormat) -> None:
    o = sig * ref.power(exp - 23)
    got = output.normalise(to_wide([ref.ONE]), to_wide([o, -o])[None], format)
    assert got[0].tolist() == [ref.output(ref.ONE, x, format.name) for x in (o, -o)]


def test_the_reciprocal_is_good_to_half_a_unit_of_17_bits() -> None:
    sig = np.arange(1 << 23, 1 << 24, 7)
    y1 = output.reciprocal(sig)
    assert np.abs(y1 * sig / 2.0**45 - 1).max() < 2**-17
    assert y1.max() <= 1 << 22


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_without_tokens_is_zero(format: OutputFormat) -> None:
    got = output.normalise(to_wide([ref.ZERO]), to_wide([None, ref.ZERO])[None], format)
    assert not got.any()


@given(wides(), st.lists(wides(), min_size=1, max_size=8))
def test_raw_state(total: ref.Wide, o: list[ref.Wide]) -> None:
    total = abs(total) if total else total
    exponent, l_value, values = output.raw(to_wide([total]), to_wide(o)[None])
    got = (int(exponent[0]), _bits(l_value)[0], _bits(values)[0])
    assert got == tuple(ref.raw(total, o))


@given(
    st.one_of(st.integers(-4200, 4200), st.sampled_from([2**31 - 1, -(2**31)])),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8),
)
def test_stored_values_read_back(exponent: int, bits: list[int]) -> None:
    value = np.array(bits, np.uint32).view(np.float32)
    wide, over, under = output.read_raw(np.full(len(bits), exponent, np.int32), value)
    expected = [ref.read_raw(exponent, b) for b in bits]
    assert to_reference(wide) == [x for x, _ in expected]
    assert over.tolist() == [event == "overflow" for _, event in expected]
    assert under.tolist() == [event == "underflow" for _, event in expected]


def _bits(x: np.ndarray) -> list:
    assert x.dtype == np.float32
    return x.view(np.uint32).tolist()
