"""Adds stored (l, O) states to the rows' accumulators: how partial results merge."""

from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.enum import Enum
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import ControlBundles, bits
from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import COUNT_BITS, raw_layout
from m890.hdl.numerics.formats import RAW_EXP_LIMIT
from m890.hdl.numerics.pipeline import bundle
from m890.hdl.numerics.types import Wide
from m890.hdl.numerics.wide import fp32_to_wide


def request_layout(config: CoreConfig) -> data.StructLayout:
    """A RAW item: whose states, and whether l and O start with them."""
    return data.StructLayout(
        {
            "slot": 1, "row_mask": config.rows, "rows": COUNT_BITS, "tiles": COUNT_BITS,
            "l_first": 1, "o_first": 1,
        }
    )  # fmt: skip


class StoreState(Enum):
    IDLE = 0
    HEADER = 1
    VALUES = 2


class StateAdder(wiring.Component):
    """Streams one stored state per row into l and O, a value per cycle.

    Function
        Per row: header (E, l), then O; each value v becomes v x 2^E as a wide float
        (docs/numerics.md, "Raw") and is added. Rows outside the mask get zeros, so that their
        accumulators begin too.
    Members
        request : In(stream). raw_beat : In(stream), from KvPath. busy : Out.
        l, o : Out. Additions for ArrayControl, whose pipeline is quiet meanwhile.
        overflow, underflow, slot : Out. Pulses: an exponent left the wide range.
    Latency
        rows x (head + 1) cycles if the data are there.
    Throughput
        One value per cycle: merging is rare.
    """

    request: stream.Interface
    raw_beat: stream.Interface
    busy: Signal
    l: data.View  # noqa: E741
    o: data.View
    overflow: Signal
    underflow: Signal
    slot: Signal

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.bundles = b = ControlBundles(config)
        super().__init__(
            {
                "request": In(stream.Signature(request_layout(config))),
                "raw_beat": In(stream.Signature(raw_layout(config))),
                "busy": Out(1),
                "l": Out(b.raw_l),
                "o": Out(b.raw_o),
                "overflow": Out(1),
                "underflow": Out(1),
                "slot": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        c = self.config
        m = Module()
        state = Signal(StoreState)
        job = bundle(request_layout(c), name="job")
        row, beat = Signal(COUNT_BITS), Signal(COUNT_BITS + 1)
        part = Signal(bits(c.lanes // 2))  # value in the beat
        exponent = Signal(32)
        beats = job.tiles << 1
        m.d.comb += [self.busy.eq(state != StoreState.IDLE), self.slot.eq(job.slot)]

        word, power = Signal(32), Signal(signed(32))
        give_l, give_o = Signal(), Signal()
        incoming = self.raw_beat.payload.data
        with m.Switch(state):
            with m.Case(StoreState.IDLE):
                m.d.comb += self.request.ready.eq(1)
                with m.If(self.request.valid):
                    m.d.sync += [job.eq(self.request.payload), row.eq(0)]
                    m.d.sync += state.eq(StoreState.HEADER)
            with m.Case(StoreState.HEADER):
                m.d.comb += [
                    self.raw_beat.ready.eq(1),
                    word.eq(incoming[32:64]),
                    power.eq(incoming[:32]),
                    give_l.eq(self.raw_beat.valid),
                ]
                m.d.sync += [exponent.eq(incoming[:32]), beat.eq(0), part.eq(0)]
                with m.If(self.raw_beat.valid):
                    m.d.sync += state.eq(StoreState.VALUES)
            with m.Case(StoreState.VALUES):
                m.d.comb += [
                    word.eq(incoming.word_select(part, 32)),
                    power.eq(exponent),
                    give_o.eq(self.raw_beat.valid),
                    self.raw_beat.ready.eq(part.all()),
                ]
                with m.If(self.raw_beat.valid):
                    m.d.sync += part.eq(part + 1)
                    with m.If(part.all()):
                        m.d.sync += beat.eq(beat + 1)
                        with m.If(beat == beats - 1):
                            m.d.sync += [row.eq(row + 1), state.eq(StoreState.HEADER)]
                            with m.If(row == job.rows - 1):
                                m.d.sync += state.eq(StoreState.IDLE)

        # Convert over two cycles: fields, then the sum of exponents and its limits.
        plain = bundle(Wide, name="plain")
        late_power = Signal(signed(32))
        m.d.sync += [plain.eq(fp32_to_wide(m, word, name="stored")), late_power.eq(power)]
        taken = job.row_mask.bit_select(row, 1)
        live = Signal()
        m.d.sync += live.eq(taken)
        total = Signal(signed(34))
        m.d.comb += total.eq(late_power + plain.exp)
        value = bundle(Wide, name="value")
        some = live & ~plain.nan & plain.sig.any()
        high, low = total > RAW_EXP_LIMIT, total < -RAW_EXP_LIMIT
        with m.If(live & (plain.nan | (some & high))):
            m.d.comb += value.nan.eq(1)
        with m.Elif(some & ~low):
            m.d.comb += [value.sig.eq(plain.sig), value.exp.eq(total), value.sign.eq(plain.sign)]

        sub = bits(c.drain_lanes) if c.drain_lanes > 1 else 0
        feature = Cat(part, beat)
        late_l, late_o = Signal(), Signal()
        late_row, late_feature = Signal.like(row), Signal(len(feature))
        slot, l_first, o_first = Signal(), Signal(), Signal()
        m.d.sync += [
            late_l.eq(give_l),
            late_o.eq(give_o),
            late_row.eq(row),
            late_feature.eq(feature),
            slot.eq(job.slot),
            l_first.eq(job.l_first),
            o_first.eq(job.o_first),
            self.overflow.eq((late_l | late_o) & some & high),
            self.underflow.eq((late_l | late_o) & some & low),
            self.l.valid.eq(late_l),
            self.l.slot.eq(slot),
            self.l.row.eq(late_row),
            self.l.first.eq(l_first),
            self.l.value.eq(value),
            self.o.valid.eq(late_o),
            self.o.slot.eq(slot),
            self.o.row.eq(late_row),
            self.o.first.eq(o_first),
            self.o.word.eq(late_feature[sub:]),
            self.o.lane.eq(late_feature[:sub]),
            self.o.value.eq(value),
        ]
        return m
