"""Dispatch: commands in order, checked, interlocked, and handed to the engines."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import COMMANDS, Error, Opcode
from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.control.address_check import AddressCheck
from m890.hdl.control.checks import Rules, field_index
from m890.hdl.control.completion import ENTRY
from m890.hdl.control.inflight import PLANE_BITS
from m890.hdl.control.layouts import (
    COMMAND,
    ENTRIES,
    EVENT,
    HASH_BITS,
    append_layout,
    attend_layout,
    bits,
    plane_layout,
    record_layout,
    sequence_layout,
)
from m890.hdl.memory.burst import beat_bits
from m890.hdl.memory.sram import Sram

TOKEN_LIMIT = (1 << TOKEN_BITS) - 1
LAST_OPCODE = Opcode.ATTEND
"""Commands up to here are carried out; those of the page manager are not part of the core yet."""


class Dispatch(wiring.Component):
    """Takes commands in order; each is checked completely before it starts, or is refused.

    Function
        PLANE and SEQUENCE write the tables here; APPEND goes to the append unit, ATTEND to the job
        loader, with the plane's and sequence's entries copied in. Rules: `m890.hdl.control.checks`.
        A refused command leaves a completion with the error and nothing else. After reset both
        tables are cleared first.
    Members
        i : stream of COMMAND. drop : throw commands away instead of starting them.
        limit : memory in port beats. cycles : the cycle counter.
        free, free_ident, take : entries (InFlight). begin, entry : what Completion keeps of a
        command.
        ident, plane, hash, mark_append, mark_attend and the answers others ... plane_used :
        interlock.
        append, attend, event : streams of append_layout, attend_layout, EVENT.
        sequence_address, sequence_entry : a second read port of the sequence table, for the loader;
        the entry shows one cycle after the address.
        idle : no command is held.
    Latency
        NOP 6 cycles to its event; ATTEND about 45, APPEND about 30, SEQUENCE 15, PLANE 30.
    Storage
        planes x plane_layout, sequences x sequence_layout (two read ports).
    """

    i: stream.Interface
    append: stream.Interface
    attend: stream.Interface
    event: stream.Interface
    entry: Any
    sequence_entry: Any
    drop: Signal
    limit: Signal
    cycles: Signal
    free: Signal
    free_ident: Signal
    take: Signal
    ident: Signal
    plane: Signal
    hash: Signal
    mark_append: Signal
    mark_attend: Signal
    others: Signal
    append_room: Signal
    attend_room: Signal
    meets_attend: Signal
    sequence_used: Signal
    plane_used: Signal
    sequence_address: Signal
    idle: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        ident = range(ENTRIES)
        inputs = {
            "drop": 1, "limit": config.address_bits - beat_bits(config) + 1, "cycles": 64,
            "free": 1, "free_ident": ident, "others": 1, "append_room": 1, "attend_room": 1,
            "meets_attend": 1, "sequence_used": 1, "plane_used": 1,
            "sequence_address": bits(config.sequences),
        }  # fmt: skip
        outputs = {
            "take": 1, "entry": ENTRY, "ident": ident, "plane": PLANE_BITS, "hash": HASH_BITS,
            "mark_append": 1, "mark_attend": 1, "idle": 1,
            "sequence_entry": sequence_layout(config),
        }  # fmt: skip
        super().__init__(
            {
                "i": In(stream.Signature(COMMAND)),
                "append": Out(stream.Signature(append_layout(config))),
                "attend": Out(stream.Signature(attend_layout(config))),
                "event": Out(stream.Signature(EVENT)),
                **{n: In(s) for n, s in inputs.items()},
                **{n: Out(s) for n, s in outputs.items()},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.planes = planes = Sram(plane_layout(config), config.planes)
        m.submodules.sequences = sequences = Sram(
            sequence_layout(config), config.sequences, reads=2
        )
        m.submodules.check = check = AddressCheck(config)
        raw = self.i.payload.data
        commands = {o: data.View(record_layout(r), raw) for o, r in COMMANDS.items()}
        opcode = Signal(8)
        rules = Rules(config, commands, planes.read_data[0], sequences.read_data[0])
        error, field = Signal(8), Signal(8)
        m.d.comb += [
            opcode.eq(raw[:8]),
            self.plane.eq(commands[Opcode.APPEND].plane),  # at the same place in every record
            self.hash.eq(self._sequence_of(opcode, commands)),
            self.event.payload.ident.eq(self.ident),
            self.event.payload.error.eq(error),
            self.event.payload.field.eq(field),
            self.entry.tag.eq(commands[Opcode.NOP].tag),
            self.entry.opcode.eq(opcode),
            self.entry.tokens.eq(commands[Opcode.APPEND].tokens),
            self.entry.start.eq(self.cycles),
            check.limit.eq(self.limit),
            planes.read_address[0].eq(self.plane),
            sequences.read_address[0].eq(self._sequence_of(opcode, commands)),
            sequences.read_address[1].eq(self.sequence_address),
            sequences.read_enable[1].eq(1),
            # An enable that no branch drives is 1 by Amaranth's default; these words must be held.
            planes.read_enable[0].eq(0),
            sequences.read_enable[0].eq(0),
            self.sequence_entry.eq(sequences.read_data[1]),
        ]
        self._payloads(m, commands, planes.read_data[0], sequences.read_data[0])
        checks = rules.checks()
        bad = Signal(max(map(len, checks.values())))
        ranges, step = rules.ranges(), Signal(2)
        clearing = Signal(range(max(config.planes, config.sequences) + 1))
        self._table_writes(m, commands, planes, sequences, opcode, clearing)
        with m.FSM(name="dispatch") as fsm:
            with m.State("CLEAR"):
                m.d.sync += clearing.eq(clearing + 1)
                with m.If(clearing == max(config.planes, config.sequences) - 1):
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += self.idle.eq(~self.i.valid)
                m.d.sync += [error.eq(Error.OK), field.eq(0), step.eq(0)]
                with m.If(self.i.valid & self.drop):
                    m.d.comb += self.i.ready.eq(1)
                with m.Elif(self.i.valid & self.free):
                    m.d.comb += self.take.eq(1)
                    m.d.sync += self.ident.eq(self.free_ident)
                    m.next = "LOOK_UP"
            with m.State("LOOK_UP"):
                m.d.comb += [planes.read_enable[0].eq(1), sequences.read_enable[0].eq(1)]
                m.next = "CHECK"
            with m.State("CHECK"):
                with m.Switch(opcode):
                    for code, rows in checks.items():
                        with m.Case(code):
                            m.d.sync += bad.eq(Cat(*(c.bad for c in rows)))
                    with m.Default():
                        m.d.sync += bad.eq(0)
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.next = "RANGE"
                with m.If(self.i.payload.error):
                    m.d.sync += error.eq(Error.BUS_ERROR)
                    m.next = "REPORT"
                with m.Elif(opcode > LAST_OPCODE):
                    m.d.sync += error.eq(Error.BAD_OPCODE)
                    m.next = "REPORT"
                with m.Elif(bad.any()):
                    m.next = "REPORT"
                    with m.Switch(opcode):
                        for code, rows in checks.items():
                            with m.Case(code):
                                for n, c in reversed(list(enumerate(rows))):
                                    with m.If(bad[n]):
                                        m.d.sync += [
                                            error.eq(c.error),
                                            field.eq(field_index(COMMANDS[code], c.field)),
                                        ]
            with m.State("RANGE"):
                m.next = "INTERLOCK"
                with m.Switch(Cat(step, opcode)):
                    for code, rows in ranges.items():
                        for n, r in enumerate(rows):
                            with m.Case(code << 2 | n):
                                m.d.comb += [
                                    check.start.eq(1),
                                    check.address.eq(r.address),
                                    check.count.eq(r.count),
                                    check.stride.eq(r.stride),
                                    check.size.eq(r.size),
                                ]
                                m.d.sync += field.eq(field_index(COMMANDS[code], r.field))
                                m.next = "RANGE_WAIT"
            with m.State("RANGE_WAIT"):
                with m.If(~check.busy):
                    m.d.sync += step.eq(step + 1)
                    m.next = "RANGE"
                    with m.If(~check.ok):
                        m.d.sync += error.eq(Error.BAD_ADDRESS)
                        m.next = "REPORT"
            with m.State("INTERLOCK"):  # its answers are those of this command since LOOK_UP + 1
                m.d.sync += field.eq(0)
                with m.If(self.drop):
                    m.next = "REPORT"
                with m.Elif(self._may_start(opcode)):
                    m.next = "START"
            with m.State("START"):
                with m.Switch(opcode):
                    with m.Case(Opcode.APPEND):
                        m.d.comb += self.append.valid.eq(1)
                        with m.If(self.append.ready):
                            m.d.comb += self.mark_append.eq(1)
                            m.next = "NEXT"
                    with m.Case(Opcode.ATTEND):
                        m.d.comb += self.attend.valid.eq(1)
                        with m.If(self.attend.ready):
                            m.d.comb += self.mark_attend.eq(1)
                            m.next = "NEXT"
                    with m.Default():
                        m.next = "REPORT"
            with m.State("REPORT"):
                m.d.comb += self.event.valid.eq(1)
                with m.If(self.event.ready):
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.comb += self.i.ready.eq(1)
                m.next = "TAKE"
        m.d.comb += self._starts.eq(fsm.ongoing("START"))
        m.d.comb += self._clears.eq(fsm.ongoing("CLEAR"))
        return m

    def _sequence_of(self, opcode: Value, commands: dict[Opcode, Any]) -> Value:
        return Mux(
            opcode == Opcode.SEQUENCE,
            commands[Opcode.SEQUENCE].sequence,
            commands[Opcode.APPEND].sequence,
        )

    def _may_start(self, opcode: Value) -> Value:
        """Nothing in flight stands in the command's way."""
        answers = {
            Opcode.FENCE: ~self.others,
            Opcode.PLANE: ~self.plane_used,
            Opcode.SEQUENCE: ~self.sequence_used,
            Opcode.APPEND: self.append_room & ~self.meets_attend,
            Opcode.ATTEND: self.attend_room,
        }
        result: Value = opcode == Opcode.NOP
        for code, answer in answers.items():
            result = result | (opcode == code) & answer
        return result

    def _table_writes(
        self,
        m: Module,
        commands: dict[Opcode, Any],
        planes: Sram,
        sequences: Sram,
        opcode: Value,
        clearing: Value,
    ) -> None:
        plane, sequence = commands[Opcode.PLANE], commands[Opcode.SEQUENCE]
        self._starts, self._clears = Signal(), Signal()
        for table, code, index, entries in (
            (planes, Opcode.PLANE, plane.plane, self._config.planes),
            (sequences, Opcode.SEQUENCE, sequence.sequence, self._config.sequences),
        ):
            m.d.comb += [
                table.write_enable.eq(
                    Mux(self._clears, clearing < entries, self._starts & (opcode == code))
                ),
                table.write_address.eq(Mux(self._clears, clearing, index)),
            ]
        with m.If(~self._clears):
            plane_data: Any = planes.write_data
            sequence_data: Any = sequences.write_data
            m.d.comb += [
                plane_data.base.eq(plane.base),
                plane_data.stride.eq(plane.stride),
                plane_data.tiles.eq(plane.head),
                plane_data.format.eq(plane.format),
                plane_data.tags.eq(plane.tags),
                plane_data.rotate.eq(plane.rotate),
                sequence_data.table.eq(sequence.table),
                sequence_data.capacity.eq(sequence.capacity),
            ]

    def _payloads(self, m: Module, commands: dict[Opcode, Any], plane: Any, sequence: Any) -> None:
        """What the engines get: the command's fields beside the entries it names."""
        append, attend = commands[Opcode.APPEND], commands[Opcode.ATTEND]
        m.d.comb += self.append.payload.table.eq(sequence.table)
        for out, command in ((self.append.payload, append), (self.attend.payload, attend)):
            m.d.comb += out.ident.eq(self.ident)
            for name in ("base", "stride", "tiles", "format", "tags", "rotate"):
                m.d.comb += out[name].eq(plane[name])
            for name in dict(out.shape()):
                if name in dict(command.shape()) and name not in ("format", "window", "sinks"):
                    m.d.comb += out[name].eq(command[name])
        far = attend.sinks > TOKEN_LIMIT
        m.d.comb += [
            # No token is further back than the window's limit, none lies behind that of the sinks.
            self.attend.payload.window.eq(Mux(attend.window > TOKEN_LIMIT, 0, attend.window)),
            self.attend.payload.sinks.eq(Mux(far, TOKEN_LIMIT, attend.sinks)),
        ]
