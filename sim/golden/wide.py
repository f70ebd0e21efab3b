"""Wide floats in numpy: 24-bit significands with exponents of their own.

A wide float is a pair of arrays: `sig` float32 (0, NaN or +-[1, 2): 24 bits exactly) and `exp`
int32; its value is sig * 2^exp. Two facts make it exact and fast:

- A sum or product of two 24-bit significands, computed in float64 and then rounded to float32, is
  rounded correctly: 53 >= 2 * 24 + 2 bits, so rounding twice is harmless.
- While all terms of a sum stay within 186 doublings of each other, float32 addition on a common
  exponent *is* the wide addition (no overflow, and underflow is exact): see `fold`.

Scores cannot leave the range of float64 and are plain float64 arrays whose values have 24 bits.
"""

from dataclasses import dataclass

import numpy as np

SPAN = 186
"""Doublings between the exponents of a sum's terms up to which float32 adds them exactly."""
_HEAD = 60  # exponent of the largest term of such a sum: far from float32's infinity
_FAR = -100  # alignment beyond which a float64 sum no longer depends on the distance
_NOWHERE = -(1 << 20)  # exponent of a zero while exponents are compared


@dataclass(frozen=True)
class Wide:
    """An array of wide floats: sig float32 (0, NaN or +-[1, 2)), exp int32 (0 for zero and NaN)."""

    sig: np.ndarray
    exp: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sig.shape

    def __getitem__(self, index: object) -> "Wide":
        return Wide(self.sig[index], self.exp[index])  # type: ignore[index]

    @staticmethod
    def zeros(shape: tuple[int, ...]) -> "Wide":
        return Wide(np.zeros(shape, np.float32), np.zeros(shape, np.int32))

    @staticmethod
    def from_fields(sign: np.ndarray, sig: np.ndarray, exp: np.ndarray, nan: np.ndarray) -> "Wide":
        """From the fields of `m890.hdl.numerics.types.Wide`, `sig` an integer of 24 bits."""
        value = np.ldexp(np.where(sign, -1.0, 1.0) * np.asarray(sig), -23).astype(np.float32)
        value = np.where(nan, np.float32(np.nan), value)
        return Wide(value, np.where((value == 0) | nan, 0, exp).astype(np.int32))

    def fields(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(sign, sig, exp, nan) as integers, in the form that the RTL carries."""
        nan = np.isnan(self.sig)
        finite = np.where(nan, np.float32(0), self.sig)
        sig = np.ldexp(np.abs(finite).astype(np.float64), 23).astype(np.int64)
        return (finite < 0).astype(np.int64), sig, self.exp.astype(np.int64), nan.astype(np.int64)

    def to_float64(self) -> np.ndarray:
        """The value; exponents beyond +-900 are clipped there, which no later step can tell."""
        return np.ldexp(self.sig.astype(np.float64), np.clip(self.exp, -900, 900))


def power32(exponent: np.ndarray) -> np.ndarray:
    """2^exponent as float32, for integers from -126 to 127."""
    return ((exponent.astype(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)


def power64(exponent: np.ndarray) -> np.ndarray:
    """2^exponent as float64, for integers from -1022 to 1023."""
    return ((exponent.astype(np.int64) + 1023) << 52).view(np.float64)


def round24(x: np.ndarray) -> np.ndarray:
    """Normal float64 (or zero, NaN) rounded RNE to 24 bits, whatever its exponent."""
    bits = np.ascontiguousarray(x, np.float64).view(np.int64)
    odd = (bits >> 29) & 1
    rounded = (bits + odd + ((1 << 28) - 1)) & ~((1 << 29) - 1)
    return np.where(np.isnan(x), x, rounded.view(np.float64))


def rounded(x: np.ndarray, exponent: np.ndarray | int) -> Wide:
    """x * 2^exponent (x float64) as a wide float: RNE to 24 bits."""
    fraction, scale = np.frexp(np.asarray(x, np.float64))
    sig, carry = np.frexp(fraction.astype(np.float32))  # fraction in [0.5, 1): 24 bits, RNE
    sig = sig * np.float32(2)
    exp = scale + carry + exponent - 1
    return Wide(sig + np.float32(0), np.where((sig == 0) | np.isnan(sig), 0, exp).astype(np.int32))


def add(a: Wide, b: Wide) -> Wide:
    """a + b: exact, then RNE to 24 bits. x + (-x) = +0; NaN stays NaN."""
    a_exp = np.where(a.sig == 0, _NOWHERE, a.exp)
    b_exp = np.where(b.sig == 0, _NOWHERE, b.exp)
    top = np.maximum(a_exp, b_exp)
    top = np.where(top == _NOWHERE, 0, top)
    total = np.ldexp(a.sig.astype(np.float64), np.clip(a_exp - top, _FAR, 0)) + np.ldexp(
        b.sig.astype(np.float64), np.clip(b_exp - top, _FAR, 0)
    )
    return rounded(total, top)


def fold(total: Wide, sig: np.ndarray, exp: np.ndarray) -> Wide:
    """total + sig[0] * 2^exp[0] + sig[1] * 2^exp[1] ... in this order, each sum rounded RNE.

    sig: float32 [terms, ...], any exact 24-bit value below 2^31 (not only [1, 2)); exp: int32, the
    same shape. Sums of a narrow span are float32 sums; the others are added one by one with `add`.
    """
    exp = np.where(sig == 0, _NOWHERE, exp)
    own = np.where(total.sig == 0, _NOWHERE, total.exp)
    top = np.maximum(exp.max(0), own)
    spread = np.maximum(np.where(exp == _NOWHERE, 0, top - exp).max(0), 0)
    spread = np.maximum(spread, np.where(own == _NOWHERE, 0, top - own))
    if spread.max(initial=0) > SPAN:
        for s, e in zip(sig, exp, strict=True):
            total = add(total, rounded(s.astype(np.float64), e))
        return total
    shift = _HEAD - top
    acc = total.sig * power32(np.clip(own + shift, -126, 127))
    terms = sig * power32(np.clip(exp + shift, -126, 127))
    for term in terms:
        acc += term
    fraction, scale = np.frexp(acc)
    value = fraction * np.float32(2)
    exponent = scale - np.int32(1) - shift
    still = (value == 0) | np.isnan(value)
    return Wide(value, np.where(still, 0, exponent).astype(np.int32))
