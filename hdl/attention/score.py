"""The score unit of a few rows: scale, soft cap, bias, mask, p = 2^score, and the sum of p."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, EnableInserter, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import RowBundles, bits, unit_of
from m890.hdl.config import DRAFT_BITS, TOKEN_BITS, CoreConfig
from m890.hdl.memory.sram import Sram
from m890.hdl.numerics.decode import bias_to_wide
from m890.hdl.numerics.exp2 import Exp2, ScaleP
from m890.hdl.numerics.formats import L_SLOTS
from m890.hdl.numerics.pipeline import bundle
from m890.hdl.numerics.softcap import SoftCap
from m890.hdl.numerics.types import Operand, Wide
from m890.hdl.numerics.wide import ScaleWide, WideAdd


@dataclass(frozen=True)
class ScoreTiming:
    """Cycles, counted from the stage `score`, in which the unit expects each bundle."""

    scaled: int  # cap
    capped: int  # bias_use
    biased: int  # exp
    p: int  # l_add, value_scale
    pv: int  # p_write
    add: int  # latency of a wide addition

    AFTER_SUM = 2  # stage score, counted from a row's stage sum, where no score waits

    @classmethod
    def of(cls, config: CoreConfig) -> "ScoreTiming":
        """The stages of a score unit of this configuration."""
        add = WideAdd.latency
        capped = ScaleWide.latency + (SoftCap.latency if config.softcap else 0)
        biased = capped + add
        p = biased + Exp2.latency
        return cls(ScaleWide.latency, capped, biased, p, p + ScaleP.latency, add)


class ScoreUnit(wiring.Component):
    """What `score_rows` rows make of their scores: one score of one row per cycle.

    Function
        A finished score is scaled, capped, biased and masked; p = 2^score is added to the row's l
        and, times the V scale, becomes a lane of the row's p vector. Numbers as in
        `docs/numerics.md`.
    Members
        index : the unit's number, constant, the only thing in which units differ: its rows are
        index x score_rows and those behind it. The bundles are described in `RowBundles`;
        setup_row, bias_row : the row that a write is for. setup_sink : its sink logit.
        finished0, ... : the rows' finished scores, stage score. p : stage pv.
        status : overflow, underflow of a visible score, stage p + 1.
        visible : stage biased + 1, the token counts.
        l : the row's l of `l_ask`, one cycle later.
    Latency
        `ScoreTiming`: a finished score to p.
    Throughput
        One score, sink or sum of l per cycle. A partial sum of l may be visited again after
        WideAdd's latency + 2 cycles.
    Backpressure
        None: control asks for scores. No combinational paths.
    Storage
        Per row: two slots' parameters, 2 x lanes biases of 16 bits, l 2 x 8 wide floats and 2
        that wait for the drain.
    """

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.timing = ScoreTiming.of(config)
        if self.timing.add + 2 > L_SLOTS:
            raise ValueError("a wide addition must end before its partial sum is visited again")
        self.bundles = b = RowBundles(config)
        inputs = (
            "setup", "bias_write", "score", "mask", "cap", "bias_read", "bias_use", "sink_read",
            "exp", "l_read", "l_add", "l_write", "value_scale", "wake", "l_ask",
        )  # fmt: skip
        row = bits(config.rows)
        super().__init__(
            {
                "index": In(bits(config.score_units)),
                "setup_row": In(row),
                "setup_sink": In(Wide),
                "bias_row": In(row),
                **{name: In(getattr(b, name)) for name in inputs},
                **{f"finished{n}": In(Wide) for n in range(config.score_rows)},
                "p": Out(Operand),
                "status": Out(2),
                "visible": Out(1),
                "l": Out(Wide),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        positions, sinks = self._parameters(m)
        biased, masked_by_bias = self._score(m)
        live = self._allowed(m, positions, masked_by_bias)
        p = self._exp2(m, biased, sinks, live)
        self._sum_l(m, p)
        return m

    def _mine(self, row: Signal) -> Value:
        """Whether a row of the core is one of this unit's."""
        return unit_of(self.config, row) == self.index

    def _parameters(self, m: Module) -> tuple[Sram, Sram]:
        """Per row and slot, written while the other slot's job runs."""
        entries = 2 * self.config.score_rows
        layout = data.StructLayout({"position": TOKEN_BITS, "draft": DRAFT_BITS})
        m.submodules.positions = positions = Sram(layout, entries)
        m.submodules.sinks = sinks = Sram(Wide, entries)
        write = self.setup.valid & self._mine(self.setup_row)
        m.d.comb += [
            positions.write_data.position.eq(self.setup.position),
            positions.write_data.draft.eq(self.setup.draft),
            positions.read_address[0].eq(Cat(self.score.slot, self.score.row)),
            positions.read_enable[0].eq(self.wake.score),
            sinks.write_data.eq(self.setup_sink),
            sinks.read_address[0].eq(Cat(self.sink_read.slot, self.sink_read.row)),
            sinks.read_enable[0].eq(self.sink_read.enable),
        ]
        for memory in (positions, sinks):
            m.d.comb += [
                memory.write_address.eq(Cat(self.setup.slot, self.setup_row)),
                memory.write_enable.eq(write),
            ]
        return positions, sinks

    def _score(self, m: Module) -> tuple[data.View, Value]:
        """Scale, soft cap and bias; returns the score and whether its bias was -Inf."""
        c = self.config
        awake = EnableInserter(self.wake.score)
        scale, add_bias = ScaleWide(), WideAdd()
        m.submodules.scale = awake(scale)
        m.submodules.add_bias = awake(add_bias)
        with m.Switch(self.score.row):
            for n in range(c.score_rows):
                with m.Case(n):
                    m.d.comb += scale.a.eq(getattr(self, f"finished{n}"))
        m.d.comb += scale.scale.eq(self.score.kscale)
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

        m.submodules.biases = biases = Sram(c.port_bits, 2 * c.score_rows)
        m.d.comb += [
            biases.write_address.eq(Cat(self.bias_write.slot, self.bias_row)),
            biases.write_data.eq(self.bias_write.data),
            biases.write_enable.eq(self.bias_write.valid & self._mine(self.bias_row)),
            biases.read_address[0].eq(Cat(self.bias_read.slot, self.bias_read.row)),
            biases.read_enable[0].eq(self.bias_read.enable),
        ]
        raw = Signal(16)
        m.d.comb += raw.eq(biases.read_data[0].word_select(self.bias_use.lane, 16))
        bias, minus_inf = bias_to_wide(m, raw, self.bias_use.fp16)
        m.d.comb += [
            add_bias.a.eq(capped),
            add_bias.b.eq(Mux(self.bias_use.enable, bias, 0)),
        ]
        masked = Signal(self.timing.add)
        with m.If(self.wake.score):
            m.d.sync += masked.eq(Cat(self.bias_use.enable & minus_inf, masked))
        return add_bias.o, masked[-1]

    def _allowed(self, m: Module, positions: Sram, masked_by_bias: Value) -> Value:
        """Whether a p counts, stage p: the mask, known early, joins its score at stage biased."""
        mask, here = self.mask, positions.read_data[0]
        near = ~mask.window | mask.below_sinks | (mask.token_window > here.position)
        plain = (~mask.causal | (mask.token <= here.position)) & near
        drafted = mask.draft_in_range & here.draft.bit_select(mask.draft_index, 1)
        takes_part = mask.units.bit_select(self.index, 1)
        allowed, live = Signal(self.timing.biased - 1), Signal(Exp2.latency)
        visible, counted = Signal(), Signal()
        m.d.comb += [
            counted.eq(self.exp.valid & ~self.exp.sink & allowed[-1] & ~masked_by_bias),
            visible.eq(counted | (self.exp.valid & self.exp.sink)),
        ]
        now = takes_part & mask.in_range & Mux(mask.draft, drafted, plain)
        with m.If(self.wake.score):
            m.d.sync += [
                allowed.eq(Cat(now, allowed)),
                live.eq(Cat(visible, live)),
                self.visible.eq(counted),
            ]
        return live[-1]

    def _exp2(self, m: Module, biased: data.View, sinks: Sram, live: Value) -> data.View:
        """p, for l, and times the V scale for the row's p vector."""
        awake = EnableInserter(self.wake.score)
        exp2, scale_p = Exp2(), ScaleP()
        m.submodules.exp2 = awake(exp2)
        m.submodules.scale_p = awake(scale_p)
        p = bundle(Operand, name="p_of_l")
        m.d.comb += exp2.s.eq(Mux(self.exp.sink, sinks.read_data[0], biased))
        with m.If(live):
            m.d.comb += p.eq(exp2.p)
        with m.If(self.wake.score):
            m.d.sync += self.status.eq(Mux(live, (exp2.underflow << 1) | exp2.overflow, 0))
        m.d.comb += [
            scale_p.p.eq(p),
            scale_p.scale.eq(self.value_scale.vscale),
            self.p.eq(scale_p.o),
        ]
        return p

    def _sum_l(self, m: Module, p: data.View) -> None:
        """Eight partial sums of l per row and slot, one adder; folded when a job's scores end."""
        entries = 2 * self.config.score_rows
        m.submodules.l = memory = Sram(Wide, L_SLOTS * entries, reads=2)
        m.submodules.l_kept = kept = Sram(Wide, entries)
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
        here = ~write.raw | (write.unit == self.index)
        m.d.comb += [
            *(
                address.eq(Cat(part, read.bank, read.row))
                for address, part in zip(memory.read_address, (read.a, read.b), strict=True)
            ),
            *(enable.eq(read.enable) for enable in memory.read_enable),
            add.a.eq(Mux(plus.first, 0, memory.read_data[0])),
            add.b.eq(addend),
            memory.write_address.eq(Cat(write.index, write.bank, write.row)),
            memory.write_data.eq(add.o),
            memory.write_enable.eq(write.enable & here),
            kept.write_address.eq(Cat(plus.slot, plus.row)),
            kept.write_data.eq(memory.read_data[0]),
            kept.write_enable.eq(plus.capture),
            kept.read_address[0].eq(Cat(self.l_ask.slot, self.l_ask.row)),
            kept.read_enable[0].eq(self.l_ask.unit == self.index),
            self.l.eq(kept.read_data[0]),
        ]
