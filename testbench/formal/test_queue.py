"""The queue's contract: order, no loss, stream rules, level; each with a twin that breaks it."""

from typing import Any

import pytest
from amaranth.hdl import Cover, Module, Signal
from amaranth.hdl._ast import AnyConst, AnySeq
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from m890.hdl.memory import queue
from m890.testbench.formal.contracts import (
    COUNT,
    FALLS,
    STAYS,
    catch,
    checks,
    count,
    keeps_rules,
)
from m890.testbench.formal.small import again
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
WIDTH = 2
ORDER = "the n-th payload that enters is the n-th that leaves"
LATE = "a stored payload is offered in time"
LEVEL = "level counts what is stored"


class Contract(wiring.Component):
    """A queue between a source and a sink that do anything.

    The n-th payload that enters, for an arbitrary n, must be the n-th that leaves. `changes` make
    the queue's twin; `only` leaves out every assertion but the one of that name.
    """

    done: Out(1)

    def __init__(self, depth: int, sram: bool, *changes: tuple[str, str], only: str = "") -> None:
        self._depth, self._check = depth, checks(only)
        self._queue = again(queue, *changes).Queue(WIDTH, depth, sram=sram)
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.queue = unit = self._queue
        check, source, sink = self._check, unit.i, unit.o
        which = AnyConst(COUNT)
        m.d.comb += [
            source.payload.eq(AnySeq(WIDTH)),
            source.valid.eq(AnySeq(1)),
            sink.ready.eq(AnySeq(1)),
        ]
        enter, leave = source.valid & source.ready, sink.valid & sink.ready
        entered, left = count(m, enter, "entered"), count(m, leave, "left")
        wanted = catch(m, enter, entered, which, source.payload, "wanted")
        keeps_rules(m, sink.valid, sink.ready, sink.payload, "out", check)
        stored_long = Signal()  # something is stored since before the last cycle
        m.d.sync += stored_long.eq((entered - left != 0) & ~leave)
        m.d.comb += [
            check(unit.level == (entered - left)[: len(unit.level)], LEVEL),
            check(sink.valid | ~stored_long, LATE),
            Cover(left == 2 * self._depth + 1, "the queue goes round"),
            Cover(unit.level == self._depth, "the queue gets full"),
            self.done.eq(left == which),
        ]
        with m.If(leave & (left == which)):
            m.d.comb += check((sink.payload == wanted) & (entered > which), ORDER)
        return m


@pytest.mark.parametrize("depth, sram", [(1, False), (3, False), (3, True), (4, True)])
def test_the_queue_keeps_its_contract(depth, sram):
    proof = prove(Contract(depth, sram), depth=16)
    assert proof, proof
    reached = prove(Contract(depth, sram), depth=2 * depth + 6 + 3 * sram, mode="cover")
    assert reached, reached


TWINS = {
    "what leaves stays": (False, "m.d.sync += read.eq(after)", "m.d.sync += read.eq(read)", ORDER),
    "what leaves stays, in SRAM": (
        True, "after.eq(Mux(give, following(read), read))", "after.eq(read)", ORDER
    ),
    "the last payload is not offered": (
        False, "self.o.valid.eq(self.level != 0)", "self.o.valid.eq(self.level > 1)", LATE
    ),
    "the last payload is not offered, from SRAM": (
        True, "self.o.valid.eq(self.level > give)", "self.o.valid.eq(self.level > 1)", LATE
    ),
    "payloads are offered as they come": (
        False, "self.o.valid.eq(self.level != 0)", "self.o.valid.eq(take)", FALLS
    ),
    "payloads are offered as they come, from SRAM": (
        True, "self.o.valid.eq(self.level > give)", "self.o.valid.eq(take)", FALLS
    ),
    "the newest payload is offered": (
        False, "with m.Switch(read):", "with m.Switch(write):", STAYS
    ),
    "the newest payload is offered, from SRAM": (
        True, "sram.read_address[0].eq(after)", "sram.read_address[0].eq(write)", STAYS
    ),
    "level forgets what leaves": (False, "self.level + take - give", "self.level + take", LEVEL),
    "level forgets what leaves SRAM": (
        True, "self.level + take - give", "self.level + take", LEVEL
    ),
}  # fmt: skip
"""With SRAM or not, a line of the queue changed, and what then does not hold."""


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_queue_is_found(twin):
    sram, old, new, message = TWINS[twin]
    proof = prove(Contract(3, sram, (old, new), only=message), depth=16)
    assert proof.failed == message, proof
