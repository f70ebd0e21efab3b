"""What travels on the KV read path: jobs, segments, visibility queries, items, commands."""

from enum import IntEnum

from amaranth.hdl import Cat, Const, Mux, ShapeLike, Value
from amaranth.lib import data

from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.control.layouts import bits
from m890.hdl.layout import TAG_BYTES
from m890.hdl.numerics.formats import CODINGS, GROUP

ITEM_DEPTH = 8
"""Items that the sequencer may look ahead; also the chunks that each fetcher knows ahead."""
COUNT_BITS = 8
"""Rows, tiles, segments and segment indices."""
COMMAND_BEATS_BITS = 12
"""Port beats of one fetch command: a chunk's K with its scales, or one stored row."""
SCALED = [c.format.value for c in CODINGS.values() if c.scaled]
"""Formats with a BF16 scale per token."""
GROUPED = [c.format.value for c in CODINGS.values() if c.grouped]
"""Formats with an E8M0 scale per token and GROUP features."""
HEADER_BITS = 6
"""Port beats of a chunk's header: a power of two up to 32, or none."""


class ItemKind(IntEnum):
    """What an item asks of the sequencer."""

    CHUNK = 0  # `lanes` tokens: K tiles, then V tiles
    RAW = 1  # a stored (l, O) per row
    END = 2  # the job's last item: carries its error


def packing(code: Value) -> Value:
    """log2 of a format's elements in 16 bits: 0 for 16 bits each, 1 for 8, 2 for 4."""
    sizes = [[c.format.value for c in CODINGS.values() if c.packed == n] for n in (2, 4)]
    return Cat(code.matches(*some) for some in sizes)


def is_scaled(code: Value) -> Value:
    """Whether a format has a BF16 scale per token."""
    return code.matches(*SCALED)


def is_grouped(code: Value) -> Value:
    """Whether a format has an E8M0 scale per token and GROUP features."""
    return code.matches(*GROUPED)


def header_beats(config: CoreConfig, code: Value, tiles: Value, tags: Value) -> Value:
    """Port beats of a chunk's header, also bytes of half an entry: PageLayout.header_beats."""
    per_tile = GROUP // config.lanes if config.lanes < GROUP else 1
    groups = (tiles + per_tile - 1) >> (per_tile.bit_length() - 1)
    if config.lanes > GROUP:
        groups = groups << 1
    scales = Mux(is_grouped(code), groups, Mux(is_scaled(code), 2, 0))
    need = scales + Mux(tags, TAG_BYTES, 0)
    beats: Value = Const(0, HEADER_BITS)
    for least in (0, 1, 2, 4, 8, 16):
        beats = Mux(need > least, Const(max(1, 2 * least), HEADER_BITS), beats)
    return beats


def scale_bytes(config: CoreConfig) -> int:
    """Room for the scales of a row: two bytes, or one per GROUP features of the largest head."""
    return max(2, config.max_head // GROUP)


def tile_group(config: CoreConfig, tile: Value) -> Value:
    """The (first) group of features that a tile belongs to."""
    shift = (GROUP // config.lanes).bit_length() - 1 if config.lanes < GROUP else 0
    return Cat(Const(0, 1), tile) if config.lanes > GROUP else tile >> shift


def group_size(packed: Value, left: Value) -> Value:
    """log2 of the tiles of the next group, where `left` (1 or more) are left: PageLayout.groups."""
    two = (packed != 0) & (left >= 2)
    return Mux((packed == 2) & (left >= 4), 2, two)


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
            "tags": 1,
            "bias": 1,
            "rows": COUNT_BITS,
            "ident": 16,
            "tenant": bits(config.tenants),
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
            "sequence": 16,
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
            "tags": 1,
            "rows": COUNT_BITS,
            "bias": 1,
            "draft": 1,
            "base_token": TOKEN_BITS,
            "start": TOKEN_BITS,
            "end": TOKEN_BITS,
            "row_mask": config.rows,
            "error": 8,
            "index": COUNT_BITS,
            "sequence": 16,
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
            "tenant": bits(config.tenants),
        }
    )


def located_layout(config: CoreConfig) -> data.StructLayout:
    """From translator to fetchers: an item, its first byte, its first V byte, port beats of its
    header and of its K."""
    address = config.address_bits
    return data.StructLayout(
        {
            "item": item_layout(config),
            "address": address,
            "v_address": address,
            "header": HEADER_BITS,
            "beats": COMMAND_BEATS_BITS,
            "source": address,
        }
    )


def command_layout(config: CoreConfig, tag: ShapeLike) -> data.StructLayout:
    """A fetch command: `beats` port beats from `address`.

    The first `header` of them are split off. `tag` returns with every beat.
    """
    return data.StructLayout(
        {
            "address": config.address_bits,
            "beats": COMMAND_BEATS_BITS,
            "slot": 1,
            "header": HEADER_BITS,
            "tag": tag,
        }
    )


def beat_layout(config: CoreConfig, tag: ShapeLike) -> data.StructLayout:
    """A fetched port beat with its command's tag; `first` marks the command's first beat."""
    return data.StructLayout({"data": config.port_bits, "first": 1, "tag": tag})


CHUNK_TAG = data.StructLayout({"format": 4, "tiles": COUNT_BITS, "tags": 1})
"""What the K and V fetchers know of a chunk."""


def tile_beat_layout(config: CoreConfig) -> data.StructLayout:
    """A port beat that holds an element beat: `part` counts places of its size from the low end."""
    return data.StructLayout({"data": config.port_bits, "part": 2, "format": 4, "tags": 1})


def scale_layout(config: CoreConfig) -> data.StructLayout:
    """BF16 scales of a chunk's tokens, for K and for V."""
    return data.StructLayout({"k": elements_layout(config), "v": elements_layout(config)})


def raw_layout(config: CoreConfig) -> data.StructLayout:
    """A port beat of a stored row; `first` marks the row's header beat."""
    return data.StructLayout({"data": config.port_bits, "first": 1, "row": COUNT_BITS})
