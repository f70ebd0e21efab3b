"""Storage formats and the widths of internal numbers (data only, no Amaranth).

The words are those of `docs/numerics.md`, which is the specification in prose; `m890.sim.golden` is
the specification in code.
"""

from dataclasses import dataclass
from enum import IntEnum

SIG_BITS = 11
"""Significand of a decoded element (query, key, value or p), hidden bit included."""
ELEMENT_EXP_BITS = 9
"""Signed exponent of a decoded query, key or value."""
WIDE_EXP_BITS = 13
"""Signed exponent of p, of scores and of the accumulators."""
WIDE_SIG_BITS = 24
"""Significand of scores and accumulators, hidden bit included."""
DOT_FRACTION_BITS = 22
"""Fraction bits kept below the largest product of a beat (products have 20 of their own)."""
SCORE_FRACTION_BITS = 16
"""Fraction bits of a score on its way into exp2."""
SCORE_LIMIT = 3840
"""Scores at or above +limit saturate (OVERFLOW), below -limit become p = 0 (UNDERFLOW)."""
RAW_EXP_LIMIT = 4000
"""Exponents of raw states beyond +-limit: NaN (OVERFLOW) or zero (UNDERFLOW)."""
L_SLOTS = 8
"""Partial sums of l per row: token lane modulo 8."""
GROUP = 32
"""Features of a token that share an E8M0 scale; a head's last group may be shorter."""


class Format(IntEnum):
    """Codes of storage formats, as commands carry them."""

    BF16 = 0
    FP16 = 1
    E4M3 = 2
    E5M2 = 3
    INT8 = 4
    INT4 = 5
    MXFP4 = 6


class OutputFormat(IntEnum):
    """Codes of an ATTEND job's output format."""

    BF16 = 0
    FP16 = 1
    FP32 = 2
    RAW = 3


@dataclass(frozen=True)
class Coding:
    """A storage format. Floats: 1 sign, `exp_bits`, `man_bits`; INT8, INT4: two's complement.

    specials: "ieee" (all-ones exponent is Inf / NaN), "fn" (only S.1111.111 is NaN), "none".
    qmax: largest magnitude that a scaled append produces; None where there is no scale.
    grouped: an E8M0 scale per token and GROUP features instead of a BF16 scale per token.
    """

    format: Format
    bits: int
    exp_bits: int
    man_bits: int
    bias: int
    specials: str
    qmax: int | None
    grouped: bool = False

    @property
    def scaled(self) -> bool:
        """Pages carry one BF16 scale per token for K and one for V."""
        return self.qmax is not None and not self.grouped

    @property
    def packed(self) -> int:
        """Elements in 16 bits: tiles that a port beat holds for one token."""
        return 16 // self.bits

    @property
    def bytes(self) -> int:
        return self.bits // 8


CODINGS: dict[Format, Coding] = {
    c.format: c
    for c in (
        Coding(Format.BF16, 16, 8, 7, 127, "ieee", None),
        Coding(Format.FP16, 16, 5, 10, 15, "ieee", None),
        Coding(Format.E4M3, 8, 4, 3, 7, "fn", 448),
        Coding(Format.E5M2, 8, 5, 2, 15, "ieee", 57344),
        Coding(Format.INT8, 8, 0, 7, 0, "none", 127),
        Coding(Format.INT4, 4, 0, 3, 0, "none", 7, grouped=True),
        Coding(Format.MXFP4, 4, 2, 1, 1, "none", 6, grouped=True),
    )
}

ELEMENT_FORMATS: tuple[Format, ...] = tuple(f for f, c in CODINGS.items() if not c.grouped)
"""Formats that the array decodes; the others reach it as BF16, their scales applied."""
