"""Append: rows of K or V on their way into a page, quantised to the plane's format."""

import numpy as np

from m890.hdl.numerics import tables
from m890.hdl.numerics.formats import CODINGS, GROUP, Format
from m890.sim.golden.elements import Elements, decode, decode_float
from m890.sim.golden.output import encode

SCALE_ONE = 0x3F80
"""BF16 bits of the scale 1, which rows of zeros get."""
_LEAST_EXP = -126


def append(
    format: Format, rows: np.ndarray, source_format: Format
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Quantises rows [..., d] of BF16 or FP16 bits.

    Returns (codes uint16 [..., d]; scales: BF16 uint16 [...], E8M0 uint8 [..., groups] or None
    where the format has none; QUANTISE bool [...]: something in the row was not finite or beyond
    the format).
    """
    rows = np.asarray(rows, np.uint16)
    element = decode(rows, source_format)
    special = element.nan if element.nan is not None else np.zeros(rows.shape, bool)
    value = decode_float(rows, source_format)
    if CODINGS[format].grouped:
        return *_grouped(format, element, value), np.any(special, -1)
    if not CODINGS[format].scaled:
        codes, beyond = _plain(format, rows, source_format, value)
        return codes, None, np.any(beyond | special, -1)
    exp, man = _scale(format, element)
    scale = (exp + 127 << 7 | man).astype(np.uint16)
    return _scaled(format, value, exp, man), scale, np.any(special, -1)


def _plain(
    format: Format, rows: np.ndarray, source: Format, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """FP16 or BF16 target: RNE, saturated to the largest finite value; (codes, where beyond)."""
    coding = CODINGS[format]
    largest = (((1 << coding.exp_bits) - 1) << coding.man_bits) - 1
    nan = np.isnan(value)
    bits = encode(np.where(nan, 0, value), coding.exp_bits, coding.man_bits)
    sign, magnitude = bits & 0x8000, bits & 0x7FFF
    beyond = (magnitude > largest) & ~nan
    codes = rows if format is source else sign | magnitude
    codes = np.where(beyond, sign | largest, codes)
    quiet = (largest + 1) | 1 << (coding.man_bits - 1)
    return np.where(nan, quiet, codes).astype(np.uint16), beyond


def _scale(format: Format, element: Elements) -> tuple[np.ndarray, np.ndarray]:
    """(exponent, 7 mantissa bits) of amax / qmax, rounded up to BF16: never too small."""
    fraction, amax_exp = np.frexp(_magnitude(element).max(-1))
    up = tables.SCALE_UP[format]
    sig = np.ldexp(fraction, 11).astype(np.int64)  # 11 bits, exponent amax_exp - 1
    product = sig * up.multiplier
    drop = np.maximum(np.frexp(product.astype(np.float64))[1] - 8, 0)
    top = -(-product >> drop)  # 8 bits, rounded up
    carry = top >> 8
    top, drop = top >> carry, drop + carry
    exp = amax_exp - 11 - tables.SCALE_UP_BITS - up.shift + drop + 7
    man = top & 0x7F
    low = exp < _LEAST_EXP
    exp, man = np.where(low, _LEAST_EXP, exp), np.where(low, 0, man)
    zero = sig == 0
    return np.where(zero, 0, exp), np.where(zero, 0, man)


def _magnitude(element: Elements) -> np.ndarray:
    """|x| as float64, 0 for what is not finite."""
    finite = np.abs(np.ldexp(element.sig.astype(np.float64), np.maximum(element.exp, -200)))
    return finite if element.nan is None else np.where(element.nan, 0, finite)


def _grouped(format: Format, element: Elements, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and E8M0 scales of groups of 32 features."""
    coding, head = CODINGS[format], value.shape[-1]
    starts = np.arange(0, head, GROUP)
    fraction, exp = np.frexp(np.maximum.reduceat(_magnitude(element), starts, -1))
    up = np.ldexp(fraction, 11) >= tables.GROUP_UP[format]
    scale = np.clip(exp - 1 - tables.GROUP_MAX_EXP + up + 127, *tables.GROUP_SCALES)
    scale = np.where(fraction == 0, tables.GROUP_ONE, scale)
    shift = np.repeat(scale - 127, GROUP, -1)[..., :head]
    qmax = coding.qmax or 0
    q = np.clip(np.ldexp(np.where(np.isnan(value), 0, value), -shift), -qmax, qmax)
    if coding.exp_bits:
        codes = encode(q, coding.exp_bits, coding.man_bits, infinite=False)
        codes = np.where(np.isnan(value), 0, codes)
    else:
        codes = np.rint(q).astype(np.int64) & 0xF
    return codes.astype(np.uint16), scale.astype(np.uint8)


def _scaled(format: Format, value: np.ndarray, exp: np.ndarray, man: np.ndarray) -> np.ndarray:
    """Codes of value / scale by the reciprocal table, rounded RNE, saturated to qmax."""
    coding, nan = CODINGS[format], np.isnan(value)
    qmax = coding.qmax or 0
    inverse = _SCALE_INVERSE[man][..., None].astype(np.float64)
    finite = np.where(np.isfinite(value), value, 0)
    q = np.ldexp(finite * inverse, -tables.SCALE_INVERSE_UNIT_BITS - exp[..., None])
    q = np.where(np.isinf(value), np.copysign(np.inf, value), q)
    q = np.clip(q, -qmax, qmax)  # qmax is on the grid: before or after rounding is the same
    if format is Format.INT8:
        codes = np.rint(q).astype(np.int64) & 0xFF
        return np.where(nan, 0, codes).astype(np.uint16)
    codes = encode(q, coding.exp_bits, coding.man_bits, infinite=False)
    quiet = 0x7F if format is Format.E4M3 else 0x7E
    return np.where(nan, quiet, codes).astype(np.uint16)


_SCALE_INVERSE = np.array(tables.SCALE_INVERSE, np.int64)
