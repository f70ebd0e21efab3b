"""One row: a stationary query, its fused dot product, streaming softmax and accumulators."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, EnableInserter, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import RowBundles, bits
from m890.hdl.config import CoreConfig
from m890.hdl.memory.sram import Sram
from m890.hdl.numerics.decode import bias_to_wide
from m890.hdl.numerics.dot import DotProduct, factor, live_and_nan
from m890.hdl.numerics.exp2 import Exp2, ScaleP
from m890.hdl.numerics.formats import L_SLOTS, SIG_BITS, WIDE_EXP_BITS
from m890.hdl.numerics.pipeline import bundle, delay
from m890.hdl.numerics.softcap import SoftCap
from m890.hdl.numerics.types import Operand, Wide
from m890.hdl.numerics.wide import ScaleWide, WideAdd


@dataclass(frozen=True)
class RowTiming:
    """Cycles, counted from the stage `operand`, in which the row expects each bundle."""

    dot: int  # dot product leaves: accumulate_add
    sum: int  # the sum is there: accumulate_write, score
    scaled: int  # cap
    capped: int  # bias_use
    biased: int  # exp
    p: int  # l_add, value_scale
    pv: int  # p_write
    add: int  # latency of a wide addition

    ELEMENTS = 2  # elements

    @classmethod
    def of(cls, config: CoreConfig) -> "RowTiming":
        """The stages of a row of this configuration."""
        add = WideAdd.latency
        dot = cls.ELEMENTS + DotProduct.latency_of(config.lanes)
        total = dot + add
        scaled = total + ScaleWide.latency
        capped = scaled + (SoftCap.latency if config.softcap else 0)
        biased = capped + add
        p = biased + Exp2.latency
        return cls(dot, total, scaled, capped, biased, p, p + ScaleP.latency, add)


class Row(wiring.Component):
    """A row of the array: datapath only, controlled by bundles that all rows share.

    Function
        K beats: score[token] += query tile . K tile; the last tile's score is scaled, capped,
        biased and masked, p = 2^score is added to l and, times the V scale, kept as the operand of
        V beats.
        V beats: O[feature] += p . V. Numbers as in `docs/numerics.md`.
    Members
        index : the row's number, constant, the only thing in which rows differ. The bundles are
        described in `RowBundles`; setup_row, query_row, bias_row : the row that a write is for.
        row_mask, see_mask : rows that take part in the segment (stages of `mask` and `see`).
        status : overflow, underflow of a visible score, stage p + 1.
        seen : answer to `see`, one cycle later. visible : stage biased + 1, the token counts.
        o_word : `drain_lanes` accumulators, one cycle after `drain`. l0, l1 : l of slots 0 and 1.
    Latency
        `RowTiming`: operand to the last sum, and to p written.
    Throughput
        One beat per cycle, K or V. A score, and an accumulator, may be visited again after
        WideAdd's latency + 2 cycles: lanes >= 8 guarantees it.
    Backpressure
        None: control reserves room before it sends a beat. No combinational paths.
    Storage
        Queries 2 x max_head elements; p p_depth x lanes; scores lanes, O 2 x max_head, l 2 x 8 wide
        floats; biases 2 x lanes x 16 bits.
    """

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.timing = RowTiming.of(config)
        if self.timing.add + 2 > L_SLOTS:
            raise ValueError("a wide addition must end before its accumulator is visited again")
        self.bundles = b = RowBundles(config)
        inputs = (
            "setup", "query", "bias_write", "operand", "elements", "accumulate_read",
            "accumulate_add", "accumulate_write", "score", "cap", "bias_read", "bias_use", "mask",
            "exp", "l_read", "l_add", "l_write", "value_scale", "p_write", "wake", "drain", "see",
        )  # fmt: skip
        row = bits(config.rows)
        super().__init__(
            {
                "index": In(row),
                **{f"{name}_row": In(row) for name in ("setup", "query", "bias")},
                "row_mask": In(config.rows),
                "see_mask": In(config.rows),
                **{name: In(getattr(b, name)) for name in inputs},
                "status": Out(2),
                "visible": Out(1),
                "seen": Out(1),
                "o_word": Out(data.ArrayLayout(Wide, config.drain_lanes)),
                "l0": Out(Wide),
                "l1": Out(Wide),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        position, draft, sink = self._parameters(m)
        total = self._dot_and_accumulate(m)
        biased, masked_by_bias = self._score(m, total)
        self._softmax(m, biased, masked_by_bias, position, draft, sink)
        self._see(m, position, draft)
        return m

    def _parameters(self, m: Module) -> tuple[list[Signal], list[Signal], list[Signal]]:
        """Per-slot registers written while the other slot's job runs."""
        position = [Signal.like(self.setup.position, name=f"position{s}") for s in range(2)]
        draft = [Signal.like(self.setup.draft, name=f"draft{s}") for s in range(2)]
        sink = [Signal(Wide, name=f"sink{s}") for s in range(2)]
        for s in range(2):
            with m.If(self.setup.valid & (self.setup_row == self.index) & (self.setup.slot == s)):
                m.d.sync += [
                    position[s].eq(self.setup.position),
                    draft[s].eq(self.setup.draft),
                    sink[s].eq(self.setup.sink),
                ]
        return position, draft, sink

    def _dot_and_accumulate(self, m: Module) -> data.View:
        """The array's share: stationary operand, dot product, one adder for scores and O."""
        c = self.config
        lanes, sub = c.lanes, c.drain_lanes
        m.submodules.queries = queries = Sram(self.query.elements.shape(), 2 * c.max_tiles)
        m.submodules.p_buffer = self._p_buffer = p_buffer = Sram(
            data.ArrayLayout(Operand, lanes), c.p_depth, granularity=1
        )
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

    def _score(self, m: Module, total: data.View) -> tuple[data.View, Signal]:
        """Scale, soft cap and bias; returns the score and whether its bias was -Inf."""
        c = self.config
        awake = EnableInserter(self.wake.score)
        scale, add_bias = ScaleWide(), WideAdd()
        m.submodules.scale = awake(scale)
        m.d.comb += [scale.a.eq(total), scale.scale.eq(self.score.kscale)]
        capped = scale.o
        if c.softcap:
            softcap = SoftCap()
            m.submodules.softcap = awake(softcap)
            m.d.comb += [
                softcap.s.eq(scale.o),
                softcap.enable.eq(self.cap.enable),
                softcap.cap.eq(self.cap.cap),
                softcap.inverse.eq(self.cap.inverse),
            ]
            capped = softcap.o

        m.submodules.biases = biases = Sram(c.port_bits, 2)
        m.submodules.add_bias = awake(add_bias)
        m.d.comb += [
            biases.write_address.eq(self.bias_write.slot),
            biases.write_data.eq(self.bias_write.data),
            biases.write_enable.eq(self.bias_write.valid & (self.bias_row == self.index)),
            biases.read_address[0].eq(self.bias_read.slot),
            biases.read_enable[0].eq(self.bias_read.enable),
        ]
        raw = Signal(16)
        m.d.comb += raw.eq(biases.read_data[0].word_select(self.bias_use.lane, 16))
        bias, minus_inf = bias_to_wide(m, raw, self.bias_use.fp16)
        m.d.comb += [
            add_bias.a.eq(capped),
            add_bias.b.eq(Mux(self.bias_use.enable, bias, 0)),
        ]
        with m.If(self.wake.score):
            masked = delay(m, self.bias_use.enable & minus_inf, self.timing.add, name="bias_masks")
        return add_bias.o, masked

    def _softmax(
        self,
        m: Module,
        biased: data.View,
        masked_by_bias: Signal,
        position: list[Signal],
        draft: list[Signal],
        sink: list[Signal],
    ) -> None:
        """Mask, exp2, l and the p buffer."""
        mask = self.mask
        here, tree = Signal.like(position[0]), Signal.like(draft[0])
        allowed = Signal()
        m.d.comb += [
            here.eq(Mux(mask.slot, position[1], position[0])),
            tree.eq(Mux(mask.slot, draft[1], draft[0])),
        ]
        near = ~mask.window | mask.below_sinks | (mask.token_window > here)
        plain = (~mask.causal | (mask.token <= here)) & near
        drafted = mask.draft_in_range & tree.bit_select(mask.draft_index, 1)
        takes_part = self.row_mask.bit_select(self.index, 1)
        with m.If(self.wake.score):
            m.d.sync += allowed.eq(takes_part & mask.in_range & Mux(mask.draft, drafted, plain))

        awake = EnableInserter(self.wake.score)
        exp2, scale_p = Exp2(), ScaleP()
        m.submodules.exp2 = awake(exp2)
        visible, counted = Signal(), Signal()
        m.d.comb += [
            counted.eq(self.exp.valid & ~self.exp.sink & allowed & ~masked_by_bias),
            visible.eq(counted | (self.exp.valid & self.exp.sink)),
            exp2.s.eq(
                Mux(self.exp.sink, Mux(self.exp.slot, sink[1], sink[0]), biased),
            ),
        ]
        with m.If(self.wake.score):
            m.d.sync += self.visible.eq(counted)
            live = delay(m, visible, exp2.latency, name="live", reset=True)
        p = bundle(Operand, name="p")
        with m.If(live):
            m.d.comb += p.eq(exp2.p)
        m.d.sync += self.status.eq(Mux(live, (exp2.underflow << 1) | exp2.overflow, 0))

        m.submodules.scale_p = awake(scale_p)
        buffer = self._p_buffer
        m.d.comb += [
            scale_p.p.eq(p),
            scale_p.scale.eq(self.value_scale.vscale),
            buffer.write_address.eq(self.p_write.slot),
            buffer.write_enable.eq(self.p_write.lanes),
            *(buffer.write_data[n].eq(scale_p.o) for n in range(self.config.lanes)),
        ]
        self._sum_l(m, p)

    def _sum_l(self, m: Module, p: data.View) -> None:
        """Eight partial sums of l per slot, one adder; folded by control in idle cycles."""
        m.submodules.l = memory = Sram(Wide, 2 * L_SLOTS, reads=2)
        add = WideAdd()
        m.submodules.add_l = EnableInserter(self.wake.l)(add)
        read, plus, write = self.l_read, self.l_add, self.l_write
        as_wide = bundle(Wide, name="as_wide")
        shift = as_wide.sig.shape().width - p.sig.shape().width
        exponent = Signal(signed(as_wide.exp.shape().width))
        m.d.comb += exponent.eq(p.exp)
        with m.If(p.nan):
            m.d.comb += as_wide.nan.eq(1)
        with m.Elif(p.sig != 0):
            m.d.comb += [as_wide.sig.eq(p.sig << shift), as_wide.exp.eq(exponent)]
        addend = bundle(Wide, name="addend")
        with m.If(plus.raw):
            m.d.comb += addend.eq(plus.raw_value)
        with m.Elif(plus.fold):
            m.d.comb += addend.eq(memory.read_data[1])
        with m.Else():
            m.d.comb += addend.eq(as_wide)
        m.d.comb += [
            memory.read_address[0].eq(read.bank * L_SLOTS + read.a),
            memory.read_address[1].eq(read.bank * L_SLOTS + read.b),
            memory.read_enable[0].eq(read.enable),
            memory.read_enable[1].eq(read.enable),
            add.a.eq(Mux(plus.first, 0, memory.read_data[0])),
            add.b.eq(addend),
            memory.write_address.eq(write.bank * L_SLOTS + write.index),
            memory.write_data.eq(add.o),
            memory.write_enable.eq(write.enable & (~write.raw | (write.row == self.index))),
        ]
        with m.If(plus.capture):
            with m.If(plus.slot):
                m.d.sync += self.l1.eq(memory.read_data[0])
            with m.Else():
                m.d.sync += self.l0.eq(memory.read_data[0])

    def _see(self, m: Module, position: list[Signal], draft: list[Signal]) -> None:
        """Whether the row can see any token of a chunk (asked by the segment walker)."""
        see = self.see
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
