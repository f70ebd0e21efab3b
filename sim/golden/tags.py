"""Integrity tags: a CRC-16 per row of K or V (docs/numerics.md, "Integrity tags")."""

import functools

import numpy as np

from m890.hdl.layout import TAG_POLYNOMIAL, TAG_START


def tag(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Tags uint16 [...] of rows.

    codes: uint8 [..., n], the row as stored, in feature order; scales: uint8 [..., s], the bytes of
    the row's half of the header before its tag.
    """
    message = np.concatenate([codes, scales], -1)
    table = _contributions(message.shape[-1])
    each = table[np.arange(message.shape[-1]), message.astype(np.intp)]
    start = functools.reduce(lambda crc, _: _byte(crc), range(message.shape[-1]), TAG_START)
    return np.bitwise_xor.reduce(each, -1, initial=start).astype(np.uint16)


def _byte(crc: int) -> int:
    """The remainder after a further byte of zeros."""
    for _ in range(8):
        crc = crc << 1 ^ (0x10000 | TAG_POLYNOMIAL) * (crc >> 15)
    return crc


@functools.cache
def _contributions(length: int) -> np.ndarray:
    """[byte, value]: what a byte of a message of this length adds to the remainder.

    A CRC is linear: the remainder is the sum of what the bytes and the start give alone.
    """
    row = np.array([_byte(value << 8) for value in range(256)], np.uint16)
    after = np.array([_byte(high << 8) for high in range(256)], np.uint16)
    rows = np.empty((length, 256), np.uint16)
    for n in reversed(range(length)):
        rows[n] = row
        row = after[row >> 8] ^ (row << 8)
    return rows
