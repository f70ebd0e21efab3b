"""Second half of job loading: rows and queries of a job into the array."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import ATTEND, Error
from m890.hdl.config import CoreConfig
from m890.hdl.control.checks import field_index
from m890.hdl.control.layouts import EVENT, attend_layout, bits, query_layout, row_layout
from m890.hdl.control.table_reader import BANK_BITS, ROW_ENTRY
from m890.hdl.memory.ports import request_layout
from m890.hdl.numerics.rotate import BEAT, RotateBeats
from m890.hdl.numerics.rotation import query_shift
from m890.hdl.wake import Gated, sleeps

LOADED = data.StructLayout({"bank": BANK_BITS, "slot": 1})
"""A job whose rows and queries stand in the array."""


class QueryLoader(wiring.Component):
    """Copies a job's row table into the array and streams its queries there, slot by slot.

    Function
        Jobs use slots 0, 1, 0, 1 ...; loading begins when `slot_free` of the job's slot is set. One
        read of `tiles` beats per row, rotated if the plane is. A job whose queries meet a bus error
        is not handed on.
    Members
        i : stream of bank numbers. job_read, job : the bank's job (attend_layout), a cycle later.
        row_read, row_index, entry : its row table, entries a cycle later.
        slot_free : bit s, slot s may be overwritten.
        request : stream of request_layout. data_valid, data, last, error : what came back.
        row, query : write strobes (row_layout, query_layout).
        o : stream of LOADED. event : stream of EVENT, for a job with an error, whose bank is then
        free.
    Latency
        4 cycles + the longer of rows and memory's latency + rows x tiles; if they are rotated,
        RotateBeats' and rows x tiles x lanes / load_lanes.
    Throughput
        One beat per cycle, or RotateBeats'.
    """

    i: stream.Interface
    o: stream.Interface
    request: stream.Interface
    event: stream.Interface
    job: Any
    entry: Any
    row: Any
    query: Any
    job_read: Signal
    row_read: Signal
    row_index: Signal
    slot_free: Signal
    data_valid: Signal
    data: Signal
    last: Signal
    error: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(BANK_BITS)),
                "job_read": Out(1),
                "job": In(attend_layout(config)),
                "row_read": Out(1),
                "row_index": Out(bits(config.rows)),
                "entry": In(ROW_ENTRY),
                "slot_free": In(2),
                "request": Out(stream.Signature(request_layout(config))),
                "data_valid": In(1),
                "data": In(config.port_bits),
                "last": In(1),
                "error": In(1),
                "row": Out(row_layout(config)),
                "query": Out(query_layout(config)),
                "o": Out(stream.Signature(LOADED)),
                "event": Out(stream.Signature(EVENT)),
            }
        )

    def elaborate(self, platform: object) -> Gated:
        m = Module()
        job, request = self.job, self.request
        beats = RotateBeats(self._config, query_shift(self._config.lanes))
        m.submodules.rotate = beats
        m.d.comb += [
            beats.enable.eq(job.rotate),
            beats.is_fp16.eq(job.query_format),
            *(getattr(beats, n).eq(getattr(self, n)) for n in BEAT),
        ]
        slot, failed, bad_row = Signal(), Signal(), Signal(8)
        count = len(job.rows) + 1
        asked, written, received = Signal(count), Signal(count), Signal(count)
        address = Signal(self._config.address_bits)
        tile = Signal(bits(self._config.max_tiles))
        entry_valid, entry_index = Signal(), Signal.like(self.row_index)
        m.d.comb += [
            request.payload.address.eq(address),
            request.payload.beats.eq(job.tiles),
            self.row_index.eq(written),
            self.o.payload.bank.eq(self.i.payload),
            self.o.payload.slot.eq(slot),
            self.event.payload.ident.eq(job.ident),
            self.event.payload.error.eq(Error.BUS_ERROR),
            self.event.payload.field.eq(field_index(ATTEND, "query")),
            self.event.payload.index.eq(bad_row),
        ]
        m.d.sync += [
            self.row.valid.eq(entry_valid),
            self.row.slot.eq(slot),
            self.row.row.eq(entry_index),
            *(self.row[n].eq(self.entry[n]) for n in ("position", "draft", "sink")),
            self.query.valid.eq(beats.o_valid),
            self.query.slot.eq(slot),
            self.query.row.eq(received),
            self.query.tile.eq(tile),
            self.query.fp16.eq(job.query_format),
            self.query.data.eq(beats.o_data),
            entry_valid.eq(0),
            entry_index.eq(written),
        ]
        with m.If(beats.o_valid):
            m.d.sync += tile.eq(tile + 1)
            with m.If(beats.o_last):
                m.d.sync += [tile.eq(0), received.eq(received + 1)]
            with m.If(beats.o_error & ~failed):
                m.d.sync += [failed.eq(1), bad_row.eq(received)]
        with m.FSM(name="queries") as fsm:
            with m.State("IDLE"):
                m.d.comb += self.job_read.eq(1)
                m.d.sync += [asked.eq(0), written.eq(0), received.eq(0), failed.eq(0)]
                with m.If(self.i.valid):
                    m.next = "SLOT"
            with m.State("SLOT"):
                m.d.sync += address.eq(job.query)
                with m.If(self.slot_free.bit_select(slot, 1)):
                    m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += [
                    request.valid.eq((asked != job.rows) & beats.may_ask), self.row_read.eq(1),
                    beats.ask.eq(request.valid & request.ready),
                ]  # fmt: skip
                with m.If(request.valid & request.ready):
                    m.d.sync += [asked.eq(asked + 1), address.eq(address + job.query_stride)]
                with m.If(written != job.rows):
                    m.d.sync += [entry_valid.eq(1), written.eq(written + 1)]
                with m.If((received == job.rows) & (written == job.rows)):
                    m.next = "GIVE"
            with m.State("GIVE"):
                m.d.comb += [self.o.valid.eq(~failed), self.event.valid.eq(failed)]
                with m.If(self.event.valid & self.event.ready):
                    m.d.comb += self.i.ready.eq(1)
                    m.next = "IDLE"
                with m.If(self.o.valid & self.o.ready):
                    m.d.comb += self.i.ready.eq(1)
                    m.d.sync += slot.eq(~slot)
                    m.next = "IDLE"
        rests = (
            fsm.ongoing("IDLE") & ~self.i.valid
            | fsm.ongoing("SLOT") & ~self.slot_free.bit_select(slot, 1)
            | fsm.ongoing("GIVE") & ~self.i.ready
        )
        return sleeps(m, ~rests)
