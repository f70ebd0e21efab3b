"""The end of a job: l folded to one sum, O divided by it and rounded once, or a raw state."""

import numpy as np

from m890.hdl.numerics import tables
from m890.hdl.numerics.formats import RAW_EXP_LIMIT, OutputFormat
from m890.sim.golden.wide import Wide, add, rounded

_NAN = {OutputFormat.BF16: 0x7FC0, OutputFormat.FP16: 0x7E00, OutputFormat.FP32: 0x7FC00000}
_BITS = {  # exponent bits, mantissa bits
    OutputFormat.BF16: (8, 7),
    OutputFormat.FP16: (5, 10),
    OutputFormat.FP32: (8, 23),
}
_CLIP = 300  # exponents beyond: zero or Inf in every output format


def sum_slots(slots: Wide) -> Wide:
    """l from its eight partial sums on the last axis: i + (i + 4), then i + (i + 2), then 0 + 1."""
    for half in (4, 2, 1):
        slots = add(slots[..., :half], slots[..., half : 2 * half])
    return slots[..., 0]


def reciprocal(sig: np.ndarray) -> np.ndarray:
    """About 2^45 / sig for 24-bit integers sig: table, then one Newton step; units of 2^-22."""
    sig = np.asarray(sig, np.int64)
    y0 = _RECIPROCAL[sig >> 15 & 0xFF]
    d = ((1 << 35) - y0 * sig) >> 14
    return y0 * d >> 9


def normalise(total: Wide, o: Wide, format: OutputFormat) -> np.ndarray:
    """Bits of o / l: total [...], o [..., d] -> uint16 (BF16, FP16) or uint32 (FP32) [..., d]."""
    _, sig, exp, nan = total.fields()
    y1 = reciprocal(sig)
    product = o.sig.astype(np.float64) * y1[..., None]  # 24 x 23 bits: exact
    lost = np.isnan(product) | nan[..., None].astype(bool)
    shift = np.clip(o.exp - exp[..., None] - 22, -_CLIP, _CLIP)
    bits = encode(np.ldexp(np.where(lost, 0, product), shift), *_BITS[format])
    bits = np.where(lost, _NAN[format], bits)
    bits = np.where((total.sig == 0)[..., None], 0, bits)
    return bits.astype(np.uint32 if format is OutputFormat.FP32 else np.uint16)


def raw(total: Wide, o: Wide) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The raw state (E int32 [...], l float32 [...], O float32 [..., d])."""
    lost = np.isnan(total.sig)
    l_value = np.where(lost, np.float32(np.nan), total.sig).astype(np.float32)
    shift = o.exp - total.exp[..., None]
    value = np.ldexp(o.sig.astype(np.float64), np.clip(shift, -_CLIP, _CLIP))
    value = np.where(np.abs(value) < 2.0**-126, 0, value)
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    value = np.where((total.sig == 0)[..., None], np.float32(0), value)
    value = np.where(lost[..., None], np.float32(np.nan), value)
    return total.exp.astype(np.int32), l_value, value


def read_raw(exponent: np.ndarray, value: np.ndarray) -> tuple[Wide, np.ndarray, np.ndarray]:
    """A stored value (float32) of a raw state: (wide, overflow, underflow).

    Subnormals count as zero, Inf as NaN. The limit holds for the exponent of the value itself.
    """
    value = np.where(np.isfinite(value), value, np.float32(np.nan))
    value = np.where(np.abs(value) < np.float32(2.0**-126), np.float32(0), value)
    wide = rounded(value.astype(np.float64), 0)
    live = (wide.sig != 0) & ~np.isnan(wide.sig)
    exp = np.where(live, wide.exp + exponent.astype(np.int64), 0)
    over, under = exp > RAW_EXP_LIMIT, exp < -RAW_EXP_LIMIT
    sig = np.where(over, np.float32(np.nan), np.where(under, np.float32(0), wide.sig))
    return Wide(sig, np.where(over | under, 0, exp).astype(np.int32)), over, under


def encode(x: np.ndarray, exp_bits: int, man_bits: int, infinite: bool = True) -> np.ndarray:
    """Float64 as bits of a float format: RNE once, gradual underflow; no NaN. The sign stays.

    infinite: the largest exponent stands for Inf, and overflow gives it.
    """
    bias = (1 << (exp_bits - 1)) - 1
    magnitude = round_to(np.minimum(np.abs(x), 2.0**_CLIP), man_bits, 1 - bias)
    _, scale = np.frexp(magnitude)
    exponent = np.maximum(scale - 1, 1 - bias)
    steps = np.ldexp(magnitude, man_bits - exponent).astype(np.int64)  # hidden bit included
    bits = steps + ((exponent + bias - 1).astype(np.int64) << man_bits)
    bits = np.where(magnitude == 0, 0, bits)
    if infinite:
        bits = np.minimum(bits, ((1 << exp_bits) - 1) << man_bits)
    return bits | np.where(np.signbit(x), 1 << (exp_bits + man_bits), 0)


def round_to(x: np.ndarray, man_bits: int, least: int) -> np.ndarray:
    """Float64 rounded RNE to a grid of `man_bits` below each power of two, `least` the lowest."""
    _, scale = np.frexp(x)
    quantum = np.maximum(scale - 1, least) - man_bits
    return np.ldexp(np.rint(np.ldexp(x, -quantum)), quantum)


_RECIPROCAL = np.array(tables.RECIPROCAL, np.int64)
