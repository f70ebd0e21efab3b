"""The read arbiter between two requesters and an AXI memory: every beat comes back, once."""

from types import ModuleType
from typing import Any

import pytest
from amaranth.hdl import Assume, Cat, Const, Cover, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnyConst, AnySeq
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from m890.hdl.config import preset
from m890.hdl.memory import burst, read_arbiter
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
from m890.testbench.formal.small import again
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
CONFIG = preset("tiny").with_(address_bits=32)
REQUESTERS = 2
FOLLOWED, PROMISED = 1, 2
"""The requester whose requests are followed; bursts that may be on their way for each."""
FREE = (4, 12)
"""Bits of addresses that differ between requests; the others are such that a boundary is near."""
CROSS = "no burst crosses 4 KiB"
WHOLE = "a request's beats add up"
PLACE = "bursts cover a request from its address on"
FEW = "no more bursts are on their way than promised"


def arbiter(module: ModuleType, twin: ModuleType | None, *change: tuple[str, str]) -> Any:
    """The module of an arbiter, one line of it or of its splitters changed."""
    splitters = again(burst, *(change if twin is burst else ()))
    return again(module, *(change if twin is module else ()), Splitter=splitters.Splitter)


class Contract(wiring.Component):
    """Requesters and a memory that do anything AXI allows; one request is followed.

    The memory answers each id in order, ids in any order, with as many beats as were asked for.
    """

    done: Out(1)

    def __init__(
        self, twin: ModuleType | None = None, *change: tuple[str, str], only: str = ""
    ) -> None:
        self._arbiter = arbiter(read_arbiter, twin, *change).ReadArbiter(
            CONFIG, REQUESTERS, control=(0,), outstanding=PROMISED
        )
        self._check = checks(only)
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.arbiter = self._arbiter
        axi, ports, check = self._arbiter.axi, self._arbiter.port, self._check
        for n, port in enumerate(ports):
            request = port.request
            address: Value = Const((BOUNDARY - 1) & ~15, CONFIG.address_bits)
            followed = n == FOLLOWED
            for bit in FREE if followed else ():
                address = address ^ (AnySeq(1) << bit)
            m.d.comb += [
                request.valid.eq(AnySeq(1)),
                request.payload.address.eq(address),
                request.payload.beats.eq(AnySeq(1) + 1 if followed else 1),
            ]
            source_keeps_rules(m, request, f"request{n}")
        m.d.comb += [
            axi.arready.eq(AnySeq(1)),
            axi.rvalid.eq(AnySeq(1)),
            axi.rid.eq(AnySeq(1)),
            axi.rlast.eq(AnySeq(1)),
        ]
        self._memory(m, axi)
        channel = Cat(axi.arid, axi.araddr, axi.arlen, axi.arsize, axi.arburst)
        keeps_rules(m, axi.arvalid, axi.arready, channel, "ar", check)
        last = axi.araddr + (axi.arlen << 4)
        with m.If(axi.arvalid):
            m.d.comb += check(axi.araddr[12:] == last[12:32], CROSS)
        self._follow(m, axi, ports[FOLLOWED])
        return m

    def _memory(self, m: Module, axi: Any) -> None:
        """Per id the lengths of the bursts on their way, oldest first."""
        allowed = Const(0, 1)
        for n in range(REQUESTERS):
            lengths = [Signal(name=f"length{n}_{k}") for k in range(3)]
            used, beat = Signal(2, name=f"used{n}"), Signal(name=f"beat{n}")
            mine = axi.rvalid & (axi.rid == n)
            add = axi.arvalid & axi.arready & (axi.arid == n)
            ends = mine & axi.rlast
            allowed = allowed | (axi.rid == n) & (used != 0) & (axi.rlast == (beat == lengths[0]))
            m.d.sync += used.eq(used + add - ends)
            with m.If(mine):
                m.d.sync += beat.eq(Mux(axi.rlast, 0, beat + 1))
            place = used - ends
            for k, length in enumerate(lengths):
                with m.If(add & (place == k)):
                    m.d.sync += length.eq(axi.arlen)
                with m.Elif(ends & (k + 1 < len(lengths))):
                    m.d.sync += length.eq(lengths[min(k + 1, len(lengths) - 1)])
            m.d.comb += self._check(used <= PROMISED, FEW)
        m.d.comb += Assume(~axi.rvalid | allowed, "beats that were asked for, in order")

    def _follow(self, m: Module, axi: Any, port: Any) -> None:
        """The `which`-th request of the followed requester: its bursts and its beats."""
        which = AnyConst(2)
        request = port.request
        accept, beats, address = Signal(), request.payload.beats, request.payload.address
        m.d.comb += accept.eq(request.valid & request.ready)
        asked, ended = count(m, accept, "asked"), count(m, port.data_valid & port.last, "ended")
        beats = catch(m, accept, asked, which, beats[:2], "beats")
        address = catch(m, accept, asked, which, address, "address")
        got, issued = Signal(2), Signal(2)  # beats of the followed request
        with m.If(port.data_valid & (ended == which)):
            m.d.sync += got.eq(got + 1)
            m.d.comb += self._check(port.last == (got + 1 == beats), WHOLE)
        here = axi.arvalid & axi.arready & (axi.arid == FOLLOWED)
        length = (axi.arlen + 1)[:2]
        ahead = Signal(4)  # beats of earlier requests whose bursts are still to come
        early = Mux(accept & (asked < which), request.payload.beats[:2], 0)
        m.d.sync += ahead.eq(ahead + early - Mux(here & (ahead != 0), length, 0))
        mine = here & (ahead == 0) & (asked > which) & (issued != beats)
        with m.If(mine):
            m.d.sync += issued.eq(issued + length)
            m.d.comb += self._check(
                (axi.araddr == Mux(issued == 0, address, address + CONFIG.port_bytes))
                & (issued + length <= beats),
                PLACE,
            )
        m.d.comb += [
            self.done.eq(ended == 3),
            Cover((ended == 2) & (asked == 3), "requests are answered"),
            Cover(mine & (issued == 1), "a request is cut"),
        ]


def test_the_read_arbiter_keeps_its_contract():
    proof = prove(Contract(), depth=8)
    assert proof, proof
    reached = prove(Contract(), depth=12, mode="cover")
    assert reached, reached


UNCUT = (burst, "room.eq((BOUNDARY >> low) - offset)", "room.eq(BOUNDARY >> low)", CROSS)
EARLY = ("final.i.payload.eq(burst.payload.final)", "final.i.payload.eq(1)")
TWINS = {
    "requests are not cut": UNCUT,
    "behind a boundary it goes on before it": (
        burst, "upper.eq(upper + 1)", "upper.eq(upper)", PLACE
    ),
    "every burst ends its request": (read_arbiter, *EARLY, WHOLE),
    "bursts do not wait for room": (
        read_arbiter, "eligible.append(burst.valid & final.i.ready)",
        "eligible.append(burst.valid)", FEW,
    ),
    "the length is the next burst's": (
        read_arbiter, "axi.arlen.eq(ar.o.payload.length)", "axi.arlen.eq(ar.i.payload.length)",
        STAYS,
    ),
    "a burst is offered while another comes": (
        read_arbiter, "axi.arvalid.eq(ar.o.valid)", "axi.arvalid.eq(ar.o.valid & picker.take)",
        FALLS,
    ),
}  # fmt: skip
"""A line of the arbiter or its splitters changed, and what then does not hold."""


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_read_arbiter_is_found(twin):
    module, old, new, message = TWINS[twin]
    proof = prove(Contract(module, (old, new), only=message), depth=9)
    assert proof.failed == message, proof
