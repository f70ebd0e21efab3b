"""The page manager behind reset, and behind FORGET: the first state that its proofs go on from."""

from typing import Any

import pytest
from amaranth.hdl import Assert, Assume, Cat, Cover, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnyConst, AnySeq, Initial
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from m890.hdl.pages import manager, store
from m890.hdl.pages.layouts import page_layout
from m890.testbench.formal.page_parts import page_manager
from m890.testbench.formal.page_state import (
    NUMBER,
    PAGES,
    PIN_BITS,
    PLACES,
    REFERENCE_BITS,
    PageState,
)
from m890.testbench.formal.page_words import HELD, ONCE, StoreInside
from m890.testbench.formal.small import SEQUENCES, TABLE, Inside, Table, again, few_bits, small
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
SWEEP = 4
"""Cycles until all tables are swept."""
READY = "the sweep ends"
NOBODY = "no page is in use, no sequence open, and a tenant may hold all pages"


class Contract(wiring.Component):
    """A manager, its page store with it, that is given no command.

    `forgets`: its first cycle is FORGET's, behind any commands; else it is that of reset, with
    anything in its memories. FORGET may come again at any time.
    """

    any: Out(1)

    def __init__(self, forgets: bool, twin: Any = None, *change: tuple[str, str]) -> None:
        self._config, self._forgets = small(pages=PAGES), forgets
        lines = change if twin is store else ()
        part = again(store, *lines, SecdedSram=Table).PageStore
        self._unit = page_manager(twin, *change, PageStore=part)(self._config)
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config, unit = self._config, self._unit
        inner = Inside(unit, platform)
        m.submodules.unit = inner.module
        has = StoreInside(config, inner["store"], inner.blocks["store"])
        words: list[Any] = []
        for page in range(PAGES):
            live = has.known(page).live
            words.append(data.View(page_layout(config), Mux(live, Value.cast(has.known(page)), 0)))
        memory: list[list[Any]] = [
            [AnyConst(NUMBER) for _ in range(PLACES)] for _ in range(SEQUENCES)
        ]
        sequences, lengths = inner["sequences"].words, inner["lengths"].words
        state = PageState(config, words, sequences, lengths, memory)
        since = Signal(3)
        m.d.comb += [
            unit.forget.eq(Initial() if self._forgets else AnySeq(1)),
            Assume(~unit.forget | unit.idle, "FORGET comes while idle"),
        ]
        m.d.sync += since.eq(Mux(unit.forget, 0, since + (since != SWEEP)))
        swept = unit.ready & ~(Initial() & self._forgets)
        if self._forgets:
            with m.If(Initial()):
                m.d.comb += Assume(has.quiet() & has.store.ready & unit.ready, "while idle")
                has.hold(m, Assume)
        with m.If(~Initial()):
            has.hold(m)
        state.hold(m, swept, Assert)
        none = Cat(
            *(~word.live for word in words),
            *(~one.open for one in sequences),
            *((entry.held == 0) & (entry.quota == PAGES) for entry in has.tenants.words),
        ).all()
        m.d.comb += [
            Assert(~swept | none, NOBODY),
            Assert((since != SWEEP) | unit.ready, READY),
            Cover(swept & ~Initial(), "all is swept"),
            self.any.eq(unit.ready),
        ]
        return m


FORGETTING = r"(?!manager_state|_operating|entries|entry__|since)\S+"
RESET = {False: TABLE, True: FORGETTING}
"""What starts with anything."""


@pytest.fixture(autouse=True)
def few(monkeypatch):
    few_bits(monkeypatch, REFERENCE_BITS, PIN_BITS)


@pytest.mark.parametrize("forgets", RESET, ids=("reset", "forget"))
def test_all_is_free_at_first(forgets):
    proof = prove(Contract(forgets), depth=8, anything=RESET[forgets])
    assert proof, proof
    reached = prove(Contract(forgets), depth=8, mode="cover", anything=RESET[forgets])
    assert reached, reached


TWINS = {
    "the last sequence is not swept": (
        False, manager, "sweep == config.sequences - 1", "sweep == config.sequences - 2", NOBODY
    ),
    "a tenant's pages are not swept": (False, store, "new.held.eq(0),", "new.held.eq(1),", HELD),
    "the free list is not forgotten": (
        True, store, "listed.eq(0), fresh.eq(0)]", "fresh.eq(0)]", ONCE
    ),
}  # fmt: skip
"""After FORGET or not, a line changed, and what then does not hold."""


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_sweep_is_found(twin):
    forgets, module, old, new, message = TWINS[twin]
    proof = prove(Contract(forgets, module, (old, new)), depth=8, anything=RESET[forgets])
    assert message in proof.broken, proof
