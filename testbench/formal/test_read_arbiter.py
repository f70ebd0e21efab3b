"""The read arbiter between two requesters and an AXI memory: every beat comes back, once."""

from typing import Any

import pytest
from amaranth.hdl import Assert, Assume, Cat, Const, Cover, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnyConst, AnySeq
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from m890.hdl.config import preset
from m890.hdl.memory import read_arbiter
from m890.hdl.memory.burst import BOUNDARY, Splitter
from m890.hdl.memory.queue import Queue
from m890.hdl.memory.read_arbiter import ReadArbiter
from m890.testbench.formal.contracts import (
    FALLS,
    STAYS,
    catch,
    count,
    keeps_rules,
    source_keeps_rules,
)
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
CONFIG = preset("tiny").with_(address_bits=32)
REQUESTERS = 2
LONGEST = 2
"""Beats of a request: enough to cross a boundary."""
FREE = (4, 12)
"""Bits of addresses that differ between requests; the others are such that a boundary is near."""
CROSS = "no burst crosses 4 KiB"
WHOLE = "a request's beats add up"
PLACE = "bursts cover a request from its address on"
FEW = "no more bursts are on their way than promised"


class Contract(wiring.Component):
    """Requesters and a memory that do anything AXI allows; one request is followed.

    The memory answers each id in order, ids in any order, with as many beats as were asked for.
    """

    done: Out(1)

    def __init__(self, who: int = 1, promised: int = 2, fault: str = "") -> None:
        self._who, self._promised, self._fault = who, promised, fault
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        arbiter = ReadArbiter(CONFIG, REQUESTERS, control=(0,), outstanding=2)
        m.submodules.arbiter = arbiter
        axi, ports = arbiter.axi, arbiter.port
        for n, port in enumerate(ports):
            request = port.request
            address: Value = Const((BOUNDARY - 1) & ~15, CONFIG.address_bits)
            followed = n == self._who
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
        waits = Signal(2)
        m.d.sync += waits.eq(Mux(axi.arvalid & ~axi.arready, waits + 1, 0))
        valid = axi.arvalid & ~((waits == 2) & (self._fault == FALLS))
        channel = channel ^ ((waits == 2) & (self._fault == STAYS))
        keeps_rules(m, valid, axi.arready, channel, "ar")
        last = axi.araddr + (axi.arlen << 4)
        with m.If(axi.arvalid):
            m.d.comb += Assert(axi.araddr[12:] == last[12:32], CROSS)
        self._follow(m, axi, ports[self._who])
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
            m.d.comb += Assert(used <= self._promised, FEW)
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
            m.d.comb += Assert(port.last == (got + 1 == beats), WHOLE)
        burst = axi.arvalid & axi.arready & (axi.arid == self._who)
        length = (axi.arlen + 1)[:2]
        ahead = Signal(4)  # beats of earlier requests whose bursts are still to come
        early = Mux(accept & (asked < which), request.payload.beats[:2], 0)
        m.d.sync += ahead.eq(ahead + early - Mux(burst & (ahead != 0), length, 0))
        mine = burst & (ahead == 0) & (asked > which) & (issued != beats)
        with m.If(mine):
            m.d.sync += issued.eq(issued + length)
            m.d.comb += Assert(
                (axi.araddr == Mux(issued == 0, address, address + CONFIG.port_bytes))
                & (issued + length <= beats),
                PLACE,
            )
        m.d.comb += [
            self.done.eq(ended == 3),
            Cover((ended == 2) & (asked == 3), "requests are answered"),
            Cover(mine & (issued == 1), "a request is cut"),
        ]


class Uncut(Splitter):
    """Takes no notice of the boundary."""

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        held = Signal.like(self.i.payload)
        m.d.comb += [
            self.i.ready.eq(~self.o.valid | self.o.ready),
            self.o.payload.address.eq(held.address),
            self.o.payload.length.eq(held.beats - 1),
            self.o.payload.final.eq(1),
        ]
        with m.If(self.i.ready):
            m.d.sync += [self.o.valid.eq(self.i.valid), held.eq(self.i.payload)]
        return m


class EveryBurstIsFinal(Queue):
    """The queue of final bits, wired to say that every burst ends its request."""

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.real = real = Queue(self._shape, self.depth, sram=self._sram)
        stuck = self.depth == 2 and self._shape == 1
        m.d.comb += [
            real.i.valid.eq(self.i.valid),
            Value.cast(real.i.payload).eq(Value.cast(self.i.payload) | stuck),
            self.i.ready.eq(real.i.ready),
            self.o.valid.eq(real.o.valid),
            Value.cast(self.o.payload).eq(Value.cast(real.o.payload)),
            real.o.ready.eq(self.o.ready),
        ]
        return m


class Astray(Splitter):
    """Goes on at the wrong place behind a boundary."""

    def elaborate(self, platform: Any) -> Module:
        m = super().elaborate(platform)
        second = Signal()
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += second.eq(~self.o.payload.final)
        with m.If(second):
            m.d.comb += self.o.payload.address[4].eq(1)
        return m


def test_the_read_arbiter_keeps_its_contract():
    proof = prove(Contract(), depth=8)
    assert proof, proof
    reached = prove(Contract(), depth=12, mode="cover")
    assert reached, reached


@pytest.mark.parametrize(
    "name, twin, message",
    [
        ("Splitter", Uncut, CROSS),
        ("Queue", EveryBurstIsFinal, WHOLE),
        ("Splitter", Astray, PLACE),
        ("", None, FEW),
        ("", None, STAYS),
        ("", None, FALLS),
    ],
)
def test_a_broken_read_arbiter_is_found(name, twin, message, monkeypatch):
    if twin:
        monkeypatch.setattr(read_arbiter, name, twin)
    contract = Contract(promised=1 if message == FEW else 2, fault=message)
    proof = prove(contract, depth=9)
    assert proof.failed == message, proof
