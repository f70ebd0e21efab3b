"""A small component with the core's ports, for the tests of the generator and the device.

It copies `beats` port beats from one address to another, inverting the bits that a register names,
one beat at a time, and raises its interrupt when it is done.
"""

from typing import Any

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, ResetSignal, Signal, unsigned
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.memory.ports import Axi4, AxiLite
from m890.hdl.memory.sram import Sram
from m890.hdl.numerics.types import Wide

IDENT = 0x57414E44
REGISTERS = {"IDENT": 0, "SOURCE": 4, "TARGET": 8, "BEATS": 12, "INVERT": 16, "CONTROL": 20,
             "STATUS": 24, "SCRATCH": 28, "BREAK": 32}  # fmt: skip
"""CONTROL: write bit 0 to start, bit 1 to clear the interrupt. STATUS: beats done, error in bit 31.

SCRATCH reads word `beats done` of a memory that is random at start; a write stores `BEATS` there.
BREAK: bit 0 breaks the bus' rules (wlast), bit 1 lets reads of registers hang.
"""


class Kind(enum.Enum, shape=2):
    """An enum in a payload: its names shall be seen in waves."""

    PLAIN = 0
    FIRST = 1
    LAST = 2


class Flip(wiring.Component):
    """Inverts one 32-bit word of a beat, if its own bit of `invert` says so.

    Latency
        1 cycle.
    """

    place: In(4)
    i: In(32)
    invert: In(16)
    o: Out(32)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        mine = self.invert.bit_select(self.place, 1)
        m.d.sync += self.o.eq(self.i ^ mine.replicate(32))
        return m


class StandIn(wiring.Component):
    """A copy engine behind the core's ports; `external` makes the flips a module of their own."""

    axi: Any
    csr: Any
    irq: Signal

    def __init__(self, config: CoreConfig, *, external: bool = False) -> None:
        self.config = config
        self._external = external
        super().__init__({"axi": Out(Axi4(config)), "csr": In(AxiLite()), "irq": Out(1)})

    def external_modules(self) -> list[tuple[str, wiring.Component]]:
        return [("m890_flip", Flip())] if self._external else []

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, axi = self.config, self.axi
        source = Signal(32)
        target = Signal(32)
        beats = Signal(32)
        done = Signal(32)
        invert = Signal()
        broken = Signal(2)
        failed = Signal()
        start = Signal()
        buffer = Signal(config.port_bits)
        tag: Any = Signal(data.StructLayout({"kind": Kind, "beat": 8}))
        number: Any = Signal(Wide)
        m.d.comb += [tag.kind.eq(Kind.FIRST), tag.beat.eq(done)]
        m.d.sync += [number.sig.eq(1 << 23), number.exp.eq(done)]

        m.submodules.scratch = scratch = Sram(unsigned(32), 16)
        m.d.comb += [
            scratch.read_address[0].eq(done), scratch.read_enable[0].eq(1),
            scratch.write_address.eq(done), scratch.write_data.eq(beats),
        ]  # fmt: skip

        flipped = Signal(config.port_bits)
        for n in range(config.port_bits // 32):
            part = slice(32 * n, 32 * n + 32)
            if self._external:  # differing in a constant and in a signal, as rows do
                mine = Signal(16, name=f"invert{n}")
                m.d.comb += mine.eq(invert << n)
                m.submodules[f"flip{n}"] = Instance(
                    "m890_flip", i_clk=ClockSignal(), i_rst=ResetSignal(), i_i=buffer[part],
                    i_place=Const(n, 4), i_invert=mine, o_o=flipped[part],
                )  # fmt: skip
            else:
                m.submodules[f"flip{n}"] = flip = Flip()
                m.d.comb += [flip.i.eq(buffer[part]), flip.invert.eq(invert)]
                m.d.comb += flipped[part].eq(flip.o)

        size = (config.port_bytes - 1).bit_length()
        m.d.comb += [
            axi.araddr.eq(source), axi.arsize.eq(size), axi.arburst.eq(1), axi.arid.eq(3),
            axi.awaddr.eq(target), axi.awsize.eq(size), axi.awburst.eq(1),
            axi.wdata.eq(flipped), axi.wstrb.eq(~0), axi.wlast.eq(~broken[0]),
        ]  # fmt: skip
        with m.FSM():
            with m.State("IDLE"):
                with m.If(start):
                    m.d.sync += [done.eq(0), failed.eq(0)]
                    m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += axi.arvalid.eq(1)
                with m.If(done == beats):
                    m.d.comb += axi.arvalid.eq(0)
                    m.d.sync += self.irq.eq(1)
                    m.next = "IDLE"
                with m.Elif(axi.arready):
                    m.d.sync += source.eq(source + config.port_bytes)
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += axi.rready.eq(1)
                with m.If(axi.rvalid):
                    m.d.sync += buffer.eq(axi.rdata)
                    m.d.sync += failed.eq(failed | axi.rresp.any())
                    m.next = "FLIP"
            with m.State("FLIP"):
                m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.d.comb += axi.awvalid.eq(1)
                with m.If(axi.awready):
                    m.d.sync += target.eq(target + config.port_bytes)
                    m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += axi.wvalid.eq(1)
                with m.If(axi.wready):
                    m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += axi.bready.eq(1)
                with m.If(axi.bvalid):
                    m.d.sync += [done.eq(done + 1), failed.eq(failed | axi.bresp.any())]
                    m.next = "REQUEST"

        self._registers(
            m, start, source, target, beats, invert, broken, Cat(done[:31], failed), scratch
        )
        return m

    def _registers(self, m, start, source, target, beats, invert, broken, status, scratch) -> None:
        csr = self.csr
        take = Signal()
        m.d.comb += [
            take.eq(csr.awvalid & csr.wvalid & (~csr.bvalid | csr.bready)),
            csr.awready.eq(take), csr.wready.eq(take), csr.arready.eq(~csr.rvalid | csr.rready),
        ]  # fmt: skip
        with m.If(csr.bready):
            m.d.sync += csr.bvalid.eq(0)
        with m.If(csr.rready):
            m.d.sync += csr.rvalid.eq(0)
        with m.If(take):
            m.d.sync += csr.bvalid.eq(1)
            with m.Switch(csr.awaddr):
                for name, register in (("SOURCE", source), ("TARGET", target), ("BEATS", beats),
                                       ("INVERT", invert), ("BREAK", broken)):  # fmt: skip
                    with m.Case(REGISTERS[name]):
                        m.d.sync += register.eq(csr.wdata)
                with m.Case(REGISTERS["SCRATCH"]):
                    m.d.comb += scratch.write_enable.eq(1)
                with m.Case(REGISTERS["CONTROL"]):
                    m.d.comb += start.eq(csr.wdata[0])
                    with m.If(csr.wdata[1]):
                        m.d.sync += self.irq.eq(0)
        with m.If(csr.arvalid & csr.arready):
            m.d.sync += csr.rvalid.eq(~broken[1])
            with m.Switch(csr.araddr):
                for name, value in (("IDENT", IDENT), ("SOURCE", source), ("TARGET", target),
                                    ("BEATS", beats), ("STATUS", status),
                                    ("SCRATCH", scratch.read_data[0])):  # fmt: skip
                    with m.Case(REGISTERS[name]):
                        m.d.sync += csr.rdata.eq(value)
