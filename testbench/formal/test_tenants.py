"""A job never issues a read outside its tenant's pages: translation beside any block tables."""

from types import ModuleType
from typing import Any

import pytest
from amaranth.hdl import Assert, Assume, Cover, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from m890.hdl.config import preset
from m890.hdl.kv import translate
from m890.hdl.kv.items import ItemKind
from m890.hdl.pages import guard
from m890.testbench.formal.contracts import source_keeps_rules
from m890.testbench.formal.small import again
from m890.testbench.formal.streams import anything
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
CONFIG = preset("tiny").with_(address_bits=32, pages=4, tenants=2)
STRIDE = 12
"""log2 of the bytes from a page to the next; more than any page of this core has."""
DEPTH = 20
OWN = "what is read lies in a page that its owner lets the job's tenant reach"
ASKED = "a page is asked for before it is read, anew for each chunk"


class Contract(wiring.Component):
    """A translator that is given any entries; block tables name any pages, owners are anybody.

    An entry's tenant is the lowest bit of its `ident`, so that it can be told where it leaves.
    """

    any: Out(1)

    def __init__(self, twin: ModuleType | None = None, *change: tuple[str, str]) -> None:
        checks = again(guard, *(change if twin is guard else ()))
        lines = change if twin is translate else ()
        module = again(translate, *lines, PageGuard=checks.PageGuard, PENDING=2, READS=2)
        self._translator = module.Translator(CONFIG)
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.translator = unit = self._translator
        entry, table, owner = unit.i.payload, unit.table, unit.owner
        for port in (unit.i.valid, unit.i.payload, unit.o.ready, table.request.ready,
                     table.data_valid, table.data, table.error, owner.request.ready,
                     owner.valid, owner.owner):  # fmt: skip
            anything(m, port)
        source_keeps_rules(m, unit.i, "entry")
        owed, open_ = Signal(4), Signal()
        m.d.sync += owed.eq(owed + (table.request.valid & table.request.ready) - table.data_valid)
        asks = owner.request.valid & owner.request.ready
        m.d.sync += open_.eq((open_ | asks) & ~owner.valid)
        m.d.comb += [
            Assume(~table.data_valid | (owed != 0), "memory answers what was asked"),
            Assume(~owner.valid | open_, "the page table answers what was asked"),
            Assume(entry.tenant == entry.item.ident[0], "the tenant can be told"),
            Assume((entry.base == 0) & (entry.stride == 1 << STRIDE), "addresses tell the page"),
            Assume((entry.item.tiles != 0) & (entry.item.tiles <= CONFIG.max_tiles), "a head"),
        ]
        self._follow(m, asks)
        return m

    def _follow(self, m: Module, asks: Any) -> None:
        """The last question and its answer, against what leaves."""
        unit = self._translator
        owner, item = unit.owner, unit.o.payload.item
        number, answered = Signal.like(owner.request.payload), Signal()
        told: Any = Signal.like(owner.owner)
        leaves = unit.o.valid & unit.o.ready
        with m.If(leaves):
            m.d.sync += answered.eq(0)
        with m.If(asks):
            m.d.sync += [number.eq(owner.request.payload), answered.eq(0)]
        with m.If(owner.valid):
            m.d.sync += [told.eq(owner.owner), answered.eq(1)]
        first, second = unit.o.payload.address, unit.o.payload.v_address
        mine = told.public | (told.tenant == item.ident[0])
        with m.If(unit.o.valid & (item.kind == ItemKind.CHUNK)):
            m.d.comb += [
                Assert(answered & (first >> STRIDE == number), ASKED),
                Assert(told.live & ~told.damaged & mine & (second >> STRIDE == number), OWN),
            ]
        chunks = Signal(2)
        m.d.sync += chunks.eq(chunks + (leaves & (item.kind == ItemKind.CHUNK)))
        m.d.comb += [
            self.any.eq(leaves),
            Cover(chunks == 1, "a chunk leaves"),
            Cover(leaves & (item.kind == ItemKind.END) & (item.error != 0), "a page is refused"),
        ]


TWINS = {
    "pages are everybody's": (
        guard, "allowed = owner.public | (owner.tenant == tenant)",
        "allowed = owner.public | ~owner.public", OWN,
    ),
    "free pages are read": (guard, "owner.live,", "owner.live | ~owner.live,", OWN),
    "the verdict is passed over": (
        translate, "with m.If(guard.error != Error.OK):", "with m.If(guard.error == 255):", OWN
    ),
    "a page that there is not needs no verdict": (
        guard, "self.error.eq(Error.BAD_PAGE),", "self.error.eq(Error.OK),", ASKED
    ),
}  # fmt: skip
"""A line of the guard or of translation changed, and what then does not hold."""


def test_a_job_reads_its_tenants_pages_only():
    proof = prove(Contract(), depth=DEPTH)
    assert proof, proof
    reached = prove(Contract(), depth=DEPTH, mode="cover")
    assert reached, reached


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_check_is_found(twin):
    module, old, new, message = TWINS[twin]
    proof = prove(Contract(module, (old, new)), depth=DEPTH)
    assert message in proof.broken, proof
