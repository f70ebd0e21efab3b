"""The write arbiter between two requesters and an AXI memory: bursts, beats, acknowledgements."""

from typing import Any

import pytest
from amaranth.hdl import Assert, Assume, Cat, Const, Cover, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnyConst, AnySeq
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from m890.hdl.memory import write_arbiter
from m890.hdl.memory.burst import BOUNDARY
from m890.hdl.memory.queue import Queue
from m890.hdl.memory.write_arbiter import WriteArbiter
from m890.testbench.formal.contracts import (
    FALLS,
    STAYS,
    catch,
    count,
    keeps_rules,
    source_keeps_rules,
)
from m890.testbench.formal.test_read_arbiter import CONFIG, CROSS, EveryBurstIsFinal, Uncut
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
LENGTH = "the beats of a burst are as many as its address said"
DONE = "a request is done when all of it is acknowledged"


class Contract(wiring.Component):
    """Two requesters, one of which is followed, and a memory that answers any burst at any time.

    Memory may answer even before it has the beats, which is more than AXI lets it do.
    """

    over: Out(1)

    def __init__(self, fault: str = "") -> None:
        self._fault = fault
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.arbiter = arbiter = WriteArbiter(CONFIG, 2, control=(0,), outstanding=2)
        axi = arbiter.axi
        for n, port in enumerate(arbiter.port):
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
        waits = Signal(2)
        m.d.sync += waits.eq(Mux(axi.awvalid & ~axi.awready, waits + 1, 0))
        w_waits = Signal(2)
        m.d.sync += w_waits.eq(Mux(axi.wvalid & ~axi.wready, w_waits + 1, 0))
        valid = axi.awvalid & ~((waits == 2) & (self._fault == FALLS))
        word = Cat(axi.wdata, axi.wstrb, axi.wlast) ^ ((w_waits == 2) & (self._fault == STAYS))
        channel = Cat(axi.awid, axi.awaddr, axi.awlen, axi.awsize, axi.awburst)
        keeps_rules(m, valid, axi.awready, channel, "aw")
        keeps_rules(m, axi.wvalid, axi.wready, word, "w")
        last = axi.awaddr + (axi.awlen << 4)
        with m.If(axi.awvalid):
            m.d.comb += Assert(axi.awaddr[12:] == last[12:32], CROSS)
        self._follow_burst(m, axi)
        self._follow_request(m, axi, arbiter.port[1])
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
            m.d.comb += Assert(sent == asked + 1, LENGTH)
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
            m.d.comb += Assert((asked > which) & (acknowledged == until), DONE)
        m.d.comb += [
            self.over.eq(done == 3),
            Cover(port.done & (done == 1) & (acknowledged == 3), "two requests are done"),
        ]


class OneTooMany(Queue):
    """Queues of which the one that keeps the order of bursts adds a beat to each."""

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.real = real = Queue(self._shape, self.depth, sram=self._sram)
        payload = Value.cast(real.o.payload)
        if self.depth == write_arbiter.ORDER_DEPTH:  # its length is on top
            payload = Cat(payload[:-8], (payload[-8:] + 1)[:8])
        m.d.comb += [
            real.i.valid.eq(self.i.valid),
            self.i.ready.eq(real.i.ready),
            Value.cast(real.i.payload).eq(Value.cast(self.i.payload)),
            self.o.valid.eq(real.o.valid),
            real.o.ready.eq(self.o.ready),
            Value.cast(self.o.payload).eq(payload),
        ]
        return m


def test_the_write_arbiter_keeps_its_contract():
    proof = prove(Contract(), depth=9)
    assert proof, proof
    reached = prove(Contract(), depth=12, mode="cover")
    assert reached, reached


@pytest.mark.parametrize(
    "name, twin, message",
    [
        ("Splitter", Uncut, CROSS),
        ("Queue", EveryBurstIsFinal, DONE),
        ("Queue", OneTooMany, LENGTH),
        ("", None, STAYS),
        ("", None, FALLS),
    ],
)
def test_a_broken_write_arbiter_is_found(name, twin, message, monkeypatch):
    if twin:
        monkeypatch.setattr(write_arbiter, name, twin)
    proof = prove(Contract(message), depth=10)
    assert proof.failed == message, proof
