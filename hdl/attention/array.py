"""The row array: identical rows on one broadcast, and what they share at the array's edge."""

from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, ClockSignal, Instance, Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import bits
from m890.hdl.attention.control import used_rows
from m890.hdl.attention.row import Row
from m890.hdl.config import DRAFT_BITS, TOKEN_BITS, CoreConfig
from m890.hdl.kv.items import elements_layout, see_layout
from m890.hdl.numerics.decode import decode16, decode_each
from m890.hdl.numerics.dot import factor, live_and_nan
from m890.hdl.numerics.formats import ELEMENT_EXP_BITS
from m890.hdl.numerics.pipeline import bundle
from m890.hdl.numerics.types import Element, Wide
from m890.hdl.numerics.wide import fp32_to_wide

BROADCAST = (
    "setup", "query", "bias_write", "operand", "elements", "accumulate_read", "accumulate_add",
    "accumulate_write", "score", "cap", "bias_read", "bias_use", "mask", "exp", "l_read", "l_add",
    "l_write", "value_scale", "p_write", "wake", "drain", "see",
)  # fmt: skip
"""Row ports that every row sees alike."""
FROM_CONTROL = tuple(
    name
    for name in BROADCAST
    if name not in ("setup", "query", "bias_write", "elements", "drain", "see")
)
"""Of these, the ones that ArrayControl drives."""


class RowArray(wiring.Component):
    """`rows` rows, the decoders of queries and KV elements, and the rows' parameters.

    Function
        A beat is decoded once and broadcast; every row works on it in the same cycle (Row). What
        rows answer is gathered: `seen` of any, `visible` and status of each, accumulators of one.
    Members
        setup : In. {valid, slot, row, position, draft, sink (FP32)}. query : In. {valid, slot, row,
        tile, fp16, data}. bias : In. {valid, slot, row, data}.
        raw_format, raw : In. A beat's `lanes` stored elements, one cycle before stage operand.
        see : In (kv.items.see_layout). seen : Out, two cycles later. params0, params1 : In.
        drain : In. {enable, set, word, row}; o_word : Out, two cycles later.
        l_row, l_slot : In; l : Out, in the next cycle.
        visible, status : Out, per row. Other members: bundles from ArrayControl.
    Storage
        See Row.
    Parameters
        external : instantiate the row as the Verilog module `m890_row` instead of elaborating it,
        so that elaboration does not grow with the number of rows.
    """

    ROW_MODULE = "m890_row"

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: CoreConfig, params: data.StructLayout, *, external: bool) -> None:
        self.config = config
        self.external = external
        self.row = Row(config)
        b = self.row.bundles
        row = bits(config.rows)
        super().__init__(
            {
                "setup": In(
                    data.StructLayout(
                        {"valid": 1, "slot": 1, "row": row, "position": TOKEN_BITS,
                         "draft": DRAFT_BITS, "sink": 32}
                    )
                ),
                "query": In(
                    data.StructLayout(
                        {"valid": 1, "slot": 1, "row": row, "tile": bits(config.max_tiles),
                         "fp16": 1, "data": config.port_bits}
                    )
                ),
                "bias": In(
                    data.StructLayout(
                        {"valid": 1, "slot": 1, "row": row, "data": config.port_bits}
                    )
                ),
                "raw_format": In(4),
                "raw": In(elements_layout(config)),
                "see": In(see_layout(config)),
                "seen": Out(1),
                "params0": In(params),
                "params1": In(params),
                "drain": In(b.drain),
                "drain_row": In(row),
                "o_word": Out(data.ArrayLayout(Wide, config.drain_lanes)),
                "l_row": In(row),
                "l_slot": In(1),
                "l": Out(Wide),
                "row_mask": In(config.rows),
                "visible": Out(config.rows),
                "overflow": Out(config.rows),
                "underflow": Out(config.rows),
                **{name: In(getattr(b, name)) for name in FROM_CONTROL},
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        shared = {name: getattr(self, name) for name in FROM_CONTROL}
        shared |= self._edge(m)
        shared["drain"] = self.drain
        shared["row_mask"] = self.row_mask
        shared["see"], shared["see_mask"] = self._see(m)
        shared |= self._targets(m)

        rows = self.config.rows
        seen, visible, overflow, underflow = [], [], [], []
        words, sums = [], []
        for r in range(rows):
            row = self._row(m, r, shared)
            m.d.comb += row["index"].eq(r)
            seen.append(row["seen"])
            visible.append(row["visible"])
            overflow.append(row["status"][0])
            underflow.append(row["status"][1])
            words.append(row["o_word"])
            sums.append((row["l0"], row["l1"]))
        m.d.sync += self.seen.eq(Cat(*seen).any())
        m.d.comb += [
            self.visible.eq(Cat(*visible)),
            self.overflow.eq(Cat(*overflow)),
            self.underflow.eq(Cat(*underflow)),
        ]
        drain_row = Signal.like(self.drain_row)
        m.d.sync += drain_row.eq(self.drain_row)
        with m.Switch(drain_row):
            for r in range(rows):
                with m.Case(r):
                    m.d.sync += self.o_word.eq(words[r])
        with m.Switch(self.l_row):
            for r in range(rows):
                with m.Case(r):
                    m.d.sync += self.l.eq(Mux(self.l_slot, sums[r][1], sums[r][0]))
        return m

    def _row(self, m: Module, number: int, shared: dict[str, Any]) -> dict[str, Signal]:
        """Row `number`, elaborated here or as an instance of the one row module.

        It gets what all rows share; returns its other ports.
        """
        own = [name for name in self.row.signature.members if name not in shared]
        if not self.external:
            row = self.row if number == 0 else Row(self.config)
            m.submodules[f"row{number}"] = row
            m.d.comb += [getattr(row, name).eq(value) for name, value in shared.items()]
            return {name: getattr(row, name) for name in own}
        # No wire per row for what all share: it would be most of a large core's text.
        ports = {f"i_{name}": Value.cast(value) for name, value in shared.items()}
        wires = {}
        for name in own:
            member = self.row.signature.members[name]
            wires[name] = Signal(member.shape, name=f"row{number}_{name}")
            ports[f"{'i' if member.flow is In else 'o'}_{name}"] = Value.cast(wires[name])
        m.submodules[f"row{number}"] = Instance(
            self.ROW_MODULE, i_clk=ClockSignal(), i_rst=ResetSignal(), **ports
        )
        return wires

    def _edge(self, m: Module) -> dict[str, Value]:
        """Decoders: KV elements over two cycles, queries, sinks and biases over one."""
        b = self.row.bundles
        raw = Signal(self.raw.shape())
        form = Signal(4)
        elements = bundle(data.ArrayLayout(Element, self.config.lanes), name="elements")
        m.d.sync += [raw.eq(self.raw), form.eq(self.raw_format)]
        decoded = decode_each(m, list(raw), form)
        m.d.sync += [word.eq(one) for word, one in zip(elements, decoded, strict=True)]
        late = bundle(b.elements, name="late")
        live, nan = live_and_nan(elements)
        m.d.sync += [
            *(late.words[n].eq(factor(one, ELEMENT_EXP_BITS)) for n, one in enumerate(elements)),
            late.live.eq(live), late.nan.eq(nan),
        ]  # fmt: skip

        query = bundle(b.query, name="query")
        m.d.sync += query.valid.eq(self.query.valid)
        with m.If(self.query.valid):
            m.d.sync += [query.slot.eq(self.query.slot), query.tile.eq(self.query.tile)]
            for n in range(self.config.lanes):
                word = self.query.data.word_select(n, 16)
                m.d.sync += query.elements[n].eq(decode16(m, word, self.query.fp16))
        setup = bundle(b.setup, name="setup")
        m.d.sync += setup.valid.eq(self.setup.valid)
        with m.If(self.setup.valid):
            m.d.sync += [
                setup.slot.eq(self.setup.slot),
                setup.position.eq(self.setup.position),
                setup.draft.eq(self.setup.draft),
                setup.sink.eq(fp32_to_wide(m, self.setup.sink, name="sink")),
            ]
        bias = bundle(b.bias_write, name="bias")
        m.d.sync += bias.valid.eq(self.bias.valid)
        with m.If(self.bias.valid):
            m.d.sync += [bias.slot.eq(self.bias.slot), bias.data.eq(self.bias.data)]
        return {"elements": late, "query": query, "setup": setup, "bias_write": bias}

    def _targets(self, m: Module) -> dict[str, Value]:
        """Row numbers of the three kinds of writes, delayed as their data are."""
        targets = {}
        for name in ("setup", "query", "bias"):
            targets[f"{name}_row"] = target = Signal(bits(self.config.rows), name=f"{name}_row")
            m.d.sync += target.eq(getattr(self, name).row)
        return targets

    def _see(self, m: Module) -> tuple[Value, Signal]:
        """What the rows need of the walker's question, and the rows it concerns."""
        question = self.see
        both = Mux(question.slot, self.params1.as_value(), self.params0.as_value())
        params = data.View(self.params0.shape(), both)
        see = bundle(self.row.bundles.see, name="see")
        low, high = Signal(TOKEN_BITS), Signal(TOKEN_BITS)
        below = Signal(DRAFT_BITS)
        m.d.comb += [
            low.eq(question.t_low - question.start),
            high.eq(question.t_high - question.start),
            see.valid.eq(question.valid),
            see.slot.eq(question.slot),
            see.causal.eq(params.causal),
            see.window.eq(params.window != 0),
            see.draft.eq(question.draft),
            see.below_sinks.eq(question.t_low < params.sinks),
            see.t_low.eq(question.t_low),
            see.t_high_window.eq(question.t_high + params.window),
        ]
        for n in range(DRAFT_BITS):
            m.d.comb += below[n].eq((low <= n) & (high >= n))
        m.d.comb += see.draft_bits.eq(below)
        see_mask = Signal(self.config.rows)
        m.d.comb += see_mask.eq(question.row_mask & used_rows(params.rows, self.config.rows))
        return see, see_mask

