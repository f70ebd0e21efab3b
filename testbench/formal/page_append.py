"""The pages of an APPEND in three parts: what it needs, what it copies, what it takes."""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Assume, Cat, Const, Cover, EnableInserter, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnyConst, Initial
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from m890.hdl.commands import Error
from m890.testbench.formal.contracts import checks
from m890.testbench.formal.page_machine import (
    ENDS,
    INSIDE,
    READABLE,
    REFUSED,
    WITHIN,
    at_start,
    quiet,
    within_quotas,
)
from m890.testbench.formal.page_parts import page_manager
from m890.testbench.formal.page_state import PAGES, PLACES, PageState
from m890.testbench.formal.page_words import chosen, total
from m890.testbench.formal.page_world import PageWorld
from m890.testbench.formal.small import SEQUENCES, Inside, small

START = r"(?!kept_|raw|_operating|entry__)\S+"
"""Registers that start with anything: those of PageMachine, and the state."""
BEGIN, EACH, MORE = "BEGIN", "EACH", "MORE"
CYCLES = {BEGIN: 18, EACH: 34, MORE: 24}
"""Parts of an APPEND: from its start to the first page that it looks at; from one such page to the
next; from one page that it may have to take to the next. Cycles until the longest run of one."""
ROOM = "there is room for all pages that an APPEND still takes"
PAST = "pages that an APPEND is past are its sequence's alone"
STEADY = "an APPEND keeps in mind what it is about"
GOES_ON = "an APPEND comes nearer to its end"


class AppendPart(wiring.Component):
    """One part of an APPEND from any state that holds at its start; what holds at its end, holds.

    BEGIN starts between commands and leads to EACH, or refuses the command; EACH leads to EACH or
    MORE, MORE to itself, and either to an end. So no APPEND to any number of pages, with bus errors
    anywhere, leads out of these states. Where a part ends, everything stands still, so that what is
    asserted can be asked for in one cycle, the last. `only` leaves out every assertion but the one
    of that name.
    """

    over: Out(1)

    def __init__(self, part: str, unit: Any = None, only: str = "") -> None:
        self._part, self._assert = part, checks(only)
        self._config = small(pages=PAGES)
        self._unit = (unit or page_manager())(self._config)
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        unit, running, waits = self._unit, Signal(name="running"), Signal(init=1, name="kept_waits")
        self._inner = inner = Inside(unit, platform)
        self._world = world = PageWorld(self._config, unit, inner)
        around = Module()
        world.play(around)
        m.submodules.unit = EnableInserter(running)(inner.module)
        m.submodules.around = EnableInserter(running)(around)
        self._own = own = inner.names["Prepare.states"]
        append = unit.prepare.payload
        m.d.comb += [
            unit.event.ready.eq(1), unit.copied.eq(1), unit.limit.eq(AnyConst(4)),
            append.start.eq(AnyConst(5)), append.tokens.eq(AnyConst(5)),
            append.sequence.eq(AnyConst(1)), unit.prepare.valid.eq(waits),
        ]  # fmt: skip
        with m.If(unit.prepare.ready):
            m.d.sync += waits.eq(0)
        self._views(m)
        each = inner.state("manager", "PREPARE EACH") & (inner["flow"].room_error == Error.OK)
        more, idle = inner.state("manager", "PREPARE MORE"), inner.state("manager", "IDLE")
        m.d.comb += running.eq(Initial() | ~(each | more | idle))
        before = {BEGIN: self._between, EACH: self._each, MORE: self._more}[self._part]
        at_first = {BEGIN: idle, EACH: each, MORE: more}[self._part]
        with m.If(Initial()):
            m.d.comb += Assume(at_first, "the part starts")
            before(m, Assume)
        ended = ~running
        m.d.comb += [
            self._assert(ended, ENDS),
            self._assert(~world.outside, INSIDE),
            Cover(ended & (own["outcome"].error == Error.OK), "the part ends well"),
            self.over.eq(ended),
        ]
        for when, holds in ((each, self._each), (more, self._more), (idle, self._between)):
            with m.If(ended & when):
                holds(m, self._assert)
        self._compare(m, ended, each, more, idle)
        return m

    # ---------------------------------------------------------------- what holds

    def _views(self, m: Module) -> None:
        """Of the APPEND's sequence: its entry, and the state with what the unit makes of that."""
        world, inner = self._world, self._inner
        self._one = one = self._own["one"]
        self._index = index = self._unit.prepare.payload.sequence
        self._entry: Any = Signal.like(world.sequences[0], name="entry")
        m.d.comb += Value.cast(self._entry).eq(chosen(world.sequences, index))
        sequences = []
        for s, entry in enumerate(world.sequences):
            sequences.append(Signal.like(entry, name=f"sequence{s}"))
            value = Mux(index == s, Value.cast(one), Value.cast(entry))
            m.d.comb += Value.cast(sequences[s]).eq(value)
        self._state = PageState(
            self._config, world.words, sequences, inner["lengths"].words, world.memory
        )
        alone = []
        for n in range(PLACES):
            number = chosen([line[n] for line in world.memory[:SEQUENCES]], index)
            word: Any = Signal.like(world.words[0], name=f"word{n}")
            m.d.comb += Value.cast(word).eq(chosen(world.words, number))
            once = word.references + word.pins == 1
            alone.append(once & (word.tenant == one.tenant))
        self._alone = alone

    def _fits(self, entry: Any) -> Value:
        """What dispatch has checked of an APPEND."""
        append = self._unit.prepare.payload
        end = append.start + append.tokens
        room = (end <= entry.limit) & (end <= PLACES << 3)
        return entry.open & room & (append.start <= entry.pages << 3) & (append.tokens != 0)

    def _between(self, m: Module, check: Callable[..., Any]) -> None:
        """Between commands."""
        self._world.hold(m, Const(1), check)
        m.d.comb += check(quiet(self._unit, self._inner), ENDS)
        if check is Assume:
            m.d.comb += Assume(self._fits(self._entry), "as dispatch has checked")

    def _during(self, m: Module, check: Callable[..., Any], need: Value) -> None:
        """Within an APPEND that still takes up to `need` pages."""
        own, one, entry, append = self._own, self._one, self._entry, self._unit.prepare.payload
        last = append.start + append.tokens - 1
        used, quota = self._world.held(one.tenant), chosen(self._world.quotas, one.tenant)
        self._state.hold(m, Const(1), check)
        same = [one[name] == entry[name] for name in ("open", "table", "limit", "tenant", "shared")]
        room = (need <= PAGES - self._world.live()) & (used + need <= quota)
        m.d.comb += [
            check(quiet(self._unit, self._inner, idle=False), ENDS),
            check(room | (need == 0), ROOM),
            check(Cat(
                *same, self._fits(entry), own["first"] == append.start >> 3,
                own["past"] == (last >> 3) + 1, entry.pages <= one.pages,
                own["outcome"].error == Error.OK, ~self._inner["copying"],
            ).all(), STEADY),
        ]  # fmt: skip

    def _missing(self) -> Value:
        past, pages = self._own["past"], self._one.pages
        return Mux(past > pages, past - pages, 0)

    def _each(self, m: Module, check: Callable[..., Any]) -> None:
        """Page `at` is next, of those that there are; at most `shared` of the rest have others."""
        own, one = self._own, self._one
        at, stop, shared = own["at"], own["stop"], own["shared"]
        self._during(m, check, (shared + self._missing())[:4])
        there = Mux(own["past"] < one.pages, own["past"], one.pages)
        mine = [self._alone[n] | (own["first"] > n) | (there <= n) for n in range(PLACES)]
        rest = total(~mine[n] & (at <= n) for n in range(PLACES))
        within = (own["first"] <= at) & (at <= stop) & (stop == there)
        m.d.comb += [
            check(Cat(*(mine[n] | (at <= n) for n in range(PLACES))).all(), PAST),
            check((rest <= shared) & ((shared == 0) | within), PAST),
            check(one.pages == self._entry.pages, STEADY),
        ]

    def _more(self, m: Module, check: Callable[..., Any]) -> None:
        """All pages that there are, are alone."""
        self._during(m, check, self._missing())
        m.d.comb += check(self._own_pages(), PAST)

    def _own_pages(self) -> Value:
        own, pages = self._own, self._one.pages
        there = [(own["first"] <= n) & (own["past"] > n) & (pages > n) for n in range(PLACES)]
        return Cat(*(~t | a for t, a in zip(there, self._alone, strict=True))).all()

    def _compare(self, m: Module, ended: Value, each: Value, more: Value, idle: Value) -> None:
        """The end with the start, and what jobs may read meanwhile."""
        world, own = self._world, self._own
        error, quotas = own["outcome"].error, Cat(*world.quotas)
        unread = Signal(name="kept_unread")
        reached = Cat(*(world.reaches(s, n) for s in range(SEQUENCES) for n in range(PLACES))).all()
        m.d.sync += unread.eq(unread | ~reached)
        same = at_start(m, world.everything(), "state") == world.everything()
        kept = at_start(m, quotas, "quotas") == quotas
        m.d.comb += [
            self._assert(~unread, READABLE),
            self._assert(~ended | within_quotas(m, world), WITHIN),
        ]
        at, pages = at_start(m, own["at"], "at"), at_start(m, self._one.pages, "pages")
        if self._part == BEGIN:
            ok = ~ended | same & kept & (each | idle & (error != Error.OK))
            m.d.comb += self._assert(ok, REFUSED)
            return
        # Pages that it was given before a bus error, it keeps; there is no other error.
        ok = (error == Error.BUS_ERROR) | (error == Error.OK)
        m.d.comb += self._assert(~ended | kept & (~idle | ok), REFUSED)
        if self._part == EACH:
            nearer = Mux(each, own["at"] > at, more | (error != Error.OK))
        else:
            done = self._own_pages() & (self._one.pages >= own["past"])
            nearer = Mux(more, self._one.pages > pages, idle & ((error != Error.OK) | done))
        m.d.comb += self._assert(~ended | nearer, GOES_ON)
