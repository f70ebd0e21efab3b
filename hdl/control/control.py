"""Control: everything between the registers and the engines."""

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import APPEND, Error
from m890.hdl.config import CoreConfig
from m890.hdl.control.checks import field_index
from m890.hdl.control.completion import Completion
from m890.hdl.control.counters import Counters
from m890.hdl.control.csr import Csr
from m890.hdl.control.dispatch import Dispatch
from m890.hdl.control.inflight import InFlight
from m890.hdl.control.job_loader import JobLoader
from m890.hdl.control.layouts import (
    APPEND_DONE,
    EVENT,
    append_layout,
    job_layout,
    query_layout,
    row_layout,
    segment_layout,
)
from m890.hdl.control.ring import RingFetch
from m890.hdl.memory.ports import AxiLite, ReadPort, WritePort
from m890.hdl.registers import Stall


class Control(wiring.Component):
    """Registers, command ring, dispatch, job loader, completions and counters.

    Function
        Fetches commands from the ring, checks them, starts them in order and writes their
        completions.
    Members
        csr : AXI4-Lite. irq : level.
        ring, loader : ReadPorts. completion : WritePort.
        append : stream of append_layout. append_done : stream of APPEND_DONE.
        job, segment : streams of job_layout and segment_layout: a job, then its segments.
        row, query : write strobes (row_layout, query_layout).
        slot_free : see JobLoader. attend_done : stream of EVENT, `ident` as in the job.
        beat, useful, stall : what the array did in this cycle. read_beat, kv_beat : from
        ReadArbiter; write_bytes : from WriteArbiter.
        busy : a command is waiting or in flight. loading : an ATTEND is being read in (stall
        cause).
    Errors
        A bad command's completion carries Error and field; see `m890.hdl.control.checks`.
    """

    csr: Any
    ring: Any
    loader: Any
    completion: Any
    append: stream.Interface
    append_done: stream.Interface
    job: stream.Interface
    segment: stream.Interface
    attend_done: stream.Interface
    row: Any
    query: Any
    irq: Signal
    slot_free: Signal
    beat: Signal
    useful: Signal
    stall: Signal
    read_beat: Signal
    kv_beat: Signal
    write_bytes: Signal
    busy: Signal
    loading: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "csr": In(AxiLite()),
                "irq": Out(1),
                "ring": Out(ReadPort(config)),
                "loader": Out(ReadPort(config)),
                "completion": Out(WritePort(config)),
                "append": Out(stream.Signature(append_layout(config))),
                "append_done": In(stream.Signature(APPEND_DONE)),
                "job": Out(stream.Signature(job_layout(config))),
                "segment": Out(stream.Signature(segment_layout(config))),
                "row": Out(row_layout(config)),
                "query": Out(query_layout(config)),
                "slot_free": In(2),
                "attend_done": In(stream.Signature(EVENT)),
                "beat": In(1),
                "useful": In(1),
                "stall": In(Stall),
                "read_beat": In(1),
                "kv_beat": In(1),
                "write_bytes": In(range(config.port_bytes + 1)),
                "busy": Out(1),
                "loading": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.csr = csr = Csr(config)
        m.submodules.counters = counters = Counters(config)
        m.submodules.fetch = fetch = RingFetch(config)
        m.submodules.dispatch = dispatch = Dispatch(config)
        m.submodules.inflight = inflight = InFlight()
        m.submodules.jobs = jobs = JobLoader(config)
        m.submodules.completions = completions = Completion(config, sources=5)

        def join(*ends: Any) -> None:
            wiring.connect(m, *ends)

        def pass_on(inner: Any, outer: Any) -> None:
            wiring.connect(m, inner, wiring.flipped(outer))

        pass_on(csr.bus, self.csr)
        pass_on(fetch.read, self.ring)
        pass_on(jobs.read, self.loader)
        pass_on(completions.write, self.completion)
        pass_on(dispatch.append, self.append)
        pass_on(jobs.job, self.job)
        pass_on(jobs.segment, self.segment)
        join(fetch.o, dispatch.i)
        join(dispatch.attend, jobs.i)
        join(dispatch.event, completions.event[0])
        join(jobs.event[0], completions.event[1])
        join(jobs.event[1], completions.event[2])
        pass_on(completions.event[4], self.attend_done)
        self._append_done(m, completions.event[3])

        m.d.comb += [
            self.irq.eq(csr.irq),
            self.row.eq(jobs.row),
            self.query.eq(jobs.query),
            self.loading.eq(jobs.loading),
            jobs.slot_free.eq(self.slot_free),
            jobs.limit.eq(csr.limit),
            fetch.enable.eq(csr.enable & ~csr.reset),
            fetch.base.eq(csr.ring_base),
            fetch.size.eq(csr.ring_size),
            fetch.tail.eq(csr.ring_tail),
            fetch.clear.eq(csr.clear),
            csr.ring_head.eq(fetch.head),
            csr.completion_tail.eq(completions.tail),
            csr.completed.eq(completions.completed),
            csr.failed.eq(completions.failed),
            csr.counter_low.eq(counters.low),
            csr.counter_high.eq(counters.high),
            dispatch.drop.eq(csr.reset),
            dispatch.limit.eq(csr.limit),
            dispatch.cycles.eq(counters.cycles),
            jobs.sequence_entry.eq(dispatch.sequence_entry),
            dispatch.sequence_address.eq(jobs.sequence_address),
            completions.begin.eq(dispatch.take),
            completions.begin_ident.eq(inflight.free_ident),
            completions.entry.eq(dispatch.entry),
            completions.cycles.eq(counters.cycles),
            completions.base.eq(csr.completion_base),
            completions.size.eq(csr.completion_size),
            completions.head.eq(csr.completion_head),
            completions.drop.eq(csr.reset),
            completions.clear.eq(csr.clear),
            counters.select.eq(csr.counter),
            counters.clear.eq(csr.clear),
            counters.attending.eq(inflight.attending),
            counters.job.eq(completions.job),
            counters.tokens.eq(completions.tokens),
        ]
        for name in ("beat", "useful", "stall", "read_beat", "kv_beat", "write_bytes"):
            m.d.comb += getattr(counters, name).eq(getattr(self, name))
        self._interlock(m, inflight, dispatch, jobs, completions)
        idle = Cat(fetch.idle, dispatch.idle, inflight.idle, completions.idle)
        m.d.sync += self.busy.eq(~idle.all())
        m.d.comb += csr.busy.eq(self.busy)
        return m

    def _append_done(self, m: Module, event: Any) -> None:
        """The append unit does not know fields: a bad page lies with the sequence, the rest with
        K."""
        source = self.append_done
        names = [field_index(APPEND, n) for n in ("sequence", "k")]
        m.d.comb += [
            event.valid.eq(source.valid),
            source.ready.eq(event.ready),
            *(
                event.payload[n].eq(source.payload[n])
                for n in ("ident", "error", "index", "status")
            ),
        ]
        with m.If(source.payload.error == Error.BAD_PAGE):
            m.d.comb += event.payload.field.eq(names[0])
        with m.Elif(source.payload.error != Error.OK):
            m.d.comb += event.payload.field.eq(names[1])

    def _interlock(
        self,
        m: Module,
        inflight: InFlight,
        dispatch: Dispatch,
        jobs: JobLoader,
        completions: Completion,
    ) -> None:
        m.d.comb += [
            inflight.take.eq(dispatch.take),
            inflight.mark_append.eq(dispatch.mark_append),
            inflight.mark_attend.eq(dispatch.mark_attend),
            inflight.mark_ident.eq(dispatch.ident),
            inflight.plane.eq(dispatch.plane),
            inflight.hash.eq(dispatch.hash),
            inflight.ident.eq(dispatch.ident),
            inflight.mask_valid.eq(jobs.mask_valid),
            inflight.mask_ident.eq(jobs.mask_ident),
            inflight.mask.eq(jobs.mask),
            inflight.attend_mask.eq(jobs.mask),
            inflight.attend_plane.eq(jobs.plane),
            inflight.release.eq(completions.release),
            inflight.release_ident.eq(completions.release_ident),
            jobs.meets_append.eq(inflight.meets_append),
            *(
                getattr(dispatch, n).eq(getattr(inflight, n))
                for n in (
                    "free", "free_ident", "others", "append_room", "attend_room", "meets_attend",
                    "sequence_used", "plane_used",
                )
            ),
        ]  # fmt: skip
