"""The page store under any operations, in a small instance; proved for all times."""

from typing import Any

import pytest
from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnySeq
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from m890.hdl.commands import Error
from m890.hdl.pages import store as store_module
from m890.hdl.pages.layouts import Op, operation_layout, page_layout
from m890.testbench.formal.contracts import source_keeps_rules
from m890.testbench.formal.page_words import (
    FREE,
    HELD,
    ONCE,
    PIPELINE,
    StoreInside,
    changed,
    chosen,
    judge,
    reads,
    total,
    writes,
)
from m890.testbench.formal.small import (
    PAGES,
    TABLE,
    Inside,
    Table,
    again,
    few_bits,
    small,
)
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
WORDS = "a page's word is what its operations make of it"
ANSWER = "an operation ends as it should"
OWNER = "an owner is told as it was when it was asked for"


class Contract(wiring.Component):
    """A store that is given any operation at any time.

    Beside it the pages as the operations, one after the other, should leave them. `change` makes
    the store's twin.
    """

    any: Out(1)

    def __init__(self, *change: tuple[str, str]) -> None:
        self._config = small()
        self._store = again(store_module, *change, SecdedSram=Table).PageStore(self._config)
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config, store = self._config, self._store
        inner = Inside(store, platform)
        m.submodules.store = inner.module
        has = StoreInside(config, store, inner)
        operation = operation_layout(config)
        given: Any = Signal(operation)
        m.d.comb += [
            given.eq(AnySeq(operation.size)),
            store.i.valid.eq(AnySeq(1)), store.i.payload.eq(given),
            store.restart.eq(AnySeq(1)), store.forget.eq(AnySeq(1)),
            Assume(given.op.as_value() <= max(op.value for op in Op), "operations that there are"),
            Assume(~store.forget | store.idle & ~store.i.valid, "forget comes while idle"),
            Assume(~given.bad | (given.op.as_value() <= Op.COLLECT.value), "lists have bad pages"),
        ]  # fmt: skip
        self._beside(m, has, given)
        self._owner(m, has)
        has.hold(m)
        m.d.comb += self.any.eq(store.done)
        return m

    def _owner(self, m: Module, has: StoreInside) -> None:
        """Questions for owners, at any time; the answer is of the cycle of the question."""
        port = self._store.owner
        request, told = port.request, port.owner
        m.d.comb += [request.valid.eq(AnySeq(1)), request.payload.eq(AnySeq(2))]
        asks = request.valid & request.ready
        source_keeps_rules(m, request, "owner")
        words = [has.known(p) for p in range(PAGES)]
        word: Any = Signal(page_layout(self._config), name="owner_word")
        asked: list[Any] = [Signal(len(word.as_value()), name=f"asked{n}") for n in range(2)]
        come = [Signal(name=f"come{n}") for n in range(2)]
        m.d.comb += word.eq(chosen(words, request.payload))
        m.d.sync += [
            come[0].eq(asks), asked[0].eq(Mux(self._store.forget, 0, word)),
            come[1].eq(come[0]), asked[1].eq(asked[0]),
        ]  # fmt: skip
        old: Any = data.View(page_layout(self._config), asked[1])
        same = (told.tenant == old.tenant) & (told.public == old.public)
        same &= told.shared == (old.references + old.pins > 1)
        m.d.comb += Assert(port.valid == come[1], OWNER)
        with m.If(port.valid):
            m.d.comb += Assert((told.live == old.live) & (~old.live | same), OWNER)

    def _beside(self, m: Module, has: StoreInside, given: Any) -> None:
        """The operations in order, each on words that are changed at once."""
        config, store = self._config, self._store
        layout = page_layout(config)
        words = [data.View(layout, Signal(layout.size, name=f"page{p}")) for p in range(PAGES)]
        queue: list[Any] = [Signal(operation_layout(config), name=f"given{n}") for n in range(2)]
        here = [Signal(name=f"here{n}") for n in range(2)]
        halted, error = Signal(), Signal(8)
        m.d.sync += [
            here[0].eq(store.i.valid & store.i.ready), queue[0].eq(given),
            here[1].eq(here[0]), queue[1].eq(queue[0]),
        ]  # fmt: skip
        op, now = queue[1], here[1]
        page = Mux(op.op == Op.TAKE, has.two.number, op.number)
        old = data.View(layout, Mux(reads(op), chosen(words, page), 0))
        live = total(word.live for word in words)
        outcome: Any = Signal(8)
        m.d.comb += outcome.eq(judge(op, old, live == PAGES))
        acts = now & ~halted & (outcome == Error.OK)
        new: Any = Signal(layout)
        m.d.comb += new.eq(changed(op, old))
        for p, word in enumerate(words):
            with m.If(acts & writes(op) & (page == p)):
                m.d.sync += word.eq(new)
            with m.If(store.forget):
                m.d.sync += word.eq(0)
        with m.If(now):
            m.d.sync += error.eq(outcome)
            with m.If(outcome != Error.OK):
                m.d.sync += halted.eq(1)
        with m.If(store.restart):
            m.d.sync += halted.eq(0)
        same = [
            Mux(has.known(p).live, Value.cast(has.known(p)), 0) == Value.cast(words[p])
            for p in range(PAGES)
        ]
        m.d.comb += [
            Assert(Cat(*same).all(), WORDS),
            Assert(
                (store.outcome.error == error) & (has.halted == halted) & (has.two_valid == now),
                ANSWER,
            ),
            Cover(live == PAGES, "every page is in use"),
            Cover(has.listed == 2, "two pages are in the free list"),
        ]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    few_bits(monkeypatch)


def test_a_page_is_in_use_or_free_once():
    proof = prove(Contract(), depth=3, mode="induction", anything=TABLE)
    assert proof, proof
    reached = prove(Contract(), depth=36, mode="cover", anything=TABLE)
    assert reached, reached


TWINS = {
    "a freed page is not written": ("go & changes | frees | takes", "go & changes | takes", ONCE),
    "the list is not shorter after TAKE": (
        "[head.eq(word.references), listed.eq(listed - 1)]", "head.eq(word.references)", ONCE
    ),
    "free pages that were taken once are forgotten": (
        "listed + config.pages - fresh", "config.pages - fresh", FREE
    ),
    "whoever gives a page up is credited": (
        "tenant.eq(Mux(frees, word.tenant, two.tenant))", "tenant.eq(two.tenant)", HELD
    ),
    "two operations in a row on a page": (
        "hazard = one_valid & (one.number == wanted) | two_valid", "hazard = two_valid", PIPELINE
    ),
    "a pinned page is freed": (
        "(word.references == 0) & (word.pins == 0)", "(word.references == 0)", WORDS
    ),
    "operations behind one that failed": (
        "two_valid & ~halted & (error", "two_valid & (error", WORDS
    ),
    "an owner is told while the page's word is written": (
        "ask_owner.ready.eq(self.ready & ~(two_valid & (two.number == ask_owner.payload)))",
        "ask_owner.ready.eq(self.ready)", OWNER
    ),
    "public pages are refused": (
        "(word.tenant != two.tenant) & ~word.public", "word.tenant != two.tenant", ANSWER
    ),
}  # fmt: skip
"""One line of the store changed, and what then does not hold."""


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_store_is_found(twin):
    old, new, message = TWINS[twin]
    proof = prove(Contract((old, new)), depth=22, anything=TABLE)
    assert message in proof.broken, proof
