"""Records of `m890.hdl.commands` as numpy arrays: many at once."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m890.hdl.commands import Field, Record

Bytes = NDArray[np.uint8]


FAR = np.uint64(1 << 62)


def pack(record: Record, count: int, values: Mapping[str, ArrayLike]) -> Bytes:
    """`count` records [count, record.bytes]; each value is a scalar or has one entry per record.

    A value that does not fit its field raises ValueError.
    """
    out = np.zeros((count, record.bytes), np.uint8)
    for name, value in values.items():
        field = record.field(name)
        array = np.broadcast_to(np.asarray(value), (count,))
        _check(record, field, array)
        byte, bit = divmod(field.lsb, 8)
        if bit + field.width <= 8 and (bit or field.width < 8):
            out[:, byte] |= (array.astype(np.uint8) & ((1 << field.width) - 1)) << bit
        else:
            size = field.width // 8
            whole = 1 << (size - 1).bit_length()  # a field of three bytes is part of four
            kind = f"<{'i' if field.signed else 'u'}{whole}"
            raw = np.ascontiguousarray(array.astype(kind)).view(np.uint8).reshape(count, whole)
            out[:, byte : byte + size] = raw[:, :size]
    return out


def unpack(record: Record, raw: Bytes) -> dict[str, NDArray[np.int64]]:
    """Every field of records [n, record.bytes] as int64.

    64-bit values beyond 2^62 become 2^62 and their low 12 bits: as far outside memory, as aligned.
    """
    out: dict[str, NDArray[np.int64]] = {}
    for field in record.fields:
        byte, bit = divmod(field.lsb, 8)
        if bit + field.width <= 8 and (bit or field.width < 8):
            out[field.name] = (raw[:, byte].astype(np.int64) >> bit) & ((1 << field.width) - 1)
        else:
            size = field.width // 8
            whole = 1 << (size - 1).bit_length()
            part = np.zeros((len(raw), whole), np.uint8)
            part[:, :size] = raw[:, byte : byte + size]
            column = part.view(f"<{'i' if field.signed else 'u'}{whole}")[:, 0]
            if size == 8:
                column = np.where(column < FAR, column, column & np.uint64(4095) | FAR)
            out[field.name] = column.astype(np.int64)
    return out


def _check(record: Record, field: Field, value: NDArray) -> None:
    low = -(1 << field.width - 1) if field.signed else 0
    high = (1 << field.width - 1) if field.signed else (1 << field.width)
    if value.size and not (low <= int(value.min()) and int(value.max()) < high):
        bad = next(int(v) for v in value if not low <= int(v) < high)
        raise ValueError(f"{record.name}.{field.name} = {bad} does not fit {field.width} bits")
