"""A reader of FST wave files, enough for what Verilator writes: hierarchy and value changes."""

import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

_HEADER, _HIERARCHY, _HIERARCHY_LZ4, _CHANGES = 0, 4, 6, 8
_SCOPE, _UPSCOPE, _ATTRIBUTE, _ATTRIBUTE_END = 254, 255, 252, 253
_ODD = "xzhuwl-?"


class FstError(ValueError):
    """The file is no FST file, or has a part that this reader does not know."""


@dataclass
class Trace:
    """The value of a signal over time: `values[i]` holds from `times[i]` on; None is unknown."""

    width: int
    times: list[int] = field(default_factory=list)
    values: list[int | None] = field(default_factory=list)

    def at(self, time: int) -> int | None:
        """The value at a time."""
        index = bisect_right(self.times, time) - 1
        return self.values[index] if index >= 0 else None


class Fst:
    """An FST file. `signals` maps paths (`m890_core.block.signal`) to widths in bits."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self._handles: dict[str, int] = {}
        self.signals: dict[str, int] = {}
        self._widths: dict[int, int] = {}
        self._blocks: list[tuple[int, int]] = []
        self.start = self.end = 0
        at = 0
        while at < len(self._data):
            kind, size = self._data[at], int.from_bytes(self._data[at + 1 : at + 9], "big")
            if size < 8 or at + 1 + size > len(self._data):
                raise FstError(f"{path} is no complete FST file")
            body = at + 9
            if kind == _HEADER:
                self.start, self.end = struct.unpack(">QQ", self._data[body : body + 16])
            elif kind in (_HIERARCHY, _HIERARCHY_LZ4):
                self._hierarchy(kind, body, at + 1 + size)
            elif kind == _CHANGES:
                self._blocks.append((body, at + 1 + size))
            at += 1 + size
        if not self._handles:
            raise FstError(f"{path} is no complete FST file")

    def read(self, *paths: str) -> list[Trace]:
        """The traces of some signals, in order; an unknown path raises KeyError."""
        handles = [self._handles[path] for path in paths]
        traces = {handle: Trace(self._widths[handle]) for handle in handles}
        for start, end in self._blocks:
            self._changes(start, end, traces)
        return [traces[handle] for handle in handles]

    def _hierarchy(self, kind: int, at: int, end: int) -> None:
        size = int.from_bytes(self._data[at : at + 8], "big")
        packed = self._data[at + 8 : end]
        data = _lz4(packed, size) if kind == _HIERARCHY_LZ4 else zlib.decompress(packed, 31)
        reader = _Reader(data)
        scopes: list[str] = []
        while reader.at < len(data):
            tag = reader.byte()
            if tag == _SCOPE:
                reader.byte()
                scopes.append(reader.string())
                reader.string()
            elif tag == _UPSCOPE:
                scopes.pop()
            elif tag == _ATTRIBUTE:
                reader.at += 2
                reader.string()
                reader.number()
            elif tag != _ATTRIBUTE_END:
                reader.byte()
                name = reader.string().split(" ")[0]
                width, alias = reader.number(), reader.number()
                handle = alias or len(self._widths) + 1
                self._widths.setdefault(handle, width)
                path = ".".join([*scopes, name])
                self._handles[path] = handle
                self.signals[path] = width

    def _changes(self, start: int, end: int, traces: dict[int, Trace]) -> None:
        data = self._data
        times_raw, times_packed, count = struct.unpack(">QQQ", data[end - 24 : end])
        at = end - 24 - times_packed
        packed = data[at : at + times_packed]
        stamps = _Reader(packed if times_packed == times_raw else zlib.decompress(packed))
        times, now = [], 0
        for _ in range(count):
            now += stamps.number()
            times.append(now)
        chain_size = int.from_bytes(data[at - 8 : at], "big")
        chain_start = at - 8 - chain_size
        reader = _Reader(data, start + 24)
        raw, packed_size, _ = reader.number(), reader.number(), reader.number()
        bits = data[reader.at : reader.at + packed_size]
        frame = bits if packed_size == raw else zlib.decompress(bits)
        reader.at += packed_size
        reader.number()
        base = reader.at
        places = _chain(_Reader(data, chain_start), at - 8, chain_start - base)
        offset = 0
        for handle in sorted(self._widths):
            width = self._widths[handle]
            if handle in traces:
                trace = traces[handle]
                value = _value(frame[offset : offset + width].decode("latin1"))
                if not trace.values or trace.values[-1] != value:
                    trace.times.append(times[0])
                    trace.values.append(value)
                if place := places.get(handle):
                    _wave(data[base + place[0] : base + place[1]], data[base], times, trace)
            offset += width


def _chain(reader: "_Reader", end: int, last: int) -> dict[int, tuple[int, int]]:
    """Where each handle's changes lie, from the chain of offsets."""
    starts: dict[int, int] = {}
    aliases: dict[int, int] = {}
    handle, place, alias = 1, 0, 0
    while reader.at < end:
        if not reader.data[reader.at] & 1:
            handle += reader.number() >> 1
            continue
        value = reader.signed() >> 1
        if value > 0:
            place += value
            starts[handle] = place
        else:
            alias = value or alias
            aliases[handle] = -alias
        handle += 1
    order = [*sorted(starts.values()), last]
    following = dict(zip(order, order[1:], strict=False))
    found = {h: (p, following[p]) for h, p in starts.items()}
    return found | {h: found[original] for h, original in aliases.items()}


def _wave(data: bytes, pack: int, times: list[int], trace: Trace) -> None:
    reader = _Reader(data)
    size = reader.number()
    body = data[reader.at :]
    if size:
        if pack != ord("4"):
            raise FstError(f"waves are packed in a way that is not known: {chr(pack)!r}")
        body = _lz4(body, size)
    reader = _Reader(body)
    index = 0
    while reader.at < len(body):
        word = reader.number()
        if trace.width == 1:
            index += word >> 4 if word & 1 else word >> 2
            value = _value(_ODD[word >> 1 & 7]) if word & 1 else word >> 1 & 1
        else:
            index += word >> 1
            if word & 1:
                value = _value(body[reader.at : reader.at + trace.width].decode("latin1"))
                reader.at += trace.width
            else:
                size = (trace.width + 7) // 8
                value = int.from_bytes(body[reader.at : reader.at + size], "big")
                value >>= 8 * size - trace.width
                reader.at += size
        if trace.times and trace.times[-1] == times[index]:
            trace.values[-1] = value
        else:
            trace.times.append(times[index])
            trace.values.append(value)


def _value(bits: str) -> int | None:
    return int(bits, 2) if bits and not bits.strip("01") else None


class _Reader:
    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def string(self) -> str:
        end = self.data.index(0, self.at)
        text = self.data[self.at : end].decode("utf-8", "replace")
        self.at = end + 1
        return text

    def number(self) -> int:
        """An unsigned LEB128 number."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def signed(self) -> int:
        """A signed LEB128 number."""
        start = self.at
        value = self.number()
        bits = 7 * (self.at - start)
        return value - (1 << bits) if value >> (bits - 1) & 1 else value


def _lz4(data: bytes, size: int) -> bytes:
    """Unpack an LZ4 block."""
    out = bytearray()
    at = 0

    def length(start: int) -> int:
        nonlocal at
        if start < 15:
            return start
        while True:
            at += 1
            start += data[at - 1]
            if data[at - 1] < 255:
                return start

    while at < len(data):
        token = data[at]
        at += 1
        count = length(token >> 4)
        out += data[at : at + count]
        at += count
        if at >= len(data):
            break
        back = data[at] | data[at + 1] << 8
        at += 2
        count = length(token & 15) + 4
        for _ in range(count):
            out.append(out[-back])
    if len(out) != size:
        raise FstError("a packed part of the file is damaged")
    return bytes(out)
