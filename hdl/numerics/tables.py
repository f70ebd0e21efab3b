"""Tables and constants of the arithmetic, computed at import (data only, no Amaranth, no numpy).

The definitions are those of `docs/numerics.md`; RTL and golden model read the same integers.
Everything is computed in decimal arithmetic of 50 digits, so no machine's libm can change a bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

from m890.hdl.numerics.formats import CODINGS, Format

DIGITS = 50
"""Decimal digits of the table arithmetic."""

EXP2_INDEX_BITS = 6
"""Top bits of a score's fraction: they select the entry of EXP2_BASE and EXP2_SLOPE."""
EXP2_STEP_BITS = 10
"""The other bits of a score's fraction: the linear step."""
EXP2_UNIT_BITS = 17
"""EXP2 tables are in units of 2^-17."""
RECIPROCAL_INDEX_BITS = 8
"""Bits below the leading one of l's significand that select the entry of RECIPROCAL."""
RECIPROCAL_UNIT_BITS = 11
"""RECIPROCAL is in units of 2^-11."""
SCALE_INVERSE_UNIT_BITS = 16
"""SCALE_INVERSE is in units of 2^-16."""
TANH_INDEX_BITS = 7
"""Segments of tanh, as a power of two: 128 over [0, 8)."""
TANH_STEP_BITS = 16
"""Bits of the argument inside a segment."""
TANH_UNIT_BITS = 22
"""TANH tables are in units of 2^-22."""
SCALE_UP_BITS = 17
"""SCALE_UP multipliers are in units of 2^-17."""


def _round(value: Decimal) -> int:
    return int(value.quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def _exp2() -> tuple[tuple[int, ...], tuple[int, ...]]:
    count, unit = 1 << EXP2_INDEX_BITS, 1 << EXP2_UNIT_BITS
    base = [_round(unit * Decimal(2) ** (Decimal(i) / count)) for i in range(count)] + [2 * unit]
    return tuple(base[:-1]), tuple(b - a for a, b in zip(base, base[1:], strict=False))


def _reciprocal() -> tuple[int, ...]:
    count, unit = 1 << RECIPROCAL_INDEX_BITS, 1 << RECIPROCAL_UNIT_BITS
    return tuple(_round(unit / (1 + (i + Decimal("0.5")) / count)) for i in range(count))


def _scale_inverse() -> tuple[int, ...]:
    unit = 1 << SCALE_INVERSE_UNIT_BITS
    return tuple(_round(Decimal(unit * 128) / (128 + m)) for m in range(128))


def _tanh(x: Decimal) -> Decimal:
    e = (-2 * x).exp()
    return (1 - e) / (1 + e)


def _interpolate(
    function: Callable[[Decimal], Decimal], nodes: tuple[Decimal, Decimal, Decimal]
) -> tuple[Decimal, Decimal, Decimal]:
    """Coefficients of 1, z and z^2 of the parabola through `function` at three nodes."""
    a, b, c = nodes
    fa, fb, fc = (function(z) for z in nodes)
    first, second = (fb - fa) / (b - a), (fc - fb) / (c - b)
    curve = (second - first) / (c - a)
    return fa - first * a + curve * a * b, first - curve * (a + b), curve


def _tanh_segments() -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Parabolas through the Chebyshev nodes of each segment, z in [0, 1) inside it.

    Error below 2^-17.9, steps included (the cubic term of tanh: its third derivative is 2 at 0).
    The first segment's nodes are stretched so that one lies at 0: small scores keep their sign.
    """
    half, width = Decimal("0.5"), Decimal(8) / (1 << TANH_INDEX_BITS)
    reach = Decimal(3).sqrt() / 2  # outermost node of the cubic Chebyshev polynomial on [-1, 1]
    nodes = (half - half * reach, half, half + half * reach)
    stretch = 1 / (1 + reach)  # half the interval on which 0 is the lowest node and 1 the end
    first = (Decimal(0), stretch * reach, 2 * stretch * reach)
    rows = []
    for i in range(1 << TANH_INDEX_BITS):
        parts = _interpolate(lambda z, i=i: _tanh((i + z) * width), first if i == 0 else nodes)
        rows.append(tuple(_round(c * (1 << TANH_UNIT_BITS)) for c in parts))
    c0, c1, c2 = zip(*rows, strict=True)
    return c0, c1, c2


@dataclass(frozen=True)
class ScaleUp:
    """How append turns the largest magnitude of a row into its scale: amax * multiplier.

    scale = amax * multiplier * 2^-(SCALE_UP_BITS + shift), with qmax = q * 2^shift, q in [1, 2)
    and multiplier = ceil(2^SCALE_UP_BITS / q).
    """

    multiplier: int
    shift: int


def _scale_up(qmax: int) -> ScaleUp:
    shift = qmax.bit_length() - 1
    return ScaleUp(-(-(1 << (SCALE_UP_BITS + shift)) // qmax), shift)


with localcontext() as _context:
    _context.prec = DIGITS
    EXP2_BASE, EXP2_SLOPE = _exp2()
    RECIPROCAL = _reciprocal()
    SCALE_INVERSE = _scale_inverse()
    TANH_C0, TANH_C1, TANH_C2 = _tanh_segments()

SCALE_UP: dict[Format, ScaleUp] = {
    f: _scale_up(c.qmax) for f, c in CODINGS.items() if c.scaled and c.qmax is not None
}
"""Per scaled format: the multiplier and shift of `scale = amax / qmax`."""

GROUP_MAX_EXP = 2
"""Exponent of qmax in the formats with E8M0 scales: 7 and 6 lie in [4, 8)."""
GROUP_UP: dict[Format, int] = {Format.INT4: 2048, Format.MXFP4: 1792}
"""Significand of amax (11 bits) from which a group's scale is doubled (2048: never)."""
GROUP_SCALES = 2, 252
"""E8M0 scales that append writes: every code times its scale is a normal BF16 number."""
GROUP_ONE = 127
"""The E8M0 scale of one, which a group of zeros gets."""
