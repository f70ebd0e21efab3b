"""Control: everything between the registers and the engines."""

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import APPEND, Error
from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.control.checks import field_index
from m890.hdl.control.completion import Completion
from m890.hdl.control.counters import Counters
from m890.hdl.control.csr import Csr
from m890.hdl.control.dispatch import Dispatch
from m890.hdl.control.inflight import InFlight
from m890.hdl.control.job_loader import JobLoader
from m890.hdl.control.layouts import (
    APPEND_DONE,
    ENTRIES,
    EVENT,
    append_layout,
    bits,
    job_layout,
    query_layout,
    record_layout,
    row_layout,
    segment_layout,
)
from m890.hdl.control.ring import RingFetch
from m890.hdl.memory.ports import AxiLite, ReadPort, WritePort
from m890.hdl.memory.queue import Queue
from m890.hdl.pages.guard import OwnerPort
from m890.hdl.pages.manager import PageManager, managed_layout
from m890.hdl.pages.owners import OwnerArbiter
from m890.hdl.registers import Stall

QUEUED = 4
"""Commands that wait for the page manager."""


class Control(wiring.Component):
    """Registers, command ring, dispatch, job loader, completions and counters.

    Function
        Fetches commands from the ring, checks them, starts them in order and writes their
        completions.
    Members
        csr : AXI4-Lite. irq : level.
        ring, loader, page_list, page_read : ReadPorts. completion, page_entry, page_write :
        WritePorts. owner : OwnerPorts of the page table: of jobs, of appends.
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
    page_list: Any
    page_read: Any
    completion: Any
    page_entry: Any
    page_write: Any
    owner: Any
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
                "page_list": Out(ReadPort(config)),
                "page_read": Out(ReadPort(config)),
                "completion": Out(WritePort(config)),
                "page_entry": Out(WritePort(config)),
                "page_write": Out(WritePort(config)),
                "owner": In(OwnerPort(config)).array(2),
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
        m.submodules.completions = completions = Completion(config, sources=6)
        m.submodules.pages = pages = PageManager(config)
        m.submodules.owners = owners = OwnerArbiter(config)
        m.submodules.queue = queue = Queue(managed_layout(), QUEUED, sram=True)

        def join(*ends: Any) -> None:
            wiring.connect(m, *ends)

        def pass_on(inner: Any, outer: Any) -> None:
            wiring.connect(m, inner, wiring.flipped(outer))

        pass_on(csr.bus, self.csr)
        pass_on(fetch.read, self.ring)
        pass_on(jobs.read, self.loader)
        pass_on(completions.write, self.completion)
        pass_on(dispatch.append, self.append)
        for inner, outer in (
            (pages.list, self.page_list), (pages.copy, self.page_read),
            (pages.entry, self.page_entry), (pages.page, self.page_write),
            (owners.port[0], self.owner[0]), (owners.port[1], self.owner[1]),
        ):  # fmt: skip
            pass_on(inner, outer)
        pass_on(jobs.job, self.job)
        pass_on(jobs.segment, self.segment)
        join(fetch.o, dispatch.i)
        join(dispatch.attend, jobs.i)
        join(dispatch.event, completions.event[0])
        join(jobs.event[0], completions.event[1])
        join(jobs.event[1], completions.event[2])
        pass_on(completions.event[4], self.attend_done)
        join(dispatch.manage, queue.i)
        join(queue.o, pages.i)
        join(owners.owner, pages.owner)
        join(pages.event, completions.event[5])
        self._append_done(m, completions.event[3], dispatch, pages)
        self._pages(m, dispatch, jobs, pages, queue, csr)

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
        idle = Cat(fetch.idle, dispatch.idle, inflight.idle, completions.idle, pages.ready)
        m.d.sync += self.busy.eq(~idle.all())
        m.d.comb += csr.busy.eq(self.busy)
        return m

    def _pages(
        self, m: Module, dispatch: Dispatch, jobs: JobLoader, pages: PageManager, queue: Queue,
        csr: Csr,
    ) -> None:  # fmt: skip
        """The page manager between dispatch, which prepares APPENDs, and the loader."""
        m.d.comb += [
            pages.limit.eq(csr.limit),
            pages.copied.eq(dispatch.copied),
            pages.inject.eq(csr.page_inject),
            pages.forget.eq(csr.page_reset),
            pages.drop.eq(csr.reset),
            csr.page_corrected.eq(pages.corrected),
            csr.page_fatal.eq(pages.fatal),
            dispatch.ready.eq(pages.ready),
            dispatch.plane_address.eq(pages.plane_address),
            pages.plane_entry.eq(dispatch.plane_entry),
            pages.prepare.payload.eq(dispatch.prepare.payload),
            # After every earlier command of the page manager, so that its outcome is always one.
            pages.prepare.valid.eq(dispatch.prepare.valid & (queue.level == 0)),
            dispatch.prepare.ready.eq(pages.prepared),
            dispatch.prepared.eq(pages.prepared_outcome),
            pages.sequence_address[0].eq(dispatch.sequence_address),
            dispatch.one.eq(pages.sequence_entry[0]),
            dispatch.length.eq(pages.length[0]),
            dispatch.damaged.eq(pages.damaged[0]),
            pages.sequence_address[1].eq(jobs.sequence_address),
            jobs.sequence_entry.eq(pages.sequence_entry[1]),
            jobs.sequence_damaged.eq(pages.damaged[1]),
        ]

    def _append_done(self, m: Module, event: Any, dispatch: Dispatch, pages: PageManager) -> None:
        """The append unit does not know fields: a page lies with the sequence, the rest with K.
        Nor does it know lengths: those of a commit wait here."""
        source = self.append_done
        names = [field_index(APPEND, n) for n in ("sequence", "k")]
        append = data.View(record_layout(APPEND), dispatch.manage.payload.data)
        shape = data.StructLayout(
            {"commit": 1, "sequence": bits(self._config.sequences), "length": TOKEN_BITS}
        )
        commits = [Signal(shape, name=f"commit{n}") for n in range(ENTRIES)]
        for n, kept in enumerate(commits):
            with m.If(dispatch.mark_append & (dispatch.ident == n)):
                m.d.sync += [
                    kept.commit.eq(append.commit & ~append.repair),
                    kept.sequence.eq(append.sequence),
                    kept.length.eq(append.start + append.tokens),
                ]
        commit: Any = Signal(shape)
        with m.Switch(source.payload.ident):
            for n, kept in enumerate(commits):
                with m.Case(n):
                    m.d.comb += commit.eq(kept)
        good = source.payload.error == Error.OK
        m.d.comb += [
            pages.commit.eq(source.valid & source.ready & good & commit.commit),
            pages.commit_sequence.eq(commit.sequence),
            pages.commit_length.eq(commit.length),
            event.valid.eq(source.valid),
            source.ready.eq(event.ready),
            *(
                event.payload[n].eq(source.payload[n])
                for n in ("ident", "error", "index", "status")
            ),
        ]
        with m.If(source.payload.error == Error.BUS_ERROR):
            m.d.comb += event.payload.field.eq(names[1])
        with m.Elif(source.payload.error != Error.OK):
            m.d.comb += event.payload.field.eq(names[0])

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
            inflight.mark_manage.eq(dispatch.mark_manage),
            inflight.mark_ident.eq(dispatch.ident),
            inflight.plane.eq(dispatch.plane),
            inflight.hash.eq(dispatch.hash),
            inflight.second.eq(dispatch.second),
            inflight.repair.eq(
                data.View(record_layout(APPEND), dispatch.manage.payload.data).repair
            ),
            inflight.segment_hash.eq(jobs.segment_hash),
            jobs.segment_meets.eq(inflight.segment_meets),
            jobs.managing.eq(inflight.managing),
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
                    "attended", "appended", "second_used", "meets_manage", "managing", "appending",
                    "repairing",
                    "plane_used",
                )
            ),
        ]  # fmt: skip
