"""Rows of K and V in the bytes of a chunk, as arrays; where they lie is `m890.hdl.layout`."""

import numpy as np
from numpy.typing import NDArray

from m890.hdl.layout import TAG_BYTES, PageLayout

Bytes = NDArray[np.uint8]


def pack(layout: PageLayout, codes: NDArray) -> Bytes:
    """Codes [..., head] as the bytes of stored rows [..., head x bits / 8]."""
    bits = layout.coding.bits
    if bits == 16:
        return np.ascontiguousarray(codes, "<u2").view(np.uint8)
    codes = codes.astype(np.uint8)
    return codes if bits == 8 else (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)


def unpack(layout: PageLayout, rows: Bytes) -> NDArray[np.uint16]:
    """Codes [..., head] of stored rows."""
    bits = layout.coding.bits
    if bits == 16:
        return np.ascontiguousarray(rows).view("<u2").astype(np.uint16)
    if bits == 8:
        return rows.astype(np.uint16)
    return np.stack([rows & 15, rows >> 4], -1).reshape(*rows.shape[:-1], -1).astype(np.uint16)


def read_rows(layout: PageLayout, chunks: Bytes, *, value: bool) -> Bytes:
    """Stored K (or V) rows [..., lanes, bytes] of chunks [..., chunk_bytes]."""
    lanes = layout.config.lanes
    start = layout.v_offset if value else layout.k_offset
    parts = []
    for group in layout.groups:
        at = start + group.start
        part = chunks[..., at : at + lanes * group.row]
        parts.append(part.reshape(*chunks.shape[:-1], lanes, group.row))
    return np.concatenate(parts, -1)


def write_rows(layout: PageLayout, chunks: Bytes, rows: Bytes, *, value: bool) -> None:
    """Puts rows [..., lanes, bytes] into chunks."""
    lanes = layout.config.lanes
    start, byte = layout.v_offset if value else layout.k_offset, 0
    for group in layout.groups:
        at = start + group.start
        part = rows[..., byte : byte + group.row]
        chunks[..., at : at + lanes * group.row] = part.reshape(*chunks.shape[:-1], -1)
        byte += group.row


def header(layout: PageLayout, chunks: Bytes, *, value: bool) -> Bytes:
    """Each token's K (or V) half of the header [..., lanes, half bytes]: a view of the chunks."""
    lanes, half = layout.config.lanes, layout.half_bytes
    entries = chunks[..., : 2 * lanes * half].reshape(*chunks.shape[:-1], lanes, 2, half)
    return entries[..., int(value), :]


def read_scales(layout: PageLayout, chunks: Bytes, *, value: bool) -> NDArray | None:
    """Scales of the tokens: BF16 bits [..., lanes], E8M0 bytes [..., lanes, groups], or None."""
    if not layout.scale_bytes:
        return None
    raw = np.ascontiguousarray(header(layout, chunks, value=value)[..., : layout.scale_bytes])
    return raw if layout.coding.grouped else raw.view("<u2")[..., 0]


def read_tags(layout: PageLayout, chunks: Bytes, *, value: bool) -> NDArray[np.uint16]:
    """Integrity tags [..., lanes] of the tokens."""
    raw = header(layout, chunks, value=value)[..., -TAG_BYTES:]
    return np.ascontiguousarray(raw).view("<u2")[..., 0]


def write_tags(layout: PageLayout, chunks: Bytes, tags: NDArray, *, value: bool) -> None:
    """Puts integrity tags [..., lanes] into the headers of chunks."""
    raw = np.ascontiguousarray(tags[..., None], "<u2").view(np.uint8)
    header(layout, chunks, value=value)[..., -TAG_BYTES:] = raw


def write_scales(layout: PageLayout, chunks: Bytes, scales: NDArray, *, value: bool) -> None:
    """Puts scales, in the form of `read_scales`, into the headers of chunks."""
    raw = scales if layout.coding.grouped else np.ascontiguousarray(scales[..., None], "<u2")
    header(layout, chunks, value=value)[..., : layout.scale_bytes] = raw.view(np.uint8)


def token_bytes(layout: PageLayout, token: int) -> NDArray[np.int64]:
    """Where all bytes of a token lie in its page: K's row and half of the header, then V's."""
    chunk, lane = divmod(token, layout.config.lanes)
    out: list[int] = []
    for value in (False, True):
        start = layout.v_offset if value else layout.k_offset
        for group in layout.groups:
            out += range(first := start + group.start + lane * group.row, first + group.row)
        half = (2 * lane + value) * layout.half_bytes
        out += range(half, half + layout.half_bytes)
    return chunk * layout.chunk_bytes + np.array(out)
