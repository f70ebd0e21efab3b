"""One command on a small page manager, from any state that holds between two commands."""

from typing import Any

from amaranth.hdl import Assume, Cat, Const, Cover, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnyConst, Initial
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from m890.hdl.commands import COMMANDS, Error, Opcode, Query
from m890.hdl.control.layouts import record_layout
from m890.testbench.formal.contracts import checks
from m890.testbench.formal.page_parts import page_manager
from m890.testbench.formal.page_state import LIST, PAGES, PIN_BITS, PLACES, REFERENCE_BITS, SLOTS
from m890.testbench.formal.page_words import chosen
from m890.testbench.formal.page_world import PageWorld
from m890.testbench.formal.small import SEQUENCES, TENANTS, Inside, small

START = r"(?!kept_|raw|manager_state|_operating|entry__)\S+"
"""Registers that start with anything: all but the proof's own, those that are loaded before they
are read, and those that have their first values whenever a command has ended (ENDS)."""
REFUSED = "a refused command changes nothing"
ENDS = "a command ends in time, and leaves nothing behind"
INSIDE = "what is read and written is a block table or list"
READABLE = "whoever may be read meanwhile names pages in use all the time"
WITHIN = "no tenant gets past its quota"
TAKEN = "COPY lists the pages that it takes, each free before and pinned once"
TELLS = "QUERY tells what there is"
SETS = "QUOTA sets a tenant's quota, and nothing else"
UNREAD = (Opcode.CREATE, Opcode.TRIM, Opcode.RELEASE)
"""Commands that wait for jobs of their sequence: none reads its pages meanwhile."""
FEW = {
    "tokens": 5, "limit": 5, "start": 5, "end": 5, "count": 2, "host_slots": 3, "public": 1,
    "listed": 1, "inward": 1, "blank": 1, "what": 3, "page": 2, "pages": 3, "tenant": 2,
}  # fmt: skip
"""Bits of a command's fields; the others are 0, but for those that _record gives."""


def quiet(unit: Any, inner: Inside, idle: bool = True) -> Value:
    """No step of the machine is under way; `idle`: it waits for a command."""
    steps = inner["flow"]
    return Cat(
        inner.state("manager", "IDLE") if idle else Const(1), unit.ready, ~inner["store"].done,
        ~steps._operating, ~steps.entry_asked, ~steps.entry_given,
    ).all()  # fmt: skip


def at_start(m: Module, now: Value, name: str) -> Signal:
    """What it was in the first cycle."""
    before = Signal(len(now), name=f"kept_{name}")
    with m.If(Initial()):
        m.d.sync += before.eq(now)
    return before


def within_quotas(m: Module, world: PageWorld) -> Value:
    """No tenant holds more than its quota, or than it held in the first cycle."""
    within = []
    for t in range(TENANTS):
        held = at_start(m, world.held(t), f"held{t}")
        most = Mux(world.quotas[t] > held, world.quotas[t], held)
        within.append(world.held(t) <= most)
    return Cat(*within).all()


class PageMachine(wiring.Component):
    """One command on any state that holds between commands; the state behind it holds, too.

    So no sequence of commands of any length leads out of these states. APPEND has an AppendPart.
    `fields` are those of the command that have one value. `only` leaves out every assertion but the
    one of that name.
    """

    over: Out(1)

    def __init__(
        self,
        opcode: Opcode,
        unit: Any = None,
        only: str = "",
        fields: dict[str, int] | None = None,
    ) -> None:
        self._opcode, self._assert = opcode, checks(only)
        self._given = fields or {}
        self._config = small(pages=PAGES)
        self._unit = (unit or page_manager())(self._config)
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        inner = Inside(self._unit, platform)
        m.submodules.unit = inner.module
        self._inner = inner
        self._world = world = PageWorld(self._config, self._unit, inner)
        finished, error = Signal(name="kept_finished"), Signal(8, name="kept_error")
        world.play(m)
        self._give(m, finished, error)
        with m.If(Initial()):
            m.d.comb += Assume(quiet(self._unit, inner), ENDS)
        world.hold(m, Initial(), Assume)
        world.hold(m, finished, self._assert)
        unread = Signal(name="kept_unread")
        m.d.sync += unread.eq(unread | ~self._readable())
        m.d.comb += [
            self._assert(finished & quiet(self._unit, inner), ENDS),
            self._assert(~world.outside, INSIDE),
            self._assert(~unread, READABLE),
            Cover(finished & (error == Error.OK), "the command is carried out"),
            self.over.eq(finished),
        ]
        self._compare(m, finished, error)
        return m

    # ---------------------------------------------------------------- the command

    def _give(self, m: Module, finished: Signal, error: Signal) -> None:
        """The command in the first cycle, nothing behind it."""
        unit, self._sequence = self._unit, AnyConst(2)
        self._record: Any = Signal(record_layout(COMMANDS[self._opcode]))
        self._fields(m)
        m.d.comb += [
            unit.event.ready.eq(1), unit.copied.eq(1), unit.limit.eq(AnyConst(4)),
            unit.i.valid.eq(Initial()), unit.i.payload.data.eq(self._record),
        ]  # fmt: skip
        with m.If(unit.event.valid):
            m.d.sync += [finished.eq(1), error.eq(unit.event.payload.error)]

    def _fields(self, m: Module) -> None:
        opcode, record, target = self._opcode, self._record, AnyConst(2)
        given = {
            "opcode": opcode, "sequence": self._sequence, "target": target,
            "table": (target if opcode == Opcode.FORK else self._sequence)[0] << 4,
            "list": LIST << 4, "slots": SLOTS << 4, "host_stride": 16, **self._given,
        }  # fmt: skip
        for field in COMMANDS[opcode].fields:
            if field.name in given:
                m.d.comb += record[field.name].eq(given[field.name])
            elif field.name in FEW:
                m.d.comb += record[field.name].eq(AnyConst(FEW[field.name]))
        if any(field.name == "limit" for field in COMMANDS[opcode].fields):
            m.d.comb += Assume(record.limit <= PLACES << 3, "tables have room for their limit")
        if any(field.name == "count" for field in COMMANDS[opcode].fields):
            m.d.comb += Assume(record.count <= PLACES, "lists are as long as they say")

    # ---------------------------------------------------------------- what holds

    def _readable(self) -> Value:
        """Block tables that a job may read while the command is under way are as they should be."""
        all_of_them = []
        for s in range(SEQUENCES):
            excepted = (self._sequence == s) & (self._opcode in UNREAD)
            all_of_them += [excepted | self._world.reaches(s, n) for n in range(PLACES)]
        return Cat(*all_of_them).all()

    def _compare(self, m: Module, finished: Value, error: Value) -> None:
        """The state behind the command with the one before."""
        world, opcode = self._world, self._opcode
        good = finished & (error == Error.OK)
        refused = finished & (error != Error.OK)
        quotas = Cat(*world.quotas)
        same = at_start(m, world.everything(), "state") == world.everything()
        before = [at_start(m, quota, f"quota{t}") for t, quota in enumerate(world.quotas)]
        kept = Cat(*before) == quotas
        m.d.comb += self._assert(~refused | same & kept, REFUSED)
        m.d.comb += self._assert(~finished | within_quotas(m, world), WITHIN)
        if opcode == Opcode.COPY:
            m.d.comb += self._assert(~good | self._listed(m), TAKEN)
        if opcode == Opcode.QUERY:
            m.d.comb += self._assert(~good | same & kept & self._told(m), TELLS)
        if opcode == Opcode.QUOTA:
            record = self._record
            set_ = [
                register == Mux(record.tenant == t, record.pages, old)
                for t, (register, old) in enumerate(zip(world.quotas, before, strict=True))
            ]
            m.d.comb += self._assert(~good | same & Cat(*set_).all(), SETS)

    def _listed(self, m: Module) -> Value:
        """Pages of the list behind a COPY inward, whatever the command held before."""
        world, record = self._world, self._record
        before = [at_start(m, word.live, f"live{p}") for p, word in enumerate(world.words)]
        rules = []
        for n, number in enumerate(world.memory[LIST]):
            there = record.inward & (record.count > n)
            word: Any = Signal.like(world.words[0], name=f"listed{n}")
            m.d.comb += Value.cast(word).eq(chosen(world.words, number))
            once = (word.pins == 1) & (word.references == 0) & (word.tenant == record.tenant)
            free = ~chosen(before, number) & (number < PAGES)
            rules.append(~there | word.live & once & free)
        first, second = world.memory[LIST]
        rules.append(~record.inward | (record.count < 2) | (first != second))
        return Cat(*rules).all()

    def _told(self, m: Module) -> Value:
        """Whether the answer is what the state is; a QUERY changes none."""
        world, record, event = self._world, self._record, self._unit.event
        answer, tenant = Signal(32, name="kept_answer"), Signal(16, name="kept_tenant")
        with m.If(event.valid):
            m.d.sync += [answer.eq(event.payload.beats), tenant.eq(event.payload.index)]
        one: Any = Signal.like(world.sequences[0], name="asked_sequence")
        page: Any = Signal.like(world.words[0], name="asked_page")
        right = Signal(name="answer_right")
        m.d.comb += [
            Value.cast(one).eq(chosen(world.sequences, record.sequence[:1])),
            Value.cast(page).eq(chosen(world.words, record.page)),
        ]
        flags = REFERENCE_BITS + PIN_BITS + 4
        word = page.references | page.pins << REFERENCE_BITS | page.public << flags
        says = {
            Query.LENGTH: (chosen(world.lengths, record.sequence[:1]), one.tenant),
            Query.PAGES: (one.pages, one.tenant),
            Query.FREE: (PAGES - world.live(), 0),
            Query.PAGE: (Mux(page.live, word, 0), Mux(page.live, page.tenant, 0)),
            Query.HELD: (world.held(record.tenant), record.tenant),
            Query.QUOTA: (chosen(world.quotas, record.tenant), record.tenant),
        }
        with m.Switch(record.what):
            for what, (value, whose) in says.items():
                with m.Case(what):
                    m.d.comb += right.eq((answer == value) & (tenant == whose))
        return right
