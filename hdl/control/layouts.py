"""What flows between the blocks of control and the engines."""

from amaranth.lib import data

from m890.hdl.commands import COMMAND_BYTES, Field, Record
from m890.hdl.config import DRAFT_BITS, TOKEN_BITS, CoreConfig

ENTRIES = 8
"""Commands in flight: taken up, completion not yet formed."""
ATTENDS = 4
"""Of these, ATTEND jobs."""
APPENDS = 4
"""Of these, APPENDs."""
IDENT_BITS = 16
"""Width of the number by which engines name a command (its entry, below ENTRIES)."""
HASH_BITS = 6
"""Sequences are told apart by their low bits in the interlock."""


def bits(values: int) -> int:
    """Width of an index into `values` things."""
    return max(1, (values - 1).bit_length())


def record_layout(record: Record) -> data.FlexibleLayout:
    """A record of `m890.hdl.commands` as a view of its bits."""

    def field(f: Field) -> data.Field:
        return data.Field(f.width, f.lsb)

    return data.FlexibleLayout(8 * record.bytes, {f.name: field(f) for f in record.fields})


COMMAND = data.StructLayout({"data": 8 * COMMAND_BYTES, "error": 1})
"""A command as fetched; `error`: the bus reported one."""

EVENT = data.StructLayout(
    {"ident": IDENT_BITS, "error": 8, "field": 8, "index": 16, "status": 8, "beats": 32}
)
"""A command is done; fields as in the completion record."""

APPEND_DONE = data.StructLayout({"ident": IDENT_BITS, "error": 8, "index": 16, "status": 8})
"""An APPEND is done: every byte of it is acknowledged by memory."""


def plane_layout(config: CoreConfig) -> data.StructLayout:
    """Entry of the plane table; head 0: not defined."""
    return data.StructLayout(
        {
            "base": config.address_bits, "stride": 32, "tiles": 8, "format": 4, "tags": 1,
            "rotate": 1,
        }
    )  # fmt: skip


def append_layout(config: CoreConfig) -> data.StructLayout:
    """A checked APPEND for the append unit."""
    address = config.address_bits
    return data.StructLayout(
        {
            "base": address, "stride": 32, "tiles": 8, "format": 4, "tags": 1, "rotate": 1,
            "table": address, "start": TOKEN_BITS, "tokens": 16, "source_format": 4, "k": address,
            "v": address, "source_stride": 32, "tenant": bits(config.tenants), "repair": 1,
            "ident": IDENT_BITS,
        }
    )  # fmt: skip


def attend_layout(config: CoreConfig) -> data.StructLayout:
    """An ATTEND from dispatch to the job loader: fields checked, tables not yet read."""
    address = config.address_bits
    return data.StructLayout(
        {
            "base": address, "stride": 32, "tiles": 8, "format": 4, "tags": 1, "rotate": 1,
            "plane": 16, "causal": 1, "sink": 1, "bias": 1, "query_format": 1, "output_format": 2,
            "rows": 8, "segments": 8, "tables": address, "query": address, "query_stride": 32,
            "output": address, "output_stride": 32, "window": TOKEN_BITS, "sinks": TOKEN_BITS,
            "softcap": 32, "softcap_inverse": 32, "tenant": 16, "ident": IDENT_BITS,
        }
    )  # fmt: skip


def job_layout(config: CoreConfig) -> data.StructLayout:
    """An ATTEND job whose rows, queries and segments are loaded. window 0: all tokens."""
    address = config.address_bits
    return data.StructLayout(
        {
            "slot": 1, "base": address, "stride": 32, "tiles": 8, "format": 4, "tags": 1,
            "rotate": 1, "causal": 1, "sink": 1, "bias": 1, "query_format": 1, "output_format": 2,
            "rows": 8, "segments": 8, "output": address, "output_stride": 32, "window": TOKEN_BITS,
            "sinks": TOKEN_BITS, "softcap": 32, "softcap_inverse": 32,
            "tenant": bits(config.tenants), "ident": IDENT_BITS,
        }
    )  # fmt: skip


def segment_layout(config: CoreConfig) -> data.StructLayout:
    """A segment of the job before it in the stream. table: of the sequence; address: RAW, bias."""
    return data.StructLayout(
        {
            "kind": 2, "start": TOKEN_BITS, "end": TOKEN_BITS, "row_mask": config.rows,
            "table": config.address_bits, "address": config.address_bits, "first": 1, "last": 1,
            "index": 8, "sequence": 16,
        }
    )  # fmt: skip


def row_layout(config: CoreConfig) -> data.StructLayout:
    """Write strobe of one row's parameters. sink: FP32 bits."""
    return data.StructLayout(
        {
            "valid": 1, "slot": 1, "row": bits(config.rows), "position": TOKEN_BITS,
            "draft": DRAFT_BITS, "sink": 32,
        }
    )  # fmt: skip


def query_layout(config: CoreConfig) -> data.StructLayout:
    """Write strobe of one tile of one row's query: `lanes` 16-bit elements of `format`'s kind."""
    return data.StructLayout(
        {
            "valid": 1, "slot": 1, "row": bits(config.rows), "tile": bits(config.max_tiles),
            "fp16": 1, "data": config.port_bits,
        }
    )  # fmt: skip
