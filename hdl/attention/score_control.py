"""Control of the score units: which row's score is next, and what the units do at each stage."""

from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import ControlBundles, ScoreKind, bits, member_of, unit_of
from m890.hdl.attention.fold import FoldL
from m890.hdl.attention.score import ScoreTiming
from m890.hdl.config import DRAFT_BITS, TOKEN_BITS, CoreConfig
from m890.hdl.kv.items import COUNT_BITS, scale_layout
from m890.hdl.memory.queue import Queue
from m890.hdl.numerics.formats import L_SLOTS
from m890.hdl.numerics.pipeline import bundle, delay

BF16_ONE = 0x3F80


class ScoreControl(wiring.Component):
    """Sends the finished scores of every group of rows through its unit, one per cycle.

    Function
        All units do the same. Token by token, a cycle for each row of a unit: the row's finished
        score is read (stage score - 1) and a step walks down a pipeline as long as the unit's; at
        each stage its fields become the units' addresses, enables and selects. Sinks take a cycle
        per row as well; folds of l (FoldL) go before scores.
    Members
        context : In(stream). Chunks, sinks and ends of jobs, in the order of the stream. scale :
        In(stream), one per scaled chunk, there before its first K beat.
        scored : In. A token's finished scores are there, stage sum. taken : Out. A token's scores
        have been read: their place is free again.
        params0, params1 : In. The jobs of slots 0 and 1, held while the slot is in use.
        raw_l : In. Additions of stored states, only while the pipeline is quiet.
        units_visible : In. Per unit, stage biased + 1.
        p_done : Out. A chunk's p vectors are in the buffers. k_end, k_end_slot : Out. A job's
        scores are all computed: its slot of queries and row parameters is free. l_done,
        l_done_slot : Out. l is captured (only then may another `end` follow).
        status_slot, status_units : Out. Job and units of the units' `status`, stage p + 1.
        useful_tiles : Out. Tiles of a token that some row sees (0: none).
        The other members are bundles of rows and units.
    Latency
        ScoreTiming.AFTER_SUM from `scored` to stage score where no score waits.
    Throughput
        A token per `score_rows` cycles.
    Backpressure
        None on scores: the sequencer counts those under way.
    """

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    BUNDLES = (
        "score_store", "score_read", "score", "mask", "cap", "bias_read", "bias_use", "sink_read",
        "exp", "l_read", "l_add", "l_write", "value_scale", "p_write", "wake",
    )  # fmt: skip
    """Bundles of rows and units that are driven here."""

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.timing = ScoreTiming.of(config)
        self.bundles = b = ControlBundles(config)
        member = bits(config.score_rows)
        self.step = data.StructLayout(
            {
                "chunk": 1,  # a token's score of a row
                "sink": 1,  # a row's sink logit
                "fold": 1,  # an addition of two partial sums of l
                "capture": 1,  # l is complete
                "end": 1,  # beside nothing else: no further score of the job
                "final": 1,  # chunk: the token's last row; capture: the last one
                "slot": 1,  # of the job
                "row": member,  # of every unit
                "index": bits(config.lanes),  # chunk: token; fold, capture: partial sum
                "b": 3,  # fold: the other partial sum
                "l_first": 1,  # chunk, sink: starts its partial sum
                "p_address": bits(config.p_depth),
                "bias": 1,
                "bias_slot": 1,
            }
        )
        super().__init__(
            {
                "context": In(stream.Signature(b.context)),
                "scale": In(stream.Signature(scale_layout(config))),
                "scored": In(1),
                "taken": Out(1),
                "params0": In(b.params),
                "params1": In(b.params),
                "raw_l": In(b.raw_l),
                "units_visible": In(config.score_units),
                **{name: Out(getattr(b, name)) for name in self.BUNDLES},
                "p_done": Out(1),
                "k_end": Out(1),
                "k_end_slot": Out(1),
                "l_done": Out(1),
                "l_done_slot": Out(1),
                "useful_tiles": Out(COUNT_BITS),
                "status_slot": Out(1),
                "status_units": Out(config.score_units),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        t = self.timing
        entries = Queue(self.bundles.context, self.config.p_depth, sram=False)
        m.submodules.entries = entries
        wiring.connect(m, wiring.flipped(self.context), entries.i)
        now = self._walk(m, entries)
        score = now.chunk | now.sink
        begins = score | now.fold | now.capture | now.end
        moving = begins | self._lasts(m, begins, t.pv + 1, "moving")
        m.d.comb += self.wake.score.eq(self._lasts(m, score, t.pv, "awake"))
        steps = [now]
        for n in range(t.pv + 1):
            late = Signal(self.step, name=f"step_{n}")
            with m.If(moving):
                m.d.sync += late.eq(steps[-1])
            steps.append(late)
        self._steps = steps[1:]  # by stage
        self._scales(m, entries.o.payload, now)
        self._mask(m, entries.o.payload, now)
        self._stages(m)
        self._l(m)
        return m

    def _lasts(self, m: Module, cause: Value, cycles: int, name: str) -> Value:
        """Whether `cause` held in one of the last `cycles` cycles."""
        left = Signal(range(cycles + 1), name=name)
        with m.If(cause):
            m.d.sync += left.eq(cycles)
        with m.Elif(left.bool()):
            m.d.sync += left.eq(left - 1)
        return left.bool()

    def _params(self, slot: Signal) -> data.View:
        both = Mux(slot, self.params1.as_value(), self.params0.as_value())
        return data.View(self.bundles.params, both)

    def _walk(self, m: Module, entries: Queue) -> data.View:
        """The step of this cycle: a fold, or the next row of what is first in the queue."""
        c, t = self.config, self.timing
        head = entries.o.payload
        step = bundle(self.step, name="step")
        m.submodules.fold = fold = FoldL(t.add, c.score_rows)
        row, index = Signal(range(c.score_rows)), Signal(range(c.lanes))
        stored, read = Signal(range(c.score_depth)), Signal(range(c.score_depth))
        level = Signal(range(c.score_depth + 1))
        # A sink is in its partial sum before the row's next score is added to it.
        settle = Signal(range(t.add + 2))
        go, chunk = Signal(), Signal()
        all_rows = row == c.score_rows - 1
        m.d.comb += [
            chunk.eq(head.kind == ScoreKind.CHUNK),
            go.eq(entries.o.valid & ~fold.issue & (~chunk | ((level != 0) & (settle == 0)))),
            self.taken.eq(go & chunk & all_rows),
            self.score_store.enable.eq(self.scored),
            self.score_store.place.eq(stored),
            self.score_read.enable.eq(go & chunk),
            self.score_read.place.eq(read),
            fold.start.eq(go & (head.kind == ScoreKind.END)),
            fold.slot.eq(head.slot),
            fold.fold.eq(head.l_all),
            entries.o.ready.eq(
                go & Mux(chunk, all_rows & index.all(), all_rows | fold.start)
            ),
        ]  # fmt: skip
        m.d.sync += [
            stored.eq(stored + self.scored),
            read.eq(read + self.taken),
            level.eq(level + self.scored - self.taken),
        ]
        with m.If(go & ~fold.start):
            m.d.sync += row.eq(Mux(all_rows, 0, row + 1))
        with m.If(self.taken):
            m.d.sync += index.eq(index + 1)
        with m.If(go & (head.kind == ScoreKind.SINK)):
            m.d.sync += settle.eq(max(0, t.add + 2 - c.score_rows))
        with m.Elif(settle != 0):
            m.d.sync += settle.eq(settle - 1)
        m.d.comb += [
            step.chunk.eq(go & chunk),
            step.sink.eq(go & (head.kind == ScoreKind.SINK)),
            step.fold.eq(fold.issue & ~fold.capture),
            step.capture.eq(fold.issue & fold.capture),
            step.end.eq(fold.start),
            step.final.eq(Mux(fold.issue, fold.last, all_rows)),
            step.slot.eq(Mux(fold.issue, fold.bank, head.slot)),
            step.row.eq(Mux(fold.issue, fold.row, row)),
            step.index.eq(Mux(fold.issue, fold.a, index)),
            step.b.eq(fold.b),
            step.l_first.eq(Mux(index == 0, ~head.l_zero, (index < L_SLOTS) & ~head.l_all)),
            step.p_address.eq(head.p_address),
            step.bias.eq(head.bias),
            step.bias_slot.eq(head.bias_slot),
        ]
        m.d.comb += self.scale.ready.eq(self.taken & head.scaled & index.all())
        return step

    def _scales(self, m: Module, head: data.View, now: data.View) -> None:
        """Per-token scales, picked a cycle before stage score; V's then waits for p."""
        scale = self.scale.payload
        kscale, vscale = Signal(16), Signal(16)
        with m.If(now.chunk):
            m.d.sync += [
                kscale.eq(Mux(head.scaled, scale.k[now.index], BF16_ONE)),
                vscale.eq(Mux(head.scaled, scale.v[now.index], BF16_ONE)),
            ]
        with m.If(self.wake.score):
            late = delay(m, vscale, self.timing.p, name="vscale")
        m.d.comb += [self.score.kscale.eq(kscale), self.value_scale.vscale.eq(late)]

    def _mask(self, m: Module, head: data.View, now: data.View) -> None:
        """Masks of a token, over the two cycles before stage score + 1; who saw it."""
        c, steps = self.config, self._steps
        place = bundle(self.bundles.context, name="place")
        token = Signal(TOKEN_BITS)
        with m.If(now.chunk):
            m.d.sync += [place.eq(head), token.eq(head.base + now.index)]
        params = self._params(place.slot)
        mask = bundle(self.bundles.mask, name="mask")
        distance = Signal(TOKEN_BITS)
        beyond = Signal(TOKEN_BITS + 1)
        rows = Signal(c.rows)
        row = steps[0].row
        groups = (rows[n : n + c.score_rows] for n in range(0, c.rows, c.score_rows))
        m.d.comb += [
            distance.eq(token - place.start),
            beyond.eq(token + params.window),
            rows.eq(place.row_mask & used_rows(params.rows, c.rows)),
        ]
        with m.If(self.wake.score):
            m.d.sync += [
                mask.in_range.eq((token >= place.start) & (token < place.end)),
                mask.causal.eq(params.causal),
                mask.window.eq(params.window != 0),
                mask.below_sinks.eq(token < params.sinks),
                mask.draft.eq(place.draft),
                mask.draft_in_range.eq(distance < DRAFT_BITS),
                mask.draft_index.eq(distance),
                mask.token.eq(token),
                mask.token_window.eq(beyond),
                mask.units.eq(Cat(group.bit_select(row, 1) for group in groups)),
            ]
        m.d.comb += self.mask.eq(mask)
        # tiles of the token if any row saw it; the units answer a cycle after stage biased.
        seen = steps[self.timing.biased + 1]
        before, visible = Signal(), Signal()
        m.d.comb += visible.eq(self.units_visible.any() | before)
        with m.If(seen.chunk):
            m.d.sync += before.eq(visible & ~seen.final)
        tiles = Mux(visible, self._params(seen.slot).tiles, 0)
        m.d.comb += self.useful_tiles.eq(Mux(seen.chunk & seen.final, tiles, 0))

    def _stages(self, m: Module) -> None:
        """What the units need at each stage up to p in the rows' buffers."""
        t, steps = self.timing, self._steps
        params = self._params(steps[t.scaled].slot)
        read, use = steps[t.capped - 1], steps[t.capped]
        sink, exp = steps[t.biased - 1], steps[t.biased]
        m.d.comb += [
            self.score.row.eq(steps[0].row),
            self.score.slot.eq(steps[0].slot),
            self.cap.enable.eq(params.softcap != 0),
            self.cap.cap.eq(params.softcap),
            self.cap.inverse.eq(params.softcap_inverse),
            self.bias_read.enable.eq(read.chunk & read.bias),
            self.bias_read.slot.eq(read.bias_slot),
            self.bias_read.row.eq(read.row),
            self.bias_use.enable.eq(use.chunk & use.bias),
            self.bias_use.lane.eq(use.index),
            self.bias_use.fp16.eq(self._params(use.slot).query_format),
            self.sink_read.enable.eq(sink.sink),
            self.sink_read.slot.eq(sink.slot),
            self.sink_read.row.eq(sink.row),
            self.exp.valid.eq(exp.chunk | exp.sink),
            self.exp.sink.eq(exp.sink),
        ]
        before, last = steps[t.pv - 1], steps[t.pv]
        lanes = Signal(self.config.lanes)
        m.d.sync += lanes.eq(before.chunk << before.index)
        m.d.comb += [
            self.p_write.lanes.eq(lanes),
            self.p_write.slot.eq(last.p_address),
            self.p_write.row.eq(last.row),
        ]
        m.d.sync += self.p_done.eq(lanes[-1] & last.final)

        status = steps[t.p + 1]
        count, rows = self._params(status.slot).rows, self.config.score_rows
        m.d.comb += [
            self.status_slot.eq(status.slot),
            self.status_units.eq(
                Cat(count > n * rows + status.row for n in range(self.config.score_units))
            ),
        ]

    def _l(self, m: Module) -> None:
        """Partial sums of l: scores and folds, and stored states in quiet cycles."""
        c, t = self.config, self.timing
        read, raw = self._steps[t.p - 1], self.raw_l
        score = read.chunk | read.sink
        m.d.comb += self.l_read.enable.eq(score | read.fold | read.capture | raw.valid)
        operation = data.StructLayout({"add": self.bundles.l_add, "write": self.bundles.l_write})
        now = bundle(operation, name="now")
        with m.If(raw.valid):
            m.d.comb += [
                self.l_read.bank.eq(raw.slot),
                self.l_read.row.eq(member_of(c, raw.row)),
                now.add.first.eq(raw.first),
                now.add.raw.eq(1),
                now.add.raw_value.eq(raw.value),
                now.write.enable.eq(1),
                now.write.raw.eq(1),
                now.write.unit.eq(unit_of(c, raw.row)),
            ]
        with m.Else():
            m.d.comb += [
                self.l_read.bank.eq(read.slot),
                self.l_read.row.eq(read.row),
                self.l_read.a.eq(Mux(read.sink, 0, read.index)),
                self.l_read.b.eq(read.b),
                now.add.first.eq(score & read.l_first),
                now.add.fold.eq(read.fold),
                now.add.capture.eq(read.capture),
                now.write.enable.eq(score | read.fold),
            ]
        m.d.comb += [
            now.add.slot.eq(self.l_read.bank),
            now.add.row.eq(self.l_read.row),
            now.write.bank.eq(self.l_read.bank),
            now.write.row.eq(self.l_read.row),
            now.write.index.eq(self.l_read.a),
        ]
        late = delay(m, now, 1, name="l_operation", reset=True)
        m.d.comb += self.l_add.eq(late.add)
        under_way = []
        write = late.write
        for n in range(t.add):
            under_way.append(write.enable)
            write = delay(m, write, 1, name=f"l_write_{n + 1}", reset=True)
        m.d.comb += [self.l_write.eq(write), self.wake.l.eq(Cat(*under_way).any())]

        kept = self._steps[t.p]
        m.d.comb += [self.l_done.eq(kept.capture & kept.final), self.l_done_slot.eq(kept.slot)]
        m.d.sync += [self.k_end.eq(read.end), self.k_end_slot.eq(read.slot)]


def used_rows(rows: Signal, count: int) -> Value:
    """Bit r: the job uses row r."""
    return Cat(rows > r for r in range(count))
