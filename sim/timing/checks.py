"""What the core refuses: the checks of commands and job tables, in the order of their fields."""

import functools
from dataclasses import dataclass, field

import numpy as np

from m890.hdl.commands import (
    APPEND,
    ATTEND,
    PLANE,
    ROW_BYTES,
    SEGMENT,
    SEGMENT_BYTES,
    Error,
    Record,
    SegmentKind,
)
from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.layout import PageLayout, output_bytes, raw_stride
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim.golden.pages import PageManager, Refused, Sequence

FORMATS = frozenset(int(f) for f in Format)
KINDS = frozenset(int(k) for k in SegmentKind)
SEGMENT_FIELD = len(ATTEND.fields)
"""A completion's field index of SEGMENT's first field."""
PLANE_FIELD = next(n for n, f in enumerate(ATTEND.fields) if f.name == "plane")
"""Field index of an ATTEND's plane."""


@dataclass(frozen=True)
class Failure:
    """A command's outcome: error, index of the field, and of the segment or token.

    beats: of BAD_TAG, the token; else not set.
    """

    error: Error
    field: int
    index: int = 0
    beats: int = 0


@dataclass(frozen=True)
class Plane:
    """An entry of the plane table."""

    base: int
    stride: int
    layout: PageLayout
    rotate: bool


def plane_page(config: CoreConfig, c: dict[str, int]) -> PageLayout:
    """The page layout that a PLANE command asks for."""
    return PageLayout(config, Format(c["format"]), c["head"], bool(c["tags"]))


@dataclass
class Tables:
    """The core's plane table, its page manager, and the bounds that fields are checked against."""

    config: CoreConfig
    memory: np.ndarray
    planes: dict[int, Plane] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pages = PageManager(self.config, self.memory)

    @property
    def sequences(self) -> dict[int, Sequence]:
        """Open sequences by number."""
        return self.pages.sequences

    def define(self, number: int, plane: Plane) -> None:
        """An entry of the plane table, which the page manager needs to copy pages."""
        self.planes[number] = plane
        self.pages.planes[number] = (plane.base, plane.stride, plane.layout.page_bytes)

    # ---------------------------------------------------------------- commands

    def check_plane(self, c: dict[str, int]) -> Failure | None:
        config, port = self.config, self.config.port_bytes
        if c["plane"] >= config.planes:
            return _failure(PLANE, "plane", Error.BAD_PLANE)
        if c["format"] not in FORMATS:
            return _failure(PLANE, "format", Error.BAD_FORMAT)
        if c["rotate"] and not config.rotation:
            return _failure(PLANE, "rotate", Error.BAD_FORMAT)
        if not 1 <= c["head"] <= config.max_tiles:
            return _failure(PLANE, "head", Error.BAD_HEAD_SIZE)
        for name in ("base", "stride"):
            if c[name] % port:
                return _failure(PLANE, name, Error.BAD_ALIGNMENT)
        if c["stride"] < plane_page(config, c).page_bytes:
            return _failure(PLANE, "stride", Error.BAD_RANGE)
        if not self._inside(c["base"], 0, config.pages, c["stride"]):
            return _failure(PLANE, "base", Error.BAD_ADDRESS)
        return None

    def check_append(self, c: dict[str, int]) -> Failure | None:
        """All but its pages."""
        plane, port = self.planes.get(c["plane"]), self.config.port_bytes
        if plane is None:
            return _failure(APPEND, "plane", Error.BAD_PLANE)
        try:
            self.pages.check_append(c)
        except Refused as refused:
            return _failure(APPEND, refused.field, refused.error)
        if c["source_format"] not in (Format.BF16, Format.FP16):
            return _failure(APPEND, "source_format", Error.BAD_FORMAT)
        for name in ("k", "v", "source_stride"):
            if c[name] % port:
                return _failure(APPEND, name, Error.BAD_ALIGNMENT)
        row = plane.layout.tiles * port
        if c["source_stride"] < row:
            return _failure(APPEND, "source_stride", Error.BAD_RANGE)
        for name in ("k", "v"):
            if not self._inside(c[name], row, c["tokens"] - 1, c["source_stride"]):
                return _failure(APPEND, name, Error.BAD_ADDRESS)
        return None

    def check_attend(self, c: dict[str, int]) -> Failure | None:
        """The command's own fields; its segments are checked one by one after it."""
        config, port = self.config, self.config.port_bytes
        plane = self.planes.get(c["plane"])
        if plane is None:
            return _failure(ATTEND, "plane", Error.BAD_PLANE)
        if not 1 <= c["rows"] <= config.rows:
            return _failure(ATTEND, "rows", Error.BAD_ROWS)
        if not 1 <= c["segments"] <= config.max_segments:
            return _failure(ATTEND, "segments", Error.BAD_SEGMENTS)
        for name in ("tables", "query", "output", "query_stride", "output_stride"):
            if c[name] % port:
                return _failure(ATTEND, name, Error.BAD_ALIGNMENT)
        tiles = plane.layout.tiles
        out = output_stride(config, tiles, OutputFormat(c["output_format"]))
        if c["query_stride"] < tiles * port:
            return _failure(ATTEND, "query_stride", Error.BAD_RANGE)
        if c["output_stride"] < out:
            return _failure(ATTEND, "output_stride", Error.BAD_RANGE)
        if c["softcap"] and not config.softcap:
            return _failure(ATTEND, "softcap", Error.BAD_FORMAT)
        rows = -(-c["rows"] * ROW_BYTES // port) * port
        tables = rows + -(-c["segments"] * SEGMENT_BYTES // port) * port
        if not self._inside(c["tables"], tables):
            return _failure(ATTEND, "tables", Error.BAD_ADDRESS)
        if not self._inside(c["query"], tiles * port, c["rows"] - 1, c["query_stride"]):
            return _failure(ATTEND, "query", Error.BAD_ADDRESS)
        if not self._inside(c["output"], out, c["rows"] - 1, c["output_stride"]):
            return _failure(ATTEND, "output", Error.BAD_ADDRESS)
        return None

    def check_rows(self, position: np.ndarray) -> Failure | None:
        """The row table: positions are token indices."""
        far = np.flatnonzero(position >= 1 << TOKEN_BITS)
        return Failure(Error.BAD_RANGE, _index(ATTEND, "tables"), int(far[0])) if len(far) else None

    def check_segment(self, c: dict[str, int], s: dict[str, int], index: int) -> Failure | None:
        """Segment `index` of the ATTEND c."""
        config, port = self.config, self.config.port_bytes
        tiles = self.planes[c["plane"]].layout.tiles

        def failure(name: str, error: Error) -> Failure:
            return Failure(error, SEGMENT_FIELD + _index(SEGMENT, name), index)

        if s["kind"] not in KINDS:
            return failure("kind", Error.BAD_SEGMENT_KIND)
        if s["kind"] == SegmentKind.RAW:
            if s["address"] % port:
                return failure("address", Error.BAD_ALIGNMENT)
            if not self._inside(s["address"], c["rows"] * raw_stride(config, tiles)):
                return failure("address", Error.BAD_ADDRESS)
            return None
        one = self.sequences.get(s["sequence"])
        if one is None:
            return failure("sequence", Error.BAD_SEQUENCE)
        if one.tenant != c["tenant"]:
            return failure("sequence", Error.BAD_TENANT)
        if s["start"] >= s["end"]:
            return failure("start", Error.BAD_RANGE)
        if s["end"] > min(one.limit, one.pages * config.page_tokens):
            return failure("end", Error.BAD_RANGE)
        if c["bias"]:
            if s["address"] % port:
                return failure("address", Error.BAD_ALIGNMENT)
            chunks = -(-s["end"] // config.lanes) - s["start"] // config.lanes
            if not self._inside(s["address"], chunks * c["rows"] * port):
                return failure("address", Error.BAD_ADDRESS)
        return None

    def _inside(self, address: int, size: int, count: int = 0, stride: int = 0) -> bool:
        end = address + count * stride + size
        return address < 1 << self.config.address_bits and end <= self.pages.limit


def output_stride(config: CoreConfig, tiles: int, output_format: OutputFormat) -> int:
    """Bytes of one row's output."""
    if output_format == OutputFormat.RAW:
        return raw_stride(config, tiles)
    return output_bytes(config, tiles, 4 if output_format == OutputFormat.FP32 else 2)


@functools.cache
def _index(record: Record, name: str) -> int:
    return record.fields.index(record.field(name))


def _failure(record: Record, name: str, error: Error) -> Failure:
    return Failure(error, _index(record, name))
