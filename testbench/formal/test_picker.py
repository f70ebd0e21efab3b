"""The arbiters' choice: one of those that ask, and nobody starves; proved for all times."""

from typing import Any

import pytest
from amaranth.hdl import Assert, Assume, Cover, Module, Mux, Signal
from amaranth.hdl._ast import AnySeq
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from m890.hdl.memory import burst
from m890.hdl.memory.burst import Picker
from m890.testbench.formal.small import again
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
ONE = "the grant is one of the requests, and only one"
BOUND = "a request is granted within its bound"
FIRST = "control goes first unless bulk's turn has come"


class Contract(wiring.Component):
    """Requesters that ask when they like, but keep asking until they are granted.

    A grant is taken whenever there is one: cycles without change nothing.
    """

    late: Out(1)

    def __init__(self, picker: Picker, bounds: list[int]) -> None:
        self._picker, self._bounds = picker, bounds
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.picker = picker = self._picker
        count = len(picker.request)
        request, grant = picker.request, picker.grant
        m.d.comb += [request.eq(AnySeq(count)), picker.take.eq(request.any())]
        pending = Signal(count)
        m.d.sync += pending.eq(request & ~grant)
        m.d.comb += [
            Assume((request & pending) == pending, "who asks keeps asking"),
            Assert(
                (grant & ~request == 0)
                & (grant & (grant - 1) == 0)
                & (grant.any() == request.any()),
                ONE,
            ),
        ]
        mask = sum(1 << n for n in picker.control)
        streak = Signal(4)  # grants to control in a row while bulk waited
        passed = (grant & mask).any() & (request & ~mask).any()
        m.d.sync += streak.eq(Mux(passed, streak + (streak != 15), 0))
        with m.If((request & mask).any() & ((grant & ~mask)[:count].any())):
            m.d.comb += Assert(streak >= burst.BULK_TURN, FIRST)
        for n, bound in enumerate(self._bounds):
            waited = Signal(range(32), name=f"waited{n}")  # grants to others while n asked
            m.d.sync += waited.eq(Mux(request[n] & ~grant[n], waited + (waited != 31), 0))
            m.d.comb += [
                Assert(waited < bound, BOUND),
                Cover((waited == bound - 1) & grant[n], f"the bound of requester {n} is tight"),
            ]
        m.d.comb += self.late.eq(pending.any())
        return m


def contract(requesters, control=(), slack=0):
    picker = Picker(requesters, control)
    return Contract(picker, [picker.bound(n) - slack for n in range(requesters)])


@pytest.mark.parametrize("requesters, control", [(1, ()), (3, ()), (2, (0,)), (4, (1, 2))])
def test_nobody_starves(requesters, control):
    made = contract(requesters, control)
    steps = max(made._bounds) + 2
    proof = prove(made, depth=steps, mode="induction")
    assert proof, proof
    reached = prove(contract(requesters, control), depth=2 * steps, mode="cover")
    assert reached, reached


def test_a_bound_that_is_too_small_is_found():
    proof = prove(contract(4, (1, 2), slack=1), depth=14)
    assert proof.failed == BOUND, proof


BULK = 'bulk.eq(waits["bulk"] & (~waits["control"] | (streak >= BULK_TURN)))'
TWINS = {
    "control always wins": (BULK, 'bulk.eq(waits["bulk"] & ~waits["control"])', BOUND),
    "control never wins": (BULK, 'bulk.eq(waits["bulk"])', FIRST),
    "the lowest of a class always wins": (
        "after.eq(~(self.grant | (self.grant - 1)))", "after.eq(0)", BOUND
    ),
    "both classes win": (
        'Mux(bulk, chosen["bulk"], chosen["control"])', 'chosen["bulk"] | chosen["control"]', ONE
    ),
}  # fmt: skip
"""A line of the choice changed, and what then does not hold."""


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_choice_is_found(twin):
    old, new, message = TWINS[twin]
    picker = again(burst, (old, new)).Picker(3, (2,))
    proof = prove(Contract(picker, [picker.bound(n) for n in range(3)]), depth=14)
    assert message in proof.broken, proof
