"""One row: a stationary query, its fused dot product, its scores and its accumulators."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import RowBundles, bits, member_of
from m890.hdl.config import CoreConfig
from m890.hdl.memory.sram import Sram
from m890.hdl.numerics.dot import DotProduct, factor, live_and_nan
from m890.hdl.numerics.formats import SIG_BITS, WIDE_EXP_BITS
from m890.hdl.numerics.pipeline import bundle
from m890.hdl.numerics.types import Operand, Wide
from m890.hdl.numerics.wide import WideAdd


@dataclass(frozen=True)
class RowTiming:
    """Cycles, counted from the stage `operand`, in which the row expects each bundle.

    A finished score goes on to its unit: `ScoreTiming` counts from there.
    """

    dot: int  # dot product leaves: accumulate_add
    sum: int  # the sum is there: accumulate_write, score_store
    add: int  # latency of a wide addition

    ELEMENTS = 2  # elements

    @classmethod
    def of(cls, config: CoreConfig) -> "RowTiming":
        """The stages of a row of this configuration."""
        dot = cls.ELEMENTS + DotProduct.latency_of(config.lanes)
        return cls(dot, dot + WideAdd.latency, WideAdd.latency)


class Row(wiring.Component):
    """A row of the array: datapath only, controlled by bundles that all rows share.

    Function
        K beats: score[token] += query tile . K tile; a token's finished score waits until the
        row's score unit (ScoreUnit) asks for it. What the unit makes of it, p, becomes the operand
        of V beats.
        V beats: O[feature] += p . V. Numbers as in `docs/numerics.md`.
    Members
        index : the row's number, constant, the only thing in which rows differ. The bundles are
        described in `RowBundles`; setup_row, query_row : the row that a write is for.
        see_mask : rows that take part in the segment (stage of `see`).
        finished : the score of `score_read`, one cycle later. p : from the unit, stage pv.
        seen : answer to `see`, one cycle later.
        o_word : `drain_lanes` accumulators, one cycle after `drain`.
    Latency
        `RowTiming`: operand to the last sum.
    Throughput
        One beat per cycle, K or V. A score, and an accumulator, may be visited again after
        WideAdd's latency + 2 cycles: lanes >= 8 guarantees it.
    Backpressure
        None: control reserves room before it sends a beat. No combinational paths.
    Storage
        Queries 2 x max_head elements; p p_depth x lanes; scores lanes, finished ones score_depth,
        O 2 x max_head wide floats.
    """

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.timing = RowTiming.of(config)
        self.bundles = b = RowBundles(config)
        inputs = (
            "setup", "query", "operand", "elements", "accumulate_read", "accumulate_add",
            "accumulate_write", "score_store", "score_read", "p_write", "drain", "see",
        )  # fmt: skip
        row = bits(config.rows)
        super().__init__(
            {
                "index": In(row),
                "setup_row": In(row),
                "query_row": In(row),
                "see_mask": In(config.rows),
                **{name: In(getattr(b, name)) for name in inputs},
                "p": In(Operand),
                "finished": Out(Wide),
                "seen": Out(1),
                "o_word": Out(data.ArrayLayout(Wide, config.drain_lanes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._finished(m, self._dot_and_accumulate(m))
        self._see(m)
        return m

    def _dot_and_accumulate(self, m: Module) -> data.View:
        """The array's share: stationary operand, dot product, one adder for scores and O."""
        c = self.config
        lanes, sub = c.lanes, c.drain_lanes
        m.submodules.queries = queries = Sram(self.query.elements.shape(), 2 * c.max_tiles)
        p_buffer = self._p_buffer(m)
        m.submodules.dot = dot = DotProduct(lanes)
        m.submodules.scores = scores = Sram(Wide, lanes)
        m.submodules.add = add = WideAdd()

        stationary = [
            Signal(SIG_BITS + WIDE_EXP_BITS + 1, name=f"stationary{n}") for n in range(lanes)
        ]
        live, nan = Signal(lanes), Signal(lanes)
        from_q, from_p = Signal(), Signal()
        q_word, p_word = queries.read_data[0], p_buffer.read_data[0]
        m.d.comb += [
            queries.write_address.eq(self.query.slot * c.max_tiles + self.query.tile),
            queries.write_data.eq(self.query.elements),
            queries.write_enable.eq(self.query.valid & (self.query_row == self.index)),
            queries.read_address[0].eq(self.operand.q_address),
            queries.read_enable[0].eq(self.operand.q_enable),
            p_buffer.read_address[0].eq(self.operand.p_address),
            p_buffer.read_enable[0].eq(self.operand.p_enable),
        ]
        m.d.sync += [from_q.eq(self.operand.q_enable), from_p.eq(self.operand.p_enable)]
        for chosen, word in ((from_q, q_word), (from_p, p_word)):
            with m.If(chosen):
                m.d.sync += [
                    *(stationary[n].eq(factor(word[n], WIDE_EXP_BITS)) for n in range(lanes)),
                    Cat(live, nan).eq(Cat(*live_and_nan(word))),
                ]
        m.d.comb += [
            dot.a.live.eq(live), dot.a.nan.eq(nan),
            dot.b.live.eq(self.elements.live), dot.b.nan.eq(self.elements.nan),
        ]  # fmt: skip
        for n in range(lanes):
            m.d.comb += [
                dot.a.factors[n].as_value().eq(stationary[n]),
                dot.b.factors[n].as_value().eq(self.elements.words[n]),
            ]

        read, plus, write = self.accumulate_read, self.accumulate_add, self.accumulate_write
        m.d.comb += [
            scores.read_address[0].eq(read.index),
            scores.read_enable[0].eq(read.k),
            scores.write_address.eq(write.index),
            scores.write_data.eq(add.o),
            scores.write_enable.eq(write.k),
        ]
        here = Signal()
        m.d.comb += here.eq(~write.raw | (write.row == self.index))
        old = [Signal(data.ArrayLayout(Wide, sub), name=f"old{s}") for s in range(2)]
        for s in range(2):
            visit = Signal(name=f"visit{s}")
            m.d.comb += visit.eq(read.v & (read.set == s))
            for n in range(sub):
                # Lanes are memories of their own: one is written while another one of the same word
                # is read, but a feature not before it is written, nor are sets drained.
                m.submodules[f"o{s}_{n}"] = o = Sram(
                    Wide, c.max_head // sub, collisions=False, block=True
                )
                m.d.comb += [
                    o.read_address[0].eq(Mux(visit, read.word, self.drain.word)),
                    o.read_enable[0].eq(visit | (self.drain.enable & (self.drain.set == s))),
                    old[s][n].eq(o.read_data[0]),
                    o.write_address.eq(write.word),
                    o.write_data.eq(add.o),
                    o.write_enable.eq(here & write.v & (write.set == s) & (write.lane == n)),
                ]
        drained = Signal()
        m.d.sync += drained.eq(self.drain.set)
        m.d.comb += self.o_word.eq(Mux(drained, old[1], old[0]))

        before = bundle(Wide, name="before")
        with m.If(plus.first):
            m.d.comb += before.eq(0)
        with m.Elif(plus.v):
            chosen = Signal(data.ArrayLayout(Wide, sub))
            m.d.comb += chosen.eq(Mux(plus.set, old[1], old[0]))
            with m.Switch(plus.lane):
                for n in range(sub):
                    with m.Case(n):
                        m.d.comb += before.eq(chosen[n])
        with m.Else():
            m.d.comb += before.eq(scores.read_data[0])
        m.d.comb += [add.a.eq(before), add.b.eq(Mux(plus.raw, plus.raw_value, dot.o))]
        return add.o

    def _p_buffer(self, m: Module) -> Sram:
        """p vectors, a lane written at a time: the unit's p where it is this row's."""
        c, write = self.config, self.p_write
        m.submodules.p_buffer = buffer = Sram(
            data.ArrayLayout(Operand, c.lanes), c.p_depth, granularity=1
        )
        mine = Signal()
        m.d.comb += [
            mine.eq(write.row == member_of(c, self.index)),
            buffer.write_address.eq(write.slot),
            buffer.write_enable.eq(Mux(mine, write.lanes, 0)),
            *(buffer.write_data[n].eq(self.p) for n in range(c.lanes)),
        ]
        return buffer

    def _finished(self, m: Module, total: data.View) -> None:
        """Finished scores, in the order of the tokens, until the unit comes to them."""
        m.submodules.finished = memory = Sram(Wide, self.config.score_depth)
        m.d.comb += [
            memory.write_address.eq(self.score_store.place),
            memory.write_data.eq(total),
            memory.write_enable.eq(self.score_store.enable),
            memory.read_address[0].eq(self.score_read.place),
            memory.read_enable[0].eq(self.score_read.enable),
            self.finished.eq(memory.read_data[0]),
        ]

    def _see(self, m: Module) -> None:
        """Whether the row can see any token of a chunk (asked by the segment walker)."""
        see = self.see
        position = [Signal.like(self.setup.position, name=f"position{s}") for s in range(2)]
        draft = [Signal.like(self.setup.draft, name=f"draft{s}") for s in range(2)]
        for s in range(2):
            with m.If(self.setup.valid & (self.setup_row == self.index) & (self.setup.slot == s)):
                m.d.sync += [position[s].eq(self.setup.position), draft[s].eq(self.setup.draft)]
        here, tree = Signal.like(position[0]), Signal.like(draft[0])
        m.d.comb += [
            here.eq(Mux(see.slot, position[1], position[0])),
            tree.eq(Mux(see.slot, draft[1], draft[0])),
        ]
        near = ~see.window | see.below_sinks | (see.t_high_window > here)
        plain = (~see.causal | (see.t_low <= here)) & near
        drafted = (tree & see.draft_bits).any()
        asked = self.see_mask.bit_select(self.index, 1)
        with m.If(see.valid):
            m.d.sync += self.seen.eq(asked & Mux(see.draft, drafted, plain))
