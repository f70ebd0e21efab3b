"""The stream rules of any block: whatever comes, what waits stays as it is."""

from typing import Any

from amaranth.hdl import Assume, Cover, Module, Mux, Shape, Signal, Value
from amaranth.hdl._ast import AnySeq
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import Out

from m890.hdl.memory.ports import ReadPort, WritePort
from m890.hdl.pages.guard import OwnerPort
from m890.testbench.formal.contracts import keeps_rules, source_keeps_rules

OUTSTANDING = 8
"""Bits of the count of beats that a memory owes."""


class Rules(wiring.Component):
    """A block whose streams in keep the rules, and are otherwise anything; so must its streams out.

    Memory answers what was asked, at any time. `assume` are names of inputs that are 0 while the
    output beside them is 1.
    """

    any: Out(1)

    def __init__(self, block: Any, assume: dict[str, str] | None = None) -> None:
        self._block, self._assume, self._given = block, assume or {}, []
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.block = self._block
        for name, member in self._block.signature.members.items():
            self._member(m, name, getattr(self._block, name), member)
        for name, other in self._assume.items():
            busy = getattr(self._block, other)
            m.d.comb += Assume(~(getattr(self._block, name) & busy), f"no {name} with {other}")
        m.d.comb += self.any.eq(Value.cast(self._given[0].valid))
        return m

    def _member(self, m: Module, name: str, port: Any, member: Any) -> None:
        out = member.flow is wiring.Out
        if member.is_port:
            if not out:
                anything(m, port)
        elif isinstance(member.signature, ReadPort):
            self._out(m, port.request, f"{name}_request")
            asked = port.request.valid & port.request.ready
            self._owed(m, asked, port.request.payload.beats, port.data_valid, name)
            for part in (port.data_valid, port.data, port.last, port.error):
                anything(m, part)
        elif isinstance(member.signature, WritePort):
            self._out(m, port.request, f"{name}_request")
            self._out(m, port.beat, f"{name}_beat")
            asked = port.request.valid & port.request.ready
            self._owed(m, asked, 1, port.done, name)
            for part in (port.done, port.error):
                anything(m, part)
        elif isinstance(member.signature, OwnerPort):
            self._out(m, port.request, f"{name}_request")
            self._owed(m, port.request.valid & port.request.ready, 1, port.valid, name)
            for part in (port.valid, port.owner):
                anything(m, part)
        elif not isinstance(member.signature, stream.Signature):
            for inner, part in member.signature.members.items():
                part = part if out else part.flip()
                self._member(m, f"{name}_{inner}", getattr(port, inner), part)
        elif out:
            self._out(m, port, name)
        else:
            anything(m, port.valid)
            anything(m, port.payload)
            source_keeps_rules(m, port, name)

    def _out(self, m: Module, port: Any, name: str) -> None:
        anything(m, port.ready)
        self._given.append(port)
        keeps_rules(m, port.valid, port.ready, Value.cast(port.payload), name)
        m.d.comb += Cover(port.valid & ~port.ready, f"{name} waits")

    def _owed(self, m: Module, asked: Value, count: Any, comes: Value, name: str) -> None:
        owed = Signal(OUTSTANDING, name=f"{name}_owed")
        m.d.sync += owed.eq(owed + Mux(asked, count, 0) - comes)
        m.d.comb += Assume(~comes | (owed != 0), "memory answers what was asked")


def anything(m: Module, port: Any) -> None:
    """Any value in every cycle."""
    value = Value.cast(port)
    m.d.comb += value.eq(AnySeq(Shape.cast(value.shape()).width))
