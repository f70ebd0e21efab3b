"""The queue's contract: order, no loss, stream rules, level; each with a twin that breaks it."""

from typing import Any

import pytest
from amaranth.hdl import Assert, Cover, Module, Mux, Signal
from amaranth.hdl._ast import AnyConst, AnySeq
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from m890.hdl.memory.queue import Queue
from m890.testbench.formal.contracts import COUNT, FALLS, STAYS, catch, count, keeps_rules
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
WIDTH = 2
FAULTS = {
    "order": "the n-th payload that enters is the n-th that leaves",
    "late": "a stored payload is offered in time",
    "payload": STAYS,
    "valid": FALLS,
    "level": "level counts what is stored",
}
"""Faults that a proof must find, and the assertion that each breaks."""


class Contract(wiring.Component):
    """A queue between a source and a sink that do anything.

    The n-th payload that enters, for an arbitrary n, must be the n-th that leaves. `fault` puts
    one of FAULTS between the queue and its observer.
    """

    done: Out(1)

    def __init__(self, depth: int, sram: bool, fault: str = "") -> None:
        self._depth, self._sram, self._fault = depth, sram, fault
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.queue = queue = Queue(WIDTH, self._depth, sram=self._sram)
        fault, source, sink = self._fault, queue.i, queue.o
        ready, valid, payload = Signal(), Signal(), Signal(WIDTH)  # as the observer sees them
        offer, taker, which = AnySeq(1), AnySeq(1), AnyConst(COUNT)
        number = Signal(COUNT)  # payloads that have left
        stall = Signal(3)  # cycles that the sink has kept this payload waiting
        m.d.sync += stall.eq(Mux(sink.valid & ~sink.ready, stall + 1, 0))
        m.d.comb += [
            source.payload.eq(AnySeq(WIDTH)),
            source.valid.eq(offer),
            ready.eq(source.ready),
            valid.eq(sink.valid & ~((fault == "valid") & (stall == 2))),
            payload.eq(
                sink.payload
                ^ ((fault == "payload") & (stall == 2))
                ^ ((fault == "order") & (number == 2))
            ),
            sink.ready.eq(taker & ~((fault == "valid") & (stall == 2))),
        ]
        if fault == "late":
            m.d.comb += [valid.eq(sink.valid & (queue.level > 1)), sink.ready.eq(taker & valid)]
        enter, leave = offer & ready, valid & sink.ready
        entered, left = count(m, enter, "entered"), count(m, leave, "left")
        m.d.comb += number.eq(left)
        wanted = catch(m, enter, entered, which, source.payload, "wanted")
        keeps_rules(m, valid, sink.ready, payload, "out")
        level = Signal.like(queue.level)
        m.d.comb += level.eq(queue.level + ((fault == "level") & (left == 3)))
        stored_long = Signal()  # something is stored since before the last cycle
        m.d.sync += stored_long.eq((entered - left != 0) & ~leave)
        m.d.comb += [
            Assert(level == (entered - left)[: len(level)], FAULTS["level"]),
            Assert(valid | ~stored_long, FAULTS["late"]),
            Cover(left == 2 * self._depth + 1, "the queue goes round"),
            Cover(queue.level == self._depth, "the queue gets full"),
            self.done.eq(left == which),
        ]
        with m.If(leave & (left == which)):
            m.d.comb += Assert((payload == wanted) & (entered > which), FAULTS["order"])
        return m


@pytest.mark.parametrize("depth, sram", [(1, False), (3, False), (3, True), (4, True)])
def test_the_queue_keeps_its_contract(depth, sram):
    proof = prove(Contract(depth, sram), depth=16)
    assert proof, proof
    reached = prove(Contract(depth, sram), depth=2 * depth + 6 + 3 * sram, mode="cover")
    assert reached, reached


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("sram", [False, True])
def test_a_broken_queue_is_found(fault, sram):
    proof = prove(Contract(3, sram, fault), depth=16)
    assert proof.failed == FAULTS[fault], proof
