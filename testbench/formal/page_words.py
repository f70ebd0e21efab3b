"""What operations do to a page's word, and what holds of the page store in every cycle."""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Assert, Cat, Const, Module, Mux, Value
from amaranth.lib import data

from m890.hdl.commands import Error
from m890.hdl.config import CoreConfig
from m890.hdl.pages.layouts import Op, page_bits, page_layout
from m890.testbench.formal.small import Inside

ONCE = "a page is in use, or in the free list once, or was never taken"
FREE = "the free pages are those that are not in use"
HELD = "a tenant holds as many pages as are in use and its"
PIPELINE = "an operation in the pipeline has its page's word"
SWEEP = "the sweep leaves no tenant out"


def total(bits: Any) -> Value:
    """How many are true."""
    result: Value = Const(0, 1)
    for bit in bits:
        result = result + bit
    return result


def chosen(values: list[Any], index: Value) -> Value:
    """values[index], or the last."""
    result = Value.cast(values[-1])
    for n, value in enumerate(values[:-1]):
        result = Mux(index == n, value, result)
    return result


class StoreInside:
    """The state of a PageStore, by the names that it has there, with Tables for memories."""

    def __init__(self, config: CoreConfig, store: Any, inner: Inside) -> None:
        self.config, self.store, self.inner = config, store, inner
        self.pages, self.tenants = inner["pages"], inner["tenants"]
        self.head, self.listed, self.fresh = inner["head"], inner["listed"], inner["fresh"]
        self.one, self.two, self.word = inner["one"], inner["two"], inner["word"]
        self.one_valid, self.two_valid = inner["one_valid"], inner["two_valid"]
        self.halted, self.counting, self.sweep = inner["halted"], inner["counting"], inner["sweep"]
        counts = inner.names["_count"]
        self.tenant, self.more, self.less = counts["tenant"], counts["more"], counts["less"]

    def known(self, page: int) -> Any:
        """The page's word; zero, where it was never taken."""
        word = Value.cast(self.pages.words[page])
        return data.View(page_layout(self.config), Mux(self.fresh > page, word, 0))

    def quiet(self) -> Value:
        """No operation is under way."""
        return ~self.one_valid & ~self.two_valid & ~self.counting

    def hold(self, m: Module, check: Callable[..., Any] = Assert) -> None:
        """What holds, as assertions or assumptions; one a line, as lines are their names."""
        live = total(self.known(p).live for p in range(self.config.pages))
        m.d.comb += [
            check(self._once(), ONCE),
            check(self.store.free == self.config.pages - live, FREE),
            check(self._held(), HELD),
            check(self._pipeline(), PIPELINE),
            check(self._sweep(), SWEEP),
        ]

    def _once(self) -> Value:
        pages = self.config.pages
        at, places = self.head, [Const(0, 4)] * pages
        for n in range(pages):
            there = self.listed > n
            places = [places[p] + (there & (at == p)) for p in range(pages)]
            at = chosen([w.references[: page_bits(self.config)] for w in self.pages.words], at)
        once = [
            places[p] == ((self.fresh > p) & ~self.known(p).live) for p in range(pages)
        ]  # fmt: skip
        return Cat(*once).all() & (self.listed <= self.fresh) & (self.fresh <= pages)

    def _held(self) -> Value:
        holds = []
        for t, entry in enumerate(self.tenants.words):
            pages = [self.known(p) for p in range(self.config.pages)]
            live = total(w.live & (w.tenant == t) for w in pages)
            mine = self.counting & (self.tenant == t)  # a change that is still to be written
            now = entry.held + (mine & self.more)
            holds.append(
                (now == live + (mine & self.less)) | (~self.store.ready & (self.sweep <= t))
            )
        return Cat(*holds).all()

    def _pipeline(self) -> Value:
        one, two = self.one, self.two
        words = [Value.cast(w) for w in self.pages.words]
        taken = Mux(self.listed == 0, self.fresh, self.head)
        read = chosen([Value.cast(w) for w in self.tenants.words], self.tenant)
        written = self.inner.state("counts", "WRITE")
        known = reads(two) & (two.number < self.fresh)
        return Cat(
            ~self.one_valid | (Value.cast(self.pages.read[0]) == chosen(words, one.number)),
            ~self.two_valid | (Value.cast(self.word) == Mux(known, chosen(words, two.number), 0)),
            ~(self.one_valid & self.two_valid)
            | (one.number != two.number) & ~alone(one) & ~alone(two),
            *(
                ~valid | (op.op != Op.TAKE) | (op.number == taken[: len(op.number)])
                for valid, op in ((self.one_valid, one), (self.two_valid, two))
            ),
            self.counting == (self.inner.state("counts", "READ") | written),
            self.counting == ~self.inner.state("counts", "IDLE"),
            ~self.counting | ~self.one_valid & ~self.two_valid & ~(self.more & self.less),
            ~written | (Value.cast(self.tenants.read[0]) == read),
        ).all()

    def _sweep(self) -> Value:
        swept = self.store.ready
        return Cat(
            swept | (self.sweep < self.config.tenants),
            swept | self.quiet() & (self.listed == 0) & (self.fresh == 0),
        ).all()


def alone(operation: Any) -> Value:
    """Operations that the store carries out one at a time."""
    return Cat(*(operation.op == op for op in (Op.COLLECT, Op.TAKE, Op.TENANT, Op.QUOTA))).any()


def reads(operation: Any) -> Value:
    """Operations on a page that there is."""
    return ~operation.bad & (operation.op != Op.TENANT) & (operation.op != Op.QUOTA)


def writes(op: Any) -> Value:
    kinds = (Op.HOLD, Op.DROP, Op.MARK, Op.COLLECT, Op.TAKE)
    return Cat(*(op.op == kind for kind in kinds)).any() & ~op.bad


def judge(op: Any, old: Any, none_free: Value) -> Value:
    """The error of an operation on a page with the word `old`, as docs/pages.md has it."""
    count = Mux(op.pin, old.pins, old.references)
    full = Mux(op.pin, old.pins.all(), old.references.all())
    rules = [
        ((op.op == Op.TENANT) | (op.op == Op.QUOTA) | (op.op == Op.COLLECT), Error.OK),
        (op.op == Op.TAKE, Mux(none_free, Error.OUT_OF_PAGES, Error.OK)),
        (op.bad | ~old.live, Error.BAD_PAGE),
        (~old.public & (old.tenant != op.tenant), Error.BAD_TENANT),
        ((op.op == Op.HOLD) & full, Error.TOO_SHARED),
        ((op.op == Op.DROP) & (count == 0), Mux(op.pin, Error.NOT_PINNED, Error.BAD_PAGE)),
        ((op.op == Op.PINNED) & (old.pins == 0), Error.NOT_PINNED),
    ]
    result: Any = Error.OK
    for condition, error in reversed(rules):
        result = Mux(condition, error, result)
    return result


def changed(op: Any, old: Any) -> Value:
    """The word after an operation that succeeds; a free page's is zero."""
    pins, references = old.pins, old.references
    step = Mux(op.op == Op.HOLD, 1, -1)
    word = Mux(
        op.pin,
        Cat(old.live, old.public, old.tenant, (pins + step)[: len(pins)], references),
        Cat(old.live, old.public, old.tenant, pins, (references + step)[: len(references)]),
    )
    held = (pins != 0) | (references != 0)
    taken = Cat(Const(1), Const(0), op.tenant, op.pin, Const(0, len(pins) - 1), ~op.pin)
    marked = Value.cast(old) | Cat(Const(0), Const(1))
    others = Mux(op.op == Op.TAKE, taken, Mux(held, Value.cast(old), 0))  # TAKE, COLLECT
    return Mux((op.op == Op.HOLD) | (op.op == Op.DROP), word, Mux(op.op == Op.MARK, marked, others))
