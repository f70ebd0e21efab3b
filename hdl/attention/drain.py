"""Reads a finished job's accumulators, normalises them and writes the output rows."""

from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.enum import Enum
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import RowBundles, bits, ended_layout
from m890.hdl.attention.rotate_back import RotateBack
from m890.hdl.commands import ATTEND, Error, Status
from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import ENTRIES, EVENT
from m890.hdl.kv.items import COUNT_BITS
from m890.hdl.kv.tags import ROW_NAME
from m890.hdl.memory.ports import WritePort
from m890.hdl.memory.queue import Queue
from m890.hdl.memory.sram import Sram
from m890.hdl.numerics.formats import WIDE_EXP_BITS, OutputFormat
from m890.hdl.numerics.output import INVERSE_BITS, Normalise, Reciprocal, raw_header
from m890.hdl.numerics.pipeline import bundle, delay
from m890.hdl.numerics.types import Wide
from m890.hdl.wake import Gated, sleeps

BEATS = 16
"""Output beats buffered on their way to memory."""
READ_LATENCY = 2
"""Cycles from a drain read to its word, and from a row's number to its l (RowArray)."""


def drain_layout(config: CoreConfig) -> data.StructLayout:
    """A job's output: where its rows go and how they are coded."""
    return data.StructLayout(
        {
            "slot": 1, "tiles": COUNT_BITS, "rows": COUNT_BITS, "format": OutputFormat,
            "rotate": 1, "output": config.address_bits, "stride": 32, "ident": 16,
        }
    )  # fmt: skip


PLANE_FIELD = ATTEND.fields.index(ATTEND.field("plane"))
FLUSH = 15
"""Cycles after the last word is read in which the normalisers still need the job."""


class DrainState(Enum):
    IDLE = 0
    RECIPROCAL = 1
    STREAM = 2
    FLUSH = 3


class Drain(wiring.Component):
    """Normalises and writes the rows of finished jobs while the array works on the next one.

    Function
        O / l per row as BF16, FP16 or FP32, or the raw state (docs/numerics.md, "Output"). O of a
        rotated plane is rotated back first, but for raw states. A job with an error writes nothing.
    Members
        job : In(stream of drain_layout), in the order of V ends. o_done, l_done, their slots : In.
        ended0, ended1 : In. status0, status1 : In. Status bits of the scores. bus_error : In(2).
        ident : Out. The job that is looked at; bad_tag, bad_row : In. TagFaults' answer.
        started, started_slot : Out. Pulse: these have been looked at.
        drain, drain_row, l_row, l_slot : Out. Reads of the array; o_word, l : In.
        drained, drained_slot : Out. Pulse: the slot's accumulators and l may be overwritten.
        port : Out(WritePort). done : Out(stream of EVENT), after memory has acknowledged all rows.
    Latency
        rows + 8 cycles, then rows x head / drain_lanes; 16 more until the next job. RotateBack's
        more, and until the next job, if O is rotated back.
    Throughput
        `drain_lanes` features per cycle.
    Backpressure
        A read is issued only when there is room for its beat.
    Storage
        BEATS port beats; rows x (reciprocal, exponent, l).
    Errors
        BUS_ERROR where memory reports one. BAD_TAG where a row was bad: `index` and `beats` of the
        event are its name.
    """

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self._back = RotateBack(config) if config.rotation else None
        b = RowBundles(config)
        row = bits(config.rows)
        super().__init__(
            {
                "job": In(stream.Signature(drain_layout(config))),
                "o_done": In(1),
                "o_done_slot": In(1),
                "l_done": In(1),
                "l_done_slot": In(1),
                "ended0": In(ended_layout()),
                "ended1": In(ended_layout()),
                "status0": In(8),
                "status1": In(8),
                "bus_error": In(2),
                "ident": Out(bits(ENTRIES)),
                "bad_tag": In(1),
                "bad_row": In(ROW_NAME),
                "drain": Out(b.drain),
                "drain_row": Out(row),
                "l_row": Out(row),
                "l_slot": Out(1),
                "o_word": In(data.ArrayLayout(Wide, config.drain_lanes)),
                "l": In(Wide),
                "started": Out(1),
                "started_slot": Out(1),
                "drained": Out(1),
                "drained_slot": Out(1),
                "busy": Out(1),
                "port": Out(WritePort(config)),
                "done": Out(stream.Signature(EVENT)),
            }
        )

    def elaborate(self, platform: object) -> Gated:
        c = self.config
        m = Module()
        m.submodules.jobs = jobs = Queue(drain_layout(c), 2, sram=False)
        wiring.connect(m, wiring.flipped(self.job), jobs.i)
        job = jobs.o.payload
        state = Signal(DrainState)
        ready_o, ready_l = Signal(2), Signal(2)
        m.d.comb += [self.drain.set.eq(job.slot), self.l_slot.eq(job.slot)]
        m.d.comb += self.drained_slot.eq(job.slot)
        # Kept from the start: once the accumulators are read, the slot's next job may end.
        now = data.View(
            ended_layout(), Mux(job.slot, self.ended1.as_value(), self.ended0.as_value())
        )
        ended = bundle(ended_layout(), name="ended")
        status = Signal(8)
        bad_now, bad = self.bus_error.bit_select(job.slot, 1), Signal()
        m.d.comb += self.started_slot.eq(job.slot)
        with m.If(self.started):
            m.d.sync += [
                ended.eq(now),
                status.eq(Mux(job.slot, self.status1, self.status0)),
                bad.eq(bad_now),
            ]

        with m.If(self.o_done):
            m.d.sync += ready_o.bit_select(self.o_done_slot, 1).eq(1)
        with m.If(self.l_done):
            m.d.sync += ready_l.bit_select(self.l_done_slot, 1).eq(1)
        finished = ready_o.bit_select(job.slot, 1) & ready_l.bit_select(job.slot, 1)
        failed, bad_tag = Signal(), Signal()
        m.d.comb += self.ident.eq(job.ident)

        ack_layout = data.StructLayout({"event": EVENT, "rows": COUNT_BITS})
        m.submodules.acks = acks = Queue(ack_layout, 4, sram=False)
        event = acks.i.payload.event
        invalid = Signal()
        m.d.comb += [
            event.ident.eq(ended.ident),
            event.error.eq(Mux(ended.error != Error.OK, ended.error, Mux(bad, Error.BUS_ERROR, 0))),
            event.index.eq(ended.index),
            event.status.eq(status | (invalid << Status.INVALID)),
            event.beats.eq(ended.beats),
            acks.i.payload.rows.eq(Mux(failed, 0, job.rows)),
            self.busy.eq(jobs.o.valid | acks.o.valid),
        ]

        with m.If(bad_tag & ~bad & (ended.error == Error.OK)):
            m.d.comb += [
                event.error.eq(Error.BAD_TAG),
                event.field.eq(PLANE_FIELD),
                event.index.eq(self.bad_row.sequence),
                event.beats.eq(self.bad_row.token),
                event.status.eq(0),
            ]

        row, word = Signal(COUNT_BITS), Signal(bits(c.max_head // c.drain_lanes))
        rotated = Signal()
        longest = FLUSH
        if self._back is not None:
            m.d.comb += rotated.eq(job.rotate & (job.format != OutputFormat.RAW))
            longest = FLUSH + self._back.latency
        flush = Signal(range(longest + 1))
        header_due = Signal()
        words = job.tiles * (c.lanes // c.drain_lanes)
        room = Signal()
        read, header = Signal(), Signal()
        start = Signal()
        with m.Switch(state):
            with m.Case(DrainState.IDLE):
                m.d.sync += [row.eq(0), word.eq(0), invalid.eq(0)]
                m.d.sync += flush.eq(Mux(rotated, longest, FLUSH))
                m.d.sync += header_due.eq(job.format == OutputFormat.RAW)
                with m.If(jobs.o.valid & finished):
                    fails = (now.error != Error.OK) | bad_now | self.bad_tag
                    m.d.comb += self.started.eq(1)
                    m.d.sync += [failed.eq(fails), bad_tag.eq(self.bad_tag)]
                    with m.If(fails):
                        m.d.sync += state.eq(DrainState.FLUSH)
                        m.d.comb += self.drained.eq(1)
                        m.d.sync += flush.eq(0)
                    with m.Else():
                        m.d.sync += state.eq(DrainState.RECIPROCAL)
                        m.d.comb += start.eq(1)
            with m.Case(DrainState.RECIPROCAL):
                m.d.sync += row.eq(row + 1)
                with m.If(row == job.rows + self._reciprocal_cycles):
                    m.d.sync += [row.eq(0), state.eq(DrainState.STREAM)]
            with m.Case(DrainState.STREAM):
                m.d.comb += [header.eq(room & header_due), read.eq(room & ~header_due)]
                with m.If(header):
                    m.d.sync += header_due.eq(0)
                with m.If(read):
                    m.d.sync += word.eq(word + 1)
                    with m.If(word == words - 1):
                        m.d.sync += [word.eq(0), row.eq(row + 1)]
                        m.d.sync += header_due.eq(job.format == OutputFormat.RAW)
                        with m.If(row == job.rows - 1):
                            m.d.comb += self.drained.eq(1)
                            m.d.sync += state.eq(DrainState.FLUSH)
            with m.Case(DrainState.FLUSH):
                with m.If(flush != 0):
                    m.d.sync += flush.eq(flush - 1)
                with m.Else():
                    m.d.comb += [acks.i.valid.eq(1), jobs.o.ready.eq(acks.i.ready)]
                    with m.If(acks.i.ready):
                        m.d.sync += state.eq(DrainState.IDLE)
        with m.If(self.drained):
            m.d.sync += [
                ready_o.bit_select(job.slot, 1).eq(0),
                ready_l.bit_select(job.slot, 1).eq(0),
            ]
        m.d.comb += [
            self.drain.enable.eq(read),
            self.drain.word.eq(word),
            self.drain_row.eq(row),
            self.l_row.eq(row),
        ]
        valid, values, ahead = self._words(m, ended, read, row, rotated)
        factor = self._reciprocals(m, state, row, job, ended, ahead)
        self._normalise(m, job, valid, values, factor, read, header, word, room, invalid)
        self._requests(m, job, start)
        self._acknowledge(m, acks)
        return sleeps(
            m, self.job.valid, self.o_done, self.l_done, state != DrainState.IDLE, self.started,
            acks.o.valid,
        )  # fmt: skip

    @property
    def _reciprocal_cycles(self) -> int:
        return Reciprocal.latency + READ_LATENCY + 1

    def _words(
        self, m: Module, ended: data.View, read: Signal, row: Signal, rotated: Signal
    ) -> tuple[Value, list[data.View], Value]:
        """Words of O as they are to be normalised: valid, values, and their row a cycle before."""
        c = self.config
        ahead = delay(m, row[: bits(c.rows)], READ_LATENCY - 1, name="row")
        valid = delay(m, read, READ_LATENCY, name="word_valid", reset=True)
        values = [bundle(Wide, name=f"o{n}") for n in range(c.drain_lanes)]
        with m.If(~ended.no_o):
            m.d.comb += [value.eq(self.o_word[n]) for n, value in enumerate(values)]
        back = self._back
        if back is None:
            return valid, values, ahead
        m.submodules.rotate_back = back
        m.d.comb += [back.valid.eq(valid & rotated), back.row.eq(delay(m, ahead, 1, name="row"))]
        m.d.comb += [back.i[n].eq(value) for n, value in enumerate(values)]
        chosen = [bundle(Wide, name=f"word{n}") for n in range(c.drain_lanes)]
        m.d.comb += [
            value.eq(Mux(rotated, back.o[n].as_value(), values[n].as_value()))
            for n, value in enumerate(chosen)
        ]
        return Mux(rotated, back.o_valid, valid), chosen, Mux(rotated, back.o_row, ahead)

    def _reciprocals(
        self, m: Module, state: Any, row: Signal, job: data.View, ended: data.View, ahead: Value
    ) -> data.View:
        """Fills the table of reciprocals; returns its word for row `ahead`, a cycle later."""
        entry = data.StructLayout(
            {"y1": INVERSE_BITS, "exp": WIDE_EXP_BITS, "zero": 1, "nan": 1, "l": Wide}
        )
        reciprocal = Reciprocal()
        m.submodules.reciprocal = reciprocal
        m.submodules.table = table = Sram(entry, max(2, self.config.rows))
        l_wide = bundle(Wide, name="l_wide")
        with m.If(~ended.no_l):
            m.d.comb += l_wide.eq(self.l)
        asks = (state == DrainState.RECIPROCAL) & (row < job.rows)
        late = reciprocal.latency + READ_LATENCY
        late_row = delay(m, row[: bits(self.config.rows)], late, name="l_row")
        write = table.write_data
        m.d.comb += [
            reciprocal.l.eq(l_wide),
            write.y1.eq(reciprocal.y1),
            write.exp.eq(reciprocal.exp),
            write.zero.eq(reciprocal.zero),
            write.nan.eq(reciprocal.nan),
            write.l.eq(delay(m, l_wide, reciprocal.latency, name="l_late")),
            table.write_address.eq(late_row),
            table.write_enable.eq(delay(m, asks, late, name="l_valid", reset=True)),
            table.read_address[0].eq(ahead),
            table.read_enable[0].eq(1),
        ]
        return table.read_data[0]

    def _normalise(
        self,
        m: Module,
        job: data.View,
        valid: Value,
        values: list[data.View],
        factor: data.View,
        read: Signal,
        header: Signal,
        word: Signal,
        room: Signal,
        invalid: Signal,
    ) -> None:
        """Words of `drain_lanes` features through the normalisers into port beats."""
        c = self.config
        width = c.drain_lanes
        latency = Normalise.latency
        out_valid = delay(m, valid, latency, name="out_valid", reset=True)
        words = []
        wide = (job.format == OutputFormat.FP32) | (job.format == OutputFormat.RAW)
        for n in range(width):
            unit = Normalise()
            m.submodules[f"normalise{n}"] = unit
            o = values[n]
            m.d.comb += [
                unit.value.eq(o),
                unit.y1.eq(factor.y1),
                unit.exp.eq(factor.exp),
                unit.zero.eq(factor.zero),
                unit.nan.eq(factor.nan),
                unit.format.eq(job.format),
            ]
            words.append(unit.o)
            with m.If(valid & ~factor.zero & (factor.nan | o.nan)):
                m.d.sync += invalid.eq(1)

        m.submodules.beats = beats = Queue(
            data.StructLayout({"data": c.port_bits, "strobe": c.port_bytes}), BEATS, sram=True
        )
        steps_half, steps_wide = c.lanes // width, c.lanes // (2 * width)
        step = Signal(range(steps_half))
        full = Signal(c.port_bits)
        last = step == Mux(wide, steps_wide - 1, steps_half - 1)
        halves, wholes = Cat(w[:16] for w in words), Cat(*words)
        for n in range(steps_half):
            with m.If(out_valid & ~wide & (step == n)):
                m.d.sync += full.word_select(n, 16 * width).eq(halves)
        for n in range(steps_wide):
            with m.If(out_valid & wide & (step == n)):
                m.d.sync += full.word_select(n, 32 * width).eq(wholes)
        complete, head_beat = Signal(), Signal()
        with m.If(out_valid):
            m.d.sync += step.eq(Mux(last, 0, step + 1))
        m.d.sync += complete.eq(out_valid & last)

        head_valid = delay(m, header, READ_LATENCY, name="head_valid", reset=True)
        exponent, l_fp32 = raw_header(factor.l)
        head = delay(m, Cat(exponent, l_fp32), latency + 1, name="head")
        m.d.comb += [
            head_beat.eq(delay(m, head_valid, latency + 1, name="head_out", reset=True)),
            beats.i.valid.eq(complete | head_beat),
            beats.i.payload.data.eq(Mux(head_beat, head, full)),
            beats.i.payload.strobe.eq(~0),
        ]
        wiring.connect(m, beats.o, wiring.flipped(self.port.beat))

        # Room is reserved with a beat's first word, and given back when the beat leaves.
        reserved = Signal(range(BEATS + 1))
        per_beat = Mux(wide, steps_wide - 1, steps_half - 1)
        begins = (word & per_beat) == 0
        takes = header | (read & begins)
        leaves = beats.o.valid & beats.o.ready
        m.d.sync += reserved.eq(reserved + takes - leaves)
        m.d.comb += room.eq((reserved != BEATS) | ~begins)

    def _requests(self, m: Module, job: data.View, start: Signal) -> None:
        """One write request per row, ahead of its beats."""
        left, address = Signal(COUNT_BITS), Signal(self.config.address_bits)
        request = self.port.request
        with m.Switch(job.format):
            with m.Case(OutputFormat.FP32):
                m.d.comb += request.payload.beats.eq(job.tiles << 1)
            with m.Case(OutputFormat.RAW):
                m.d.comb += request.payload.beats.eq((job.tiles << 1) + 1)
            with m.Default():
                m.d.comb += request.payload.beats.eq(job.tiles)
        m.d.comb += [request.valid.eq(left != 0), request.payload.address.eq(address)]
        with m.If(start):
            m.d.sync += [left.eq(job.rows), address.eq(job.output)]
        with m.Elif(request.valid & request.ready):
            m.d.sync += [left.eq(left - 1), address.eq(address + job.stride)]

    def _acknowledge(self, m: Module, acks: Queue) -> None:
        """A job is done when memory has acknowledged as many rows as it wrote."""
        arrived, error = Signal(COUNT_BITS + 2), Signal()
        enough = arrived >= acks.o.payload.rows
        m.d.comb += [
            self.done.valid.eq(acks.o.valid & enough),
            self.done.payload.eq(acks.o.payload.event),
            acks.o.ready.eq(self.done.ready & enough),
        ]
        with m.If(error & (acks.o.payload.event.error == Error.OK)):
            m.d.comb += self.done.payload.error.eq(Error.BUS_ERROR)
        leaves = self.done.valid & self.done.ready
        m.d.sync += arrived.eq(arrived + self.port.done - Mux(leaves, acks.o.payload.rows, 0))
        with m.If(self.port.done & self.port.error):
            m.d.sync += error.eq(1)
        with m.Elif(leaves):
            m.d.sync += error.eq(0)
