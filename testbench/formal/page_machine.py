"""A small page manager beside block tables in plain view, and what holds between two commands."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from amaranth.hdl import Assert, Assume, Cat, Const, Cover, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnyConst, AnySeq, Initial
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from m890.hdl.commands import COMMANDS, Error, Opcode
from m890.hdl.control.address_check import AddressCheck
from m890.hdl.control.layouts import record_layout
from m890.hdl.pages import commands, flow, manager, prepare, rules
from m890.hdl.pages.copier import PageCopier
from m890.hdl.pages.layouts import Op, operation_layout, page_layout
from m890.hdl.pages.mover import Mover
from m890.hdl.pages.store import PageStore
from m890.hdl.pages.walker import PageWalker
from m890.testbench.formal.page_words import changed, chosen, judge, reads, total, writes
from m890.testbench.formal.small import SEQUENCES, TENANTS, Inside, Table, again, small

PAGES, REFERENCE_BITS, PIN_BITS = 3, 2, 1
PLACES = 2
"""Page numbers of a block table or list, the first of a port beat."""
NUMBER = 2
"""Bits of a page number in memory; one of them names no page."""
LIST, SLOTS = SEQUENCES, SEQUENCES + 1
"""Places in memory behind the block tables, in port beats."""
START = r"(?!kept_|raw)\S+"
"""Registers that start with anything: all but the proof's own, and those that are loaded before
they are read."""
REFERENCES = "a page has as many references as block tables name it"
REACHED = "block tables name pages in use, of the sequence's tenant or public"
KEPT = "a page in use is held by somebody"
ALONE = "pages from `shared` on are the sequence's alone"
SIZES = "a sequence is within its limit and has pages for its tokens"
REFUSED = "a refused command changes nothing"
ENDS = "a command ends in time, and leaves nothing behind"
INSIDE = "what is read and written is a block table or list"


class NoCheck(AddressCheck):
    """Any answer, at once."""

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += self.ok.eq(AnySeq(1))
        return m


class NoCopy(PageCopier):
    """What lies in pages is not part of the proof."""

    def elaborate(self, platform: Any) -> Module:
        return Module()


class NoMove(Mover):
    """The proof moves page numbers itself, at once; any outcome."""

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += [self.i.ready.eq(1), self.idle.eq(1)]
        with m.If(self.restart):
            m.d.sync += self.error.eq(AnySeq(1))
        return m


class NoWalk(PageWalker):
    """The proof walks, at once."""

    def elaborate(self, platform: Any) -> Module:
        return Module()


class NoStore(PageStore):
    """The proof has the pages' words."""

    def elaborate(self, platform: Any) -> Module:
        return Module()


def page_manager(twin: ModuleType | None = None, *change: tuple[str, str]) -> Any:
    """The manager's class, small; one line of the module `twin` may be changed."""

    def copy(module: ModuleType, **names: Any) -> Any:
        return again(module, *(change if module is twin else ()), **names)

    return copy(
        manager,
        SecdedSram=Table,
        AddressCheck=NoCheck,
        PageCopier=NoCopy,
        Mover=NoMove,
        PageStore=NoStore,
        PageWalker=NoWalk,
        Flow=copy(flow).Flow,
        PageRules=copy(rules).PageRules,
        Commands=copy(commands).Commands,
        Prepare=copy(prepare).Prepare,
    ).PageManager


class PageMachine(wiring.Component):
    """One command on any state that holds between commands; the state behind it holds, too.

    So no sequence of commands of any length leads out of these states. `only` leaves out every
    assertion but the one of that name.
    """

    over: Out(1)

    def __init__(self, opcode: Opcode, unit: Any = None, only: str = "") -> None:
        self._opcode, self._only = opcode, only
        self._config = small(pages=PAGES)
        self._unit = (unit or page_manager())(self._config)
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        unit = self._unit
        inner = Inside(unit, platform)
        m.submodules.unit = inner.module
        word = page_layout(self._config)
        self._inner = inner
        self._memory = [
            [Signal(NUMBER, name=f"memory{line}_{n}") for n in range(PLACES)]
            for line in range(SEQUENCES + 2)
        ]
        self._words = [data.View(word, Signal(word.size, name=f"page{p}")) for p in range(PAGES)]
        self._quotas = [Signal(3, name=f"quota{t}") for t in range(TENANTS)]
        self._sequences, self._lengths = inner["sequences"].words, inner["lengths"].words
        finished, error = Signal(name="kept_finished"), Signal(8, name="kept_error")
        self._outside = Signal(name="kept_outside")
        self._live = Signal(4, name="live")
        m.d.comb += self._live.eq(total(word.live for word in self._words))
        self._operate(m)
        self._walk(m)
        self._write(m)
        self._give(m, finished, error)
        self._hold(m, Initial(), Assume)
        self._hold(m, finished, self._assert)
        m.d.comb += self._assert(finished & self._quiet(), ENDS)
        m.d.comb += self._assert(~self._outside, INSIDE)
        self._same(m, finished & (error != Error.OK) & (error != Error.BUS_ERROR))
        m.d.comb += [
            Cover(finished & (error == Error.OK), "the command is carried out"),
            self.over.eq(finished),
        ]
        return m

    def _assert(self, holds: Value, message: str) -> Any:
        """An assertion, in its caller's line."""
        holds = holds if self._only in ("", message) else Const(1)
        return Assert(holds, message, src_loc_at=1)

    # ---------------------------------------------------------------- what the proof plays

    def _effect(self, m: Module, op: Any, words: list[Any], go: Value, name: str) -> Any:
        """Of one operation: its error, whether others hold its page too, and the words then."""
        layout = page_layout(self._config)
        old: Any = Signal(layout, name=f"{name}_old")
        new: Any = Signal(layout, name=f"{name}_new")
        error, acts = Signal(8, name=f"{name}_error"), Signal(name=f"{name}_acts")
        m.d.comb += [
            old.eq(Mux(reads(op), chosen(words, op.number), 0)),
            new.eq(changed(op, old)),
            error.eq(judge(op, old, self._live == PAGES)),
            acts.eq(go & (error == Error.OK) & writes(op)),
        ]
        after = []
        for p, word in enumerate(words):
            after.append(data.View(layout, Signal(layout.size, name=f"{name}_after{p}")))
            mine = acts & (op.number == p)
            m.d.comb += after[p].eq(Mux(mine, Value.cast(new), Value.cast(word)))
        return error, (old.references + old.pins > 1) | (old.tenant != op.tenant), after

    def _operate(self, m: Module) -> None:
        """One operation of the page store; any free page is given."""
        store, layout = self._inner["store"], operation_layout(self._config)
        given: Any = store.i.payload
        op, page = Signal(layout), AnySeq(2)
        view: Any = op
        free = [~word.live for word in self._words]
        taken = given.op == Op.TAKE
        given_free = chosen(free, page) & (page < PAGES)
        m.d.comb += [
            op.eq(given),
            view.number.eq(Mux(taken, page, given.number)),
            Assume(~taken | (self._live == PAGES) | given_free, "TAKE gives a free page"),
            store.ready.eq(1), store.idle.eq(1), store.i.ready.eq(1),
            store.free.eq(PAGES - self._live),
        ]  # fmt: skip
        error, shared, after = self._effect(m, view, self._words, store.i.valid, "operation")
        quota = chosen(self._quotas, view.tenant)
        held = total(w.live & (w.tenant == view.tenant) for w in self._words)
        old = chosen(self._words, view.number)
        m.d.sync += store.done.eq(store.i.valid)
        with m.If(store.i.valid):
            m.d.sync += [
                store.outcome.error.eq(error), store.outcome.shared.eq(shared),
                store.outcome.number.eq(view.number), store.outcome.counts.held.eq(held),
                store.outcome.counts.quota.eq(quota),
                Value.cast(store.outcome.word).eq(Mux(old[0], old, 0)),
            ]  # fmt: skip
            for word, new in zip(self._words, after, strict=True):
                m.d.sync += word.eq(new)
            for t, register in enumerate(self._quotas):
                with m.If((view.op == Op.QUOTA) & (view.tenant == t)):
                    m.d.sync += register.eq(view.value)

    def _walk(self, m: Module) -> None:
        """All of a walk in the cycle in which it starts; the bus may end it."""
        walker, memory = self._inner["walker"], self._memory
        walk, layout = walker.walk, operation_layout(self._config)
        line, first = walk.address[4:6], walk.address[2:4]
        # Pages that a bus error keeps from being given back are lost until reset, as PageManager
        # says; and an undoing walk has to read again what was read before.
        again = (walk.op == Op.COLLECT) | self._inner.state("manager", "UNDO")
        broken = Mux(again, 0, AnySeq(PLACES))
        words, going, error = self._words, walker.start, Const(Error.OK, 8)
        index, shared, last = Const(0, 2), Const(0, 2), Const(0, NUMBER)
        row = [Signal(NUMBER, name=f"row{n}") for n in range(PLACES)]
        m.d.comb += [row[n].eq(chosen([r[n] for r in memory], line)) for n in range(PLACES)]
        for n in range(PLACES):
            there, number = Signal(name=f"walk{n}_there"), Signal(NUMBER, name=f"walk{n}_number")
            fault = Signal(8, name=f"walk{n}_fault")
            outside = Mux(number >= walk.bound, Error.BAD_RANGE, Error.OK)
            op: Any = Signal(layout, name=f"walk{n}")
            m.d.comb += [
                op.op.eq(walk.op), op.number.eq(number), op.bad.eq(number >= PAGES),
                op.pin.eq(walk.pin), op.tenant.eq(walk.tenant),
                there.eq(going & (walk.count > n)), number.eq(chosen(row, (first + n)[:1])),
            ]  # fmt: skip
            acts = there & ~walk.plain & ~broken[n]
            result, others, words = self._effect(m, op, words, acts, f"walk{n}")
            m.d.comb += fault.eq(Mux(broken[n], Error.BUS_ERROR, Mux(walk.plain, outside, result)))
            error = Mux(there, fault, error)
            done = there & (fault == Error.OK)
            index, shared = index + done, shared + (done & others)
            last = Mux(there, number, last)
            going = Mux(there, done, going)
        with m.If(walker.start):
            m.d.sync += [
                walker.error.eq(error), walker.index.eq(index), walker.shared.eq(shared),
                walker.number.eq(last),
            ]  # fmt: skip
            for word, new in zip(self._words, words, strict=True):
                m.d.sync += word.eq(new)
            with m.If((walk.address >> 6 != 0) | (first + walk.count > PLACES)):
                m.d.sync += self._outside.eq(1)

    def _write(self, m: Module) -> None:
        """Entries and moves of page numbers."""
        entry, memory = self._unit.entry, self._memory
        done = Signal(name="kept_done")
        address = entry.request.payload.address
        move, moves = self._inner["mover"].i.payload, self._inner["mover"].i.valid
        count = move.tail[2:]
        m.d.sync += done.eq(entry.request.valid)
        m.d.comb += [
            entry.request.ready.eq(1), entry.beat.ready.eq(1), entry.done.eq(done),
            entry.error.eq(AnySeq(1)),
        ]  # fmt: skip
        for line, row in enumerate(memory):
            for n, word in enumerate(row):
                strobe = entry.beat.payload.strobe[4 * n]
                with m.If(entry.beat.valid & (address[4:] == line) & strobe):
                    m.d.sync += word.eq(entry.beat.payload.data[32 * n :])
                with m.If(moves & (move.target[4:] == line) & (count > n)):
                    m.d.sync += word.eq(chosen([r[n] for r in memory], move.source[4:6]))
        with m.If(entry.beat.valid & (address >> 6 != 0)):
            m.d.sync += self._outside.eq(1)

    def _give(self, m: Module, finished: Signal, error: Signal) -> None:
        """The command in the first cycle, nothing behind it."""
        unit, opcode, sequence = self._unit, self._opcode, AnyConst(2)
        first, append = Initial(), unit.prepare.payload
        m.d.comb += [
            unit.event.ready.eq(1), unit.copied.eq(1), unit.limit.eq(AnyConst(4)),
            append.sequence.eq(sequence[0]), append.start.eq(AnyConst(5)),
            append.tokens.eq(AnyConst(5)),
        ]  # fmt: skip
        if opcode == Opcode.APPEND:
            waits = Signal(init=1, name="kept_waits")
            self._fits(m, append)
            m.d.comb += unit.prepare.valid.eq(waits)
            with m.If(unit.prepare.ready):
                m.d.sync += [waits.eq(0), finished.eq(1), error.eq(unit.prepared_outcome.error)]
            return
        record: Any = Signal(record_layout(COMMANDS[opcode]))
        m.d.comb += [unit.i.valid.eq(first), unit.i.payload.data.eq(record)]
        target = AnyConst(2)
        few = {"sequence": sequence, "target": target, "tenant": AnyConst(2), "opcode": opcode,
               "table": (target if opcode == Opcode.FORK else sequence)[0] << 4,
               "list": LIST << 4, "slots": SLOTS << 4, "host_stride": 16, "host": 0}  # fmt: skip
        bits = {"tokens": 5, "limit": 5, "start": 5, "end": 5, "count": 2, "host_slots": 3,
                "public": 1, "listed": 1, "inward": 1}  # fmt: skip
        for field in COMMANDS[opcode].fields:
            if field.name in few or field.name in bits:
                value = few[field.name] if field.name in few else AnyConst(bits[field.name])
                m.d.comb += record[field.name].eq(value)
        if any(field.name == "limit" for field in COMMANDS[opcode].fields):
            m.d.comb += Assume(record.limit <= PLACES << 3, "tables have room for their limit")
        if any(field.name == "count" for field in COMMANDS[opcode].fields):
            m.d.comb += Assume(record.count <= PLACES, "lists are as long as they say")
        with m.If(unit.event.valid):
            m.d.sync += [finished.eq(1), error.eq(unit.event.payload.error)]

    def _fits(self, m: Module, append: Any) -> None:
        """What dispatch has checked of an APPEND at first; its tokens lie in one page."""
        end = append.start + append.tokens
        for s, one in enumerate(self._sequences):
            room = (end <= one.limit) & (end <= PLACES << 3)
            fits = one.open & room & (append.start <= one.pages << 3)
            m.d.comb += Assume(~Initial() | (append.sequence != s) | fits, "as checked")
        m.d.comb += Assume(
            (append.tokens != 0) & (append.start >> 3 == (end - 1) >> 3), "tokens of one page"
        )

    # ---------------------------------------------------------------- what holds

    def _names(self, s: int, n: int) -> Value:
        """Whether the n-th entry of a sequence's table counts."""
        return self._sequences[s].open & (self._sequences[s].pages > n)

    def _quiet(self) -> Value:
        """The machine waits for a command, and nothing of the last one is under way."""
        inner, steps = self._inner, self._inner["flow"]
        return Cat(
            inner.state("manager", "IDLE"), self._unit.ready, ~self._inner["store"].done,
            ~steps._operating, ~steps.entry_asked, ~steps.entry_given, steps.entries == 0,
        ).all()  # fmt: skip

    def _hold(self, m: Module, when: Value, check: Callable[..., Any]) -> None:
        """Between two commands."""
        words = self._words
        every = [(s, n) for s in range(SEQUENCES) for n in range(PLACES)]
        reached, alone = [], []
        for s, n in every:
            one, number = self._sequences[s], self._memory[s][n]
            word = data.View(page_layout(self._config), chosen(words, number[:2]))
            reached.append(
                ~self._names(s, n)
                | (number < PAGES) & word.live & ((word.tenant == one.tenant) | word.public)
            )
            mine = (word.references == 1) & (word.pins == 0) & (word.tenant == one.tenant)
            alone.append(~self._names(s, n) | (one.shared > n) | mine)
        named = [
            total(self._names(s, n) & (self._memory[s][n] == p) for s, n in every)
            for p in range(PAGES)
        ]
        sizes = []
        for s, one in enumerate(self._sequences):
            room = one.pages << 3
            fits = (one.pages <= PLACES) & (one.shared <= one.pages) & (room < one.limit + 8)
            within = (self._lengths[s] <= room) & (self._lengths[s] <= one.limit)
            sizes.append(~one.open | fits & within & (one.table == s << 4))
        with m.If(when):
            if check is Assume:
                m.d.comb += Assume(self._quiet(), ENDS)
            m.d.comb += [
                check(Cat(*(
                    ~words[p].live | (words[p].references == named[p]) for p in range(PAGES)
                )).all(), REFERENCES),
                check(Cat(*reached).all(), REACHED),
                check(Cat(*(
                    ~w.live | (w.references != 0) | (w.pins != 0) for w in words
                )).all(), KEPT),
                check(Cat(*alone).all(), ALONE),
                check(Cat(*sizes).all(), SIZES),
            ]  # fmt: skip

    def _same(self, m: Module, when: Value) -> None:
        """Nothing has changed since the first cycle."""
        state = [Value.cast(w) for w in (*self._sequences, *self._lengths)]
        state += self._quotas
        for word in self._words:
            state.append(Mux(word.live, word.as_value(), 0))
        for s in range(SEQUENCES):
            for n in range(PLACES):
                state.append(Mux(self._names(s, n), self._memory[s][n], 0))
        now = Cat(*state)
        before = Signal(len(now), name="kept_before")
        with m.If(Initial()):
            m.d.sync += before.eq(now)
        with m.If(when):
            m.d.comb += self._assert(now == before, REFUSED)
