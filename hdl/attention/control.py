"""Control of the row array: delays a beat's tag to every stage and tells the rows what to do."""

from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import ControlBundles
from m890.hdl.attention.fold import FoldL
from m890.hdl.attention.row import RowTiming
from m890.hdl.config import DRAFT_BITS, TOKEN_BITS, CoreConfig
from m890.hdl.kv.items import COUNT_BITS, scale_layout
from m890.hdl.memory.queue import Queue
from m890.hdl.numerics.pipeline import bundle, delay

BF16_ONE = 0x3F80


class ArrayControl(wiring.Component):
    """Turns one tag per cycle into the rows' bundles, each at its stage.

    Function
        The tag walks down a pipeline as long as the row's; at each stage its fields become the
        row's addresses, enables and selects. A chunk's place and scales join it where its scores
        need them, `FoldL` and StateAdder use the adders in cycles that the tag leaves free.
    Members
        tag : In. Stage operand. context : In(stream), one per chunk, offered with its first K
        beat; the queue never fills because a chunk's p slot is reserved first. scale : In(stream),
        one per scaled chunk, there before its first K beat.
        params0, params1 : In. The jobs of slots 0 and 1, held while the slot is in use.
        raw_l, raw_o : In. Additions of stored states, only while the pipeline is quiet.
        rows_visible : In. Per row, stage biased + 1.
        p_done : Out. A chunk's p vector is in the buffer. k_end, k_end_slot : Out. A job's scores
        are all computed: its slot of queries and row parameters is free. l_done, o_done and their
        slots : Out. l is captured (only then may another `end` follow); O is final.
        status_slot, status_rows : Out. Job and used rows of the rows' `status`, stage p + 1.
        useful_tiles : Out. Tiles of a token that some row sees (0: none), stage biased + 1.
        The other members are the rows' bundles.
    Latency
        `RowTiming`.
    Backpressure
        None.
    """

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.timing = RowTiming.of(config)
        self.bundles = b = ControlBundles(config)
        outputs = (
            "operand", "accumulate_read", "accumulate_add", "accumulate_write", "score", "cap",
            "bias_read", "bias_use", "mask", "exp", "l_read", "l_add", "l_write", "value_scale",
            "p_write", "wake",
        )  # fmt: skip
        super().__init__(
            {
                "tag": In(b.tag),
                "context": In(stream.Signature(b.context)),
                "scale": In(stream.Signature(scale_layout(config))),
                "params0": In(b.params),
                "params1": In(b.params),
                "raw_l": In(b.raw_l),
                "raw_o": In(b.raw_o),
                "rows_visible": In(config.rows),
                **{name: Out(getattr(b, name)) for name in outputs},
                "row_mask": Out(config.rows),
                "p_done": Out(1),
                "k_end": Out(1),
                "k_end_slot": Out(1),
                "l_done": Out(1),
                "l_done_slot": Out(1),
                "o_done": Out(1),
                "o_done_slot": Out(1),
                "useful_tiles": Out(COUNT_BITS),
                "status_slot": Out(1),
                "status_rows": Out(config.rows),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        t = self.timing
        layout = self.bundles.tag
        tags = [self.tag]
        for n in range(1, max(t.pv, t.p + 1) + 1):
            late = Signal(layout, name=f"tag_{n}")
            m.d.sync += late.eq(tags[-1])
            tags.append(late)
        self._tags = tags
        self._array(m)
        self._scales(m)
        self._scores(m)
        self._l(m)
        busy = Cat((tag.k & tag.last) | tag.sink for tag in tags[t.sum : t.pv])
        m.d.comb += self.wake.score.eq(busy.any())
        return m

    def _params(self, slot: Signal) -> data.View:
        both = Mux(slot, self.params1.as_value(), self.params0.as_value())
        return data.View(self.bundles.params, both)

    def _array(self, m: Module) -> None:
        t, tags = self.timing, self._tags
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
        before, last = tags[t.pv - 1], tags[t.pv]
        lanes = Signal(self.config.lanes)
        m.d.sync += lanes.eq((before.k & before.last) << before.index)
        m.d.comb += [self.p_write.lanes.eq(lanes), self.p_write.slot.eq(last.p_address)]
        m.d.sync += self.p_done.eq(lanes[-1])

    def _scales(self, m: Module) -> None:
        """Per-token scales, picked a cycle before stage sum; V's then waits for p."""
        t = self.timing
        pick = self._tags[t.sum - 1]
        k, v = Signal(16), Signal(16)
        chosen = self.scale.payload
        m.d.sync += [k.eq(BF16_ONE), v.eq(BF16_ONE)]
        with m.If(pick.scaled):
            m.d.sync += [
                k.eq(chosen.k[pick.index]),
                v.eq(chosen.v[pick.index]),
            ]
        m.d.comb += [
            self.scale.ready.eq(pick.k & pick.last & pick.scaled & pick.index.all()),
            self.score.kscale.eq(k),
            self.value_scale.vscale.eq(delay(m, v, t.p - t.sum, name="vscale")),
        ]

    def _scores(self, m: Module) -> None:
        """Soft cap, bias, mask and validity of scores."""
        t, tags = self.timing, self._tags
        params = self._params(tags[t.scaled].slot)
        m.d.comb += [
            self.cap.enable.eq(params.softcap != 0),
            self.cap.cap.eq(params.softcap),
            self.cap.inverse.eq(params.softcap_inverse),
        ]
        read, use = tags[t.capped - 1], tags[t.capped]
        m.d.comb += [
            self.bias_read.enable.eq(read.k & read.last & read.bias & (read.index == 0)),
            self.bias_read.slot.eq(read.bias_slot),
            self.bias_use.enable.eq(use.k & use.last & use.bias),
            self.bias_use.lane.eq(use.index),
            self.bias_use.fp16.eq(self._params(use.slot).query_format),
        ]
        exp = tags[t.biased]
        m.d.comb += [
            self.exp.valid.eq((exp.k & exp.last) | exp.sink),
            self.exp.sink.eq(exp.sink),
            self.exp.slot.eq(exp.slot),
        ]

        # A chunk's place waits in a queue; its masks are computed over the two stages before use.
        m.submodules.places = places = Queue(self.bundles.context, self.config.p_depth, sram=False)
        wiring.connect(m, wiring.flipped(self.context), places.i)
        score = tags[t.biased - 3]
        head = places.o.payload
        m.d.comb += places.o.ready.eq(score.k & score.last & score.index.all())
        place = bundle(self.bundles.context, name="place")
        token = Signal(TOKEN_BITS)
        m.d.sync += [place.eq(head), token.eq(head.base + score.index)]
        params = self._params(place.slot)
        mask = bundle(self.bundles.mask, name="mask")
        distance = Signal(TOKEN_BITS)
        beyond = Signal(TOKEN_BITS + 1)
        m.d.comb += [
            distance.eq(token - place.start),
            beyond.eq(token + params.window),
        ]
        m.d.sync += [
            mask.slot.eq(place.slot),
            mask.in_range.eq((token >= place.start) & (token < place.end)),
            mask.causal.eq(params.causal),
            mask.window.eq(params.window != 0),
            mask.below_sinks.eq(token < params.sinks),
            mask.draft.eq(place.draft),
            mask.draft_in_range.eq(distance < DRAFT_BITS),
            mask.draft_index.eq(distance),
            mask.token.eq(token),
            mask.token_window.eq(beyond),
            self.row_mask.eq(place.row_mask & used_rows(params.rows, self.config.rows)),
        ]
        m.d.comb += self.mask.eq(mask)
        # tiles of the token if any row saw it; the rows answer a cycle after stage biased.
        seen = tags[t.biased + 1]
        tiles = Mux(self.rows_visible.any(), self._params(seen.slot).tiles, 0)
        m.d.comb += self.useful_tiles.eq(Mux(seen.k & seen.last, tiles, 0))

    def _l(self, m: Module) -> None:
        """Partial sums of l: scores first, folds in idle cycles, stored states in quiet ones."""
        t, tags = self.timing, self._tags
        read = tags[t.p - 1]
        m.submodules.fold = fold = FoldL(t.add)
        score = Signal()
        raw = self.raw_l
        m.d.comb += [
            score.eq((read.k & read.last) | read.sink),
            fold.start.eq(read.end),
            fold.slot.eq(read.end_slot),
            fold.fold.eq(read.end_fold),
            fold.busy_slot.eq(score | raw.valid),
            self.l_read.enable.eq(score | fold.issue | raw.valid),
            self.l_done.eq(fold.done),
            self.l_done_slot.eq(fold.done_slot),
        ]
        operation = data.StructLayout(
            {"add": self.bundles.l_add, "write": self.bundles.l_write}
        )
        now = bundle(operation, name="now")
        with m.If(score):
            m.d.comb += [
                self.l_read.bank.eq(read.slot),
                self.l_read.a.eq(Mux(read.sink, 0, read.index[:3])),
                now.add.first.eq(read.l_first),
                now.write.enable.eq(1),
            ]
        with m.Elif(raw.valid):
            m.d.comb += [
                self.l_read.bank.eq(raw.slot),
                self.l_read.a.eq(0),
                now.add.first.eq(raw.first),
                now.add.raw.eq(1),
                now.add.raw_value.eq(raw.value),
                now.write.enable.eq(1),
                now.write.raw.eq(1),
                now.write.row.eq(raw.row),
            ]
        with m.Else():
            m.d.comb += [
                self.l_read.bank.eq(fold.bank),
                self.l_read.a.eq(fold.a),
                self.l_read.b.eq(fold.b),
                now.add.fold.eq(1),
                now.add.capture.eq(fold.issue & fold.capture),
                now.add.slot.eq(fold.bank),
                now.write.enable.eq(fold.issue & ~fold.capture),
            ]
        m.d.comb += [now.write.bank.eq(self.l_read.bank), now.write.index.eq(self.l_read.a)]
        late = delay(m, now, 1, name="l_operation", reset=True)
        m.d.comb += self.l_add.eq(late.add)
        under_way = []
        write = late.write
        for n in range(t.add):
            under_way.append(write.enable)
            write = delay(m, write, 1, name=f"l_write_{n + 1}", reset=True)
        m.d.comb += [self.l_write.eq(write), self.wake.l.eq(Cat(*under_way).any())]

        m.d.sync += [self.k_end.eq(read.end), self.k_end_slot.eq(read.end_slot)]
        late_tag = tags[t.p + 1]
        m.d.comb += [
            self.status_slot.eq(late_tag.slot),
            self.status_rows.eq(used_rows(self._params(late_tag.slot).rows, self.config.rows)),
        ]


def used_rows(rows: Signal, count: int) -> Value:
    """Bit r: the job uses row r."""
    return Cat(rows > r for r in range(count))
