"""The formal runner proves what holds, and names the assertion of a twin that is broken."""

from typing import Any

import pytest
from amaranth.hdl import Assert, Cover, Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal


class Digit(wiring.Component):
    """A decimal digit that counts while enabled; the broken twin wraps one too late."""

    enable: In(1)
    digit: Out(4)

    def __init__(self, last: int = 9) -> None:
        self._last = last
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        with m.If(self.enable):
            m.d.sync += self.digit.eq(Mux(self.digit == self._last, 0, self.digit + 1))
        m.d.comb += Assert(self.digit <= 9, "the digit is decimal")
        m.d.comb += Cover(self.digit == 9, "the digit gets to nine")
        return m


def test_a_design_that_holds_is_proved():
    assert prove(Digit(), depth=12)
    assert prove(Digit(), depth=3, mode="induction")
    assert prove(Digit(), depth=12, reset=True)


@pytest.mark.parametrize("mode", ["bmc", "induction"])
def test_a_broken_twin_fails_with_the_name_of_its_assertion(mode, tmp_path):
    proof = prove(Digit(last=10), depth=12, mode=mode, trace=tmp_path / "trace.vcd")
    assert not proof
    assert proof.failed == "the digit is decimal"
    assert proof.step == 10
    assert (tmp_path / "trace.vcd").stat().st_size


def test_a_bug_beyond_the_depth_is_found_by_induction_only():
    assert prove(Digit(last=10), depth=10)
    assert not prove(Digit(last=10), depth=10, mode="induction")


def test_a_cover_that_is_out_of_reach_is_named():
    assert prove(Digit(), depth=10, mode="cover")
    assert prove(Digit(), depth=9, mode="cover").failed == "the digit gets to nine"
