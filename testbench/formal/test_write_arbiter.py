"""The write arbiter between two requesters and an AXI memory: bursts, beats, acknowledgements."""

from types import ModuleType
from typing import Any

import pytest
from amaranth.hdl import Assume, Cat, Const, Cover, Module, Mux, Signal
from amaranth.hdl._ast import AnyConst, AnySeq
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from m890.hdl.memory import write_arbiter
from m890.hdl.memory.burst import BOUNDARY
from m890.testbench.formal.contracts import (
    FALLS,
    STAYS,
    catch,
    checks,
    count,
    keeps_rules,
    source_keeps_rules,
)
from m890.testbench.formal.test_read_arbiter import CONFIG, CROSS, EARLY, UNCUT, arbiter
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
LENGTH = "the beats of a burst are as many as its address said"
DONE = "a request is done when all of it is acknowledged"


class Contract(wiring.Component):
    """Two requesters, one of which is followed, and a memory that answers any burst at any time.

    Memory may answer even before it has the beats, which is more than AXI lets it do.
    """

    over: Out(1)

    def __init__(
        self, twin: ModuleType | None = None, *change: tuple[str, str], only: str = ""
    ) -> None:
        self._arbiter = arbiter(write_arbiter, twin, *change).WriteArbiter(
            CONFIG, 2, control=(0,), outstanding=2
        )
        self._check = checks(only)
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.arbiter = self._arbiter
        axi, check = self._arbiter.axi, self._check
        for n, port in enumerate(self._arbiter.port):
            # Just before a boundary: a request of two beats is one burst or two.
            near = Const((BOUNDARY - 1) & ~31, CONFIG.address_bits)
            m.d.comb += [
                port.request.valid.eq(AnySeq(1)),
                port.request.payload.address.eq(near | (AnySeq(1) << 4 if n else 0)),
                port.request.payload.beats.eq(AnySeq(1) + 1 if n else 1),
                port.beat.valid.eq(AnySeq(1)),
                port.beat.payload.data.eq(AnySeq(1)),
                port.beat.payload.strobe.eq(AnySeq(1)),
            ]
            source_keeps_rules(m, port.request, f"request{n}")
            source_keeps_rules(m, port.beat, f"beat{n}")
        m.d.comb += [
            axi.awready.eq(AnySeq(1)),
            axi.wready.eq(AnySeq(1)),
            axi.bvalid.eq(AnySeq(1)),
            axi.bid.eq(AnySeq(1)),
        ]
        word = Cat(axi.wdata, axi.wstrb, axi.wlast)
        channel = Cat(axi.awid, axi.awaddr, axi.awlen, axi.awsize, axi.awburst)
        keeps_rules(m, axi.awvalid, axi.awready, channel, "aw", check)
        keeps_rules(m, axi.wvalid, axi.wready, word, "w", check)
        last = axi.awaddr + (axi.awlen << 4)
        with m.If(axi.awvalid):
            m.d.comb += check(axi.awaddr[12:] == last[12:32], CROSS)
        self._follow_burst(m, axi)
        self._follow_request(m, axi, self._arbiter.port[1])
        return m

    def _follow_burst(self, m: Module, axi: Any) -> None:
        """The `which`-th burst of all: W may be ahead of AW or behind it."""
        which = AnyConst(2)
        address, word = axi.awvalid & axi.awready, axi.wvalid & axi.wready
        addresses, bursts = count(m, address, "addresses"), count(m, word & axi.wlast, "bursts")
        asked = catch(m, address, addresses, which, axi.awlen, "asked")
        sent = Signal(2)
        mine = word & (bursts == which)
        with m.If(mine):
            m.d.sync += sent.eq(sent + 1)
        with m.If((addresses > which) & (bursts > which)):
            m.d.comb += self._check(sent == asked + 1, LENGTH)
        m.d.comb += Cover((bursts == 2) & (asked == 1) & (which == 1), "a burst of two is over")

    def _follow_request(self, m: Module, axi: Any, port: Any) -> None:
        """The `which`-th request of requester 1: acknowledged beats when it is done."""
        which = AnyConst(2)
        request = port.request
        accept = request.valid & request.ready
        asked, done = count(m, accept, "requests"), count(m, port.done, "dones")
        total, acknowledged = Signal(4), Signal(4)
        m.d.sync += total.eq(total + Mux(accept, request.payload.beats[:2], 0))
        until = catch(m, accept, asked, which, total + request.payload.beats[:2], "until")
        # Lengths of bursts on their way, oldest first; two at most.
        first, second, used = Signal(), Signal(), Signal(2)
        add = axi.awvalid & axi.awready & (axi.awid == 1)
        answer = axi.bvalid & (axi.bid == 1)
        place = used - answer
        m.d.sync += used.eq(used + add - answer)
        with m.If(answer):
            m.d.sync += [acknowledged.eq(acknowledged + first + 1), first.eq(second)]
        with m.If(add & (place == 0)):
            m.d.sync += first.eq(axi.awlen)
        with m.If(add & (place == 1)):
            m.d.sync += second.eq(axi.awlen)
        others = Signal(2)
        other = axi.awvalid & axi.awready & (axi.awid == 0)
        m.d.sync += others.eq(others + other - (axi.bvalid & (axi.bid == 0)))
        m.d.comb += Assume(
            ~axi.bvalid | Mux(axi.bid == 1, used != 0, others != 0), "answers to what was asked"
        )
        with m.If(port.done & (done == which)):
            m.d.comb += self._check((asked > which) & (acknowledged == until), DONE)
        m.d.comb += [
            self.over.eq(done == 3),
            Cover(port.done & (done == 1) & (acknowledged == 3), "two requests are done"),
        ]


def test_the_write_arbiter_keeps_its_contract():
    proof = prove(Contract(), depth=9)
    assert proof, proof
    reached = prove(Contract(), depth=12, mode="cover")
    assert reached, reached


TWINS = {
    "requests are not cut": UNCUT,
    "every burst ends its request": (write_arbiter, *EARLY, DONE),
    "every beat is its burst's last": (
        write_arbiter, "w.i.payload.last.eq(number == order.o.payload.length)",
        "w.i.payload.last.eq(1)", LENGTH,
    ),
    "the beat is the next one's": (
        write_arbiter, "axi.wdata.eq(w.o.payload.data)", "axi.wdata.eq(w.i.payload.data)", STAYS
    ),
    "a burst is offered while another comes": (
        write_arbiter, "axi.awvalid.eq(aw.o.valid)", "axi.awvalid.eq(aw.o.valid & picker.take)",
        FALLS,
    ),
}  # fmt: skip
"""A line of the arbiter or its splitters changed, and what then does not hold."""


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_write_arbiter_is_found(twin):
    module, old, new, message = TWINS[twin]
    proof = prove(Contract(module, (old, new), only=message), depth=10)
    assert proof.failed == message, proof
