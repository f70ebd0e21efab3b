"""Decoded operands: what a query, key, value or p is inside the array.

An element is `sig * 2^exp` with sig a signed float32 of 11 bits, |sig| < 2 (the RTL's integer `sig`
is |sig| * 1024). Zeros have the exponent INACTIVE, so that they never win the largest exponent.
A NaN has sig +-1 and exp 0 and is marked in `nan`, which is None where an array has no NaN at all.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from m890.hdl.numerics.formats import CODINGS, GROUP, Format

INACTIVE = -14000
"""Exponent of a zero: the sum of two still fits int16, and stays below every active sum."""
ACTIVE = -8800
"""Sums of exponents above this belong to two nonzero operands."""


@dataclass(frozen=True)
class Elements:
    """An array of operands: sig float32, exp int16, nan bool or None."""

    sig: np.ndarray
    exp: np.ndarray
    nan: np.ndarray | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sig.shape

    def __getitem__(self, index: object) -> "Elements":
        nan = None if self.nan is None else self.nan[index]  # type: ignore[index]
        return Elements(self.sig[index], self.exp[index], nan)  # type: ignore[index]

    def fields(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(sign, sig, exp, nan) as integers, in the form that the RTL carries; zeros have exp 0."""
        sig = np.rint(np.abs(self.sig) * 1024).astype(np.int64)
        exp = np.where(sig == 0, 0, self.exp.astype(np.int64))
        nan = np.zeros(sig.shape, bool) if self.nan is None else self.nan
        return (self.sig < 0).astype(np.int64), sig, exp, nan.astype(np.int64)

    @staticmethod
    def from_fields(
        sign: np.ndarray, sig: np.ndarray, exp: np.ndarray, nan: np.ndarray
    ) -> "Elements":
        """From the fields of `m890.hdl.numerics.types.Operand` (or Element)."""
        value = (np.where(sign, -1, 1) * np.asarray(sig) / 1024).astype(np.float32)
        marked = np.asarray(nan).astype(bool)
        exponent = np.where(value == 0, INACTIVE, exp).astype(np.int16)
        return Elements(value, exponent, marked if marked.any() else None)

    def rearranged(self, axes: tuple[int, ...]) -> "Elements":
        """The same operands with permuted axes, contiguous."""
        nan = None if self.nan is None else np.ascontiguousarray(self.nan.transpose(axes))
        return Elements(
            np.ascontiguousarray(self.sig.transpose(axes)),
            np.ascontiguousarray(self.exp.transpose(axes)),
            nan,
        )

    def reshaped(self, shape: tuple[int, ...]) -> "Elements":
        nan = None if self.nan is None else self.nan.reshape(shape)
        return Elements(self.sig.reshape(shape), self.exp.reshape(shape), nan)


@cache
def _table(format: Format) -> tuple[np.ndarray, np.ndarray, bool]:
    """(sig, exp) of every code, NaN codes as sig NaN, and whether there are NaN codes."""
    coding = CODINGS[format]
    code = np.arange(1 << coding.bits)
    if coding.grouped:
        raise ValueError(f"{format.name} codes mean nothing without their scales: ungroup first")
    if format is Format.INT8:
        value = np.where(code > 127, code - 256, code)
        sig, exp, nan = value / 128, np.full(code.shape, 7), np.zeros(code.shape, bool)
    else:
        fraction = code & ((1 << coding.man_bits) - 1)
        field = code >> coding.man_bits & ((1 << coding.exp_bits) - 1)
        sig = fraction / (1 << coding.man_bits) + (field != 0)
        exp = np.maximum(field, 1) - coding.bias
        nan = field == (1 << coding.exp_bits) - 1
        if coding.specials == "fn":
            nan &= fraction == (1 << coding.man_bits) - 1
        sig = np.where(code >> (coding.bits - 1), -sig, sig)
    exp = np.where(sig == 0, INACTIVE, np.where(nan, 0, exp))
    sig = np.where(nan, np.copysign(np.nan, sig), sig)
    return sig.astype(np.float32), exp.astype(np.int16), bool(nan.any())


def decode(codes: np.ndarray, format: Format) -> Elements:
    """Stored codes (uint16; 8-bit formats in the low byte) as operands."""
    sigs, exps, has_nan = _table(format)
    index = codes if len(sigs) > 256 else codes & 0xFF
    sig = sigs.take(index)
    nan = None
    if has_nan:
        marked = np.isnan(sig)
        if marked.any():
            nan = marked
            sig[marked] = np.copysign(np.float32(1), sig[marked])
    return Elements(sig, exps.take(index), nan)


@cache
def _groups(format: Format) -> tuple[np.ndarray, np.ndarray]:
    """Of every 4-bit code as a BF16 number: exponent (zeros -1000), sign and mantissa bits."""
    code = np.arange(16)
    if format is Format.INT4:
        value = np.where(code > 7, code - 16, code).astype(np.float64)
    else:
        sign = np.where(code > 7, -1, 1)
        value = sign * np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[code & 7]
    fraction, exp = np.frexp(np.abs(value))
    rest = np.where(value == 0, 0, np.ldexp(fraction, 8) - 128).astype(np.int64)
    return np.where(value == 0, -1000, exp - 1), rest | np.where(value < 0, 0x8000, 0)


def ungroup(codes: np.ndarray, scales: np.ndarray, format: Format) -> np.ndarray:
    """4-bit codes [..., d] with E8M0 scales [..., groups] as BF16 bits: products, exact.

    Below BF16's normal numbers they are 0, beyond its largest one, and with scale 255, NaN.
    """
    exps, rest = _groups(format)
    scale = np.repeat(scales, GROUP, -1)[..., : codes.shape[-1]].astype(np.int64)
    index = codes & 15
    field = exps[index] + scale
    bits = np.where(field > 254, 0x7FC0, np.where(field < 1, 0, field << 7 | rest[index]))
    return np.where(scale == 255, 0x7FC0, bits).astype(np.uint16)


def decode_scale(codes: np.ndarray) -> Elements:
    """BF16 scales of tokens: sign ignored, a subnormal is 0, Inf and NaN are NaN."""
    element = decode(codes & 0x7FFF, Format.BF16)
    subnormal = element.sig < 1
    return Elements(
        np.where(subnormal, np.float32(0), element.sig),
        np.where(subnormal, np.int16(INACTIVE), element.exp),
        element.nan,
    )


def decode_float(codes: np.ndarray, format: Format) -> np.ndarray:
    """16-bit floats as float64, Inf and NaN as themselves."""
    if format is Format.FP16:
        return np.asarray(codes, np.uint16).view(np.float16).astype(np.float64)
    with np.errstate(invalid="ignore"):  # signalling NaN become quiet ones
        return (np.asarray(codes, np.uint32) << 16).view(np.float32).astype(np.float64)
