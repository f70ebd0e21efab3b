"""First half of job loading: an ATTEND's row and segment tables, read and checked."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import ATTEND, ROW, ROW_BYTES, SEGMENT, SEGMENT_BYTES, Error, SegmentKind
from m890.hdl.config import DRAFT_BITS, TOKEN_BITS, CoreConfig
from m890.hdl.control.address_check import AddressCheck
from m890.hdl.control.checks import field_index, table_split
from m890.hdl.control.inflight import PLANE_BITS
from m890.hdl.control.layouts import (
    ATTENDS,
    EVENT,
    HASH_BITS,
    attend_layout,
    bits,
    record_layout,
    segment_layout,
)
from m890.hdl.memory.burst import beat_bits
from m890.hdl.memory.ports import request_layout
from m890.hdl.memory.queue import Queue
from m890.hdl.memory.sram import Sram
from m890.hdl.pages.layouts import sequence_layout
from m890.hdl.wake import Gated, sleeps

FETCHED = 2
"""Jobs whose tables are being read or checked."""
ROW_ENTRY = data.StructLayout({"position": TOKEN_BITS, "draft": DRAFT_BITS, "sink": 32})
BANK_BITS = bits(ATTENDS)


def table_depth(config: CoreConfig) -> int:
    """Port beats of the largest tables, rounded up to a power of two."""
    rows, segments = table_bytes(config)
    beats = (rows + segments) // config.port_bytes
    return 1 << bits(beats)


def table_bytes(config: CoreConfig) -> tuple[int, int]:
    """Bytes of the largest row table and of the largest segment table, padded to port beats."""

    def padded(size: int) -> int:
        return -(-size // config.port_bytes) * config.port_bytes

    return padded(config.rows * ROW_BYTES), padded(config.max_segments * SEGMENT_BYTES)


def segment_field(name: str) -> int:
    """How a completion of ATTEND names a field of a segment."""
    return len(ATTEND.fields) + field_index(SEGMENT, name)


class TableReader(wiring.Component):
    """Reads the tables of one job after the other, checks every entry, and stores them in a bank.

    Function
        The next job's tables are fetched while this one's are checked. A row per cycle, then
        segments one by one: sequence looked up, range checked, addresses of RAW states and biases
        checked.
        Then the job's sequences are made known to the interlock, and it waits for APPENDs in flight
        on any of them. A job with an error leaves no trace but an event.
    Members
        i : stream of attend_layout. limit : memory in port beats.
        request : stream of request_layout. data_valid, data, last, error : what came back for it.
        sequence_address, sequence_entry, sequence_damaged : sequence table; the entry one cycle
        after the address.
        managing, segment_hash, segment_meets : InFlight: a command of the page manager is under
        way, on this sequence.
        mask_valid, mask, mask_ident, plane : for InFlight, with its answer meets_append.
        bank, bank_busy : where the job goes, and whether that bank is in use.
        row_write, row_index, row; segment_write, segment_index, segment : entries of the bank.
        job : stream, a job (attend_layout) whose tables are complete in `bank`.
        event : stream of EVENT, for jobs with an error.
    Latency
        Memory's + rows + 6 cycles per segment (more with RAW or bias, or while the page manager is
        at work) + 6.
    Storage
        Two raw tables, two jobs.
    """

    i: stream.Interface
    request: stream.Interface
    job: stream.Interface
    event: stream.Interface
    row: Any
    segment: Any
    sequence_entry: Any
    limit: Signal
    data_valid: Signal
    data: Signal
    last: Signal
    error: Signal
    sequence_address: Signal
    sequence_damaged: Signal
    mask_valid: Signal
    mask: Signal
    mask_ident: Signal
    plane: Signal
    meets_append: Signal
    managing: Signal
    segment_hash: Signal
    segment_meets: Signal
    bank: Signal
    bank_busy: Signal
    row_write: Signal
    row_index: Signal
    segment_write: Signal
    segment_index: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        inputs = {
            "limit": config.address_bits - beat_bits(config) + 1, "data_valid": 1,
            "data": config.port_bits, "last": 1, "error": 1,
            "sequence_entry": sequence_layout(config), "meets_append": 1, "bank_busy": 1,
            "managing": 1, "segment_meets": 1, "sequence_damaged": 1,
        }  # fmt: skip
        outputs = {
            "sequence_address": bits(config.sequences), "mask_valid": 1, "mask": 1 << HASH_BITS,
            "mask_ident": 16, "segment_hash": HASH_BITS, "plane": PLANE_BITS, "bank": BANK_BITS,
            "row_write": 1,
            "row_index": bits(config.rows), "row": ROW_ENTRY, "segment_write": 1,
            "segment_index": bits(config.max_segments), "segment": segment_layout(config),
        }  # fmt: skip
        super().__init__(
            {
                "i": In(stream.Signature(attend_layout(config))),
                "request": Out(stream.Signature(request_layout(config))),
                "job": Out(stream.Signature(attend_layout(config))),
                "event": Out(stream.Signature(EVENT)),
                **{n: In(s) for n, s in inputs.items()},
                **{n: Out(s) for n, s in outputs.items()},
            }
        )

    def elaborate(self, platform: object) -> Gated:
        m = Module()
        config = self._config
        depth = table_depth(config)
        m.submodules.tables = tables = Sram(
            config.port_bits, FETCHED * depth, collisions=False
        )
        m.submodules.jobs = jobs = Queue(attend_layout(config), FETCHED, sram=True)
        m.submodules.check = check = AddressCheck(config)
        m.d.comb += check.limit.eq(self.limit)
        arrived, failed = Signal(FETCHED), Signal(FETCHED)
        done = Signal()  # the job at the head of `jobs` is finished with
        self._fetch(m, jobs, tables, arrived, failed)

        job = jobs.o.payload
        half = Signal(bits(FETCHED))  # which of `tables` holds the job's
        address = Signal(bits(depth))
        m.d.comb += [
            jobs.o.ready.eq(done),
            tables.read_address[0].eq(Cat(address, half)),
            tables.read_enable[0].eq(0),
            self.job.payload.eq(job),
            self.mask_ident.eq(job.ident),
            self.plane.eq(job.plane),
            self.event.payload.ident.eq(job.ident),
        ]
        with m.If(done):
            m.d.sync += half.eq(half + 1)
            m.d.sync += arrived.bit_select(half, 1).eq(0)

        index, read = Signal(8), Signal()
        word = Signal(record_layout(SEGMENT))
        beat = Signal(bits(depth))  # next beat of the segment table
        part = Signal()  # a segment can be two beats
        bad, result = Signal(7), self.event.payload
        port, raw = config.port_bytes, tables.read_data[0]
        rows_per_beat = port // ROW_BYTES
        entry_row = data.View(
            record_layout(ROW), _part(raw, index_before := Signal(8), rows_per_beat, 8 * ROW_BYTES)
        )
        far = entry_row.position[TOKEN_BITS:].any()
        m.d.sync += [read.eq(0), index_before.eq(index)]
        m.d.comb += [
            self.row_write.eq(read),
            self.row_index.eq(index_before),
            *(self.row[n].eq(entry_row[n]) for n in ("position", "draft", "sink")),
        ]
        checks, bias = self._segment_checks(word, job)
        segment_parts = max(1, SEGMENT_BYTES // port)
        segments_per_beat = max(1, port // SEGMENT_BYTES)
        self._segment_outputs(m, word, index, job)
        self._range(m, check, word, job)
        is_raw = word.kind == SegmentKind.RAW

        begins = Signal()
        m.d.comb += begins.eq(jobs.o.valid & arrived.bit_select(half, 1) & ~self.bank_busy)
        with m.FSM(name="tables") as fsm:
            with m.State("IDLE"):
                m.d.sync += [index.eq(0), part.eq(0), self.mask.eq(0)]
                m.d.sync += [result.error.eq(Error.OK), result.index.eq(0)]
                m.d.sync += beat.eq(table_split(config, job.rows, job.segments)[0])
                with m.If(begins):
                    m.next = "ROWS"
                    with m.If(failed.bit_select(half, 1)):
                        m.d.sync += result.error.eq(Error.BUS_ERROR)
                        m.d.sync += result.field.eq(field_index(ATTEND, "tables"))
                        m.next = "REPORT"
            with m.State("ROWS"):
                m.d.comb += address.eq(index >> bits(rows_per_beat) if rows_per_beat > 1 else index)
                m.d.comb += tables.read_enable[0].eq(1)
                with m.If(index != job.rows):
                    m.d.sync += [read.eq(1), index.eq(index + 1)]
                with m.Elif(~read):
                    m.d.sync += index.eq(0)
                    m.next = "SEGMENT"
                with m.If(read & far):
                    m.d.sync += [
                        result.error.eq(Error.BAD_RANGE),
                        result.field.eq(field_index(ATTEND, "tables")),
                        result.index.eq(index_before),
                    ]
                    m.next = "REPORT"
            with m.State("SEGMENT"):
                m.d.comb += [address.eq(beat), tables.read_enable[0].eq(1)]
                m.next = "TAKE"
            with m.State("TAKE"):
                m.d.sync += word.eq(
                    Cat(Value.cast(word)[8 * port :], raw)
                    if segment_parts > 1
                    else _part(raw, index, segments_per_beat, 8 * SEGMENT_BYTES)
                )
                whole = index[: bits(segments_per_beat)].all() if segments_per_beat > 1 else 1
                with m.If(whole):
                    m.d.sync += beat.eq(beat + 1)
                m.d.sync += part.eq(part + 1)
                m.next = "LOOK_UP"
                if segment_parts > 1:
                    with m.If(~part):
                        m.next = "SEGMENT"
            with m.State("LOOK_UP"):
                m.d.sync += part.eq(0)
                m.next = "CHECK"
                with m.If(self.managing & ~is_raw):
                    m.next = "WAIT"
            with m.State("WAIT"):  # until the sequence is as the commands before this one leave it
                with m.If(~self.segment_meets):
                    m.next = "CHECK"
            with m.State("CHECK"):
                m.d.sync += bad.eq(Cat(*(c for _, _, c in checks)))
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.sync += result.index.eq(index)
                with m.If(bad.any()):
                    for n, (name, error, _) in reversed(list(enumerate(checks))):
                        with m.If(bad[n]):
                            m.d.sync += result.error.eq(error)
                            m.d.sync += result.field.eq(segment_field(name))
                    m.next = "REPORT"
                with m.Elif(is_raw | bias):
                    m.d.comb += check.start.eq(1)
                    m.next = "RANGE"
                with m.Else():
                    m.next = "STORE"
            with m.State("RANGE"):
                with m.If(~check.busy):
                    m.next = "STORE"
                    with m.If(~check.ok):
                        m.d.sync += result.error.eq(Error.BAD_ADDRESS)
                        m.d.sync += result.field.eq(segment_field("address"))
                        m.next = "REPORT"
            with m.State("STORE"):
                m.d.comb += self.segment_write.eq(1)
                with m.If(~is_raw):
                    m.d.sync += self.mask.bit_select(word.sequence[:HASH_BITS], 1).eq(1)
                m.d.sync += index.eq(index + 1)
                m.next = "SEGMENT"
                with m.If(self.segment.last):
                    m.next = "PUBLISH"
            with m.State("PUBLISH"):
                m.d.comb += self.mask_valid.eq(1)
                m.next = "SETTLE"
            with m.State("SETTLE"):  # `meets_append` answers to the mask one cycle later
                m.next = "INTERLOCK"
            with m.State("INTERLOCK"):
                with m.If(~self.meets_append):
                    m.next = "JOB"
            with m.State("JOB"):
                m.d.comb += self.job.valid.eq(1)
                with m.If(self.job.ready):
                    m.d.comb += done.eq(1)
                    m.d.sync += self.bank.eq(self.bank + 1)
                    m.next = "IDLE"
            with m.State("REPORT"):
                m.d.comb += self.event.valid.eq(1)
                with m.If(self.event.ready):
                    m.d.comb += done.eq(1)
                    m.next = "IDLE"
        rests = fsm.ongoing("IDLE") & ~begins | fsm.ongoing("JOB") & ~self.job.ready
        return sleeps(m, ~rests, self.i.valid & self.i.ready, self.request.valid, self.data_valid)

    def _fetch(self, m: Module, jobs: Queue, tables: Sram, arrived: Signal, failed: Signal) -> None:
        """Requests the tables of each job that arrives; beats go to the halves in turn."""
        config, request = self._config, self.request
        half, beat, trouble = Signal(bits(FETCHED)), Signal(bits(table_depth(config))), Signal()
        rows, segments = table_split(config, self.i.payload.rows, self.i.payload.segments)
        m.d.comb += [
            jobs.i.payload.eq(self.i.payload),
            jobs.i.valid.eq(self.i.valid & ~request.valid),
            self.i.ready.eq(jobs.i.ready & ~request.valid),
            tables.write_address.eq(Cat(beat, half)),
            tables.write_data.eq(self.data),
            tables.write_enable.eq(self.data_valid),
        ]
        with m.If(request.valid & request.ready):
            m.d.sync += request.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                request.valid.eq(1),
                request.payload.address.eq(self.i.payload.tables),
                request.payload.beats.eq(rows + segments),
            ]
        with m.If(self.data_valid):
            m.d.sync += [beat.eq(beat + 1), trouble.eq(trouble | self.error)]
            with m.If(self.last):
                m.d.sync += [beat.eq(0), trouble.eq(0), half.eq(half + 1)]
                m.d.sync += [
                    arrived.bit_select(half, 1).eq(1),
                    failed.bit_select(half, 1).eq(trouble | self.error),
                ]

    def _segment_checks(self, word: Any, job: Any) -> tuple[list[tuple[str, Error, Value]], Value]:
        """Checks in order (field, error, fails), and whether the segment has a bias."""
        entry = self.sequence_entry
        is_raw = word.kind == SegmentKind.RAW
        bias = ~is_raw & job.bias
        config = self._config
        closed = (word.sequence >= config.sequences) | ~entry.open
        page = config.page_tokens.bit_length() - 1
        held = Cat(Const(0, page), entry.pages)  # tokens that the sequence's pages hold
        crooked = word.address[: beat_bits(self._config)].any()
        return [
            ("kind", Error.BAD_SEGMENT_KIND, word.kind > max(SegmentKind)),
            ("sequence", Error.TABLE_ERROR, ~is_raw & self.sequence_damaged),
            ("sequence", Error.BAD_SEQUENCE, ~is_raw & closed),
            ("sequence", Error.BAD_TENANT, ~is_raw & (entry.tenant != job.tenant)),
            ("start", Error.BAD_RANGE, ~is_raw & (word.start >= word.end)),
            ("end", Error.BAD_RANGE, ~is_raw & ((word.end > entry.limit) | (word.end > held))),
            ("address", Error.BAD_ALIGNMENT, (is_raw | bias) & crooked),
        ], bias

    def _range(self, m: Module, check: AddressCheck, word: Any, job: Any) -> None:
        """RAW: `rows` states; bias: one beat per chunk and row, from the chunk that holds
        `start`."""
        lane = bits(self._config.lanes)
        chunks = (word.end[:TOKEN_BITS] - 1 >> lane) - (word.start[:TOKEN_BITS] >> lane) + 1
        is_raw = word.kind == SegmentKind.RAW
        m.d.comb += [
            check.address.eq(word.address),
            check.count.eq(Mux(is_raw, job.rows, chunks[:TOKEN_BITS])),
            check.stride.eq(Mux(is_raw, (job.tiles << 1) + 1, job.rows)),
        ]

    def _segment_outputs(self, m: Module, word: Any, index: Signal, job: Any) -> None:
        out = self.segment
        m.d.comb += [
            self.sequence_address.eq(word.sequence),
            self.segment_hash.eq(word.sequence),
            self.segment_index.eq(index),
            out.table.eq(self.sequence_entry.table),
            out.first.eq(index == 0),
            out.last.eq(index + 1 == job.segments),
            out.index.eq(index),
            *(
                out[n].eq(word[n])
                for n in ("kind", "sequence", "start", "end", "row_mask", "address")
            ),
        ]


def _part(word: Value, index: Value, parts: int, width: int) -> Value:
    """The index-th of `parts` equal parts of a port beat (index modulo `parts`)."""
    return word.word_select(index[: bits(parts)], width) if parts > 1 else word[:width]
