"""Integrity tags against long division, and what they see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m890.hdl.config import PRESETS
from m890.hdl.layout import TAG_POLYNOMIAL, TAG_START, PageLayout
from m890.hdl.numerics.formats import Format
from m890.sim.golden import tag

LONGEST = max(2 * config.max_head + config.max_head // 16 for config in PRESETS.values())
"""Bytes of a row and more than its scales."""


def divide(message: bytes) -> int:
    """Remainder of the message's polynomial, start added to its first bits, times x^16."""
    number = int.from_bytes(message, "big") << 16
    number ^= TAG_START << 8 * len(message)
    divisor = 1 << 16 | TAG_POLYNOMIAL
    while number.bit_length() > 16:
        number ^= divisor << number.bit_length() - 17
    return number


def tag_of(codes: bytes, scales: bytes = b"") -> int:
    return int(tag(np.frombuffer(codes, np.uint8), np.frombuffer(scales, np.uint8)))


@given(st.binary(max_size=LONGEST), st.binary(max_size=8))
def test_is_the_remainder(codes: bytes, scales: bytes) -> None:
    """Codes come before scales."""
    assert tag_of(codes, scales) == divide(codes + scales)


def test_check_value() -> None:
    """The value that catalogues of CRCs give for this one (CRC-16/IBM-3740)."""
    assert tag_of(b"123456789") == 0x29B1


def test_rows_at_once(rng: np.random.Generator) -> None:
    rows, scales = rng.integers(0, 256, (3, 5, 32), np.uint8), rng.integers(0, 256, (3, 5, 2))
    got = tag(rows, scales.astype(np.uint8))
    for index in np.ndindex(3, 5):
        assert got[index] == divide(rows[index].tobytes() + bytes(scales[index].tolist()))


@pytest.mark.parametrize("format", Format)
def test_every_flip_of_one_bit(rng: np.random.Generator, format: Format) -> None:
    """Of a row of the largest head, its scales and its tag."""
    config = PRESETS["m890"]
    layout = PageLayout(config, format, config.max_tiles, tags=True)
    row = rng.integers(0, 256, config.max_head * layout.coding.bits // 8, np.uint8)
    half = rng.integers(0, 256, layout.half_bytes - 2, np.uint8)
    stored = np.concatenate([row, half])
    flips = np.packbits(np.eye(8 * len(stored), dtype=bool), -1)
    changed = stored ^ flips
    tags = tag(changed[:, : len(row)], changed[:, len(row) :])
    assert (tags != tag(row, half)).all()
    assert len(np.unique(tags)) == len(tags)  # so two flips of them are seen too
    bits = [np.uint16(1 << n) for n in range(16)]
    assert not np.isin(tags ^ tag(row, half), bits).any()  # and one with one of the tag


def test_three_flips_change_the_parity() -> None:
    """x + 1 divides the polynomial: an odd number of flips never cancels out."""
    assert (1 << 16 | TAG_POLYNOMIAL).bit_count() % 2 == 0


def test_cleared_rows_are_bad() -> None:
    for size in range(1, LONGEST + 1):
        assert tag_of(bytes(size)) != 0
