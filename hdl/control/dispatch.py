"""Dispatch: commands in order, checked, interlocked, and handed to the engines."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import COMMANDS, Error, Opcode
from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.control.address_check import AddressCheck
from m890.hdl.control.checks import Rules, field_index, page_beats
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
)
from m890.hdl.memory.burst import beat_bits
from m890.hdl.memory.sram import Sram
from m890.hdl.pages.layouts import sequence_layout
from m890.hdl.pages.manager import COPIED_BITS, MANAGED, managed_layout
from m890.hdl.pages.prepare import prepare_layout, prepared_layout
from m890.hdl.pages.rules import least, pages_of

TOKEN_LIMIT = (1 << TOKEN_BITS) - 1
_BLAMED = ("sequence", "tokens")
"""Fields that the page manager's errors of an APPEND are about: its pages, room for more."""


class Dispatch(wiring.Component):
    """Takes commands in order; each is checked completely before it starts, or is refused.

    Function
        PLANE writes its table here; APPEND goes to the append unit, ATTEND to the job loader, with
        the plane's and sequence's entries copied in; commands of the page manager go to it, which
        checks them itself. An APPEND that needs pages waits here until the page manager has
        prepared them. Rules: `m890.hdl.control.checks`. A refused command leaves a completion with
        the error and nothing else. After reset the plane table is cleared first.
    Members
        i : stream of COMMAND. drop : throw commands away instead of starting them.
        limit : memory in port beats. cycles : the cycle counter.
        free, free_ident, take : entries (InFlight). begin, entry : what Completion keeps of a
        command.
        ident, plane, hash, second, mark_append, mark_attend, mark_manage and the answers others ...
        plane_used : interlock.
        append, attend, event : streams of append_layout, attend_layout, EVENT.
        manage : stream of managed_layout. prepare : stream of prepare_layout; taken, prepared tells
        the outcome. sequence_address : to the sequence table; one, length, damaged : its answer one
        cycle later. plane_address, plane_entry : a second read port of the plane table, likewise.
        copied : port beats of a page in all planes. ready : the page manager's tables are clear.
        idle : no command is held.
    Latency
        NOP 6 cycles to its event; ATTEND about 45, APPEND about 30, PLANE 30; the page
        manager has its commands after 8.
    Storage
        planes x plane_layout (two read ports).
    """

    i: stream.Interface
    append: stream.Interface
    attend: stream.Interface
    event: stream.Interface
    manage: stream.Interface
    prepare: stream.Interface
    prepared: Any
    entry: Any
    one: Any
    plane_entry: Any
    drop: Signal
    limit: Signal
    cycles: Signal
    free: Signal
    free_ident: Signal
    take: Signal
    ident: Signal
    plane: Signal
    hash: Signal
    second: Signal
    mark_append: Signal
    mark_attend: Signal
    mark_manage: Signal
    others: Signal
    append_room: Signal
    attend_room: Signal
    meets_attend: Signal
    attended: Signal
    appended: Signal
    second_used: Signal
    meets_manage: Signal
    managing: Signal
    appending: Signal
    repairing: Signal
    plane_used: Signal
    length: Signal
    damaged: Signal
    sequence_address: Signal
    plane_address: Signal
    copied: Signal
    ready: Signal
    idle: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        ident = range(ENTRIES)
        inputs = {
            "drop": 1, "limit": config.address_bits - beat_bits(config) + 1, "cycles": 64,
            "free": 1, "free_ident": ident, "others": 1, "append_room": 1, "attend_room": 1,
            "meets_attend": 1, "attended": 1, "appended": 1, "second_used": 1, "meets_manage": 1,
            "managing": 1, "appending": 1, "repairing": 1, "plane_used": 1,
            "prepared": prepared_layout(config),
            "one": sequence_layout(config), "length": TOKEN_BITS, "damaged": 1,
            "plane_address": bits(config.planes), "ready": 1,
        }  # fmt: skip
        outputs = {
            "take": 1, "entry": ENTRY, "ident": ident, "plane": PLANE_BITS, "hash": HASH_BITS,
            "second": HASH_BITS, "mark_append": 1, "mark_attend": 1, "mark_manage": 1, "idle": 1,
            "sequence_address": bits(config.sequences), "plane_entry": plane_layout(config),
            "copied": COPIED_BITS,
        }  # fmt: skip
        super().__init__(
            {
                "i": In(stream.Signature(COMMAND)),
                "append": Out(stream.Signature(append_layout(config))),
                "attend": Out(stream.Signature(attend_layout(config))),
                "event": Out(stream.Signature(EVENT)),
                "manage": Out(stream.Signature(managed_layout())),
                "prepare": Out(stream.Signature(prepare_layout(config))),
                **{n: In(s) for n, s in inputs.items()},
                **{n: Out(s) for n, s in outputs.items()},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.planes = planes = Sram(plane_layout(config), config.planes, reads=2)
        m.submodules.check = check = AddressCheck(config)
        raw = self.i.payload.data
        commands = {o: data.View(record_layout(r), raw) for o, r in COMMANDS.items()}
        opcode = Signal(8)
        append = commands[Opcode.APPEND]
        rules = Rules(
            config, commands, planes.read_data[0], self.one, self.length, self.damaged
        )  # fmt: skip
        error, field, index = Signal(8), Signal(8), Signal(16)
        m.d.comb += [
            opcode.eq(raw[:8]),
            self.plane.eq(commands[Opcode.APPEND].plane),  # at the same place in every record
            self.hash.eq(self._sequence_of(opcode, commands)),
            self.event.payload.ident.eq(self.ident),
            self.event.payload.error.eq(error),
            self.event.payload.field.eq(field),
            self.event.payload.index.eq(index),
            self.entry.tag.eq(commands[Opcode.NOP].tag),
            self.entry.opcode.eq(opcode),
            self.entry.tokens.eq(commands[Opcode.APPEND].tokens),
            self.entry.start.eq(self.cycles),
            check.limit.eq(self.limit),
            planes.read_address[0].eq(self.plane),
            planes.read_address[1].eq(self.plane_address),
            planes.read_enable[1].eq(1),
            # An enable that no branch drives is 1 by Amaranth's default; this word must be held.
            planes.read_enable[0].eq(0),
            self.plane_entry.eq(planes.read_data[1]),
            self.sequence_address.eq(self._sequence_of(opcode, commands)),
            self.second.eq(
                Mux(opcode == Opcode.FORK, commands[Opcode.FORK].target, self.hash)
            ),
            self.manage.payload.data.eq(raw),
            self.manage.payload.ident.eq(self.ident),
            *(
                self.prepare.payload[name].eq(append[name])
                for name in ("sequence", "start", "tokens")
            ),
        ]
        self._payloads(m, commands, planes.read_data[0], self.one)
        checks = rules.checks()
        bad = Signal(max(map(len, checks.values())))
        ranges, step = rules.ranges(), Signal(2)
        clearing = Signal(range(config.planes + 1))
        self._table_writes(m, commands, planes, opcode, clearing)
        # An APPEND that needs new pages, or writes one that others may hold.
        inside = config.page_tokens.bit_length() - 1
        past, held = pages_of(config, append.start + append.tokens), self.one.pages
        needs_pages = Signal()
        m.d.sync += needs_pages.eq(
            ~append.repair
            & ((past > held) | ((append.start >> inside) < least(self.one.shared, held)))
        )
        with m.FSM(name="dispatch") as fsm:
            with m.State("CLEAR"):
                with m.If(clearing != config.planes):
                    m.d.sync += clearing.eq(clearing + 1)
                with m.Elif(self.ready):
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += self.idle.eq(~self.i.valid)
                m.d.sync += [error.eq(Error.OK), field.eq(0), index.eq(0), step.eq(0)]
                with m.If(self.i.valid & self.drop):
                    m.d.comb += self.i.ready.eq(1)
                with m.Elif(self.i.valid & self.free):
                    m.d.comb += self.take.eq(1)
                    m.d.sync += self.ident.eq(self.free_ident)
                    m.next = "LOOK_UP"
            with m.State("LOOK_UP"):
                # The sequence as the commands before this one leave it.
                unsettled = self.meets_manage | append.repair & self.appended
                with m.If(self.drop | (opcode != Opcode.APPEND) | ~unsettled):
                    m.d.comb += planes.read_enable[0].eq(1)
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
                with m.Elif(opcode > max(Opcode)):
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
                with m.Elif(self._may_start(opcode, needs_pages, append.repair)):
                    m.next = "START"
                    with m.If((opcode == Opcode.APPEND) & needs_pages):
                        m.next = "PREPARE"
            with m.State("PREPARE"):
                m.d.comb += self.prepare.valid.eq(1)
                with m.If(self.prepare.ready):
                    m.d.sync += [error.eq(self.prepared.error), index.eq(self.prepared.index)]
                    m.next = "START"
                    with m.If(self.prepared.error != Error.OK):
                        names = [field_index(COMMANDS[Opcode.APPEND], n) for n in _BLAMED]
                        m.d.sync += field.eq(Mux(self.prepared.page, names[0], names[1]))
                        m.next = "REPORT"
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
                    for code in MANAGED:
                        with m.Case(code):
                            m.d.comb += self.manage.valid.eq(1)
                            with m.If(self.manage.ready):
                                m.d.comb += self.mark_manage.eq(1)
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
        m.d.comb += self._checking.eq(fsm.ongoing("CHECK"))
        m.d.comb += self._judging.eq(fsm.ongoing("JUDGE"))
        m.d.comb += self._starts.eq(fsm.ongoing("START"))
        m.d.comb += self._clears.eq(fsm.ongoing("CLEAR"))
        return m

    def _sequence_of(self, opcode: Value, commands: dict[Opcode, Any]) -> Value:
        return Mux(
            opcode == Opcode.APPEND,
            commands[Opcode.APPEND].sequence,
            commands[Opcode.CREATE].sequence,  # at the same place in all other records
        )

    def _may_start(self, opcode: Value, needs_pages: Value, repair: Value) -> Value:
        """Nothing in flight stands in the command's way."""
        free = ~self.attended & ~self.appended  # no engine is at the sequence
        answers = {
            Opcode.FENCE: ~self.others,
            Opcode.PLANE: ~self.plane_used & ~self.managing,
            # A repair writes pages that others hold, too: nobody copies them meanwhile.
            Opcode.APPEND: (
                self.append_room
                & ~self.meets_attend
                & ~(needs_pages & (self.attended | self.repairing))
                & ~(repair & self.managing)
            ),
            Opcode.ATTEND: self.attend_room,
            Opcode.CREATE: free,
            Opcode.FORK: ~self.appended & ~self.second_used & ~self.repairing,
            Opcode.TRIM: free,
            Opcode.RELEASE: free,
            Opcode.PIN: ~self.appended,
            Opcode.UNPIN: ~self.appended,
            Opcode.COPY: ~self.appending,
            Opcode.QUERY: ~self.appended,
            Opcode.QUOTA: Const(1),
        }
        result: Value = opcode == Opcode.NOP
        for code, answer in answers.items():
            result = result | (opcode == code) & answer
        return result

    def _table_writes(
        self, m: Module, commands: dict[Opcode, Any], planes: Sram, opcode: Value, clearing: Value
    ) -> None:
        """The plane table, and how much of memory a page takes in all of them."""
        config, plane = self._config, commands[Opcode.PLANE]
        self._checking, self._judging = Signal(), Signal()
        self._starts, self._clears = Signal(), Signal()
        written = self._starts & (opcode == Opcode.PLANE)
        before, after = (Signal(COPIED_BITS, name=n) for n in ("before", "after"))
        m.d.comb += [
            planes.write_enable.eq(Mux(self._clears, clearing < config.planes, written)),
            planes.write_address.eq(Mux(self._clears, clearing, plane.plane)),
        ]
        with m.If(~self._clears):
            entry: Any = planes.write_data
            m.d.comb += [
                *(entry[n].eq(plane[n]) for n in ("base", "stride", "format", "tags", "rotate")),
                entry.tiles.eq(plane.head),
            ]
        # Step by step ahead of START: memory, sizes and their sum are too much for one cycle.
        old: Any = Signal(plane_layout(config), name="old")
        with m.If(self._checking):
            m.d.sync += old.eq(planes.read_data[0])
        with m.If(self._judging):
            size = page_beats(config, old.format, old.tiles, old.tags)
            m.d.sync += [
                before.eq(Mux(old.tiles == 0, 0, size)),
                after.eq(page_beats(config, plane.format, plane.head, plane.tags)),
            ]
        with m.If(written):
            m.d.sync += self.copied.eq(self.copied + after - before)

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
