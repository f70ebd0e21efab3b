"""No job reads and no append writes outside its tenant's pages, whatever block tables say."""

from types import ModuleType
from typing import Any

import pytest
from amaranth.hdl import Assert, Assume, Cover, Module, Signal, Value
from amaranth.hdl._ast import AnyConst
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from m890.hdl.config import preset
from m890.hdl.kv import append_place, translate
from m890.hdl.kv.items import ItemKind
from m890.hdl.pages import guard
from m890.testbench.formal.contracts import source_keeps_rules
from m890.testbench.formal.small import Inside, again
from m890.testbench.formal.streams import anything
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
CONFIG = preset("tiny").with_(address_bits=32, pages=4, tenants=2)
STRIDE = 12
"""log2 of the bytes from a page to the next; more than any page of this core has."""
DEPTH = 20
PLACES_DEPTH = 26
OWN = "what is read lies in a page that its owner lets the job's tenant reach"
ASKED = "a page is asked for before it is read, anew for each chunk"
WRITTEN = "places lie in pages that their owner lets the command write"
PLACED = "a page is asked for before a place in it is given, anew for each chunk"


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
        guard, "with m.Elif(~mine & (alone | ~owner.public)):", "with m.Elif(mine & ~mine):", OWN
    ),
    "free pages are read": (guard, "m.Elif(~owner.live | mine &", "m.Elif(mine &", OWN),
    "the verdict is passed over": (
        translate, "with m.If(guard.error != Error.OK):", "with m.If(guard.error == 255):", OWN
    ),
    "a page that there is not needs no verdict": (
        guard, "self.done.eq(~known), self.error.eq(Error.BAD_PAGE),",
        "self.done.eq(~known), self.error.eq(Error.OK),", ASKED,
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


class PlacesContract(wiring.Component):
    """Places of any APPEND, one after the other; block tables and owners are any, at any time.

    What is proved is what enters the queue of places; queues have a proof of their own.
    """

    any: Out(1)

    def __init__(self, twin: ModuleType | None = None, *change: tuple[str, str]) -> None:
        checks = again(guard, *(change if twin is guard else ()))
        lines = change if twin is append_place else ()
        module = again(append_place, *lines, PageGuard=checks.PageGuard)
        self._places = module.AppendPlaces(CONFIG)
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        unit = self._places
        inner = Inside(unit, platform)
        m.submodules.places = inner.module
        job, table, owner = unit.job, unit.table, unit.owner
        for port in (unit.start, unit.stop, unit.o.ready, table.request.ready, table.data_valid,
                     table.data, table.last, table.error, owner.request.ready, owner.valid,
                     owner.owner):  # fmt: skip
            anything(m, port)
        m.d.comb += Value.cast(job).eq(AnyConst(len(Value.cast(job))))
        owed, open_ = Signal(), Signal()
        asks = owner.request.valid & owner.request.ready
        m.d.sync += [
            owed.eq(owed & ~table.data_valid | table.request.valid & table.request.ready),
            open_.eq((open_ | asks) & ~owner.valid),
        ]
        m.d.comb += [
            Assume(~table.data_valid | owed, "memory answers what was asked"),
            Assume(~owner.valid | open_, "the page table answers what was asked"),
            Assume(~unit.start | unit.idle & ~unit.stop, "one command at a time"),
            Assume((job.base == 0) & (job.stride == 1 << STRIDE), "addresses tell the page"),
            Assume((job.tiles != 0) & (job.tiles <= CONFIG.max_tiles), "a head"),
            Assume((job.tokens != 0) & (job.start <= 64), "tokens of the first pages"),
        ]
        self._follow(m, asks, inner["places"].i)
        return m

    def _follow(self, m: Module, asks: Any, given: Any) -> None:
        """The last question and its answer, against the places."""
        owner, job = self._places.owner, self._places.job
        number, answered = Signal.like(owner.request.payload), Signal()
        told: Any = Signal.like(owner.owner)
        place: data.View = given.payload
        leaves = given.valid & given.ready
        with m.If(leaves & (place.lane == CONFIG.lanes - 1)):
            m.d.sync += answered.eq(0)
        with m.If(asks):
            m.d.sync += [number.eq(owner.request.payload), answered.eq(0)]
        with m.If(owner.valid):
            m.d.sync += [told.eq(owner.owner), answered.eq(1)]
        here = [place[name] >> STRIDE == number for name in ("chunk", "k", "v")]
        mine = told.tenant == job.tenant
        may = Signal()
        m.d.comb += may.eq(mine & ~told.shared | job.repair & (mine | told.public))
        with m.If(given.valid & (place.error == 0)):
            m.d.comb += [
                Assert(answered & here[0] & here[1] & here[2], PLACED),
                Assert(told.live & ~told.damaged & may, WRITTEN),
            ]
        m.d.comb += [
            self.any.eq(leaves),
            Cover(leaves & (place.index != 0) & (place.lane == 0), "a place in a second page"),
            Cover(leaves & (place.error != 0), "a page is refused"),
        ]


PLACES_TWINS = {
    "public pages are written": (
        guard, "with m.Elif(~mine & (alone | ~owner.public)):",
        "with m.Elif(~mine & ~owner.public):", WRITTEN,
    ),
    "shared pages are written": (guard, "mine & alone & owner.shared", "mine & ~mine", WRITTEN),
    "every append is a repair": (
        append_place, "guard.alone.eq(~job.repair)", "guard.alone.eq(0)", WRITTEN
    ),
    "the verdict is passed over": (
        append_place, """m.next = "GIVE"
                    with m.If(guard.error != Error.OK):""", """m.next = "GIVE"
                    with m.If(guard.error == 255):""", WRITTEN,
    ),
    "pages are asked for at first only": (
        append_place, "m.d.comb += guard.start.eq(1)", "m.d.comb += guard.start.eq(~sure)", PLACED
    ),
}  # fmt: skip
"""A line of the guard or of the append unit's places changed, and what then does not hold."""


def test_an_append_writes_its_tenants_pages_only():
    proof = prove(PlacesContract(), depth=PLACES_DEPTH)
    assert proof, proof
    reached = prove(PlacesContract(), depth=PLACES_DEPTH, mode="cover")
    assert reached, reached


@pytest.mark.parametrize("twin", PLACES_TWINS)
def test_a_broken_check_of_places_is_found(twin):
    module, old, new, message = PLACES_TWINS[twin]
    proof = prove(PlacesContract(module, (old, new)), depth=PLACES_DEPTH)
    assert message in proof.broken, proof
