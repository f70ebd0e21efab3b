"""Completions: what became of each command, written to the completion ring."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import COMPLETION, COMPLETION_BYTES, Error, Opcode
from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import ENTRIES, EVENT, bits, record_layout
from m890.hdl.memory.burst import beat_bits
from m890.hdl.memory.ports import WritePort
from m890.hdl.memory.sram import Sram

ENTRY = data.StructLayout({"tag": 16, "opcode": 8, "tokens": 16, "start": 64})
"""What is kept of a command until it completes."""


class Completion(wiring.Component):
    """Writes completions in the order in which commands complete.

    Function
        An event names its command's entry; the record is that entry's tag, opcode and start, the
        event's outcome, the cycle it was taken in, and the round of the ring (`phase`).
        COMPLETION_TAIL counts records that memory has acknowledged. A record waits while the ring
        is full.
    Members
        begin, begin_ident, entry : a command was taken up. cycles : the cycle counter.
        event[n] : streams of EVENT; the lowest goes first (at most ENTRIES events exist, so none
        starves).
        release, release_ident : the entry can be used again.
        base, size, head : completion ring and what firmware has read. drop : write nothing.
        clear : back to the ring's first entry; while idle only.
        tail : completions written. completed : one was. failed : it met a bus error.
        job : an ATTEND completed without error. tokens : appended by an APPEND, one cycle only.
        idle : no record waits or is on its way. write : to the arbiter.
    Latency
        4 cycles to the write request.
    Throughput
        One completion per 4 cycles + beats of a record; acknowledgements are not waited for.
    Storage
        ENTRIES entries, one record.
    """

    event: Any
    write: Any
    begin: Signal
    begin_ident: Signal
    entry: Any
    cycles: Signal
    release: Signal
    release_ident: Signal
    base: Signal
    size: Signal
    head: Signal
    drop: Signal
    clear: Signal
    tail: Signal
    completed: Signal
    failed: Signal
    job: Signal
    tokens: Signal
    idle: Signal

    def __init__(self, config: CoreConfig, sources: int) -> None:
        self._config = config
        ident = range(ENTRIES)
        super().__init__(
            {
                "event": In(stream.Signature(EVENT)).array(sources),
                "write": Out(WritePort(config)),
                "begin": In(1),
                "begin_ident": In(ident),
                "entry": In(ENTRY),
                "cycles": In(64),
                "release": Out(1),
                "release_ident": Out(ident),
                "base": In(config.address_bits),
                "size": In(16),
                "head": In(16),
                "drop": In(1),
                "clear": In(1),
                "tail": Out(16),
                "completed": Out(1),
                "failed": Out(1),
                "job": Out(1),
                "tokens": Out(16),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, write = self._config, self.write
        m.submodules.entries = entries = Sram(ENTRY, ENTRIES)
        event = Signal(EVENT)
        end = Signal(64)
        entry: Any = entries.read_data[0]
        record = Signal(record_layout(COMPLETION))
        issued = Signal(16)  # records on their way to memory or there
        phase = Signal(32, init=1)
        slot = Signal(16)  # entry of the ring for the next record
        full = Signal()
        m.d.sync += full.eq((issued - self.head)[:16] >= self.size)
        m.d.comb += [
            entries.write_address.eq(self.begin_ident),
            entries.write_data.eq(self.entry),
            entries.write_enable.eq(self.begin),
            entries.read_address[0].eq(event.ident),
            entries.read_enable[0].eq(0),
            self.release_ident.eq(event.ident),
        ]
        beats = max(1, COMPLETION_BYTES // config.port_bytes)
        beat = Signal(bits(beats))
        idle = Signal()
        good = event.error == Error.OK
        with m.FSM(name="completion"):
            with m.State("EVENT"):
                m.d.comb += idle.eq(1)
                m.d.sync += end.eq(self.cycles)
                for n, source in reversed(list(enumerate(self.event))):
                    with m.If(source.valid):
                        m.d.sync += event.eq(source.payload)
                    blocked = Cat(*(s.valid for s in self.event[:n])).any() if n else Const(0, 1)
                    m.d.comb += source.ready.eq(~blocked)
                with m.If(Cat(*(s.valid for s in self.event)).any()):
                    m.next = "ENTRY"
            with m.State("ENTRY"):
                m.d.comb += entries.read_enable[0].eq(1)
                m.next = "RECORD"
            with m.State("RECORD"):
                m.d.comb += [
                    self.release.eq(1),
                    self.job.eq(good & (entry.opcode == Opcode.ATTEND)),
                    self.tokens.eq(Mux(good & (entry.opcode == Opcode.APPEND), entry.tokens, 0)),
                ]
                m.d.sync += [
                    record.tag.eq(entry.tag),
                    record.opcode.eq(entry.opcode),
                    record.start.eq(entry.start),
                    record.end.eq(end),
                    record.phase.eq(phase),
                    *(
                        record[name].eq(event[name])
                        for name in ("error", "field", "index", "status", "beats")
                    ),
                ]
                m.next = "ROOM"
            with m.State("ROOM"):
                with m.If(self.drop):
                    m.next = "EVENT"
                with m.Elif(~full & ~write.request.valid):
                    at = self.base + Cat(Const(0, (COMPLETION_BYTES - 1).bit_length()), slot)
                    m.d.sync += [
                        write.request.valid.eq(1),
                        write.request.payload.address.eq(at),
                        write.request.payload.address[: beat_bits(config)].eq(0),
                        write.request.payload.beats.eq(beats),
                        write.beat.valid.eq(1),
                        issued.eq(issued + 1),
                    ]
                    m.d.sync += beat.eq(0)
                    m.next = "WRITE"
            with m.State("WRITE"):
                with m.If(write.beat.valid & write.beat.ready):
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(beat == beats - 1):
                        m.d.sync += [write.beat.valid.eq(0), slot.eq(slot + 1)]
                        with m.If(slot == self.size - 1):
                            m.d.sync += [slot.eq(0), phase.eq(phase + 1)]
                        m.next = "EVENT"
        with m.If(write.request.valid & write.request.ready):
            m.d.sync += write.request.valid.eq(0)
        self._beat(m, record, beat, slot)
        m.d.comb += self.idle.eq(idle & (issued == self.tail))
        m.d.sync += [self.completed.eq(write.done), self.failed.eq(write.done & write.error)]
        with m.If(write.done):
            m.d.sync += self.tail.eq(self.tail + 1)
        with m.If(self.clear):
            m.d.sync += [issued.eq(0), self.tail.eq(0), slot.eq(0), phase.eq(1)]
        return m

    def _beat(self, m: Module, record: Any, beat: Value, slot: Value) -> None:
        """Places the record in its beat, or one beat of it."""
        port = self._config.port_bytes
        raw, out = Value.cast(record), self.write.beat.payload
        if port <= COMPLETION_BYTES:
            m.d.comb += [
                out.data.eq(raw.word_select(beat, 8 * port)),
                out.strobe.eq((1 << port) - 1),
            ]
            return
        places = port // COMPLETION_BYTES
        place = slot[: (places - 1).bit_length()]
        m.d.comb += [
            out.data.eq(raw.replicate(places)),
            out.strobe.eq(Cat(*((place == n).replicate(COMPLETION_BYTES) for n in range(places)))),
        ]
