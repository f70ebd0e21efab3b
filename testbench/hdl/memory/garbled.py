"""Memories that return the inverse of a word where nobody may need it."""

from typing import Any

import pytest
from amaranth.hdl import Module, Signal, Value

from m890.hdl.memory.sram import Sram


def garble(patch: pytest.MonkeyPatch) -> None:
    """From now on, reads of the address just written are wrong in memories without `collisions`."""
    begin, build = Sram.__init__, Sram.elaborate

    def init(self: Any, shape: Any, depth: int, *, collisions: bool = True, **rest: Any) -> None:
        begin(self, shape, depth, collisions=collisions, **rest)
        self.raw = None if collisions else self.read_data
        if self.raw is not None:
            self.read_data = [Signal.like(data, name="garbled") for data in self.raw]

    def elaborate(self: Any, platform: object) -> Module:
        m = build(self, platform)
        if self.raw is not None:
            ports = zip(self.read_address, self.read_enable, self.raw, self.read_data, strict=True)
            for address, enable, raw, data in ports:
                hit = Signal()
                with m.If(enable):
                    m.d.sync += hit.eq(self.write_enable.any() & (self.write_address == address))
                raw = Value.cast(raw)
                m.d.comb += Value.cast(data).eq(raw ^ hit.replicate(len(raw)))
        return m

    patch.setattr(Sram, "__init__", init)
    patch.setattr(Sram, "elaborate", elaborate)
