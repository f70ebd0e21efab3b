"""What stands around a small page manager in proofs: its page store, its walks, its memory."""

from typing import Any

from amaranth.hdl import Assume, Cat, Const, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnySeq
from amaranth.lib import data

from m890.hdl.commands import Error
from m890.hdl.config import CoreConfig
from m890.hdl.pages.layouts import Op, count_bits, operation_layout, page_layout
from m890.testbench.formal.page_state import NUMBER, PAGES, PLACES, PageState
from m890.testbench.formal.page_words import changed, chosen, judge, reads, writes
from m890.testbench.formal.small import SEQUENCES, TENANTS, Inside


class PageWorld(PageState):
    """Plays the store as `test_page_store` proves it, walks as `test_page_walker` does, at once.

    Moves of page numbers and writes of entries happen at once, too; any of them may end with a bus
    error. Behind that, an entry that was to be written is there or not, a move of numbers is.
    `outside` tells whether anything but a block table or a list was read or written.
    """

    def __init__(self, config: CoreConfig, unit: Any, inner: Inside) -> None:
        layout = page_layout(config)
        super().__init__(
            config,
            [data.View(layout, Signal(layout.size, name=f"page{p}")) for p in range(PAGES)],
            inner["sequences"].words,
            inner["lengths"].words,
            [
                [Signal(NUMBER, name=f"memory{line}_{n}") for n in range(PLACES)]
                for line in range(SEQUENCES + 2)
            ],
        )
        self.quotas = [Signal(count_bits(config), name=f"quota{t}") for t in range(TENANTS)]
        self.outside = Signal(name="kept_outside")
        self._unit, self._inner = unit, inner
        self._used = Signal(4, name="live")

    def play(self, m: Module) -> None:
        m.d.comb += self._used.eq(self.live())
        self._operate(m)
        self._walk(m)
        self._write(m)

    def _effect(self, m: Module, op: Any, words: list[Any], go: Value, name: str) -> Any:
        """Of one operation: its error, whether others hold its page too, and the words then."""
        layout = page_layout(self.config)
        old: Any = Signal(layout, name=f"{name}_old")
        new: Any = Signal(layout, name=f"{name}_new")
        error, acts = Signal(8, name=f"{name}_error"), Signal(name=f"{name}_acts")
        m.d.comb += [
            old.eq(Mux(reads(op), chosen(words, op.number), 0)),
            new.eq(changed(op, old)),
            error.eq(judge(op, old, self._used == PAGES)),
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
        store, layout = self._inner["store"], operation_layout(self.config)
        given: Any = store.i.payload
        op, page = Signal(layout), AnySeq(2)
        view: Any = op
        free = [~word.live for word in self.words]
        taken = given.op == Op.TAKE
        given_free = chosen(free, page) & (page < PAGES)
        m.d.comb += [
            op.eq(given),
            view.number.eq(Mux(taken, page, given.number)),
            Assume(~taken | (self._used == PAGES) | given_free, "TAKE gives a free page"),
            store.ready.eq(1), store.idle.eq(1), store.i.ready.eq(1),
            store.free.eq(PAGES - self._used),
        ]  # fmt: skip
        error, shared, after = self._effect(m, view, self.words, store.i.valid, "operation")
        old = chosen(self.words, view.number)
        m.d.sync += store.done.eq(store.i.valid)
        with m.If(store.i.valid):
            m.d.sync += [
                store.outcome.error.eq(error), store.outcome.shared.eq(shared),
                store.outcome.number.eq(view.number),
                store.outcome.counts.held.eq(self.held(view.tenant)),
                store.outcome.counts.quota.eq(chosen(self.quotas, view.tenant)),
                Value.cast(store.outcome.word).eq(Mux(old[0], old, 0)),
            ]  # fmt: skip
            for word, new in zip(self.words, after, strict=True):
                m.d.sync += word.eq(new)
            for t, register in enumerate(self.quotas):
                with m.If((view.op == Op.QUOTA) & (view.tenant == t)):
                    m.d.sync += register.eq(view.value)

    def _walk(self, m: Module) -> None:
        """All of a walk in the cycle in which it starts; the bus may end it."""
        walker, memory = self._inner["walker"], self.memory
        walk, layout = walker.walk, operation_layout(self.config)
        line, first = walk.address[4:6], walk.address[2:4]
        # A walk that has to come to its end goes on until memory gives it all: the second time.
        states = ("UNDO HOLD", "UNDO DROP", "PREPARE ENTERED")
        insisting = (self._inner.state("manager", state) for state in states)
        insists = Cat(walk.op == Op.COLLECT, walk.op == Op.MARK, *insisting).any()
        refused = Signal(name="kept_refused")
        broken = Mux(insists & refused, 0, AnySeq(PLACES))
        with m.If(walker.start & insists):
            m.d.sync += refused.eq(1)
        words, going, error = self.words, walker.start, Const(Error.OK, 8)
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
            for word, new in zip(self.words, words, strict=True):
                m.d.sync += word.eq(new)
            with m.If((walk.address >> 6 != 0) | (first + walk.count > PLACES)):
                m.d.sync += self.outside.eq(1)

    def _write(self, m: Module) -> None:
        """Entries and moves of page numbers."""
        entry, memory = self._unit.entry, self.memory
        done, failed = Signal(name="kept_done"), Signal(name="kept_failed")
        fails, dropped = AnySeq(1), AnySeq(1)
        address = entry.request.payload.address
        move, moves = self._inner["mover"].i.payload, self._inner["mover"].i.valid
        count = move.tail[2:]
        m.d.sync += [done.eq(entry.request.valid), failed.eq(fails)]
        m.d.comb += [
            entry.request.ready.eq(1), entry.beat.ready.eq(1), entry.done.eq(done),
            entry.error.eq(failed),
        ]  # fmt: skip
        for line, row in enumerate(memory):
            for n, word in enumerate(row):
                strobe = entry.beat.payload.strobe[4 * n]
                there = entry.beat.valid & ~(fails & dropped)
                with m.If(there & (address[4:] == line) & strobe):
                    m.d.sync += word.eq(entry.beat.payload.data[32 * n :])
                with m.If(moves & (move.target[4:] == line) & (count > n)):
                    m.d.sync += word.eq(chosen([r[n] for r in memory], move.source[4:6]))
        astray = (move.source >> 6 != 0) | (move.target >> 6 != 0) | (move.beats != 1)
        with m.If(entry.beat.valid & (address >> 6 != 0) | moves & (astray | (count > PLACES))):
            m.d.sync += self.outside.eq(1)
