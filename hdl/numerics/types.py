"""Amaranth shapes of internal numbers; meanings in `docs/numerics.md`."""

from amaranth.hdl import signed
from amaranth.lib import data

from m890.hdl.numerics.formats import ELEMENT_EXP_BITS, SIG_BITS, WIDE_EXP_BITS, WIDE_SIG_BITS


class Element(data.Struct):
    """A decoded query, key or value: (-1)^sign x sig x 2^(exp - 10).

    sig 0 is zero. `nan` marks Inf and NaN; then sig is nonzero.
    """

    sig: SIG_BITS
    exp: signed(ELEMENT_EXP_BITS)
    sign: 1
    nan: 1


class Operand(data.Struct):
    """A stationary operand of the array, query element or p: as Element with a wide exponent."""

    sig: SIG_BITS
    exp: signed(WIDE_EXP_BITS)
    sign: 1
    nan: 1


class Wide(data.Struct):
    """A wide float: (-1)^sign x sig x 2^(exp - 23), bit 23 of sig set, or sig = 0 for zero.

    Zero has sign 0 and exp 0. NaN has `nan` set; its other fields are then zero.
    """

    sig: WIDE_SIG_BITS
    exp: signed(WIDE_EXP_BITS)
    sign: 1
    nan: 1
