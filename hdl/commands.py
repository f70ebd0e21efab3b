"""Commands, job tables and completions: the one source for RTL, firmware, docs and the C header.

Data only (no Amaranth). A record is little-endian; a field is `width` bits at bit `lsb`.
Bits that no field names are reserved and written as zero.
"""

from dataclasses import dataclass
from enum import IntEnum


class Opcode(IntEnum):
    """What a ring entry asks for."""

    NOP = 0
    FENCE = 1
    PLANE = 2
    APPEND = 3
    ATTEND = 4
    CREATE = 5
    FORK = 6
    TRIM = 7
    RELEASE = 8
    PIN = 9
    UNPIN = 10
    COPY = 11
    QUERY = 12
    QUOTA = 13


class Error(IntEnum):
    """Outcome of a command, carried by its completion. A failed command changes nothing."""

    OK = 0  # the command did what it should
    BAD_OPCODE = 1  # no such opcode
    BAD_ADDRESS = 2  # an address range leaves memory (MEMORY_LIMIT, or the core's address bits)
    BAD_ALIGNMENT = 3  # an address or a stride is not a multiple of the port's beat
    BAD_ROWS = 4  # rows is 0 or more than the core has
    BAD_SEGMENTS = 5  # segments is 0 or more than the core's limit
    BAD_HEAD_SIZE = 6  # head is 0 or more tiles than the core's largest head
    BAD_FORMAT = 7  # no such format, or one that the command or this core does not take
    BAD_PLANE = 8  # no such plane, or none defined
    BAD_SEQUENCE = 9  # no such sequence, or a closed one
    BAD_RANGE = 10  # tokens outside what the sequence has, a stride too small, or a count of 0
    BAD_PAGE = 11  # a table names no page, a free one, or one to write that others hold too
    BUS_ERROR = 12  # memory answered a read or write with an error
    RING_OVERRUN = 13  # the tail was set more than the ring ahead (STATUS, not a completion)
    BAD_SEGMENT_KIND = 14  # no such segment kind
    BAD_RING = 15  # ring base or size cannot be used (STATUS, not a completion)
    BAD_TENANT = 16  # no such tenant, or a sequence or page of another tenant
    OUT_OF_PAGES = 17  # the pool has fewer free pages than the command needs
    QUOTA = 18  # the tenant would hold more pages than its quota
    SEQUENCE_OPEN = 19  # the sequence that the command would open is open
    NOT_PINNED = 20  # a page holds no pin that could be taken away, or must be pinned and is not
    TOO_SHARED = 21  # a page has as many references or pins as can be counted
    TABLE_ERROR = 22  # an uncorrectable error in the page manager's own memory
    BAD_TAG = 23  # a row of K or V in memory is not the one that was written; nothing was output


class SegmentKind(IntEnum):
    """What a segment streams past the rows."""

    KV = 0  # tokens [start, end) of a sequence
    DRAFT = 1  # the same, but each row's draft mask (anchored at `start`) replaces its other masks
    RAW = 2  # a stored raw (l, O) state per row, added to the rows' own


class Query(IntEnum):
    """What a QUERY asks for. The answer is the completion's `beats`, the tenant its `index`."""

    LENGTH = 0  # committed tokens of a sequence
    PAGES = 1  # pages in a sequence's block table
    FREE = 2  # free pages of the pool
    PAGE = 3  # of a page: references [15:0], pins [19:16], public [24]; 0: free
    HELD = 4  # pages that the tenant holds
    QUOTA = 5  # pages that the tenant may hold


class Status(IntEnum):
    """Sticky numeric events of a job: bit numbers in the completion's `status`."""

    OVERFLOW = 0  # a score or raw exponent above the wide range was saturated
    UNDERFLOW = 1  # a score or raw exponent below the wide range became zero
    INVALID = 2  # NaN or Inf in visible data: an output row holds NaN
    QUANTISE = 3  # an appended value was not finite or beyond its format, and was saturated


@dataclass(frozen=True)
class Field:
    """`width` bits at bit `lsb` of a record; `unit` and `doc` are for people."""

    name: str
    lsb: int
    width: int
    doc: str
    signed: bool = False


@dataclass(frozen=True)
class Record:
    """A fixed-size little-endian record in memory."""

    name: str
    bytes: int
    fields: tuple[Field, ...]
    doc: str

    def __post_init__(self) -> None:
        used = 0
        for f in self.fields:
            mask = ((1 << f.width) - 1) << f.lsb
            if used & mask or f.lsb + f.width > 8 * self.bytes:
                raise ValueError(f"{self.name}.{f.name} overlaps another field or the record's end")
            used |= mask

    def field(self, name: str) -> Field:
        return next(f for f in self.fields if f.name == name)

    def pack(self, **values: int) -> bytes:
        """Bytes of the record; a value that does not fit its field raises ValueError."""
        word = 0
        for name, value in values.items():
            f = self.field(name)
            low, high = (-(1 << f.width - 1), 1 << f.width - 1) if f.signed else (0, 1 << f.width)
            if not low <= int(value) < high:
                raise ValueError(f"{self.name}.{name} = {value} does not fit {f.width} bits")
            word |= (int(value) & ((1 << f.width) - 1)) << f.lsb
        return word.to_bytes(self.bytes, "little")

    def unpack(self, raw: bytes) -> dict[str, int]:
        """Every field's value."""
        word = int.from_bytes(raw[: self.bytes], "little")
        out = {}
        for f in self.fields:
            value = word >> f.lsb & ((1 << f.width) - 1)
            if f.signed and value >> (f.width - 1):
                value -= 1 << f.width
            out[f.name] = value
        return out


COMMAND_BYTES = 64
COMPLETION_BYTES = 32
ROW_BYTES = 16
SEGMENT_BYTES = 32

_HEAD = (
    Field("opcode", 0, 8, "what to do (Opcode)"),
    Field("tag", 16, 16, "returned in the completion"),
)

NOP = Record("NOP", COMMAND_BYTES, _HEAD, "Complete, and do nothing else.")
FENCE = Record("FENCE", COMMAND_BYTES, _HEAD, "Complete once every earlier command has completed.")
PLANE = Record(
    "PLANE",
    COMMAND_BYTES,
    (
        *_HEAD,
        Field("plane", 32, 16, "plane table index (one layer and KV head)"),
        Field("format", 48, 4, "KV format (Format)"),
        Field("head", 56, 8, "head size in tiles of `lanes` features"),
        Field("base", 64, 64, "byte address of page 0, port-aligned"),
        Field("stride", 128, 32, "bytes from a page to the next, port-aligned"),
        Field("tags", 52, 1, "pages carry an integrity tag per row of K and V"),
        Field("rotate", 53, 1, "K and V are rotated at append, queries at load, outputs back"),
    ),
    "Define a plane: where its pages lie and how they are coded.",
)
APPEND = Record(
    "APPEND",
    COMMAND_BYTES,
    (
        *_HEAD,
        Field("plane", 32, 16, "plane to append to"),
        Field("sequence", 48, 16, "sequence to append to"),
        Field("start", 64, 32, "index of the first token written"),
        Field("tokens", 96, 16, "tokens to write, 1 or more"),
        Field("source_format", 112, 4, "BF16 or FP16 (Format)"),
        Field("k", 128, 64, "byte address of K, tokens x head elements, port-aligned"),
        Field("v", 192, 64, "byte address of V, likewise"),
        Field("source_stride", 256, 32, "bytes from a token to the next, port-aligned"),
        Field("tenant", 288, 16, "the sequence's tenant"),
        Field("commit", 8, 1, "the sequence's length becomes start + tokens"),
        Field("repair", 9, 1, "rewrite committed tokens in place, in shared pages too"),
    ),
    "Quantise K and V of new tokens into a sequence's pages.",
)
ATTEND = Record(
    "ATTEND",
    COMMAND_BYTES,
    (
        *_HEAD,
        Field("causal", 8, 1, "a row sees only tokens up to its own position"),
        Field("sink", 9, 1, "a row's l starts at 2^sink (row table)"),
        Field("bias", 10, 1, "add a bias per row and token (segment's `address`)"),
        Field("query_format", 11, 1, "of queries and biases: 0 BF16, 1 FP16"),
        Field("output_format", 12, 2, "0 BF16, 1 FP16, 2 FP32, 3 raw (l, O)"),
        Field("plane", 32, 16, "plane to attend to"),
        Field("rows", 48, 8, "rows used, 1 to the core's rows"),
        Field("segments", 56, 8, "segments, 1 to the core's limit"),
        Field("tables", 64, 64, "byte address: row table, then segment table, each port-aligned"),
        Field("query", 128, 64, "byte address of the first query, port-aligned"),
        Field("output", 192, 64, "byte address of the first output row, port-aligned"),
        Field("query_stride", 256, 32, "bytes from a query to the next, port-aligned"),
        Field("output_stride", 288, 32, "bytes from an output row to the next, port-aligned"),
        Field("window", 320, 32, "tokens that a row sees back from its position; 0: all"),
        Field("sinks", 352, 32, "first tokens that stay visible beside the window"),
        Field("softcap", 384, 32, "FP32 cap c, base-2 domain: s becomes c tanh(s / c); 0: off"),
        Field("softcap_inverse", 416, 32, "FP32 1 / c"),
        Field("tenant", 448, 16, "tenant of every sequence that a segment names"),
    ),
    "Stream segments past rows of queries and write the attention output.",
)
_SEQUENCE = (
    *_HEAD,
    Field("sequence", 32, 16, "sequence table index"),
    Field("tenant", 48, 16, "the sequence's tenant"),
)
_TABLE = (
    Field("table", 64, 64, "byte address of the block table (u32 page numbers), port-aligned"),
    Field("limit", 128, 32, "tokens that the block table has room for"),
)
CREATE = Record(
    "CREATE",
    COMMAND_BYTES,
    (
        *_SEQUENCE,
        *_TABLE,
        Field("tokens", 160, 32, "committed tokens that it begins with, in pages of `list`"),
        Field("list", 192, 64, "byte address of their page numbers (u32), port-aligned"),
    ),
    "Open a sequence, empty or with pages that are there already.",
)
FORK = Record(
    "FORK",
    COMMAND_BYTES,
    (
        *_SEQUENCE,
        *_TABLE,
        Field("tokens", 160, 32, "committed tokens that the new sequence begins with"),
        Field("target", 192, 16, "sequence table index of the new sequence"),
    ),
    "Open a sequence with the first tokens of another: whole pages shared, the rest copied.",
)
TRIM = Record(
    "TRIM",
    COMMAND_BYTES,
    (*_SEQUENCE, Field("tokens", 160, 32, "committed tokens that stay")),
    "Roll a sequence back; pages behind its new end are given up.",
)
RELEASE = Record("RELEASE", COMMAND_BYTES, _SEQUENCE, "Give up a sequence and its pages.")
_RANGE = (
    Field("start", 128, 32, "first token: the pages that hold tokens start ... end - 1"),
    Field("end", 160, 32, "one past the last token"),
)
PIN = Record(
    "PIN",
    COMMAND_BYTES,
    (
        *_SEQUENCE,
        Field("public", 8, 1, "other tenants may open sequences with these pages, too"),
        *_RANGE,
    ),
    "Hold pages of a sequence beyond its end of life.",
)
UNPIN = Record(
    "UNPIN",
    COMMAND_BYTES,
    (
        *_SEQUENCE,
        Field("listed", 8, 1, "the pages are those of `list`, not of a sequence"),
        *_RANGE,
        Field("list", 192, 64, "listed: byte address of page numbers (u32), port-aligned"),
        Field("count", 256, 16, "listed: how many"),
    ),
    "Take a pin away from each of some pages.",
)
COPY = Record(
    "COPY",
    COMMAND_BYTES,
    (
        *_HEAD,
        Field("inward", 8, 1, "0: from pages to slots of the host pool; 1: back, into new pages"),
        Field("blank", 9, 1, "inward: new pages only, `host` and `slots` are not looked at"),
        Field("tenant", 48, 16, "the pages' tenant"),
        Field("host", 64, 64, "byte address of slot 0, port-aligned"),
        Field("host_stride", 128, 32, "bytes from a slot to the next, port-aligned"),
        Field("host_slots", 160, 24, "slots of the host pool"),
        Field("list", 192, 64, "byte address of page numbers (u32), port-aligned; inward: written"),
        Field("slots", 256, 64, "byte address of slot numbers (u32), port-aligned"),
        Field("count", 320, 16, "pages to copy"),
    ),
    "Copy pages between the device pool and a host pool, in every plane.",
)
QUERY = Record(
    "QUERY",
    COMMAND_BYTES,
    (
        *_HEAD,
        Field("what", 8, 8, "what to tell (Query)"),
        Field("sequence", 32, 16, "LENGTH, PAGES: of this sequence"),
        Field("tenant", 48, 16, "HELD, QUOTA: of this tenant"),
        Field("page", 64, 32, "PAGE: of this page"),
    ),
    "Tell the state of a sequence, of the pool, of a page or of a tenant.",
)
QUOTA = Record(
    "QUOTA",
    COMMAND_BYTES,
    (
        *_HEAD,
        Field("tenant", 48, 16, "tenant"),
        Field("pages", 64, 32, "pages that it may hold"),
    ),
    "Limit the pages that a tenant's sequences and pins can take.",
)
COMMANDS: dict[Opcode, Record] = {
    Opcode[r.name]: r
    for r in (
        NOP, FENCE, PLANE, APPEND, ATTEND, CREATE, FORK, TRIM, RELEASE, PIN, UNPIN, COPY, QUERY,
        QUOTA,
    )
}  # fmt: skip

ROW = Record(
    "ROW",
    ROW_BYTES,
    (
        Field("position", 0, 32, "the row's token position (causal and window masks)"),
        Field("draft", 32, 32, "bit i: the row sees token i of a DRAFT segment"),
        Field("sink", 64, 32, "FP32 learned sink logit in the base-2 domain"),
    ),
    "Row table entry of an ATTEND job.",
)
SEGMENT = Record(
    "SEGMENT",
    SEGMENT_BYTES,
    (
        Field("kind", 0, 8, "KV, DRAFT or RAW (SegmentKind)"),
        Field("sequence", 16, 16, "sequence whose tokens stream"),
        Field("start", 32, 32, "first token"),
        Field("end", 64, 32, "one past the last token"),
        Field("row_mask", 128, 64, "bit r: row r takes part"),
        Field("address", 192, 64, "RAW: states, [row]; KV with bias: the bias, [chunk][row][lane]"),
    ),
    """Segment table entry of an ATTEND job. Arrays at `address` have the job's `rows` rows; chunk 0
    of a bias is the one that holds token `start`.""",
)
COMPLETION = Record(
    "COMPLETION",
    COMPLETION_BYTES,
    (
        Field("tag", 0, 16, "of the command"),
        Field("error", 16, 8, "Error"),
        Field(
            "field",
            24,
            8,
            "index of the offending field in the command's record (its `fields`);"
            " of ATTEND, the fields of SEGMENT follow its own",
        ),
        Field("status", 32, 8, "Status bits"),
        Field("opcode", 40, 8, "of the command"),
        Field(
            "index",
            48,
            16,
            "segment, row, token or page concerned; of QUERY the tenant, of BAD_TAG the sequence",
        ),
        Field("start", 64, 64, "cycle counter when the command was taken up"),
        Field("end", 128, 64, "cycle counter when it completed"),
        Field("beats", 192, 32, "array beats of the job; QUERY: the answer, BAD_TAG: the token"),
        Field("phase", 224, 32, "1 + completions so far // entries of the ring, so 0 is empty"),
    ),
    "What a command leaves in the completion ring.",
)
RECORDS: tuple[Record, ...] = (*COMMANDS.values(), ROW, SEGMENT, COMPLETION)
