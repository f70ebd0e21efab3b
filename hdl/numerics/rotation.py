"""Constants of the Walsh-Hadamard rotation (data only, no Amaranth): signs, shifts, widths."""

ROTATE_FRACTION_BITS = 18
"""Fraction bits kept below the largest element of a block (elements have 10 of their own)."""
ROTATE_BACK_FRACTION_BITS = 27
"""The same for O, whose wide floats have 23 of their own."""


def signs(lanes: int) -> list[int]:
    """Bit i: feature i of a block is negated first.

    A quadratic sequence (bent where `lanes` is a power of four): it turns each Walsh function, the
    constant vector among them, into a vector whose transform is flat. So common offsets of keys
    are spread over the block as evenly as single outliers.
    """
    pairs = [(n, n + 1) for n in range(0, lanes.bit_length() - 1, 2)]
    return [sum((i >> a & 1) & (i >> b & 1) for a, b in pairs) & 1 for i in range(lanes)]


def kv_shift(lanes: int) -> int:
    """K and V are scaled by 2^-kv_shift: about 1 / sqrt(lanes), so that rows keep their size."""
    return lanes.bit_length() // 2


def query_shift(lanes: int) -> int:
    """Queries by the rest of 1 / lanes, so that scores are those of unrotated rows."""
    return lanes.bit_length() - 1 - kv_shift(lanes)
