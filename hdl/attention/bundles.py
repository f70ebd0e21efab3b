"""Control bundles that the array's control sends to rows and score units; each names its stage.

Both are data only: all addresses, enables and selects arrive from outside, each in the cycle in
which they are needed. Stage names are those of `m890.hdl.attention.row.RowTiming` up to `sum`, and
of `m890.hdl.attention.score.ScoreTiming` from `score` on.
"""

from amaranth.hdl import Value
from amaranth.lib import data
from amaranth.lib.enum import Enum

from m890.hdl.config import DRAFT_BITS, TOKEN_BITS, CoreConfig
from m890.hdl.kv.items import COUNT_BITS
from m890.hdl.numerics.types import Element, Wide

BEAT_BITS = 32
"""Wires per element from the decoders to the rows. The upper ones are zero and cost nothing in
silicon; a simulator then takes an element from one word, in every lane of every row."""


def bits(values: int) -> int:
    """Width of an index into `values` things."""
    return max(1, (values - 1).bit_length())


def unit_of(config: CoreConfig, row: Value) -> Value:
    """The score unit of a row of the core."""
    return row[(config.score_rows - 1).bit_length() :]


def member_of(config: CoreConfig, row: Value) -> Value:
    """Which of its unit's rows a row of the core is."""
    return row[: (config.score_rows - 1).bit_length()]


def ended_layout() -> data.StructLayout:
    """What the drain must know of a job whose beats have all been sent."""
    return data.StructLayout(
        {"ident": 16, "error": 8, "index": COUNT_BITS, "no_l": 1, "no_o": 1, "beats": 32}
    )


class ScoreKind(Enum):
    """What the score units are told of, in the order of the stream."""

    CHUNK = 0  # `lanes` scores of every row
    SINK = 1  # the rows' sink logits
    END = 2  # of a job's scores: its partial sums of l are folded and kept


class RowBundles:
    """Layouts of the ports of rows and score units for one configuration."""

    def __init__(self, config: CoreConfig) -> None:
        lanes, words = config.lanes, config.max_head // config.drain_lanes
        lane, row = bits(lanes), bits(config.rows)
        member, unit = bits(config.score_rows), bits(config.score_units)
        place = bits(config.score_depth)
        layout = data.StructLayout
        self.setup = layout({"valid": 1, "slot": 1, "position": TOKEN_BITS, "draft": DRAFT_BITS})
        """A row's parameters for the job in `slot`; its sink logit stands beside."""
        self.query = layout(
            {"valid": 1, "slot": 1, "tile": bits(config.max_tiles),
             "elements": data.ArrayLayout(Element, lanes)}
        )  # fmt: skip
        """One tile of the row's query."""
        self.bias_write = layout({"valid": 1, "slot": 1, "data": config.port_bits})
        """Biases of one chunk: `lanes` 16-bit floats."""
        self.operand = layout(
            {"q_enable": 1, "p_enable": 1, "q_address": bits(2 * config.max_tiles),
             "p_address": bits(config.p_depth)}
        )  # fmt: skip
        """Stage operand: which query tile or p vector becomes the stationary operand."""
        self.elements = layout(
            {"words": data.ArrayLayout(BEAT_BITS, lanes), "live": lanes, "nan": lanes}
        )
        """Stage elements: factors of the dot product, each at the bottom of its word."""
        self.accumulate_read = layout(
            {"k": 1, "v": 1, "index": lane, "set": 1, "word": bits(words)}
        )
        """Stage dot - 1: score or accumulator to read."""
        self.accumulate_add = layout(
            {"v": 1, "first": 1, "set": 1, "lane": bits(config.drain_lanes), "raw": 1,
             "raw_value": Wide}
        )  # fmt: skip
        """Stage dot: what is added. `raw`: `raw_value` takes the dot product's place."""
        self.accumulate_write = layout(
            {"k": 1, "v": 1, "index": lane, "set": 1, "word": bits(words),
             "lane": bits(config.drain_lanes), "raw": 1, "row": row}
        )  # fmt: skip
        """Stage sum: where the sum goes. `raw`: to row `row` only."""
        self.score_store = layout({"enable": 1, "place": place})
        """Stage sum, last tile: where the finished score waits for its unit."""
        self.score_read = layout({"enable": 1, "place": place})
        """The cycle before stage score: the finished score to read."""
        self.score = layout({"row": member, "slot": 1, "kscale": 16})
        """Stage score: which of the unit's rows it is; the token's K scale."""
        self.mask = layout(
            {"in_range": 1, "causal": 1, "window": 1, "below_sinks": 1, "draft": 1,
             "draft_in_range": 1, "draft_index": bits(DRAFT_BITS), "token": TOKEN_BITS,
             "token_window": TOKEN_BITS + 1, "units": config.score_units}
        )  # fmt: skip
        """Stage score + 1: the token's position; token_window = token + window. `units`: those
        whose row takes part in the segment."""
        self.cap = layout({"enable": 1, "cap": 32, "inverse": 32})
        """Stage scaled: soft cap of the job (FP32)."""
        self.bias_read = layout({"enable": 1, "slot": 1, "row": member})
        """Stage capped - 1: the row's biases of the chunk."""
        self.bias_use = layout({"enable": 1, "lane": lane, "fp16": 1})
        """Stage capped: the token's lane."""
        self.sink_read = layout({"enable": 1, "slot": 1, "row": member})
        """Stage biased - 1: the sink logit to read."""
        self.exp = layout({"valid": 1, "sink": 1})
        """Stage biased: a score is valid; `sink`: the row's sink logit takes its place."""
        self.l_read = layout({"enable": 1, "bank": 1, "row": member, "a": 3, "b": 3})
        """Stage p - 1: partial sums of l to read."""
        self.l_add = layout(
            {"first": 1, "fold": 1, "raw": 1, "raw_value": Wide, "capture": 1, "slot": 1,
             "row": member}
        )  # fmt: skip
        """Stage p: l[a] (or 0 if first) + p, + l[b] (fold) or + raw_value (raw); capture l[a]."""
        self.l_write = layout(
            {"enable": 1, "bank": 1, "row": member, "index": 3, "raw": 1, "unit": unit}
        )
        """Stage p + add: where the partial sum goes. `raw`: to unit `unit` only."""
        self.value_scale = layout({"vscale": 16})
        """Stage p: the token's V scale."""
        self.p_write = layout({"lanes": lanes, "slot": bits(config.p_depth), "row": member})
        """Stage pv: where in a row's p buffer it goes, the lane as one bit of `lanes`, or
        nowhere; `row`: which of each unit's rows."""
        self.wake = layout({"score": 1, "l": 1})
        """Any cycle: a score is between stages score and pv; a sum between stages p and p + add.
        The pipelines there stand still otherwise: most beats need only dot product and adder."""
        self.l_ask = layout({"unit": unit, "row": member, "slot": 1})
        """Any cycle: the l of a row that `l` shows in the next cycle."""
        self.drain = layout({"enable": 1, "set": 1, "word": bits(words)})
        """Any cycle: accumulators to read; they show on `o_word` in the next cycle."""
        self.see = layout(
            {"valid": 1, "slot": 1, "causal": 1, "window": 1, "draft": 1, "below_sinks": 1,
             "t_low": TOKEN_BITS, "t_high_window": TOKEN_BITS + 1,
             "draft_bits": DRAFT_BITS}
        )  # fmt: skip
        """Could the row see a token of t_low ... t_high? Answer in the next cycle on `seen`."""


class ControlBundles(RowBundles):
    """The row's bundles, and those between sequencer, raw adder and array control."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__(config)
        lane, sub = bits(config.lanes), bits(config.drain_lanes)
        word = bits(config.max_head // config.drain_lanes)
        p_slot = bits(config.p_depth)
        self.tag = data.StructLayout(
            {
                "k": 1,  # a K beat: one token's tile
                "v": 1,  # a V beat: one feature of `lanes` tokens
                "slot": 1,  # V: of the job
                "load": 1,  # first beat of a tile: load the stationary operand
                "q_address": bits(2 * config.max_tiles),
                "p_address": p_slot,  # V: its p vector
                "index": lane,  # K: token in the chunk
                "word": word,  # V: feature // drain_lanes
                "lane": sub,  # V: feature % drain_lanes
                "first": 1,  # K: first tile; V: first chunk of the job
                "last": 1,  # K: last tile
                "o_end": 1,  # beside anything: the job's V beats have all been sent
                "o_end_slot": 1,
            }
        )
        """What the sequencer says of a cycle; it walks down the pipeline with the beat."""
        self.context = data.StructLayout(
            {
                "kind": ScoreKind,
                "slot": 1,  # of the job
                "l_zero": 1,  # partial sum 0 of l has begun
                "l_all": 1,  # all eight have
                "p_address": p_slot,  # where the chunk's p will go
                "scaled": 1,  # the chunk has scales
                "bias": 1,
                "bias_slot": 1,
                "base": TOKEN_BITS,
                "start": TOKEN_BITS,
                "end": TOKEN_BITS,
                "draft": 1,
                "row_mask": config.rows,
            }
        )
        """What the sequencer says of a chunk with its first K beat, of a sink, of a job's end; it
        waits for its scores. From p_address on: of chunks."""
        self.params = data.StructLayout(
            {
                "causal": 1, "sink": 1, "query_format": 1, "window": TOKEN_BITS,
                "sinks": TOKEN_BITS, "softcap": 32, "softcap_inverse": 32, "rows": COUNT_BITS,
                "tiles": COUNT_BITS,
            }
        )  # fmt: skip
        """What the array keeps of a job, per slot."""
        self.raw_l = data.StructLayout(
            {"valid": 1, "slot": 1, "row": bits(config.rows), "first": 1, "value": Wide}
        )
        """Add `value` to partial sum 0 of l of a row."""
        self.raw_o = data.StructLayout(
            {"valid": 1, "slot": 1, "row": bits(config.rows), "first": 1, "word": word,
             "lane": sub, "value": Wide}
        )  # fmt: skip
        """Add `value` to an accumulator of a row."""
