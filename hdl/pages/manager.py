"""Page manager: free list, references, tenants, sequences; the commands that change them."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import COMMAND_BYTES, COMMANDS, Error, Opcode
from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.control.address_check import AddressCheck
from m890.hdl.control.layouts import EVENT, IDENT_BITS, bits, plane_layout, record_layout
from m890.hdl.memory.burst import beat_bits
from m890.hdl.memory.ports import ReadPort, WritePort
from m890.hdl.memory.secded import SecdedSram
from m890.hdl.pages.commands import Commands
from m890.hdl.pages.copier import PageCopier
from m890.hdl.pages.flow import Flow
from m890.hdl.pages.guard import OwnerPort
from m890.hdl.pages.layouts import sequence_layout
from m890.hdl.pages.mover import Mover
from m890.hdl.pages.prepare import Prepare, prepare_layout, prepared_layout
from m890.hdl.pages.rules import PageRules
from m890.hdl.pages.store import PageStore
from m890.hdl.pages.walker import PageWalker
from m890.hdl.wake import Gated, sleeps

MANAGED = (
    Opcode.CREATE, Opcode.FORK, Opcode.TRIM, Opcode.RELEASE, Opcode.PIN, Opcode.UNPIN,
    Opcode.COPY, Opcode.QUERY, Opcode.QUOTA,
)  # fmt: skip
"""Commands that the page manager carries out."""
COPIED_BITS = 32
"""Width of a page's port beats in all planes together."""


def managed_layout() -> data.StructLayout:
    """A command as fetched, and the number of its entry."""
    return data.StructLayout({"data": 8 * COMMAND_BYTES, "ident": IDENT_BITS})


class PageManager(wiring.Component):
    """Carries out the commands that say who holds which page (m890.sim.golden.pages).

    Function
        One command after the other, in the background of attention: checked completely, then
        carried out, or refused without a change. Before an APPEND that needs pages, `prepare` gives
        it some; that passes a COPY between two of its pages. Sequences that a command names must
        not be read or written meanwhile by the engines as the command changes them: dispatch sees
        to that.
    Members
        i : stream of managed_layout, opcodes MANAGED. event : stream of EVENT; `beats` is QUERY's
        answer, `index` its tenant.
        prepare : stream of prepare_layout, taken with `prepared`; then prepared_outcome tells.
        commit, commit_sequence, commit_length : a sequence's length, at any time.
        sequence_address, sequence_entry, length : sequence table, two ports; the entry (of
        sequence_layout) and the committed length show one cycle after the address, and whether they
        are `damaged`.
        plane_address, plane_entry : plane table, one cycle later. copied : port beats of a page in
        all defined planes. limit : memory in port beats.
        list, copy : ReadPorts of page lists and of pages. entry, page : WritePorts.
        owner : a PageGuard's OwnerPort, answered at any time (PageStore).
        forget : while idle: all as after reset. ready : the sweep has ended.
        idle : no command is here. drop : a command that memory keeps from its end is given up;
        then counts are no longer those of block tables, until `forget`.
        inject, corrected, fatal : of the memories, see SecdedSram.
    Latency
        R and W: memory's answer to a read and to a write. FORK of n whole pages: n + n / (port
        bytes / 4) + 2 R + 2 W + about 60 cycles, and the copy of the tail. APPEND: 6 cycles where
        nothing is missing, 14 + W per new page.
    Throughput
        FORK, CREATE, PIN: one page per cycle. UNPIN, TRIM, RELEASE: 2 to 7 cycles per page.
        COPY: a beat per cycle within a page; 14 + W cycles per page taken.
    Storage
        PageStore; sequences x (sequence_layout + TOKEN_BITS), with check bits.
    Errors
        See docs/pages.md. BUS_ERROR: what was done is undone, but the pages that an APPEND was
        given before. What is undone or freed is done to the end: a block table or list that memory
        refuses meanwhile is read again until it comes, or until `drop`. An entry that memory
        refused to write counts for nothing; one that was to be replaced is read again, and what
        it names is the sequence's.
    """

    i: stream.Interface
    event: stream.Interface
    prepare: stream.Interface
    prepared: Signal
    prepared_outcome: Any
    commit: Signal
    commit_sequence: Signal
    commit_length: Signal
    sequence_address: Any
    sequence_entry: Any
    length: Any
    damaged: Any
    plane_address: Signal
    plane_entry: Any
    copied: Signal
    limit: Signal
    list: Any
    copy: Any
    entry: Any
    page: Any
    owner: Any
    forget: Signal
    ready: Signal
    idle: Signal
    drop: Signal
    inject: Signal
    corrected: Signal
    fatal: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        sequence = bits(config.sequences)
        super().__init__(
            {
                "i": In(stream.Signature(managed_layout())),
                "event": Out(stream.Signature(EVENT)),
                "prepare": In(stream.Signature(prepare_layout(config))),
                "prepared": Out(1),
                "prepared_outcome": Out(prepared_layout(config)),
                "commit": In(1),
                "commit_sequence": In(sequence),
                "commit_length": In(TOKEN_BITS),
                "sequence_address": In(sequence).array(2),
                "sequence_entry": Out(sequence_layout(config)).array(2),
                "length": Out(TOKEN_BITS).array(2),
                "damaged": Out(1).array(2),
                "plane_address": Out(bits(config.planes)),
                "plane_entry": In(plane_layout(config)),
                "copied": In(COPIED_BITS),
                "limit": In(config.address_bits - beat_bits(config) + 1),
                "list": Out(ReadPort(config)),
                "copy": Out(ReadPort(config)),
                "entry": Out(WritePort(config)),
                "page": Out(WritePort(config)),
                "owner": In(OwnerPort(config)),
                "forget": In(1),
                "ready": Out(1),
                "idle": Out(1),
                "drop": In(1),
                "inject": In(2),
                "corrected": Out(1),
                "fatal": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Gated:
        m = Module()
        config = self._config
        m.submodules.store = store = PageStore(config)
        m.submodules.walker = walker = PageWalker(config)
        m.submodules.copier = copier = PageCopier(config)
        m.submodules.mover = mover = Mover(config)
        m.submodules.check = check = AddressCheck(config)
        # Port 0 is the manager's own.
        m.submodules.sequences = sequences = SecdedSram(
            sequence_layout(config), config.sequences, reads=3
        )
        m.submodules.lengths = lengths = SecdedSram(TOKEN_BITS, config.sequences, reads=3)
        wiring.connect(m, wiring.flipped(self.owner), store.owner)
        wiring.connect(m, walker.read, wiring.flipped(self.list))
        wiring.connect(m, mover.read, wiring.flipped(self.copy))
        wiring.connect(m, mover.write, wiring.flipped(self.page))
        raw = Signal(8 * COMMAND_BYTES)
        opcode = raw[:8]
        commands: dict[Opcode, Any] = {
            o: data.View(record_layout(COMMANDS[o]), raw) for o in MANAGED
        }
        one: Any = Signal(sequence_layout(config))
        length, damaged = Signal(TOKEN_BITS), Signal()
        target_open, target_damaged = Signal(), Signal()
        flow = Flow(m, config, store, walker, copier, mover)
        flow.connect()
        flow.write_port(self.entry)
        do = Commands(flow, config, commands, one, length)
        prepare = Prepare(
            flow, config, self.prepare.payload, sequences.read_data[0], sequences.fatal[0]
        )
        saving, address = Signal(), Signal(bits(config.sequences))
        self._tables(m, sequences, lengths, flow, do, prepare, saving, address)
        rules = PageRules(
            config, commands, one, length, damaged, target_open, target_damaged, self.copied
        )
        checks, ranges = rules.checks(), rules.ranges()
        bad, step, ident = Signal(max(map(len, checks.values()))), Signal(2), Signal(IDENT_BITS)
        copying, looked = Signal(), Signal()
        m.d.comb += [
            store.inject.eq(self.inject),
            store.forget.eq(self.forget),
            self.ready.eq(store.ready & ~self._sweeping),
            self.plane_address.eq(copier.plane_address),
            copier.plane_entry.eq(self.plane_entry),
            check.limit.eq(self.limit),
            do.waiting.eq(self.prepare.valid),
            do.drop.eq(self.drop),
            prepare.drop.eq(self.drop),
            self.prepare.ready.eq(prepare.done),
            self.prepared.eq(prepare.done),
            self.prepared_outcome.eq(prepare.outcome),
            self.event.payload.ident.eq(ident),
            self.event.payload.error.eq(flow.error),
            self.event.payload.field.eq(flow.field),
            self.event.payload.index.eq(flow.index),
            self.event.payload.beats.eq(do.answer),
        ]
        with m.FSM(name="manager"):
            with m.State("IDLE"):
                m.d.comb += self.idle.eq(~self.i.valid & ~self.prepare.valid)
                m.d.sync += [
                    raw.eq(self.i.payload.data), ident.eq(self.i.payload.ident), step.eq(0),
                    flow.error.eq(Error.OK), flow.field.eq(0), flow.index.eq(0),
                    do.answer.eq(0), do.answer_tenant.eq(0), copying.eq(0),
                ]  # fmt: skip
                with m.If(self.ready & self.i.valid):
                    m.d.comb += self.i.ready.eq(1)
                    m.next = "LOOK UP"
                with m.Elif(self.ready & self.prepare.valid):
                    m.next = "PREPARE"
            with m.State("LOOK UP"):
                m.d.comb += address.eq(commands[Opcode.FORK].sequence)
                m.d.sync += copying.eq(opcode == Opcode.COPY)
                m.next = "LOOK UP TARGET"
            with m.State("LOOK UP TARGET"):
                m.d.comb += [address.eq(commands[Opcode.FORK].target), looked.eq(1)]
                m.d.sync += [
                    one.eq(sequences.read_data[0]), length.eq(lengths.read_data[0]),
                    damaged.eq(sequences.fatal[0] | lengths.fatal[0]),
                ]  # fmt: skip
                m.next = "KEEP TARGET"
            with m.State("KEEP TARGET"):
                m.d.sync += target_open.eq(sequences.read_data[0].open)
                m.d.sync += target_damaged.eq(sequences.fatal[0])
                m.next = "CHECK"
            with m.State("CHECK"):
                with m.Switch(opcode):
                    for code, rows in checks.items():
                        with m.Case(code):
                            m.d.sync += bad.eq(Cat(*(c.bad for c in rows)))
                    with m.Default():
                        m.d.sync += bad.eq(0)
                m.d.sync += do.tenant.eq(commands[Opcode.FORK].tenant)
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.next = "RANGE"
                with m.If(bad.any()):
                    m.next = "REPORT"
                    with m.Switch(opcode):
                        for code, rows in checks.items():
                            with m.Case(code):
                                for n, c in reversed(list(enumerate(rows))):
                                    with m.If(bad[n]):
                                        flow.blame(code, c.field)
                                        m.d.sync += flow.error.eq(c.error)
            with m.State("RANGE"):
                with m.Switch(opcode):
                    for code in MANAGED:
                        with m.Case(code):
                            m.next = code.name
                with m.Switch(Cat(step, opcode)):
                    for code, rows in ranges.items():
                        for n, (r, applies) in enumerate(rows):
                            with m.Case(code << 2 | n):
                                m.d.comb += [
                                    check.start.eq(applies), check.address.eq(r.address),
                                    check.count.eq(r.count), check.stride.eq(r.stride),
                                    check.size.eq(r.size),
                                ]  # fmt: skip
                                with m.If(applies):
                                    flow.blame(code, r.field)
                                    m.next = "RANGE WAIT"
                                with m.Else():
                                    m.d.sync += step.eq(step + 1)
                                    m.next = "RANGE"
            with m.State("RANGE WAIT"):
                with m.If(~check.busy):
                    m.d.sync += [step.eq(step + 1), flow.field.eq(0)]
                    m.next = "RANGE"
                    with m.If(~check.ok):
                        m.d.sync += [flow.error.eq(Error.BAD_ADDRESS), flow.field.eq(flow.field)]
                        m.next = "REPORT"
            do.states()
            prepare.states("PREPARE END")
            with m.State("PREPARE END"):
                m.next = "IDLE"
                with m.If(copying):
                    m.next = "COPY NEXT"
            with m.State("SAVE"):
                m.d.comb += saving.eq(1)
                with m.If(~self.commit):
                    m.next = "FINISH"
            with m.State("FINISH"):
                m.next = "REPORT"
                with m.If(opcode == Opcode.QUERY):
                    m.d.sync += flow.index.eq(do.answer_tenant)
            with m.State("REPORT"):
                m.d.comb += self.event.valid.eq(1)
                with m.If(self.event.ready):
                    m.next = "IDLE"
            flow.finish()
        with m.If(prepare.look):
            m.d.comb += address.eq(self.prepare.payload.sequence)
        m.d.comb += [
            self.corrected.eq(
                store.corrected
                | looked & (sequences.corrected[0] | lengths.corrected[0])
                | prepare.looked & sequences.corrected[0]
            ),
            self.fatal.eq(
                store.fatal
                | looked & (sequences.fatal[0] | lengths.fatal[0])
                | prepare.looked & sequences.fatal[0]
            ),
        ]
        looks = Cat(*self.sequence_address)
        before = Signal.like(looks)
        m.d.sync += before.eq(looks)
        return sleeps(
            m, ~self.idle, ~self.ready, self.owner.request.valid, self.commit, self.forget,
            looks != before, ~store.idle, ~mover.idle, walker.busy, copier.busy,
            flow.entry_asked, flow.entry_given,
        )  # fmt: skip

    def _tables(
        self, m: Module, sequences: SecdedSram, lengths: SecdedSram, flow: Flow, do: Commands,
        prepare: Prepare, saving: Signal, address: Signal,
    ) -> None:  # fmt: skip
        """The sequence table: sweep after reset, SAVE, commits, reads."""
        config = self._config
        sweep, self._sweeping = Signal(range(config.sequences + 1)), Signal(init=1)
        entry: Any = sequences.write_data
        with m.If(self._sweeping):
            m.d.sync += sweep.eq(sweep + 1)
            with m.If(sweep == config.sequences - 1):
                m.d.sync += self._sweeping.eq(0)
        with m.If(self.forget):
            m.d.sync += [sweep.eq(0), self._sweeping.eq(1)]
        m.d.comb += [
            sequences.inject.eq(self.inject), lengths.inject.eq(self.inject),
            sequences.write_enable.eq(self._sweeping | saving | do.put | prepare.put),
            sequences.write_address.eq(
                Mux(self._sweeping, sweep, Mux(do.put, do.put_index, flow.save_index))
            ),
            entry.eq(Mux(do.put, do.put_entry, flow.save_entry)),
            lengths.write_enable.eq(self._sweeping | saving | self.commit),
            lengths.write_address.eq(
                Mux(self._sweeping, sweep, Mux(self.commit, self.commit_sequence, flow.save_index))
            ),
            lengths.write_data.eq(Mux(self.commit, self.commit_length, flow.save_length)),
        ]  # fmt: skip
        with m.If(prepare.put):
            m.d.comb += [
                sequences.write_address.eq(prepare.put_index), entry.eq(prepare.put_entry)
            ]  # fmt: skip
        with m.If(self._sweeping):
            m.d.comb += [entry.eq(0), lengths.write_data.eq(0)]
        for table in (sequences, lengths):
            m.d.comb += [
                table.read_address[0].eq(address),
                *(table.read_address[n + 1].eq(self.sequence_address[n]) for n in range(2)),
                *(table.read_enable[n].eq(1) for n in range(3)),
            ]
        for n in range(2):
            m.d.comb += [
                self.sequence_entry[n].eq(sequences.read_data[n + 1]),
                self.length[n].eq(lengths.read_data[n + 1]),
                self.damaged[n].eq(sequences.fatal[n + 1] | lengths.fatal[n + 1]),
            ]
