"""Wide floats against exact fractions: rounding, addition, folds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from m890.sim.golden.wide import SPAN, Wide, add, fold, round24, rounded
from m890.testbench.sim.golden import reference as ref
from m890.testbench.sim.golden.compare import to_reference, to_wide, wides

MANY = st.lists(st.tuples(wides(), wides()), min_size=1, max_size=16)


@given(st.lists(wides(), min_size=1, max_size=16))
def test_fields_keep_the_value(values: list[ref.Wide]) -> None:
    assert to_reference(to_wide(values)) == values


@given(MANY)
def test_addition_is_exact_then_rounded(pairs: list[tuple[ref.Wide, ref.Wide]]) -> None:
    a, b = (to_wide(list(side)) for side in zip(*pairs, strict=True))
    assert to_reference(add(a, b)) == [ref.add(x, y) for x, y in pairs]


@given(wides(-1000, 1000), st.integers(0, 80), st.integers(-3, 3), st.sampled_from([1, -1]))
def test_addition_near_ties(x: ref.Wide, distance: int, nudge: int, sign: int) -> None:
    """The second addend is close to half a unit of the first, and to its edges."""
    if not x:
        return
    half = ref.power(ref.floor_log2(abs(x)) - 24)
    y = ref.wide(sign * (half * ref.power(-distance) + nudge * half * ref.power(-23)))
    total = add(to_wide([x, x]), to_wide([y, -x]))
    assert to_reference(total) == [ref.add(x, y), ref.ZERO]
    assert not np.signbit(total.sig[1])


@given(st.lists(wides(), min_size=1, max_size=12), wides())
def test_a_fold_adds_in_order(terms: list[ref.Wide], start: ref.Wide) -> None:
    """Also beyond the span in which float32 sums are exact."""
    w = to_wide(terms)
    total = fold(to_wide([start]), w.sig[:, None], w.exp[:, None])
    expected = start
    for x in terms:
        expected = ref.add(expected, x)
    assert to_reference(total) == [expected]


@given(
    st.integers(-3000, 3000),
    st.lists(wides(-12, 12), min_size=1, max_size=12),
    st.integers(-90, 40),
)
def test_a_narrow_fold_is_exact_at_both_ends_of_its_span(
    offset: int, terms: list[ref.Wide], distance: int
) -> None:
    near = [ref.power(offset) * x if x else ref.ZERO for x in terms]
    far = [ref.power(-SPAN + distance) * x for x in near]
    gone = [y for x in near for y in (x, -x)]  # exactly zero again, so that far terms count
    mixed: list[ref.Wide] = [*near, *far, *(-x for x in near), *gone, *far]
    w = to_wide(mixed)
    total = fold(Wide.zeros((1,)), w.sig[:, None], w.exp[:, None])
    expected: ref.Wide = ref.ZERO
    for x in mixed:
        expected = ref.add(expected, x)
    assert to_reference(total) == [expected]


def test_a_fold_takes_terms_that_are_not_normalised() -> None:
    total = fold(Wide.zeros((1,)), np.array([[3 << 20], [-5]], np.float32), np.array([[100], [97]]))
    assert to_reference(total) == [ref.wide((3 << 20) * ref.power(100) - 5 * ref.power(97))]


@given(wides(-400, 400), wides(-400, 400))
def test_scores_round_to_24_bits(x: ref.Wide, y: ref.Wide) -> None:
    """Sums and products of two 24-bit values, through float64."""
    a, b = (np.array([np.nan if v is None else float(v)]) for v in (x, y))
    for got, exact in ((a + b, ref.add(x, y)), (a * b, _product(x, y))):
        result = round24(got)[0]
        assert (None if np.isnan(result) else ref.Fraction(float(result))) == exact


def _product(x: ref.Wide, y: ref.Wide) -> ref.Wide:
    return None if x is None or y is None else ref.wide(x * y)


@given(st.integers(-(2**52), 2**52), st.integers(-3900, 3900))
def test_rounding_of_any_float64(m: int, e: int) -> None:
    assert to_reference(rounded(np.array([float(m)]), e)) == [ref.wide(m * ref.power(e))]
