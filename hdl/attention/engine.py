"""The attention engine: KV path, sequencer, row array and drain."""

from typing import TYPE_CHECKING, Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.array import RowArray
from m890.hdl.attention.control import ArrayControl
from m890.hdl.attention.drain import Drain
from m890.hdl.attention.score_control import ScoreControl
from m890.hdl.attention.sequencer import Sequencer
from m890.hdl.attention.store import StateAdder
from m890.hdl.commands import Status
from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import EVENT, job_layout, query_layout, row_layout, segment_layout
from m890.hdl.kv.items import COUNT_BITS
from m890.hdl.kv.path import PORTS, KvPath
from m890.hdl.kv.tags import TagFaults
from m890.hdl.memory.ports import ReadPort, WritePort
from m890.hdl.numerics.pipeline import bundle
from m890.hdl.pages.guard import OwnerPort
from m890.hdl.registers import Stall


class AttentionEngine(wiring.Component):
    """Runs ATTEND jobs whose rows, queries and segments have been checked and loaded.

    Function
        Attention of a job's rows over its segments, see `docs/numerics.md`, ArrayControl and
        ScoreControl.
    Members
        row, query : In. Write strobes of the job loader, into a free slot.
        job, segment : In(stream). A loaded job, then its segments.
        slot_free : Out(2). done : Out(stream of EVENT). table, k, v, bias, raw : Out(ReadPort).
        owner : Out(OwnerPort), of pages. write : Out(WritePort).
        loading : In. The job loader is at work (stall cause).
        beat, useful, cause, busy : Out, for the counters.
    Latency
        First beat: KvPath's; last V beat to first output beat: Sequencer 1, RowTiming.sum, Drain.
    Throughput
        A beat per cycle; two jobs overlap (slots 0 and 1).
    Backpressure
        A job is taken when KvPath and Drain both have room.
    """

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: CoreConfig, *, external_rows: bool = False) -> None:
        self.config = config
        self.external_rows = external_rows
        self.control, self.scores = ArrayControl(config), ScoreControl(config)
        self.array = RowArray(config, self.control.bundles.params, external=external_rows)
        super().__init__(
            {
                "row": In(row_layout(config)),
                "query": In(query_layout(config)),
                "job": In(stream.Signature(job_layout(config))),
                "segment": In(stream.Signature(segment_layout(config))),
                "slot_free": Out(2),
                "done": Out(stream.Signature(EVENT)),
                **{name: Out(ReadPort(config)) for name in PORTS},
                "owner": Out(OwnerPort(config)),
                "write": Out(WritePort(config)),
                "loading": In(1),
                "beat": Out(1),
                "useful": Out(1),
                "cause": Out(Stall),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        c = self.config
        m = Module()
        m.submodules.path = path = KvPath(c)
        m.submodules.sequencer = sequencer = Sequencer(c)
        m.submodules.control = control = self.control
        m.submodules.scores = scores = self.scores
        m.submodules.array = array = self.array
        m.submodules.store = store = StateAdder(c)
        m.submodules.drain = drain = Drain(c)
        m.submodules.tag_faults = faults = TagFaults()

        def join(a: Any, b: Any) -> None:
            wiring.connect(m, a, b)

        for name in (*PORTS, "owner"):
            join(getattr(path, name), wiring.flipped(getattr(self, name)))
        for name in ("item", "k_beat", "v_beat", "bias_beat"):
            join(getattr(path, name), getattr(sequencer, name))
        join(path.raw_beat, store.raw_beat)
        join(path.scale, scores.scale)
        join(sequencer.context, scores.context)
        join(sequencer.store, store.request)
        join(drain.port, wiring.flipped(self.write))
        join(drain.done, wiring.flipped(self.done))
        self._take(m, path, sequencer, drain)
        params = self._params(m)
        segment = path.segment.payload
        m.d.comb += [
            path.segment.valid.eq(self.segment.valid),
            self.segment.ready.eq(path.segment.ready),
            *(segment[name].eq(self.segment.payload[name]) for name in segment.shape().members),
            scores.units_visible.eq(array.visible),
            scores.scored.eq(control.scored),
            sequencer.score_taken.eq(scores.taken),
            array.see.eq(path.see),
            path.seen.eq(array.seen),
            array.raw.eq(sequencer.raw),
            array.raw_format.eq(sequencer.raw_format),
            array.bias.eq(sequencer.bias),
            control.tag.eq(sequencer.tag),
            scores.raw_l.eq(store.l),
            control.raw_o.eq(store.o),
            sequencer.store_busy.eq(store.busy),
            *(
                getattr(array, name).eq(getattr(block, name))
                for block in (control, scores)
                for name in block.BUNDLES
            ),
            *(
                getattr(block, f"params{s}").eq(params[s])
                for block in (sequencer, scores, array)
                for s in range(2)
            ),
            *(
                getattr(sequencer, name).eq(getattr(scores, name))
                for name in ("p_done", "k_end", "k_end_slot", "l_done")
            ),
            *(
                getattr(drain, name).eq(getattr(block, name))
                for block, part in ((control, "o"), (scores, "l"))
                for name in (f"{part}_done", f"{part}_done_slot")
            ),
            drain.ended0.eq(sequencer.ended0),
            drain.ended1.eq(sequencer.ended1),
            array.drain.eq(drain.drain),
            array.drain_row.eq(drain.drain_row),
            array.l_row.eq(drain.l_row),
            array.l_slot.eq(drain.l_slot),
            drain.o_word.eq(array.o_word),
            drain.l.eq(array.l),
            sequencer.drained.eq(drain.drained),
            sequencer.drained_slot.eq(drain.drained_slot),
            sequencer.walking.eq(path.walking),
            sequencer.loading.eq(self.loading),
            sequencer.draining.eq(drain.busy),
            self.slot_free.eq(sequencer.slot_free),
            self.beat.eq(sequencer.beat),
            self.cause.eq(sequencer.cause),
            self.busy.eq(sequencer.busy | drain.busy | path.walking),
            array.setup.valid.eq(self.row.valid),
            array.query.eq(self.query),
            *(
                array.setup[name].eq(self.row[name])
                for name in ("slot", "row", "position", "draft", "sink")
            ),
        ]
        m.d.comb += [
            faults.clear.eq(self.job.valid & self.job.ready),
            faults.clear_ident.eq(self.job.payload.ident),
            # A fault is here before its row's last beat has left the transposer (lanes cycles) or,
            # in K, the array: so before the job can end.
            faults.k.eq(path.k_fault),
            faults.v.eq(path.v_fault),
            faults.ident.eq(drain.ident),
            drain.bad_tag.eq(faults.bad),
            drain.bad_row.eq(faults.name),
        ]
        self._status(m, path, store, drain)
        self._useful(m, sequencer)
        return m

    def _take(self, m: Module, path: KvPath, sequencer: Sequencer, drain: Drain) -> None:
        """A job enters the KV path and the drain in the same cycle."""
        job = self.job.payload
        both = path.job.ready & drain.job.ready
        m.d.comb += [
            self.job.ready.eq(both),
            path.job.valid.eq(self.job.valid & drain.job.ready),
            drain.job.valid.eq(self.job.valid & path.job.ready),
            *(path.job.payload[n].eq(job[n]) for n in path.job.payload.shape().members),
            *(
                drain.job.payload[n].eq(job[n])
                for n in ("slot", "tiles", "rows", "rotate", "output", "ident")
            ),
            drain.job.payload.format.eq(job.output_format),
            drain.job.payload.stride.eq(job.output_stride),
            sequencer.taken.eq(self.job.valid & both),
            sequencer.taken_slot.eq(job.slot),
        ]

    def _params(self, m: Module) -> list[data.View]:
        """What the array keeps of the jobs in its two slots."""
        layout = self.control.bundles.params
        params = [Signal(layout, name=f"params{s}") for s in range(2)]
        job = self.job.payload
        for s in range(2):
            with m.If(self.job.valid & self.job.ready & (job.slot == s)):
                m.d.sync += [params[s][name].eq(job[name]) for name in layout.members]
        return params

    def _status(self, m: Module, path: KvPath, store: StateAdder, drain: Drain) -> None:
        """Sticky events of each slot's jobs: the one in the slot, and one before it in the drain.

        A job may enter its slot before the last one's V beats have ended. Scores are those of the
        newer job then; a bus error may be either's, so it fails both.
        """
        array, scores = self.array, self.scores
        job = self.job.payload
        layout = data.StructLayout({"status": 8, "bus_error": 1})
        over = (array.overflow & scores.status_units).any()
        under = (array.underflow & scores.status_units).any()
        for s in range(2):
            newer, older = bundle(layout, name=f"newer{s}"), bundle(layout, name=f"older{s}")
            live, two = Signal(name=f"live{s}"), Signal(name=f"two{s}")
            taken = self.job.valid & self.job.ready & (job.slot == s)
            looked = drain.started & (drain.started_slot == s)
            here, stored = scores.status_slot == s, store.slot == s
            m.d.comb += [
                getattr(drain, f"status{s}").eq(Mux(two, older.status, newer.status)),
                drain.bus_error[s].eq(Mux(two, older.bus_error, newer.bus_error)),
            ]
            with m.If((over & here) | (store.overflow & stored)):
                m.d.sync += newer.status[Status.OVERFLOW].eq(1)
            with m.If((under & here) | (store.underflow & stored)):
                m.d.sync += newer.status[Status.UNDERFLOW].eq(1)
            with m.If(path.bus_error[s]):
                m.d.sync += [newer.bus_error.eq(1), older.bus_error.eq(1)]
            with m.If(taken):
                m.d.sync += [
                    older.status.eq(newer.status),
                    older.bus_error.eq(newer.bus_error | path.bus_error[s]),
                    newer.eq(0),
                    two.eq(live & ~looked),
                    live.eq(1),
                ]
            with m.Elif(looked):
                m.d.sync += [live.eq(two), two.eq(0)]

    def _useful(self, m: Module, sequencer: Sequencer) -> None:
        """One pulse per beat with a visible token: V beats at once, K beats after their mask."""
        owed = Signal(2 * COUNT_BITS)
        m.d.comb += self.useful.eq(owed.any())
        m.d.sync += owed.eq(owed + self.scores.useful_tiles + sequencer.useful_v - self.useful)
