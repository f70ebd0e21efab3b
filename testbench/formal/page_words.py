"""What holds of the page store's words, free list and pipeline in every cycle."""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Assert, Cat, Const, Module, Mux, Value
from amaranth.lib import data

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
