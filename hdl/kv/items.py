"""What travels on the KV read path: jobs, segments, visibility queries, items, commands."""

from enum import IntEnum

from amaranth.hdl import ShapeLike, Value
from amaranth.lib import data

from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.numerics.formats import CODINGS

ITEM_DEPTH = 8
"""Items that the sequencer may look ahead; also the chunks that each fetcher knows ahead."""
COUNT_BITS = 8
"""Rows, tiles, segments and segment indices."""
COMMAND_BEATS_BITS = 12
"""Port beats of one fetch command: a chunk's K with its scales, or one stored row."""
NARROW = [c.format.value for c in CODINGS.values() if c.bytes == 1]
"""Formats of one byte per element."""
SCALED = [c.format.value for c in CODINGS.values() if c.scaled]
"""Formats with two port beats of scales before a chunk's tiles."""


class ItemKind(IntEnum):
    """What an item asks of the sequencer."""

    CHUNK = 0  # `lanes` tokens: K tiles, then V tiles
    RAW = 1  # a stored (l, O) per row
    END = 2  # the job's last item: carries its error


def is_narrow(code: Value) -> Value:
    """Whether a format's elements take one byte."""
    return code.matches(*NARROW)


def is_scaled(code: Value) -> Value:
    """Whether a format has a scale per token."""
    return code.matches(*SCALED)


def elements_layout(config: CoreConfig) -> data.ArrayLayout:
    """One element beat: `lanes` raw codes of 16 bits, 8-bit codes zero-extended."""
    return data.ArrayLayout(16, config.lanes)


def job_layout(config: CoreConfig) -> data.StructLayout:
    """A job's constants: where its plane lies and how it is coded.

    `slot` is the row array's half; the slot's previous job must have ended (its END item taken).
    """
    return data.StructLayout(
        {
            "slot": 1,
            "base": config.address_bits,
            "stride": 32,
            "tiles": COUNT_BITS,
            "format": 4,
            "bias": 1,
            "rows": COUNT_BITS,
            "ident": 16,
        }
    )


def segment_layout(config: CoreConfig) -> data.StructLayout:
    """A checked segment. `table`: its sequence's block table; `address`: bias or stored states."""
    return data.StructLayout(
        {
            "kind": 2,
            "start": TOKEN_BITS,
            "end": TOKEN_BITS,
            "row_mask": config.rows,
            "table": config.address_bits,
            "address": config.address_bits,
            "last": 1,
            "index": COUNT_BITS,
        }
    )


def see_layout(config: CoreConfig) -> data.StructLayout:
    """Can any row see a token of [t_low, t_high]? Both inclusive and inside the segment."""
    return data.StructLayout(
        {
            "valid": 1,
            "slot": 1,
            "t_low": TOKEN_BITS,
            "t_high": TOKEN_BITS,
            "start": TOKEN_BITS,
            "draft": 1,
            "row_mask": config.rows,
        }
    )


def item_layout(config: CoreConfig) -> data.StructLayout:
    """What the sequencer needs of a chunk, a stored state or a job's end.

    CHUNK: tokens base_token ... base_token + lanes - 1; those in [start, end) are the segment's.
    END: `error` (commands.Error) and `index` of the segment concerned (0 if there is no error).
    """
    return data.StructLayout(
        {
            "kind": 2,
            "slot": 1,
            "ident": 16,
            "tiles": COUNT_BITS,
            "format": 4,
            "rows": COUNT_BITS,
            "bias": 1,
            "draft": 1,
            "base_token": TOKEN_BITS,
            "start": TOKEN_BITS,
            "end": TOKEN_BITS,
            "row_mask": config.rows,
            "error": 8,
            "index": COUNT_BITS,
        }
    )


def entry_layout(config: CoreConfig) -> data.StructLayout:
    """From walker to translator: an item and what its address is made of.

    `source` is the chunk's bias or the stored state.
    """
    address = config.address_bits
    return data.StructLayout(
        {
            "item": item_layout(config),
            "base": address,
            "stride": 32,
            "table": address,
            "source": address,
        }
    )


def located_layout(config: CoreConfig) -> data.StructLayout:
    """From translator to fetchers: an item, its first byte, its first V byte, its K tile beats."""
    address = config.address_bits
    return data.StructLayout(
        {
            "item": item_layout(config),
            "address": address,
            "v_address": address,
            "beats": COMMAND_BEATS_BITS,
            "source": address,
        }
    )


def command_layout(config: CoreConfig, tag: ShapeLike) -> data.StructLayout:
    """A fetch command: `beats` port beats from `address`.

    With `scaled`, the first two are scales and are split off. `tag` returns with every beat.
    """
    return data.StructLayout(
        {
            "address": config.address_bits,
            "beats": COMMAND_BEATS_BITS,
            "slot": 1,
            "scaled": 1,
            "tag": tag,
        }
    )


def beat_layout(config: CoreConfig, tag: ShapeLike) -> data.StructLayout:
    """A fetched port beat with its command's tag; `first` marks the command's first beat."""
    return data.StructLayout({"data": config.port_bits, "first": 1, "tag": tag})


def scale_layout(config: CoreConfig) -> data.StructLayout:
    """BF16 scales of a chunk's tokens, for K and for V."""
    return data.StructLayout({"k": elements_layout(config), "v": elements_layout(config)})


def raw_layout(config: CoreConfig) -> data.StructLayout:
    """A port beat of a stored row; `first` marks the row's header beat."""
    return data.StructLayout({"data": config.port_bits, "first": 1, "row": COUNT_BITS})
