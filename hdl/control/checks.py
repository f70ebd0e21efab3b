"""What must hold of a command before it starts: the rules, in the order in which they are tried."""

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Mux, Value

from m890.hdl.commands import ROW_BYTES, SEGMENT_BYTES, Error, Opcode, Record
from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import bits
from m890.hdl.kv.items import header_beats, packing
from m890.hdl.memory.burst import beat_bits
from m890.hdl.numerics.formats import Format, OutputFormat


@dataclass(frozen=True)
class Check:
    """`bad` refuses the command with `error`, for the field named."""

    field: str
    error: Error
    bad: Value


@dataclass(frozen=True)
class Range:
    """`address + count x stride + size` must lie within memory, else BAD_ADDRESS for `field`.

    address in bytes, the others in port beats.
    """

    field: str
    address: Value
    count: Value
    stride: Value
    size: Value


def not_one_to(value: Value, most: int) -> Value:
    """Not one of 1 to `most`."""
    return (value == 0) | (value > most)


def field_index(record: Record, name: str) -> int:
    """Place of a field in its record, as completions name it."""
    return [f.name for f in record.fields].index(name)


class Rules:
    """Checks of one configuration; `memory` ranges are in port beats.

    Every rule reads the command and the two table entries that it names, nothing else; so whether
    it holds does not depend on what runs. Entries of a command that needs none are ignored.
    """

    def __init__(
        self, config: CoreConfig, commands: dict[Opcode, Any], plane: Any, sequence: Any,
        length: Value, damaged: Value,
    ) -> None:  # fmt: skip
        self._config, self._low = config, beat_bits(config)
        self._commands, self._plane, self._sequence = commands, plane, sequence
        self._length, self._damaged = length, damaged

    def checks(self) -> dict[Opcode, list[Check]]:
        """Per opcode, first failure wins."""
        return {
            Opcode.PLANE: self._plane_checks(),
            Opcode.APPEND: self._append_checks(),
            Opcode.ATTEND: self._attend_checks(),
        }

    def ranges(self) -> dict[Opcode, list[Range]]:
        """Per opcode, tried in order after all checks."""
        config, low = self._config, self._low
        plane = self._commands[Opcode.PLANE]
        append, attend = self._commands[Opcode.APPEND], self._commands[Opcode.ATTEND]
        none, tiles = Const(0, 1), self._plane.tiles
        rows = attend.rows - 1
        return {
            Opcode.PLANE: [
                Range("base", plane.base, Const(config.pages), plane.stride[low:], none)
            ],
            Opcode.APPEND: [
                Range(name, append[name], append.tokens - 1, append.source_stride[low:], tiles)
                for name in ("k", "v")
            ],
            Opcode.ATTEND: [
                Range("tables", attend.tables, none, none, self._tables_beats(attend)),
                Range("query", attend.query, rows, attend.query_stride[low:], tiles),
                Range(
                    "output",
                    attend.output,
                    rows,
                    attend.output_stride[low:],
                    output_beats(attend.output_format, tiles),
                ),
            ],
        }

    def _plane_checks(self) -> list[Check]:
        config, low = self._config, self._low
        plane = self._commands[Opcode.PLANE]
        return [
            Check("plane", Error.BAD_PLANE, plane.plane >= config.planes),
            Check("format", Error.BAD_FORMAT, plane.format >= len(Format)),
            # A core without the units must not leave the rotation out silently.
            Check("rotate", Error.BAD_FORMAT, Const(0, 1) if config.rotation else plane.rotate),
            Check(
                "head",
                Error.BAD_HEAD_SIZE,
                not_one_to(plane.head, config.max_tiles),
            ),
            *self._aligned(plane, "base", "stride"),
            Check(
                "stride",
                Error.BAD_RANGE,
                plane.stride[low:] < page_beats(config, plane.format, plane.head, plane.tags),
            ),
        ]

    def _append_checks(self) -> list[Check]:
        append, one = self._commands[Opcode.APPEND], self._sequence
        known = append.sequence < self._config.sequences
        page = self._config.page_tokens.bit_length() - 1
        end = append.start + append.tokens
        # A repair rewrites what is committed; else no page may be left out.
        out = Mux(append.repair, end > self._length, append.start > Cat(Const(0, page), one.pages))
        return [
            self._plane_known(append),
            Check("sequence", Error.TABLE_ERROR, known & self._damaged),
            Check("sequence", Error.BAD_SEQUENCE, ~known | ~one.open),
            Check("tenant", Error.BAD_TENANT, append.tenant != one.tenant),
            Check("tokens", Error.BAD_RANGE, append.tokens == 0),
            Check("start", Error.BAD_RANGE, (end > one.limit) | out),
            Check(
                "source_format",
                Error.BAD_FORMAT,
                (append.source_format != Format.BF16) & (append.source_format != Format.FP16),
            ),
            *self._aligned(append, "k", "v", "source_stride"),
            self._apart(append, "source_stride", self._plane.tiles),
        ]

    def _attend_checks(self) -> list[Check]:
        config, attend = self._config, self._commands[Opcode.ATTEND]
        tiles = self._plane.tiles
        return [
            self._plane_known(attend),
            Check("rows", Error.BAD_ROWS, not_one_to(attend.rows, config.rows)),
            Check("segments", Error.BAD_SEGMENTS, not_one_to(attend.segments, config.max_segments)),
            *self._aligned(attend, "tables", "query", "output", "query_stride", "output_stride"),
            self._apart(attend, "query_stride", tiles),
            self._apart(attend, "output_stride", output_beats(attend.output_format, tiles)),
            # A core without the unit cannot apply a cap, and must not leave it out silently.
            Check(
                "softcap",
                Error.BAD_FORMAT,
                Const(0, 1) if config.softcap else attend.softcap.any(),
            ),
        ]

    def _plane_known(self, command: Any) -> Check:
        unset = (command.plane >= self._config.planes) | (self._plane.tiles == 0)
        return Check("plane", Error.BAD_PLANE, unset)

    def _aligned(self, command: Any, *names: str) -> list[Check]:
        return [Check(n, Error.BAD_ALIGNMENT, command[n][: self._low].any()) for n in names]

    def _apart(self, command: Any, name: str, beats: Value) -> Check:
        """Strided vectors must not overlap."""
        return Check(name, Error.BAD_RANGE, command[name][self._low :] < beats)

    def _tables_beats(self, attend: Any) -> Value:
        rows, segments = table_split(self._config, attend.rows, attend.segments)
        return rows + segments


def table_split(config: CoreConfig, rows: Value, segments: Value) -> tuple[Value, Value]:
    """Port beats of an ATTEND's row table and of its segment table, each padded to a beat."""

    def beats(count: Value, size: int) -> Value:
        if size >= config.port_bytes:
            return count << bits(size // config.port_bytes) if size > config.port_bytes else count
        each = config.port_bytes // size
        return (count + each - 1) >> bits(each)

    return beats(rows, ROW_BYTES), beats(segments, SEGMENT_BYTES)


def table_beats(config: CoreConfig, limit: Value) -> Value:
    """Port beats of a block table (4 bytes per page) that covers `limit` tokens."""
    tokens = config.page_tokens * config.port_bytes // 4  # tokens whose page numbers fill a beat
    return (limit + tokens - 1) >> bits(tokens)


def page_beats(config: CoreConfig, format_: Value, tiles: Value, tags: Value) -> Value:
    """Port beats of a page: as `m890.hdl.layout.PageLayout.page_bytes`."""
    elements = (tiles << bits(2 * config.lanes)) >> packing(format_)  # K and V
    beats = elements + header_beats(config, format_, tiles, tags)
    chunks = config.chunks_per_page
    return beats << bits(chunks) if chunks > 1 else beats


def output_beats(output_format: Value, tiles: Value) -> Value:
    """Port beats of one output row; a tile of 16-bit elements is one beat."""
    return Mux(
        output_format == OutputFormat.RAW,
        (tiles << 1) + 1,
        Mux(output_format == OutputFormat.FP32, tiles << 1, tiles),
    )
