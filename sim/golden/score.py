"""From a dot product to p: the eight steps of `docs/numerics.md`, one function each.

Scores are float64 arrays whose values have 24 bits (their exponents stay within float64's range);
every function keeps that. p is an `Elements` array, the stationary operand of the V beats.
"""

from dataclasses import dataclass

import numpy as np

from m890.hdl.numerics import tables
from m890.hdl.numerics.formats import (
    SCORE_FRACTION_BITS,
    SCORE_LIMIT,
    SIG_BITS,
    WIDE_SIG_BITS,
    Format,
)
from m890.sim.golden.elements import INACTIVE, Elements, decode_float, decode_scale
from m890.sim.golden.wide import power64, round24


def scale(s: np.ndarray, kscale: np.ndarray) -> np.ndarray:
    """Step 1: s times the token's BF16 scale (bits, broadcast against s), RNE."""
    factor = decode_scale(kscale)
    value = factor.sig * power64(np.clip(factor.exp, -126, 127))
    if factor.nan is not None:
        value = np.where(factor.nan, np.nan, value)
    return round24(s * value)


def soft_cap(s: np.ndarray, cap: float, inverse: float) -> np.ndarray:
    """Step 2: cap * tanh(s / cap) by the table; cap and inverse are FP32."""
    cap, inverse = normal32(cap), normal32(inverse)
    if cap == 0:
        return s
    x = round24(s * inverse)
    steps = tables.TANH_STEP_BITS
    limit = (1 << (tables.TANH_INDEX_BITS + steps)) - 1  # 8 in units of 2^-20, less one
    u = np.floor(np.minimum(np.nan_to_num(np.abs(x)), 8) * (1 << (steps + 4))).astype(np.int64)
    u = np.minimum(u, limit)
    i, r = u >> steps, u & ((1 << steps) - 1)
    t = _TANH[0][i] + (_TANH[1][i] * r >> steps) + (_TANH[2][i] * (r * r >> steps) >> steps)
    t = np.clip(t, 0, 1 << tables.TANH_UNIT_BITS)
    capped = round24(np.sign(x) * np.ldexp(t.astype(np.float64), -tables.TANH_UNIT_BITS) * cap)
    return np.where(np.isnan(s), np.nan, capped)


def add_bias(s: np.ndarray, bias: np.ndarray, format: Format) -> tuple[np.ndarray, np.ndarray]:
    """Step 3: (s + bias, where the bias -Inf masks the token); +Inf and NaN give NaN."""
    value = decode_float(bias, format)
    masked = value == -np.inf
    return round24(s + np.where(np.isinf(value), np.nan, value)), masked


@dataclass(frozen=True)
class Power:
    """p = 2^s, and which scores were out of range or NaN."""

    p: Elements
    overflow: np.ndarray
    underflow: np.ndarray
    invalid: np.ndarray


def exp2(s: np.ndarray) -> Power:
    """Steps 5 and 6: the score in fixed point, then table and linear step; p has 11 bits."""
    invalid = np.isnan(s)
    overflow, underflow = s >= SCORE_LIMIT, s < -SCORE_LIMIT
    unit = 1 << SCORE_FRACTION_BITS
    bounded = np.clip(np.where(invalid, 0, s), -SCORE_LIMIT, SCORE_LIMIT)
    t = np.floor(bounded * unit).astype(np.int32)
    t = np.minimum(t, SCORE_LIMIT * unit - 1)
    f = t & (unit - 1)
    sig, exp = _P_SIG[f], (t >> SCORE_FRACTION_BITS).astype(np.int16) + _P_CARRY[f]
    sig[underflow], exp[underflow] = 0, INACTIVE
    if invalid.any():
        sig[invalid], exp[invalid] = 1, 0
        return Power(Elements(sig, exp, invalid), overflow, underflow, invalid)
    return Power(Elements(sig, exp, None), overflow, underflow, invalid)


def mask(p: Elements, visible: np.ndarray) -> Elements:
    """Step 4: masked tokens have p = 0, whatever their score was."""
    nan = p.nan
    if nan is not None:
        nan = nan & visible
        nan = nan if nan.any() else None
    return Elements(
        np.where(visible, p.sig, np.float32(0)), np.where(visible, p.exp, np.int16(INACTIVE)), nan
    )


def scale_p(p: Elements, vscale: np.ndarray) -> Elements:
    """Step 8: p times the token's BF16 V scale (bits, broadcast against p), RNE to 11 bits."""
    factor = decode_scale(vscale)
    product = (p.sig * factor.sig).astype(np.float32)  # 19 bits, in [1, 4)
    bits, drop = product.view(np.int32), WIDE_SIG_BITS - SIG_BITS
    bits = (bits + (bits >> drop & 1) + ((1 << (drop - 1)) - 1)) & ~((1 << drop) - 1)
    sig, exp = np.frexp(bits.view(np.float32))
    live = sig != 0
    total = np.where(live, p.exp + factor.exp + exp - 1, INACTIVE).astype(np.int16)
    nan = None
    if p.nan is not None or factor.nan is not None:
        nan = np.zeros(live.shape, bool) if p.nan is None else p.nan & live
        if factor.nan is not None:
            nan = nan | (live & factor.nan)
        total[nan] = 0
        sig[nan] = 0.5
        nan = nan if nan.any() else None
    return Elements(sig * np.float32(2), total, nan)


def normal32(value: float) -> float:
    """An FP32 parameter as the core reads it: 0 unless it is a normal number."""
    x = np.float32(value)
    return float(x) if np.isfinite(x) and abs(x) >= np.float32(2.0**-126) else 0.0


def _p_table() -> tuple[np.ndarray, np.ndarray]:
    """p's significand in [1, 2) and its carry into the exponent, for each fraction of a score."""
    f = np.arange(1 << SCORE_FRACTION_BITS)
    i, r = f >> tables.EXP2_STEP_BITS, f & ((1 << tables.EXP2_STEP_BITS) - 1)
    base, slope = np.array(tables.EXP2_BASE), np.array(tables.EXP2_SLOPE)
    m = base[i] + (slope[i] * r >> tables.EXP2_STEP_BITS)
    drop = tables.EXP2_UNIT_BITS + 1 - SIG_BITS
    sig = np.rint(np.ldexp(m.astype(np.float64), -drop)).astype(np.int64)  # RNE
    carry = sig >> SIG_BITS
    return ((sig >> carry) / (1 << (SIG_BITS - 1))).astype(np.float32), carry.astype(np.int16)


_P_SIG, _P_CARRY = _p_table()
_TANH = [np.array(c, np.int64) for c in (tables.TANH_C0, tables.TANH_C1, tables.TANH_C2)]
