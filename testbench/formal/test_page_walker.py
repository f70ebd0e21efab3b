"""The page walker against what proofs of the page manager take it to do; proved for all times."""

from typing import Any

import pytest
from amaranth.hdl import Assume, Cat, Const, Cover, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnySeq
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from m890.hdl.commands import Error
from m890.hdl.memory.queue import Queue
from m890.hdl.pages import walker
from m890.testbench.formal.contracts import checks
from m890.testbench.formal.page_words import chosen
from m890.testbench.formal.small import PAGES, Inside, again, few_bits, small
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
BEATS, EACH, ROOM, PIECE = 3, 4, 2, 2
"""Beats of the longest list, numbers in one; beats that the walker has room for, and asks for."""
NUMBER, PLACE = 3, 5
"""Bits of a number, half of which name no page; of counts of entries."""
ASKS = "the list's beats are asked for once, in order, and never more than there is room for"
GIVES = "each entry is given to the store once, in order, as the walk says"
ENDS = "a walk tells what became of it: its first failure, or that each entry has been done"
LEAVES = "a walk that has ended leaves nothing under way"
COUNTS = "the walker's registers say how far it is"


class NoQueue(Queue):
    """The proof plays it, as `test_queue` proves it."""

    def elaborate(self, platform: Any) -> Module:
        return Module()


class Contract(wiring.Component):
    """Walks, one behind the other, over any lists.

    Memory answers at any time, the store ends operations at any time and anyhow; beats may be
    broken. Behind a failure the store changes nothing (`test_page_store`): operations that are
    still given then are none. `only` leaves out every assertion but the one of that name.
    """

    over: Out(1)

    def __init__(self, *change: tuple[str, str], only: str = "") -> None:
        self._assert = checks(only)
        module = again(walker, *change, Queue=NoQueue, ROOM=ROOM, PIECE=PIECE)
        self._unit = module.PageWalker(small(pages=PAGES))
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self._inner = inner = Inside(self._unit, platform)
        m.submodules.unit = inner.module
        self._start(m)
        self._memory(m)
        self._store(m)
        self._results(m)
        self._hold(m)
        return m

    def _start(self, m: Module) -> None:
        """A walk may start whenever there is none; it and its list stay as they are then."""
        unit, some = self._unit, Signal.like(self._unit.walk, name="some")
        self.walk: Any = Signal.like(unit.walk, name="given_walk")
        self.first, self.starts = Signal(2), Signal()
        self.numbers = [Signal(NUMBER, name=f"number{n}") for n in range(BEATS * EACH)]
        self.broken = [Signal(name=f"broken{n}") for n in range(BEATS)]
        first, count = AnySeq(2), AnySeq(len(unit.walk.count))
        some_: Any = some
        m.d.comb += [
            self.starts.eq(AnySeq(1) & ~unit.busy), unit.start.eq(self.starts), unit.walk.eq(some),
            some_.address.eq(first << 2), some_.count.eq(count), some_.op.eq(AnySeq(4)),
            some_.pin.eq(AnySeq(1)), some_.tenant.eq(AnySeq(1)), some_.plain.eq(AnySeq(1)),
            some_.bound.eq(AnySeq(NUMBER)),
            Assume(some_.op.as_value() <= 8, "operations that there are"),
        ]  # fmt: skip
        with m.If(self.starts):
            m.d.sync += [self.walk.eq(some), self.first.eq(first)]
            m.d.sync += [n.eq(AnySeq(len(n))) for n in (*self.numbers, *self.broken)]

    def _counter(self, m: Module, name: str, step: Any) -> Signal:
        """What has happened in this walk."""
        counter = Signal(PLACE, name=name)
        m.d.sync += counter.eq(Mux(self.starts, 0, counter + step))
        return counter

    def _memory(self, m: Module) -> None:
        """Beats in order, and the queue that they wait in."""
        read, queue = self._unit.read, self._inner["beats"]
        request = read.request
        asks, takes = request.valid & request.ready, queue.o.valid & queue.o.ready
        self.asked = self._counter(m, "asked", Mux(asks, request.payload.beats[:3], 0))
        self.come = self._counter(m, "come", read.data_valid)
        self.used = self._counter(m, "used", takes)
        row = [Cat(*(Cat(n, Const(0, 32 - NUMBER)) for n in self.numbers[b : b + EACH]))
               for b in range(0, BEATS * EACH, EACH)]  # fmt: skip
        self.offered = Signal()
        m.d.sync += self.offered.eq(queue.o.valid & ~queue.o.ready)
        m.d.comb += [
            request.ready.eq(AnySeq(1)), read.data_valid.eq(AnySeq(1)),
            Assume(~read.data_valid | (self.asked != self.come), "memory answers what was asked"),
            queue.level.eq(self.come - self.used), queue.i.ready.eq(1),
            queue.o.valid.eq((self.come != self.used) & (AnySeq(1) | self.offered)),
            queue.o.payload.data.eq(chosen(row, self.used)),
            queue.o.payload.error.eq(chosen(self.broken, self.used)),
        ]  # fmt: skip

    def _store(self, m: Module) -> None:
        """Takes operations at any time, and ends them in order; `idle` a cycle before the last."""
        unit, operation = self._unit, self._unit.operation
        leaves, done = Signal(), Signal(name="done")
        takes = operation.valid & operation.ready
        self.given = self._counter(m, "given", takes)
        self.left = self._counter(m, "gone", leaves)
        m.d.sync += done.eq(leaves)
        m.d.comb += [
            operation.ready.eq(AnySeq(1)), leaves.eq(AnySeq(1) & (self.given != self.left)),
            unit.done.eq(done), unit.idle.eq(self.given == self.left),
            unit.outcome.error.eq(AnySeq(8)), unit.outcome.shared.eq(AnySeq(1)),
        ]  # fmt: skip

    def _results(self, m: Module) -> None:
        """What operations became, up to the first that failed."""
        unit, outcome = self._unit, self._unit.outcome
        self.failed, self.error = Signal(), Signal(8)
        good = unit.done & ~self.failed & (outcome.error == Error.OK)
        self.done = self._counter(m, "done_well", good)
        self.ended = self._counter(m, "ended", unit.done)
        self.shared = self._counter(m, "shared_pages", good & outcome.shared)
        with m.If(unit.done & ~self.failed & (outcome.error != Error.OK)):
            m.d.sync += [self.failed.eq(1), self.error.eq(outcome.error)]
        with m.If(self.starts):
            m.d.sync += self.failed.eq(0)

    def _entry(self, n: Value) -> Value:
        return chosen(self.numbers, (self.first + n)[:4])

    def _bad_beat(self, n: Value) -> Value:
        """Whether the beat of the n-th entry is broken."""
        return chosen(self.broken, (self.first + n)[2:4])

    def _fine(self, until: Value) -> tuple[Value, Value]:
        """Of a plain walk: entries of `until` ahead of the first that is out of bounds; are all."""
        count, going = Const(0, 1), Const(1, 1)
        for n in range(BEATS * EACH):
            there = going & (until > n)
            fine = self._entry(Const(n, PLACE)) < self.walk.bound
            count, going = count + (there & fine), going & ((until <= n) | fine)
        return count, going

    def _hold(self, m: Module) -> None:
        unit, inner, walk = self._unit, self._inner, self.walk
        given, held_valid, own = inner["given"], inner["held_valid"], inner["walk"]
        walks, drains = inner.state("walk", "WALK"), inner.state("walk", "DRAIN")
        idle = inner.state("walk", "IDLE")
        beats = (self.first + walk.count + EACH - 1) >> 2
        request, payload = unit.read.request, unit.operation.payload
        ask = Cat(
            request.payload.address == self.asked << 4, request.payload.beats != 0,
            self.asked + request.payload.beats <= beats,
            self.asked + request.payload.beats - self.used <= ROOM,
        ).all()  # fmt: skip
        number = self._entry(self.given)
        give = Cat(
            payload.op == walk.op, payload.pin == walk.pin, payload.tenant == walk.tenant,
            payload.bad == (number >= PAGES), payload.bad | (payload.number == number),
            ~walk.plain, self.given < walk.count,
        ).all()  # fmt: skip
        fine, all_fine = self._fine(walk.count)
        whole = (unit.error == Error.OK) & (unit.index == walk.count)
        cut = (unit.error == Error.BUS_ERROR) & self._bad_beat(unit.index)
        stopped = unit.error == Mux(walk.plain, Error.BAD_RANGE, self.error)
        failed = Mux(walk.plain, (unit.index == fine) & ~all_fine, self.failed)
        done = walk.plain | (unit.index == self.done) & (unit.shared == self.shared)
        plain = ~walk.plain | (unit.index <= fine)
        last = (walk.count == 0) | (unit.number == self._entry(walk.count - 1))
        told = Cat(
            done & plain, whole & last | cut | stopped & failed,
            (unit.index <= walk.count) & (whole | (unit.index != walk.count)),
        ).all()  # fmt: skip
        left = Cat(
            idle, ~held_valid, inner["here"] == 0, self.used == self.asked,
            self.come == self.asked, self.given == self.left, ~unit.done, ~request.valid,
            ~unit.operation.valid,
        ).all()  # fmt: skip
        began = Signal()  # a walk, ever
        m.d.sync += began.eq(began | self.starts)
        m.d.comb += [
            self._assert(~request.valid | ask, ASKS),
            self._assert(~unit.operation.valid | give, GIVES),
            self._assert(unit.busy | ~began | told, ENDS),
            self._assert(unit.busy | left, LEAVES),
            self._assert(
                ~unit.busy | self._far(given, held_valid, own, walks, drains, beats), COUNTS
            ),
            self.over.eq(~unit.busy & began),
            Cover(~unit.busy & (unit.index == 6) & ~walk.plain, "a walk over two beats"),
            Cover(~unit.busy & (unit.error == Error.BUS_ERROR) & (unit.index > 1), "is cut"),
        ]

    def _far(
        self, given: Any, held_valid: Any, own: Any, walks: Any, drains: Any, beats: Any
    ) -> Value:
        """How registers, and what has happened, go together while a walk is under way."""
        unit, inner, walk = self._unit, self._inner, self.walk
        here, left, failed, broken = (inner[n] for n in ("here", "left", "failed", "broken"))
        looked = (given - held_valid)[: len(given)]  # entries that have been passed on
        fine, all_fine = self._fine(looked)
        whole_beats = [(given <= n) | ~self._bad_beat(Const(n, PLACE)) for n in range(BEATS * EACH)]
        same = [own[f] == walk[f] for f in ("op", "pin", "tenant", "plain", "bound", "count")]
        return Cat(
            walks | drains, *same, *whole_beats,
            own.address == (self.asked << 4) + (self.first << 2),
            left + self.asked == beats, here == self.asked - self.used,
            self.used <= self.come, self.come <= self.asked, self.asked <= beats, here <= ROOM,
            given <= walk.count, ~held_valid | (given != 0),
            drains | ((self.used << 2) + inner["word"] == self.first + given),
            ~held_valid | (inner["held"] == self._entry(given - 1)),
            held_valid | (given == 0) | (unit.number == self._entry(given - 1)),
            self.given == Mux(walk.plain, 0, looked),
            self.left == self.ended + unit.done, self.left <= self.given,
            self.ended <= self.left, self.shared <= self.done,
            failed | (unit.error == Error.OK),
            ~broken | (given < walk.count) & self._bad_beat(given),
            ~(broken & walks) | (self.come != self.used) & self.offered,
            ~drains | failed | broken & ~held_valid | (unit.index == walk.count),
            Mux(
                walk.plain,
                (unit.index == fine) & (failed == ~all_fine)
                & (~failed | (unit.error == Error.BAD_RANGE)),
                (unit.index == self.done) & (unit.shared == self.shared) & (failed == self.failed)
                & (failed | (self.ended == self.done)) & (~failed | (unit.error == self.error))
                & (self.done <= self.ended) & (~failed | (self.done < self.ended)),
            ),
        ).all()  # fmt: skip


@pytest.fixture(autouse=True)
def few(monkeypatch):
    few_bits(monkeypatch)


def test_a_walk_does_what_it_says():
    proof = prove(Contract(), depth=2, mode="induction")
    assert proof, proof
    reached = prove(Contract(), depth=24, mode="cover")
    assert reached, reached


TWINS = {
    "there is always room for a beat": ("here <= ROOM - PIECE", "here <= ROOM", ASKS),
    "an entry is given twice": (
        "given.eq(given + 1), word.eq(word + 1),", "given.eq(given + 1),", GIVES
    ),
    "the walk goes on behind a failure": ("with m.If(~failed):", "with m.If(~drop):", ENDS),
    "the end does not wait for the store": (
        "(here == 0) & ~held_valid & self.idle & ~self.done", "(here == 0) & ~held_valid", LEAVES
    ),
}  # fmt: skip
"""A line of the walker changed, and what then does not hold."""


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_walk_is_found(twin):
    old, new, message = TWINS[twin]
    proof = prove(Contract((old, new), only=message), depth=14)
    assert message in proof.broken, proof
