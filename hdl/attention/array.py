"""The row array: identical rows and score units on one broadcast, and what they share."""

from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, ClockSignal, Instance, Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import bits, member_of, unit_of
from m890.hdl.attention.control import ArrayControl
from m890.hdl.attention.row import Row
from m890.hdl.attention.score import ScoreUnit
from m890.hdl.attention.score_control import ScoreControl, used_rows
from m890.hdl.config import DRAFT_BITS, TOKEN_BITS, CoreConfig
from m890.hdl.kv.items import elements_layout, see_layout
from m890.hdl.numerics.decode import decode16, decode_each
from m890.hdl.numerics.dot import factor, live_and_nan
from m890.hdl.numerics.formats import ELEMENT_EXP_BITS
from m890.hdl.numerics.pipeline import bundle
from m890.hdl.numerics.types import Element, Wide
from m890.hdl.numerics.wide import fp32_to_wide

FROM_CONTROL = (*ArrayControl.BUNDLES, *ScoreControl.BUNDLES)
"""Ports of rows and score units that all of them see alike, from their controls."""


class RowArray(wiring.Component):
    """`rows` rows, their score units, the decoders of queries and KV elements, row parameters.

    Function
        A beat is decoded once and broadcast; every row works on it in the same cycle (Row).
        `score_rows` rows in a row share a ScoreUnit. What they answer is gathered: `seen` of any
        row, `visible` and status of each unit, accumulators and l of one row.
    Members
        setup : In. {valid, slot, row, position, draft, sink (FP32)}. query : In. {valid, slot, row,
        tile, fp16, data}. bias : In. {valid, slot, row, data}.
        raw_format, raw : In. A beat's `lanes` stored elements, one cycle before stage operand.
        see : In (kv.items.see_layout). seen : Out, two cycles later. params0, params1 : In.
        drain : In. {enable, set, word, row}; o_word : Out, two cycles later.
        l_row, l_slot : In; l : Out, two cycles later.
        visible, status : Out, per unit. Other members: bundles from ArrayControl, ScoreControl.
    Storage
        See Row, ScoreUnit.
    Parameters
        external : instantiate row and unit as the Verilog modules `m890_row` and `m890_score`
        instead of elaborating them, so that elaboration does not grow with the number of rows.
    """

    ROW_MODULE = "m890_row"
    SCORE_MODULE = "m890_score"

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: CoreConfig, params: data.StructLayout, *, external: bool) -> None:
        self.config = config
        self.external = external
        self.row, self.unit = Row(config), ScoreUnit(config)
        b = self.row.bundles
        row, units = bits(config.rows), config.score_units
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
                "visible": Out(units),
                "overflow": Out(units),
                "underflow": Out(units),
                **{name: In(getattr(b, name)) for name in FROM_CONTROL},
            }
        )  # fmt: skip

    def external_modules(self) -> list[tuple[str, wiring.Component]]:
        """Modules that are instantiated by name, to be elaborated once each."""
        return [(self.ROW_MODULE, self.row), (self.SCORE_MODULE, self.unit)]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        shared = {name: getattr(self, name) for name in FROM_CONTROL}
        shared |= self._edge(m)
        shared["drain"] = self.drain
        shared["see"], shared["see_mask"] = self._see(m)
        shared |= self._targets(m)
        shared["l_ask"] = ask = bundle(self.row.bundles.l_ask, name="l_ask")
        m.d.comb += [
            ask.unit.eq(unit_of(c, self.l_row)),
            ask.row.eq(member_of(c, self.l_row)),
            ask.slot.eq(self.l_slot),
        ]

        rows = [self._part(m, self.row, "row", n, shared) for n in range(c.rows)]
        units = [self._part(m, self.unit, "score", n, shared) for n in range(c.score_units)]
        for part in (rows, units):
            m.d.comb += [ports["index"].eq(n) for n, ports in enumerate(part)]
        for n, unit in enumerate(units):
            for member, row in enumerate(rows[n * c.score_rows : (n + 1) * c.score_rows]):
                m.d.comb += [
                    unit[f"finished{member}"].eq(row["finished"]), row["p"].eq(unit["p"])
                ]  # fmt: skip
        m.d.sync += self.seen.eq(Cat(row["seen"] for row in rows).any())
        m.d.comb += [
            self.visible.eq(Cat(unit["visible"] for unit in units)),
            self.overflow.eq(Cat(unit["status"][0] for unit in units)),
            self.underflow.eq(Cat(unit["status"][1] for unit in units)),
        ]
        drain_row, l_unit = Signal.like(self.drain_row), Signal.like(ask.unit)
        m.d.sync += [drain_row.eq(self.drain_row), l_unit.eq(ask.unit)]
        with m.Switch(drain_row):
            for n, row in enumerate(rows):
                with m.Case(n):
                    m.d.sync += self.o_word.eq(row["o_word"])
        with m.Switch(l_unit):
            for n, unit in enumerate(units):
                with m.Case(n):
                    m.d.sync += self.l.eq(unit["l"])
        return m

    def _part(
        self, m: Module, first: Row | ScoreUnit, kind: str, number: int, shared: dict[str, Any]
    ) -> dict[str, Any]:
        """Row or score unit `number`, elaborated here (the `first` one is there already) or as an
        instance of the one module of its kind.

        It gets what all share; returns its other ports.
        """
        name, members = f"{kind}{number}", first.signature.members
        given = {port: value for port, value in shared.items() if port in members}
        own = [port for port in members if port not in given]
        if not self.external:
            part = first if number == 0 else type(first)(self.config)
            m.submodules[name] = part
            m.d.comb += [getattr(part, port).eq(value) for port, value in given.items()]
            return {port: getattr(part, port) for port in own}
        # No wire per part for what all share: it would be most of a large core's text.
        ports = {f"i_{port}": Value.cast(value) for port, value in given.items()}
        wires = {}
        for port in own:
            wires[port] = Signal(members[port].shape, name=f"{name}_{port}")
            way = "i" if members[port].flow is In else "o"
            ports[f"{way}_{port}"] = Value.cast(wires[port])
        module = self.ROW_MODULE if isinstance(first, Row) else self.SCORE_MODULE
        m.submodules[name] = Instance(module, i_clk=ClockSignal(), i_rst=ResetSignal(), **ports)
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
        setup, sink = bundle(b.setup, name="setup"), bundle(Wide, name="sink")
        m.d.sync += setup.valid.eq(self.setup.valid)
        with m.If(self.setup.valid):
            m.d.sync += [
                setup.slot.eq(self.setup.slot),
                setup.position.eq(self.setup.position),
                setup.draft.eq(self.setup.draft),
                sink.eq(fp32_to_wide(m, self.setup.sink, name="sink_now")),
            ]
        bias = bundle(b.bias_write, name="bias")
        m.d.sync += bias.valid.eq(self.bias.valid)
        with m.If(self.bias.valid):
            m.d.sync += [bias.slot.eq(self.bias.slot), bias.data.eq(self.bias.data)]
        return {
            "elements": late, "query": query, "setup": setup, "setup_sink": sink,
            "bias_write": bias,
        }  # fmt: skip

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
