"""The rotation against the scalar reference, and what it is good for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m890.hdl.numerics import rotation
from m890.hdl.numerics.formats import Format
from m890.sim.golden import rotate
from m890.sim.golden.elements import decode_float
from m890.sim.golden.wide import rounded
from m890.testbench.sim.golden import reference as ref
from m890.testbench.sim.golden import reference_rotate
from m890.testbench.sim.golden.compare import codes, to_reference, to_wide, wides

LANES = [8, 16, 32, 64]
SOURCES = [Format.BF16, Format.FP16]


def check(row: list[int], format: Format, lanes: int) -> None:
    bits = np.array(row, np.uint16)
    assert rotate.rotate_kv(bits, format, lanes).tolist() == reference_rotate.kv(row, format, lanes)
    got = rotate.rotate_query(bits, format, lanes).tolist()
    assert got == reference_rotate.query(row, format, lanes)


@given(st.sampled_from(SOURCES), st.sampled_from([8, 16]), st.data())
def test_blocks_of_any_codes(format: Format, lanes: int, data: st.DataObject) -> None:
    check(data.draw(st.lists(codes(format), min_size=lanes, max_size=lanes)), format, lanes)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("format", SOURCES)
def test_rows_of_finite_codes(format: Format, lanes: int, rng: np.random.Generator) -> None:
    """Exponents far apart and close together, subnormals, zeros, sums beyond the range."""
    top = {Format.FP16: 0x7C00, Format.BF16: 0x7F80}[format]
    for width in (top, top // 4, top // 16, 64):
        low = rng.integers(0, top - width + 1)
        row = low + rng.integers(0, width, 2 * lanes) + 0x8000 * rng.integers(0, 2, 2 * lanes)
        row = np.where(rng.random(2 * lanes) < 0.2, 0, row)
        check(row.tolist(), format, lanes)


@given(st.lists(wides(), min_size=8, max_size=8))
def test_back(o: list[ref.Wide]) -> None:
    o = [ref.wide(x) for x in o]
    got = to_reference(rotate.rotate_back(to_wide(o), 8))
    assert got == reference_rotate.back(o, 8)


@pytest.mark.parametrize("lanes", LANES)
def test_back_of_close_values(lanes: int, rng: np.random.Generator) -> None:
    o = []
    for _ in range(2 * lanes):
        exp = int(rng.integers(-30, 30))
        o.append(int(rng.integers(1 << 23, 1 << 24)) * ref.power(exp - 23) * (-1) ** (exp & 1))
    got = to_reference(rotate.rotate_back(to_wide(o), lanes))
    assert got == reference_rotate.back(o, lanes)


@pytest.mark.parametrize("lanes", LANES)
def test_there_and_back(lanes: int, rng: np.random.Generator) -> None:
    """V rotated, summed as it is and rotated back: the row, but for the rounding of its elements.

    Products of rotated queries and keys are those of the rows.
    """
    x, y = (rng.standard_normal((200, lanes)).astype(np.float16) for _ in range(2))
    turned = rotate.rotate_kv(x.view(np.uint16), Format.FP16, lanes)
    value = decode_float(turned, Format.FP16)
    back = rotate.rotate_back(rounded(value, 0), lanes).to_float64()
    size = np.abs(value).max(-1, keepdims=True) * 2.0 ** rotation.kv_shift(lanes)
    assert (np.abs(back - x) <= size * 2**-11).all()
    query = decode_float(rotate.rotate_query(y.view(np.uint16), Format.FP16, lanes), Format.FP16)
    exact = (x.astype(np.float64) * y).sum(-1)
    assert np.abs((value * query).sum(-1) - exact).max() < 2**-9 * lanes**0.5


@pytest.mark.parametrize("lanes", LANES)
def test_single_outliers_and_walsh_functions_come_out_flat(lanes: int) -> None:
    """All features of equal size, or of two sizes where `lanes` is no power of four."""
    walsh = [[reference_rotate.entry(i, j) for i in range(lanes)] for j in range(lanes)]
    rows = np.concatenate([np.eye(lanes), np.array(walsh)]).astype(np.float16)
    turned = rotate.rotate_kv(rows.view(np.uint16), Format.FP16, lanes)
    size = np.abs(decode_float(turned, Format.FP16))
    norm = np.sqrt((rows.astype(np.float64) ** 2).sum(-1) / lanes)
    unit = lanes**0.5 * 2.0 ** -rotation.kv_shift(lanes)
    limit = 1 if rotation.query_shift(lanes) == rotation.kv_shift(lanes) else 2**0.5
    assert (size.max(-1) <= limit * norm * unit * (1 + 2**-10)).all()


def test_signs_are_those_of_the_reference() -> None:
    for lanes in LANES:
        assert [(-1) ** s for s in rotation.signs(lanes)] == [
            reference_rotate.sign(i) for i in range(lanes)
        ]


def test_special_blocks() -> None:
    """Inf or NaN spoils its block and no other; zeros give +0."""
    row = np.zeros(24, np.uint16)
    row[3], row[8:16], row[20] = 0x7C00, 0x8000, 0xFE01
    got = rotate.rotate_kv(row, Format.FP16, 8)
    assert got.tolist() == [0x7E00] * 8 + [0] * 8 + [0x7E00] * 8
