"""Job loader: from a checked ATTEND to rows, queries and segments in front of the array."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.control.inflight import PLANE_BITS
from m890.hdl.control.layouts import (
    ATTENDS,
    EVENT,
    HASH_BITS,
    attend_layout,
    bits,
    job_layout,
    query_layout,
    row_layout,
    segment_layout,
)
from m890.hdl.control.query_loader import QueryLoader
from m890.hdl.control.table_reader import BANK_BITS, ROW_ENTRY, TableReader
from m890.hdl.memory.burst import beat_bits
from m890.hdl.memory.ports import ReadPort, request_layout
from m890.hdl.memory.queue import Queue
from m890.hdl.memory.sram import Sram
from m890.hdl.pages.layouts import sequence_layout

OUTSTANDING = 8
"""Reads on their way."""


class JobLoader(wiring.Component):
    """Loads jobs, three at once: tables of one, queries of the one before, segments before that.

    Function
        Tables and segments of a job are kept in one of ATTENDS banks until its last segment has
        been taken. `job` is offered when everything of the job is loaded, then its segments follow.
    Members
        i : stream of attend_layout. limit : memory in port beats. read : to the arbiter.
        sequence_address, sequence_entry : sequence table. mask_valid, mask, mask_ident, plane,
        meets_append : interlock.
        slot_free : bit s is set while slot s may be overwritten; it must be clear from the cycle
        after a job of that slot is taken until the array needs its rows and queries no more.
        row, query : write strobes. job, segment : streams. event[0], event[1] : streams of EVENT.
    Latency
        `i` to `job`: two memory latencies + rows + 6 x segments + rows x tiles + 20 cycles.
    Storage
        ATTENDS x (job, rows, segments), raw tables of two jobs.
    """

    i: stream.Interface
    job: stream.Interface
    segment: stream.Interface
    event: Any
    read: Any
    row: Any
    query: Any
    sequence_damaged: Signal
    managing: Signal
    segment_hash: Signal
    segment_meets: Signal
    sequence_entry: Any
    limit: Signal
    sequence_address: Signal
    mask_valid: Signal
    mask: Signal
    mask_ident: Signal
    plane: Signal
    meets_append: Signal
    slot_free: Signal
    loading: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(attend_layout(config))),
                "limit": In(config.address_bits - beat_bits(config) + 1),
                "read": Out(ReadPort(config)),
                "sequence_address": Out(bits(config.sequences)),
                "sequence_entry": In(sequence_layout(config)),
                "sequence_damaged": In(1),
                "managing": In(1),
                "segment_hash": Out(HASH_BITS),
                "segment_meets": In(1),
                "mask_valid": Out(1),
                "mask": Out(1 << HASH_BITS),
                "mask_ident": Out(16),
                "plane": Out(PLANE_BITS),
                "meets_append": In(1),
                "slot_free": In(2),
                "row": Out(row_layout(config)),
                "query": Out(query_layout(config)),
                "job": Out(stream.Signature(job_layout(config))),
                "segment": Out(stream.Signature(segment_layout(config))),
                "event": Out(stream.Signature(EVENT)).array(2),
                "loading": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        row_bits, segment_bits = bits(config.rows), bits(config.max_segments)
        m.submodules.tables = tables = TableReader(config)
        m.submodules.queries = queries = QueryLoader(config)
        m.submodules.banks = banks = Queue(BANK_BITS, ATTENDS, sram=False)
        m.submodules.jobs = jobs = Sram(attend_layout(config), ATTENDS, reads=2)
        # A bank is read when it is complete, and written again when it has been read.
        m.submodules.rows = rows = Sram(ROW_ENTRY, ATTENDS << row_bits, collisions=False)
        m.submodules.segments = segments = Sram(
            segment_layout(config), ATTENDS << segment_bits, collisions=False
        )
        wiring.connect(m, wiring.flipped(self.i), tables.i)
        wiring.connect(m, banks.o, queries.i)
        for source, out in zip((tables, queries), self.event, strict=True):
            wiring.connect(m, source.event, wiring.flipped(out))
        m.d.comb += [
            tables.limit.eq(self.limit),
            self.sequence_address.eq(tables.sequence_address),
            tables.sequence_entry.eq(self.sequence_entry),
            tables.sequence_damaged.eq(self.sequence_damaged),
            tables.managing.eq(self.managing),
            self.segment_hash.eq(tables.segment_hash),
            tables.segment_meets.eq(self.segment_meets),
            self.mask_valid.eq(tables.mask_valid),
            self.mask.eq(tables.mask),
            self.mask_ident.eq(tables.mask_ident),
            self.plane.eq(tables.plane),
            tables.meets_append.eq(self.meets_append),
            queries.slot_free.eq(self.slot_free),
            self.row.eq(queries.row),
            self.query.eq(queries.query),
            banks.i.valid.eq(tables.job.valid),
            banks.i.payload.eq(tables.bank),
            tables.job.ready.eq(banks.i.ready),
            jobs.write_address.eq(tables.bank),
            jobs.write_data.eq(tables.job.payload),
            jobs.write_enable.eq(tables.job.valid),
            rows.write_address.eq(Cat(tables.row_index, tables.bank)),
            rows.write_data.eq(tables.row),
            rows.write_enable.eq(tables.row_write),
            segments.write_address.eq(Cat(tables.segment_index, tables.bank)),
            segments.write_data.eq(tables.segment),
            segments.write_enable.eq(tables.segment_write),
            jobs.read_address[0].eq(banks.o.payload),
            jobs.read_enable[0].eq(queries.job_read),
            queries.job.eq(jobs.read_data[0]),
            rows.read_address[0].eq(Cat(queries.row_index, banks.o.payload)),
            rows.read_enable[0].eq(queries.row_read),
            queries.entry.eq(rows.read_data[0]),
        ]
        self._share_reads(m, tables, queries)
        bank, freed = self._offer(m, queries, jobs, segments, segment_bits)
        busy = Signal(ATTENDS)
        m.d.comb += [
            tables.bank_busy.eq(busy.bit_select(tables.bank, 1)),
            self.loading.eq(self.i.valid | ~self.i.ready | busy.any()),
        ]
        with m.If(tables.job.valid & tables.job.ready):
            m.d.sync += busy.bit_select(tables.bank, 1).eq(1)
        with m.If(queries.event.valid & queries.event.ready):
            m.d.sync += busy.bit_select(banks.o.payload, 1).eq(0)
        with m.If(freed):
            m.d.sync += busy.bit_select(bank, 1).eq(0)
        return m

    def _share_reads(self, m: Module, tables: TableReader, queries: QueryLoader) -> None:
        """Queries first: theirs is the older job. What comes back is told apart by its order."""
        m.submodules.requests = requests = Queue(request_layout(self._config), 2)
        m.submodules.route = route = Queue(1, OUTSTANDING, sram=False)
        room = Signal()
        m.d.comb += [
            room.eq(requests.i.ready & route.i.ready),
            queries.request.ready.eq(room),
            tables.request.ready.eq(room & ~queries.request.valid),
            requests.i.valid.eq((queries.request.valid | tables.request.valid) & route.i.ready),
            requests.i.payload.eq(
                Mux(
                    queries.request.valid,
                    queries.request.payload.as_value(),
                    tables.request.payload.as_value(),
                )
            ),
            route.i.valid.eq((queries.request.valid | tables.request.valid) & requests.i.ready),
            route.i.payload.eq(queries.request.valid),
            route.o.ready.eq(self.read.data_valid & self.read.last),
        ]
        wiring.connect(m, requests.o, wiring.flipped(self.read.request))
        for user, mine in ((queries, route.o.payload), (tables, ~route.o.payload)):
            m.d.comb += [
                user.data_valid.eq(self.read.data_valid & mine),
                user.data.eq(self.read.data),
                user.last.eq(self.read.last),
                user.error.eq(self.read.error),
            ]

    def _offer(
        self, m: Module, queries: QueryLoader, jobs: Sram, segments: Sram, segment_bits: int
    ) -> tuple[Signal, Signal]:
        """Offers a loaded job, then its segments; returns its bank and a pulse at its end."""
        bank, slot, freed = Signal(BANK_BITS), Signal(), Signal()
        number = Signal(segment_bits)
        job, source = self.job.payload, jobs.read_data[1]
        m.d.comb += [
            jobs.read_address[1].eq(queries.o.payload.bank),
            segments.read_address[0].eq(Cat(number, bank)),
            self.segment.payload.eq(segments.read_data[0]),
            *(job[n].eq(source[n]) for n in dict(job.shape()) if n != "slot"),
            job.slot.eq(slot),
            jobs.read_enable[1].eq(0),  # held but in IDLE and READ
            segments.read_enable[0].eq(0),
        ]
        with m.FSM(name="offer"):
            with m.State("IDLE"):
                m.d.comb += [queries.o.ready.eq(1), jobs.read_enable[1].eq(1)]
                m.d.sync += [
                    bank.eq(queries.o.payload.bank),
                    slot.eq(queries.o.payload.slot),
                    number.eq(0),
                ]
                with m.If(queries.o.valid):
                    m.next = "JOB"
            with m.State("JOB"):
                m.d.comb += self.job.valid.eq(1)
                with m.If(self.job.ready):
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += segments.read_enable[0].eq(1)
                m.next = "SEGMENT"
            with m.State("SEGMENT"):
                m.d.comb += self.segment.valid.eq(1)
                with m.If(self.segment.ready):
                    m.d.sync += number.eq(number + 1)
                    m.next = "READ"
                    with m.If(self.segment.payload.last):
                        m.d.comb += freed.eq(1)
                        m.next = "IDLE"
        return bank, freed
