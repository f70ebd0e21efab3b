"""What must become of a command, written down independently of the RTL and in plain Python."""

from dataclasses import dataclass, field

from m890.hdl.commands import (
    ATTEND,
    COMMANDS,
    ROW,
    ROW_BYTES,
    SEGMENT,
    SEGMENT_BYTES,
    Error,
    Opcode,
    Record,
    SegmentKind,
)
from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.layout import PageLayout, output_bytes, raw_stride
from m890.hdl.numerics.formats import Format, OutputFormat

TOKENS = 1 << TOKEN_BITS


class Refused(Exception):
    """A command that must not start."""

    def __init__(self, error: Error, record: Record, name: str, index: int = 0) -> None:
        place = [f.name for f in record.fields].index(name)
        if record is SEGMENT:
            place += len(ATTEND.fields)
        super().__init__(f"{error.name} for {record.name}.{name}, index {index}")
        self.outcome = (int(error), place, index)


@dataclass
class Reference:
    """Tables of a core as its commands leave them; sequences are of tenant 0."""

    config: CoreConfig
    limit: int
    planes: dict[int, dict[str, int]] = field(default_factory=dict)
    sequences: dict[int, dict[str, int]] = field(default_factory=dict)

    def outcome(self, raw: bytes, memory: bytes | bytearray) -> tuple[int, int, int]:
        """(error, field, index) of the completion; tables change if the command may."""
        try:
            self._carry_out(raw, memory)
        except Refused as refused:
            return refused.outcome
        return (0, 0, 0)

    def _carry_out(self, raw: bytes, memory: bytes | bytearray) -> None:
        if raw[0] not in set(Opcode):
            raise Refused(Error.BAD_OPCODE, COMMANDS[Opcode.NOP], "opcode")
        opcode = Opcode(raw[0])
        c = COMMANDS[opcode].unpack(raw)
        if opcode == Opcode.PLANE:
            self._plane(c)
        elif opcode == Opcode.APPEND:
            self._append(c)
        elif opcode == Opcode.ATTEND:
            self._attend(c, memory)

    def _refuse(self, wrong: bool, error: Error, opcode: Opcode, name: str) -> None:
        if wrong:
            raise Refused(error, COMMANDS[opcode], name)

    def _aligned(self, c: dict[str, int], opcode: Opcode, *names: str) -> None:
        for name in names:
            wrong = c[name] % self.config.port_bytes != 0
            self._refuse(wrong, Error.BAD_ALIGNMENT, opcode, name)

    def _within(self, c: dict[str, int], opcode: Opcode, name: str, size: int) -> None:
        wrong = c[name] >> self.config.address_bits or c[name] + size > self.limit
        self._refuse(bool(wrong), Error.BAD_ADDRESS, opcode, name)

    def _known_plane(self, c: dict[str, int], opcode: Opcode) -> dict[str, int]:
        self._refuse(c["plane"] not in self.planes, Error.BAD_PLANE, opcode, "plane")
        return self.planes[c["plane"]]

    def _plane(self, c: dict[str, int]) -> None:
        config, me = self.config, Opcode.PLANE
        self._refuse(c["plane"] >= config.planes, Error.BAD_PLANE, me, "plane")
        self._refuse(c["format"] not in set(Format), Error.BAD_FORMAT, me, "format")
        wrong = c["rotate"] and not config.rotation
        self._refuse(bool(wrong), Error.BAD_FORMAT, me, "rotate")
        self._refuse(not 1 <= c["head"] <= config.max_tiles, Error.BAD_HEAD_SIZE, me, "head")
        self._aligned(c, me, "base", "stride")
        page = PageLayout(config, Format(c["format"]), c["head"], bool(c["tags"])).page_bytes
        self._refuse(c["stride"] < page, Error.BAD_RANGE, me, "stride")
        self._within(c, me, "base", config.pages * c["stride"])
        self.planes[c["plane"]] = c

    def open(self, sequence: int, tokens: int) -> None:
        """A sequence that the page manager has opened, of so many tokens and no room for more."""
        self.sequences[sequence] = {"limit": tokens, "length": tokens}

    def _open(self, sequence: int) -> bool:
        return sequence in self.sequences

    def _append(self, c: dict[str, int]) -> None:
        me = Opcode.APPEND
        plane = self._known_plane(c, me)
        self._refuse(not self._open(c["sequence"]), Error.BAD_SEQUENCE, me, "sequence")
        self._refuse(c["tenant"] != 0, Error.BAD_TENANT, me, "tenant")
        self._refuse(c["tokens"] == 0, Error.BAD_RANGE, me, "tokens")
        end = c["start"] + c["tokens"]
        most = self.sequences[c["sequence"]]["length" if c["repair"] else "limit"]
        self._refuse(end > most, Error.BAD_RANGE, me, "start")
        ok = c["source_format"] in (Format.BF16, Format.FP16)
        self._refuse(not ok, Error.BAD_FORMAT, me, "source_format")
        self._aligned(c, me, "k", "v", "source_stride")
        size = output_bytes(self.config, plane["head"], 2)
        self._refuse(c["source_stride"] < size, Error.BAD_RANGE, me, "source_stride")
        for name in ("k", "v"):
            self._within(c, me, name, (c["tokens"] - 1) * c["source_stride"] + size)
        if c["commit"] and not c["repair"]:
            self.sequences[c["sequence"]]["length"] = end

    def _attend(self, c: dict[str, int], memory: bytes | bytearray) -> None:
        config, me = self.config, Opcode.ATTEND
        tiles = self._known_plane(c, me)["head"]
        self._refuse(not 1 <= c["rows"] <= config.rows, Error.BAD_ROWS, me, "rows")
        self._refuse(
            not 1 <= c["segments"] <= config.max_segments, Error.BAD_SEGMENTS, me, "segments"
        )
        self._aligned(c, me, "tables", "query", "output", "query_stride", "output_stride")
        size = output_bytes(config, tiles, 2)
        out = {
            OutputFormat.BF16: size,
            OutputFormat.FP16: size,
            OutputFormat.FP32: output_bytes(config, tiles, 4),
            OutputFormat.RAW: raw_stride(config, tiles),
        }[OutputFormat(c["output_format"])]
        self._refuse(c["query_stride"] < size, Error.BAD_RANGE, me, "query_stride")
        self._refuse(c["output_stride"] < out, Error.BAD_RANGE, me, "output_stride")
        if not config.softcap:
            self._refuse(c["softcap"] != 0, Error.BAD_FORMAT, me, "softcap")
        port = config.port_bytes
        row_table = -(-c["rows"] * ROW_BYTES // port) * port
        segment_table = -(-c["segments"] * SEGMENT_BYTES // port) * port
        self._within(c, me, "tables", row_table + segment_table)
        self._within(c, me, "query", (c["rows"] - 1) * c["query_stride"] + size)
        self._within(c, me, "output", (c["rows"] - 1) * c["output_stride"] + out)
        for n in range(c["rows"]):
            at = c["tables"] + n * ROW_BYTES
            if ROW.unpack(memory[at : at + ROW_BYTES])["position"] >= TOKENS:
                raise Refused(Error.BAD_RANGE, ATTEND, "tables", n)
        for n in range(c["segments"]):
            at = c["tables"] + row_table + n * SEGMENT_BYTES
            self._segment(SEGMENT.unpack(memory[at : at + SEGMENT_BYTES]), n, c, tiles)

    def _segment(self, s: dict[str, int], n: int, c: dict[str, int], tiles: int) -> None:
        config = self.config

        def refuse(wrong: bool, error: Error, name: str) -> None:
            if wrong:
                raise Refused(error, SEGMENT, name, n)

        refuse(s["kind"] not in set(SegmentKind), Error.BAD_SEGMENT_KIND, "kind")
        raw = s["kind"] == SegmentKind.RAW
        if not raw:
            refuse(not self._open(s["sequence"]), Error.BAD_SEQUENCE, "sequence")
            refuse(c["tenant"] != 0, Error.BAD_TENANT, "sequence")
            refuse(s["start"] >= s["end"], Error.BAD_RANGE, "start")
            refuse(s["end"] > self.sequences[s["sequence"]]["limit"], Error.BAD_RANGE, "end")
        if raw or c["bias"]:
            refuse(s["address"] % config.port_bytes != 0, Error.BAD_ALIGNMENT, "address")
            chunks = (s["end"] - 1) // config.lanes - s["start"] // config.lanes + 1
            size = (
                c["rows"] * raw_stride(config, tiles)
                if raw
                else chunks * c["rows"] * 2 * config.lanes
            )
            outside = s["address"] >> config.address_bits or s["address"] + size > self.limit
            refuse(bool(outside), Error.BAD_ADDRESS, "address")
