"""INT4 and MXFP4 elements: a 4-bit code under the E8M0 scale of its group."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Signal, Value

CODE_BITS, SCALE_BITS = 4, 8
NAN_FIELD = 255
"""Exponent field of BF16's Inf and NaN."""
QUIET = 0x7FC0
"""BF16's NaN."""


@dataclass(frozen=True)
class _Number:
    """A code's value in parts of BF16: exponent, mantissa, sign."""

    exp: int
    man: int
    negative: bool


def _numbers(halves: list[int]) -> list[_Number | None]:
    """Per code, whose value is given in units of 1/2; None for zero."""
    out: list[_Number | None] = []
    for x in halves:
        exp = abs(x).bit_length() - 2
        out.append(_Number(exp, (abs(x) << 6 - exp) - 128, x < 0) if x else None)
    return out


INT4 = _numbers([2 * x for x in (*range(8), *range(-8, 0))])
MXFP4 = _numbers([sign * x for sign in (1, -1) for x in (0, 1, 2, 3, 4, 6, 8, 12)])
LEAST_EXP = -1
"""The smallest exponent of a nonzero code: 0.5."""


def with_scale(code: Value, scale: Value) -> Value:
    """The 16 bits in which a code travels with its scale."""
    return Cat(code, scale, Const(0, 16 - CODE_BITS - SCALE_BITS))


def bf16(m: Module, raw: Value, is_mx: Value, *, name: str) -> Value:
    """What a code and its scale (`with_scale`) are in BF16: docs/numerics.md, "Element".

    Below BF16's normal numbers it is zero; beyond its range, or if the scale is NaN, it is NaN.
    """
    code, scale = raw[:CODE_BITS], raw[CODE_BITS : CODE_BITS + SCALE_BITS]
    above = Signal(3, name=f"{name}_above")  # the code's exponent over the smallest one
    man, sign, nonzero = Signal(7), Signal(), Signal()
    with m.Switch(Cat(code, is_mx)):
        for mx, table in enumerate((INT4, MXFP4)):
            for n, number in enumerate(table):
                if number is not None:
                    with m.Case(16 * mx + n):
                        m.d.comb += [
                            above.eq(number.exp - LEAST_EXP),
                            man.eq(number.man),
                            sign.eq(int(number.negative)),
                            nonzero.eq(1),
                        ]
    field = Signal(9, name=f"{name}_field")  # of one more, as LEAST_EXP is below zero
    word = Signal(16, name=f"{name}_word")
    m.d.comb += field.eq(scale + above)
    with m.If(scale.all() | (nonzero & (field > NAN_FIELD))):
        m.d.comb += word.eq(QUIET)
    with m.Elif(nonzero & (field > 1)):
        m.d.comb += word.eq(Cat(man, (field - 1)[:8], sign))
    return word
