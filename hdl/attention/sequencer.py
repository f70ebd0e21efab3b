"""Decides which beat the array takes: V if its p is ready, else K of a later chunk."""

from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import ControlBundles, ScoreKind, bits, ended_layout
from m890.hdl.attention.row import RowTiming
from m890.hdl.attention.score import ScoreTiming
from m890.hdl.attention.store import request_layout as store_layout
from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import COUNT_BITS, ItemKind, elements_layout, is_scaled, item_layout
from m890.hdl.memory.queue import Queue
from m890.hdl.numerics.pipeline import bundle
from m890.hdl.registers import Stall


class Sequencer(wiring.Component):
    """Orders K tiles, V tiles, sinks, stored states and job ends on the one array.

    Function
        Items come in stream order. K tiles of a chunk start as soon as its p slot is reserved; its
        V tiles follow when its p vector is complete, before any further K tile. Both orders are
        stream orders, so results do not depend on timing. A chunk's last K tile waits until there
        is room for its finished scores. A stored state waits until the pipeline is empty.
    Members
        item, k_beat, v_beat, bias_beat : streams in, from KvPath. params0, params1 : In.
        tag : Out, registered. raw, raw_format : Out, the beat's elements, one cycle before the tag.
        context : Out(stream), to ScoreControl: a chunk with its first K beat, a sink, a job's end.
        bias : Out, writes to the rows' biases.
        store : Out(stream), to StateAdder, whose `store_busy` holds beats back.
        p_done, k_end, l_done, score_taken : In, from ScoreControl. drained, drained_slot : In,
        from Drain: a job's accumulators and l have been read.
        ended0, ended1 : Out. Valid while the slot's job drains.
        slot_free : Out(2). The slot's queries and row parameters may be overwritten.
        taken, taken_slot : In. A job enters the slot.
        walking, loading, draining : In. For the stall cause. beat, useful_v, cause, busy : Out,
        for the counters.
    Latency
        1 cycle from a beat's arrival to its tag.
    Throughput
        One beat per cycle while elements are there and p is ready. In heads of fewer than
        score_rows / 2 tiles the score units are slower than the array, and K waits for them.
    Backpressure
        k_beat.ready and v_beat.ready depend on both valids and on state.
    """

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.bundles = b = ControlBundles(config)
        row = bits(config.rows)
        super().__init__(
            {
                "item": In(stream.Signature(item_layout(config))),
                "k_beat": In(stream.Signature(elements_layout(config))),
                "v_beat": In(stream.Signature(elements_layout(config))),
                "bias_beat": In(stream.Signature(elements_layout(config))),
                "params0": In(b.params),
                "params1": In(b.params),
                "tag": Out(b.tag),
                "raw": Out(elements_layout(config)),
                "raw_format": Out(4),
                "context": Out(stream.Signature(b.context)),
                "bias": Out(
                    data.StructLayout(
                        {"valid": 1, "slot": 1, "row": row, "data": config.port_bits}
                    )
                ),
                "store": Out(stream.Signature(store_layout(config))),
                "store_busy": In(1),
                "p_done": In(1),
                "k_end": In(1),
                "k_end_slot": In(1),
                "l_done": In(1),
                "score_taken": In(1),
                "drained": In(1),
                "drained_slot": In(1),
                "taken": In(1),
                "taken_slot": In(1),
                "walking": In(1),
                "loading": In(1),
                "draining": In(1),
                "ended0": Out(ended_layout()),
                "ended1": Out(ended_layout()),
                "slot_free": Out(2, init=3),  # type: ignore[call-arg]
                "beat": Out(1),
                "useful_v": Out(1),
                "cause": Out(Stall),
                "busy": Out(1),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        c = self.config
        m = Module()
        head = self.item.payload
        waiting_layout = data.StructLayout(
            {"end": 1, "slot": 1, "tiles": COUNT_BITS, "format": 4, "ident": 16, "error": 8,
             "index": COUNT_BITS}
        )  # fmt: skip
        m.submodules.waiting = waiting = Queue(waiting_layout, 2 * c.p_depth, sram=False)
        v = waiting.o.payload

        # -- state -----------------------------------------------------------------------------
        index = Signal(range(c.lanes))
        middle, middle_v = Signal(), Signal()  # inside a tile, and of which kind
        k = Signal(data.StructLayout({"slot": 1, "tiles": COUNT_BITS, "format": 4}))
        k_open, k_tile, k_p = Signal(), Signal(COUNT_BITS), Signal(range(c.p_depth))
        v_tile, v_p = Signal(COUNT_BITS), Signal(range(c.p_depth))
        p_ready, p_used = Signal(range(c.p_depth + 1)), Signal(range(c.p_depth + 1))
        k_job, v_job = Signal(), Signal()  # the K side's, V side's job has begun
        l_zero, l_all = Signal(), Signal()  # its partial sum 0, all its partial sums have begun
        set_busy, l_used, no_l = Signal(2), Signal(2), Signal(2)
        end_busy = Signal()
        bias_ready, bias_slot = Signal(), Signal()
        in_flight = Signal(range(c.p_depth + 1))  # chunks between first K beat and p
        owed = Signal(range(c.score_depth + 1))  # scores that are under way or wait for their unit
        score = ScoreTiming.of(c)
        # From a beat, or a row's sink, to the last that comes of it.
        latency = RowTiming.of(c).sum + score.AFTER_SUM + score.pv + score.add
        quiet_after = latency + c.score_rows + 4
        quiet = Signal(range(quiet_after + 1))

        # -- what may go -----------------------------------------------------------------------
        here = Mux(head.slot, self.params1.as_value(), self.params0.as_value())
        head_params = data.View(self.params0.shape(), here)
        is_chunk = self.item.valid & (head.kind == ItemKind.CHUNK)
        is_raw = self.item.valid & (head.kind == ItemKind.RAW)
        is_end = self.item.valid & (head.kind == ItemKind.END)
        idle_store = ~self.store_busy
        sink_due = Signal()
        m.d.comb += sink_due.eq(
            self.item.valid & ~k_open & ~k_job & head_params.sink & idle_store
        )
        bias_ok = ~head.bias | bias_ready
        room = (p_used != c.p_depth) & waiting.i.ready & self.context.ready
        tiles = Mux(k_open, k.tiles, head.tiles)
        k_last_tile = k_tile == tiles - 1
        scores_wait = k_last_tile & (owed > c.score_depth - c.lanes)
        k_start, k_may, v_may = Signal(), Signal(), Signal()
        set_ok = v_job | ~set_busy.bit_select(v.slot, 1)
        m.d.comb += [
            k_start.eq(is_chunk & ~k_open & room & bias_ok & ~sink_due & idle_store),
            k_may.eq((k_open | k_start) & ~scores_wait),
            v_may.eq(
                waiting.o.valid & ~v.end & ((v_tile != 0) | middle | ((p_ready != 0) & set_ok))
            ),
        ]
        go_k, go_v, go_sink = Signal(), Signal(), Signal()
        m.d.comb += go_sink.eq(sink_due & self.context.ready)
        with m.If(middle):
            m.d.comb += [
                go_v.eq(middle_v & self.v_beat.valid),
                go_k.eq(~middle_v & self.k_beat.valid),
            ]
        with m.Else():
            m.d.comb += [
                go_v.eq(v_may & self.v_beat.valid),
                go_k.eq(~go_v & k_may & self.k_beat.valid),
            ]
        last_beat = index.all()
        with m.If(go_k | go_v):
            m.d.sync += [index.eq(index + 1), middle.eq(~last_beat), middle_v.eq(go_v)]
        m.d.comb += [self.k_beat.ready.eq(go_k), self.v_beat.ready.eq(go_v)]

        # -- K side ----------------------------------------------------------------------------
        starts = go_k & ~k_open
        k_slot = Mux(k_open, k.slot, head.slot)
        k_finishes = go_k & last_beat & k_last_tile
        with m.If(starts):
            m.d.sync += [
                k.slot.eq(head.slot),
                k.tiles.eq(head.tiles),
                k.format.eq(head.format),
                k_open.eq(1),
                k_job.eq(1),
            ]
        with m.If(go_k & last_beat):
            m.d.sync += k_tile.eq(Mux(k_last_tile, 0, k_tile + 1))
        with m.If(k_finishes):
            m.d.sync += [k_open.eq(0), k_p.eq(k_p + 1), l_zero.eq(1), l_all.eq(1)]
        with m.If(go_sink):
            m.d.sync += [k_job.eq(1), l_zero.eq(1)]
        finishing = go_k & (index == 0) & k_last_tile
        m.d.sync += owed.eq(owed + Mux(finishing, c.lanes, 0) - self.score_taken)

        # -- job ends --------------------------------------------------------------------------
        k_ends, v_ends = Signal(), Signal()
        m.d.comb += [
            k_ends.eq(
                is_end & ~k_open & ~sink_due & waiting.i.ready & self.context.ready & ~end_busy
                & idle_store & ~l_used.bit_select(head.slot, 1)
            ),
            v_ends.eq(waiting.o.valid & v.end & set_ok),
        ]  # fmt: skip
        with m.If(k_ends):
            m.d.sync += [
                end_busy.eq(1),
                k_job.eq(0),
                l_zero.eq(0),
                l_all.eq(0),
                l_used.bit_select(head.slot, 1).eq(1),
                no_l.bit_select(head.slot, 1).eq(~l_zero),
            ]
        with m.Elif(self.l_done):
            m.d.sync += end_busy.eq(0)
        with m.If(self.drained):
            m.d.sync += [
                l_used.bit_select(self.drained_slot, 1).eq(0),
                set_busy.bit_select(self.drained_slot, 1).eq(0),
            ]

        told = self.context.payload
        kind = Mux(k_ends, ScoreKind.END, Mux(go_sink, ScoreKind.SINK, ScoreKind.CHUNK))
        m.d.comb += [
            self.context.valid.eq(starts | go_sink | k_ends),
            told.kind.eq(kind),
            told.l_zero.eq(l_zero),
            told.l_all.eq(l_all),
            told.p_address.eq(k_p),
            told.scaled.eq(is_scaled(head.format)),
            told.bias.eq(head.bias),
            told.bias_slot.eq(bias_slot),
            told.base.eq(head.base_token),
            *(told[name].eq(head[name]) for name in ("slot", "start", "end", "draft", "row_mask")),
        ]

        # -- V side ----------------------------------------------------------------------------
        v_last_tile = v_tile == v.tiles - 1
        v_starts = go_v & ~middle & (v_tile == 0)
        v_finishes = go_v & last_beat & v_last_tile
        with m.If(go_v & last_beat):
            m.d.sync += v_tile.eq(Mux(v_last_tile, 0, v_tile + 1))
        with m.If(v_finishes):
            m.d.sync += [v_p.eq(v_p + 1), v_job.eq(1)]
        with m.If(v_starts | v_ends):
            m.d.sync += set_busy.bit_select(v.slot, 1).eq(1)
        with m.If(v_ends):
            m.d.sync += v_job.eq(0)
        m.d.comb += [
            waiting.i.valid.eq(starts | k_ends),
            waiting.i.payload.end.eq(k_ends),
            waiting.i.payload.slot.eq(head.slot),
            waiting.i.payload.tiles.eq(head.tiles),
            waiting.i.payload.format.eq(head.format),
            waiting.i.payload.ident.eq(head.ident),
            waiting.i.payload.error.eq(head.error),
            waiting.i.payload.index.eq(head.index),
            waiting.o.ready.eq(v_finishes | v_ends),
        ]
        m.d.sync += [
            p_ready.eq(p_ready + self.p_done - v_starts),
            p_used.eq(p_used + starts - v_finishes),
            in_flight.eq(in_flight + starts - self.p_done),
        ]

        # -- stored states ---------------------------------------------------------------------
        still = (quiet == quiet_after) & (p_used == 0) & ~waiting.o.valid & ~end_busy
        m.d.comb += [
            self.store.valid.eq(
                is_raw & ~k_open & ~sink_due & still & idle_store
                & (v_job | ~set_busy.bit_select(head.slot, 1))
            ),
            self.store.payload.slot.eq(head.slot),
            self.store.payload.row_mask.eq(head.row_mask),
            self.store.payload.rows.eq(head.rows),
            self.store.payload.tiles.eq(head.tiles),
            self.store.payload.l_first.eq(~l_zero),
            self.store.payload.o_first.eq(~v_job),
        ]  # fmt: skip
        stored = self.store.valid & self.store.ready
        with m.If(stored):
            m.d.sync += [
                k_job.eq(1),
                l_zero.eq(1),
                v_job.eq(1),
                set_busy.bit_select(head.slot, 1).eq(1),
            ]
        with m.If(go_k | go_v | go_sink | k_ends | v_ends):
            m.d.sync += quiet.eq(0)
        with m.Elif(quiet != quiet_after):
            m.d.sync += quiet.eq(quiet + 1)
        m.d.comb += self.item.ready.eq(starts | k_ends | stored)

        # -- biases of the chunk at the head, while the one before streams ---------------------
        bias_row = Signal(COUNT_BITS)
        take_bias = Signal()
        m.d.comb += [
            take_bias.eq(is_chunk & head.bias & ~bias_ready & (in_flight <= 1)),
            self.bias_beat.ready.eq(take_bias),
            self.bias.valid.eq(take_bias & self.bias_beat.valid),
            self.bias.slot.eq(bias_slot),
            self.bias.row.eq(bias_row),
            self.bias.data.eq(self.bias_beat.payload.as_value()),
        ]
        with m.If(self.bias.valid):
            m.d.sync += bias_row.eq(bias_row + 1)
            with m.If(bias_row == head.rows - 1):
                m.d.sync += [bias_row.eq(0), bias_ready.eq(1)]
        with m.If(starts & head.bias):
            m.d.sync += [bias_ready.eq(0), bias_slot.eq(~bias_slot)]

        # -- the tag ---------------------------------------------------------------------------
        tag = bundle(self.bundles.tag, name="tag")
        sub = bits(c.drain_lanes) if c.drain_lanes > 1 else 0
        tile = Mux(go_v, v_tile, k_tile)
        form = Mux(go_v, v.format, Mux(k_open, k.format, head.format))
        m.d.comb += [
            tag.k.eq(go_k),
            tag.v.eq(go_v),
            tag.slot.eq(v.slot),
            tag.load.eq(index == 0),
            tag.q_address.eq(k_slot * c.max_tiles + k_tile),
            tag.p_address.eq(v_p),
            tag.index.eq(index),
            tag.word.eq(Cat(index[sub:], tile)),
            tag.lane.eq(index[:sub]),
            tag.first.eq(Mux(go_v, ~v_job, k_tile == 0)),
            tag.last.eq(k_last_tile),
            tag.o_end.eq(v_ends),
            tag.o_end_slot.eq(v.slot),
            self.raw.eq(Mux(go_v, self.v_beat.payload.as_value(), self.k_beat.payload.as_value())),
            self.raw_format.eq(form),
        ]
        m.d.sync += self.tag.eq(tag)

        self._books(m, go_k, go_v, k_ends, v, v_ends, v_job, no_l)
        m.d.comb += self.busy.eq(
            self.item.valid | waiting.o.valid | k_open | (p_used != 0) | self.store_busy
            | self.walking
        )  # fmt: skip
        v_chunk = waiting.o.valid & ~v.end
        # The first that holds, of what can keep the array from a beat.
        explain(
            m,
            self.cause,
            (self.store_busy, Stall.RAW),
            (v_may | (k_open & ~scores_wait), Stall.KV_DATA),
            (v_chunk & (p_ready != 0) & ~set_ok, Stall.DRAIN),
            (is_chunk & room & ~bias_ok, Stall.BIAS),
            (is_chunk & room & ~scores_wait, Stall.KV_DATA),
            (v_chunk, Stall.SCORE),
            (self.item.valid, Stall.DRAIN),
            (self.walking, Stall.WALK),
            (self.loading, Stall.QUERY),
            (self.draining, Stall.DRAIN),
        )
        return m

    def _books(
        self,
        m: Module,
        go_k: Value,
        go_v: Value,
        k_ends: Value,
        v: data.View,
        v_ends: Value,
        v_job: Value,
        no_l: Signal,
    ) -> None:
        """Slots, beats per job, and what the drain needs at the end."""
        # K and V of two jobs interleave, and V of a job may outlast its slot's K side.
        k_beats, v_beats = Signal(32), Signal(32)
        m.d.sync += [k_beats.eq(k_beats + go_k), v_beats.eq(v_beats + go_v)]
        with m.If(k_ends):
            m.d.sync += k_beats.eq(0)
        with m.If(v_ends):
            m.d.sync += v_beats.eq(0)
        for s, ended in enumerate((self.ended0, self.ended1)):
            of_k = Signal(32, name=f"beats_of_k{s}")
            with m.If(k_ends & (self.item.payload.slot == s)):
                m.d.sync += of_k.eq(k_beats)
            with m.If(self.taken & (self.taken_slot == s)):
                m.d.sync += self.slot_free[s].eq(0)
            with m.Elif(self.k_end & (self.k_end_slot == s)):
                m.d.sync += self.slot_free[s].eq(1)
            with m.If(v_ends & (v.slot == s)):
                m.d.sync += [
                    ended.ident.eq(v.ident),
                    ended.error.eq(v.error),
                    ended.index.eq(v.index),
                    ended.no_l.eq(no_l[s]),
                    ended.no_o.eq(~v_job),
                    ended.beats.eq(of_k + v_beats),
                ]
        m.d.comb += [self.beat.eq(go_k | go_v), self.useful_v.eq(go_v)]


def explain(m: Module, cause: Any, *reasons: tuple[Value, Stall]) -> None:
    """`cause` is the first reason's whose condition holds, IDLE if none does."""
    for condition, reason in reversed(reasons):
        with m.If(condition):
            m.d.comb += cause.eq(reason)
