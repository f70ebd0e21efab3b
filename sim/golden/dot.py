"""The fused dot product: exact products, aligned to the beat's largest exponent, rounded once.

`beats` computes many dot products at once: operands [..., lanes, ...], reduced over one axis. It is
all float32 arithmetic, and all exact: products have 22 bits, alignment multiplies by powers of two,
and the conversion to int32 truncates towards zero as the RTL does. Where all exponents are
moderate, they are applied to the operands (fewer passes); elsewhere to the products.
"""

from dataclasses import dataclass

import numpy as np

from m890.hdl.numerics.formats import DOT_FRACTION_BITS
from m890.sim.golden.elements import ACTIVE, INACTIVE, Elements
from m890.sim.golden.wide import Wide, power32, rounded

_FIRST = np.int16(INACTIVE + 1)
_REACH = 100  # exponents of operands and products up to which float32 holds every step exactly


@dataclass(frozen=True)
class Sums:
    """Dot products before rounding: total * 2^exp, int32 each; nan marks NaN (None: no NaN)."""

    total: np.ndarray
    exp: np.ndarray
    nan: np.ndarray | None

    def sig(self) -> np.ndarray:
        """The totals rounded RNE to 24 bits: float32, with `exp` a wide float not normalised."""
        sig = self.total.astype(np.float32)
        if self.nan is not None:
            sig = np.where(self.nan, np.float32(np.nan), sig)
        return sig

    def wide(self) -> Wide:
        return rounded(self.sig().astype(np.float64), self.exp)


def _moderate(a: Elements, b: Elements) -> bool:
    """Whether float32 holds every nonzero operand and every product."""
    low = high = 0
    for part in (a, b):
        # As unsigned numbers above INACTIVE, zeros are the largest: no mask is needed.
        least = int((part.exp - _FIRST).view(np.uint16).min()) + int(_FIRST)
        most = int(part.exp.max())
        if most == INACTIVE:
            continue
        if least < -_REACH or most > _REACH:
            return False
        low, high = low + least, high + most
    return low >= -_REACH and high <= _REACH


def beats(a: Elements, b: Elements, axis: int) -> Sums:
    """Dot products over `axis` (the lanes); a and b broadcast against each other."""
    exp = a.exp + b.exp
    top = exp.max(axis, keepdims=True)
    if _moderate(a, b):
        reach = np.int16(_REACH)
        terms = (a.sig * power32(np.clip(a.exp, -reach, reach))) * (
            b.sig * power32(np.clip(b.exp, -reach, reach))
        )
        terms *= power32(DOT_FRACTION_BITS - np.clip(top, -reach, reach))
    else:
        exp -= top  # at most 0
        np.maximum(exp, -60, out=exp)  # 24 bits shifted out by far more than 24 are gone
        exp += DOT_FRACTION_BITS
        terms = a.sig * b.sig
        terms *= power32(exp)
    total = terms.astype(np.int32).sum(axis, dtype=np.int32)
    top = top.squeeze(axis)
    scale = np.where(top > ACTIVE, top.astype(np.int32) - DOT_FRACTION_BITS, 0)
    return Sums(total, scale, _nans(a, b, axis))


def _nans(a: Elements, b: Elements, axis: int) -> np.ndarray | None:
    """Where an active lane (both operands nonzero) holds a NaN."""
    if a.nan is None and b.nan is None:
        return None
    a_live, b_live = a.sig != 0, b.sig != 0
    a_nan = a_live & False if a.nan is None else a.nan
    b_nan = b_live & False if b.nan is None else b.nan
    return ((a_nan & b_live) | (a_live & b_nan)).any(axis)


def dot(a: Elements, b: Elements) -> Wide:
    """The fused dot products over the last axis: what one row returns for one beat."""
    return beats(a, b, -1).wide()
