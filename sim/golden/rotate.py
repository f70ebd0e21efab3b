"""Walsh-Hadamard rotation of K, V and queries, and its inverse on O.

A block is the `lanes` features of a tile. It is aligned to its largest exponent, transformed with
integer additions, which are exact, and rounded once.
"""

import numpy as np

from m890.hdl.numerics import rotation
from m890.hdl.numerics.formats import CODINGS, Format
from m890.sim.golden.elements import decode
from m890.sim.golden.output import encode
from m890.sim.golden.wide import Wide, rounded

_NOWHERE = -(1 << 20)  # exponent of a zero while exponents are compared
_QUIET = {Format.BF16: 0x7FC0, Format.FP16: 0x7E00}


def rotate_kv(rows: np.ndarray, format: Format, lanes: int) -> np.ndarray:
    """Rows of K or V [..., d] of BF16 or FP16 bits, rotated, ahead of `append`."""
    return _rotate(rows, format, lanes, rotation.kv_shift(lanes))


def rotate_query(rows: np.ndarray, format: Format, lanes: int) -> np.ndarray:
    """Queries [..., d] of BF16 or FP16 bits, rotated."""
    return _rotate(rows, format, lanes, rotation.query_shift(lanes))


def rotate_back(o: Wide, lanes: int) -> Wide:
    """O [..., d] of a rotated V, in the domain of the rows that were appended."""
    shape = (*o.shape[:-1], o.shape[-1] // lanes, lanes)
    sign, sig, exp, nan = (f.reshape(shape) for f in o.fields())
    sums, top = _aligned(sign, sig, exp, rotation.ROTATE_BACK_FRACTION_BITS - 23)
    sums = _transform(sums)
    sums = np.where(_signs(lanes), -sums, sums)
    unit = top - rotation.ROTATE_BACK_FRACTION_BITS - rotation.query_shift(lanes)
    value = rounded(sums.astype(np.float64), unit)
    lost = nan.any(-1, keepdims=True)
    return Wide(
        np.where(lost, np.float32(np.nan), value.sig).reshape(o.shape),
        np.where(lost, 0, value.exp).reshape(o.shape).astype(np.int32),
    )


def _rotate(rows: np.ndarray, format: Format, lanes: int, shift: int) -> np.ndarray:
    rows = np.asarray(rows, np.uint16)
    blocks = rows.reshape(*rows.shape[:-1], rows.shape[-1] // lanes, lanes)
    sign, sig, exp, nan = decode(blocks, format).fields()
    sums, top = _aligned(sign ^ _signs(lanes), sig, exp, rotation.ROTATE_FRACTION_BITS - 10)
    unit = top - rotation.ROTATE_FRACTION_BITS - shift
    coding = CODINGS[format]
    value = np.ldexp(_transform(sums).astype(np.float64), unit)
    bits = encode(value, coding.exp_bits, coding.man_bits)
    bits = np.where(nan.any(-1, keepdims=True), _QUIET[format], bits)
    return bits.astype(np.uint16).reshape(rows.shape)


def _aligned(
    sign: np.ndarray, sig: np.ndarray, exp: np.ndarray, more: int
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks as integers on the scale of their largest exponent, and that exponent [..., 1].

    `more`: fraction bits beyond the significand's own. Magnitudes are truncated.
    """
    live = sig != 0
    top = np.where(live, exp, _NOWHERE).max(-1, keepdims=True)
    top = np.where(top == _NOWHERE, 0, top)
    distance = np.where(live, np.minimum(top - exp, 62), 0)
    magnitude = (sig << more) >> distance
    return np.where(sign != 0, -magnitude, magnitude), top


def _transform(blocks: np.ndarray) -> np.ndarray:
    """The Walsh-Hadamard transform of the last axis, unnormalised: additions only."""
    lanes, step = blocks.shape[-1], 1
    while step < lanes:
        pairs = blocks.reshape(*blocks.shape[:-1], lanes // (2 * step), 2, step)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        blocks = np.stack([low + high, low - high], axis=-2).reshape(blocks.shape)
        step *= 2
    return blocks


def _signs(lanes: int) -> np.ndarray:
    return np.array(rotation.signs(lanes), np.int64)
