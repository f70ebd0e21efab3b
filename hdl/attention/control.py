"""Control of the rows: delays a beat's tag to every stage and tells the rows what to do."""

from typing import TYPE_CHECKING, Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import ControlBundles
from m890.hdl.attention.row import RowTiming
from m890.hdl.config import CoreConfig
from m890.hdl.numerics.pipeline import delay


class ArrayControl(wiring.Component):
    """Turns one tag per cycle into the rows' bundles, each at its stage.

    Function
        The tag walks down a pipeline as long as the row's; at each stage its fields become the
        row's addresses, enables and selects. StateAdder uses the adders in cycles that the tag
        leaves free. Finished scores go on with ScoreControl.
    Members
        tag : In. Stage operand.
        raw_o : In. Additions of stored states, only while the pipeline is quiet.
        scored : Out. A token's scores are finished, stage sum. o_done, o_done_slot : Out. O is
        final.
        The other members are the rows' bundles.
    Latency
        `RowTiming`.
    Backpressure
        None.
    """

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    BUNDLES = ("operand", "accumulate_read", "accumulate_add", "accumulate_write")
    """Bundles of the rows that are driven here."""

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.timing = RowTiming.of(config)
        self.bundles = b = ControlBundles(config)
        super().__init__(
            {
                "tag": In(b.tag),
                "raw_o": In(b.raw_o),
                **{name: Out(getattr(b, name)) for name in self.BUNDLES},
                "scored": Out(1),
                "o_done": Out(1),
                "o_done_slot": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        t = self.timing
        layout = self.bundles.tag
        tags = [self.tag]
        for n in range(1, t.sum + 1):
            late = Signal(layout, name=f"tag_{n}")
            m.d.sync += late.eq(tags[-1])
            tags.append(late)
        first = tags[0]
        m.d.comb += [
            self.operand.q_enable.eq(first.k & first.load),
            self.operand.p_enable.eq(first.v & first.load),
            self.operand.q_address.eq(first.q_address),
            self.operand.p_address.eq(first.p_address),
        ]
        read, raw = tags[t.dot - 1], self.raw_o
        m.d.comb += [
            self.accumulate_read.k.eq(read.k),
            self.accumulate_read.v.eq(read.v | raw.valid),
            self.accumulate_read.index.eq(read.index),
            self.accumulate_read.set.eq(Mux(raw.valid, raw.slot, read.slot)),
            self.accumulate_read.word.eq(Mux(raw.valid, raw.word, read.word)),
        ]
        late = delay(m, raw, 1, name="raw_o", reset=True)
        add = tags[t.dot]
        m.d.comb += [
            self.accumulate_add.v.eq(add.v | late.valid),
            self.accumulate_add.first.eq(Mux(late.valid, late.first, add.first)),
            self.accumulate_add.set.eq(Mux(late.valid, late.slot, add.slot)),
            self.accumulate_add.lane.eq(Mux(late.valid, late.lane, add.lane)),
            self.accumulate_add.raw.eq(late.valid),
            self.accumulate_add.raw_value.eq(late.value),
        ]
        late = delay(m, late, t.add, name="raw_sum", reset=True)
        total = tags[t.sum]
        m.d.comb += [
            self.accumulate_write.k.eq(total.k),
            self.accumulate_write.v.eq(total.v | late.valid),
            self.accumulate_write.index.eq(total.index),
            self.accumulate_write.set.eq(Mux(late.valid, late.slot, total.slot)),
            self.accumulate_write.word.eq(Mux(late.valid, late.word, total.word)),
            self.accumulate_write.lane.eq(Mux(late.valid, late.lane, total.lane)),
            self.accumulate_write.raw.eq(late.valid),
            self.accumulate_write.row.eq(late.row),
        ]
        # The last V beat's sum is written at stage sum, so it can be read from the next cycle on.
        m.d.sync += [self.o_done.eq(total.o_end), self.o_done_slot.eq(total.o_end_slot)]
        m.d.comb += self.scored.eq(total.k & total.last)
        return m
