"""The registers of several cores in one AXI4-Lite window."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import ClusterConfig
from m890.hdl.memory.ports import CSR_BITS, AxiLite

DECERR = 3


class Window(wiring.Component):
    """Core n's registers from byte n x 4,096 on.

    Function
        Hands each access to the core that the upper bits of its address name, and its answer back.
        One write and one read at a time; they do not wait for each other.
    Members
        bus : AXI4-Lite of the cluster. core[n] : of core n, seen from its master.
    Latency
        Read 1 cycle and write 2 cycles more than the core's own.
    Backpressure
        `bready` and `rready` reach the core combinationally.
    Errors
        DECERR for addresses behind the last core.
    Parameters
        config : the cluster, of which only the number of cores matters.
    """

    bus: Any
    core: Any

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        super().__init__(
            {
                "bus": In(AxiLite(config.core_bits)),
                "core": Out(AxiLite()).array(config.cores),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._writes(m)
        self._reads(m)
        return m

    def _writes(self, m: Module) -> None:
        bus, cores = self.bus, self.core
        address, prot = Signal.like(bus.awaddr), Signal.like(bus.awprot)
        word, strobe = Signal.like(bus.wdata), Signal.like(bus.wstrb)
        have_address, have_word = Signal(), Signal()
        ask_address, ask_word = Signal(), Signal()  # still to be taken by the core
        m.d.comb += [bus.awready.eq(~have_address), bus.wready.eq(~have_word)]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [address.eq(bus.awaddr), prot.eq(bus.awprot), have_address.eq(1)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [word.eq(bus.wdata), strobe.eq(bus.wstrb), have_word.eq(1)]
        for core in cores:
            m.d.comb += [
                core.awaddr.eq(address), core.awprot.eq(prot),
                core.wdata.eq(word), core.wstrb.eq(strobe),
            ]  # fmt: skip
        with m.FSM(name="write"):
            with m.State("ACCEPT"):
                with m.If(have_address & have_word):
                    m.d.sync += [ask_address.eq(1), ask_word.eq(1)]
                    m.next = "ASK"
            with m.State("ASK"):
                with m.Switch(address[CSR_BITS:]):
                    for n, core in enumerate(cores):
                        with m.Case(n):
                            m.d.comb += [
                                core.awvalid.eq(ask_address), core.wvalid.eq(ask_word),
                                core.bready.eq(bus.bready), bus.bvalid.eq(core.bvalid),
                                bus.bresp.eq(core.bresp),
                            ]  # fmt: skip
                            with m.If(core.awready):
                                m.d.sync += ask_address.eq(0)
                            with m.If(core.wready):
                                m.d.sync += ask_word.eq(0)
                    with m.Default():
                        m.d.comb += [bus.bvalid.eq(1), bus.bresp.eq(DECERR)]
                with m.If(bus.bvalid & bus.bready):
                    m.d.sync += [have_address.eq(0), have_word.eq(0)]
                    m.next = "ACCEPT"

    def _reads(self, m: Module) -> None:
        bus, cores = self.bus, self.core
        address, prot = Signal.like(bus.araddr), Signal.like(bus.arprot)
        ask = Signal()  # still to be taken by the core
        for core in cores:
            m.d.comb += [core.araddr.eq(address), core.arprot.eq(prot)]
        with m.FSM(name="read"):
            with m.State("ACCEPT"):
                m.d.comb += bus.arready.eq(1)
                with m.If(bus.arvalid):
                    m.d.sync += [address.eq(bus.araddr), prot.eq(bus.arprot), ask.eq(1)]
                    m.next = "ASK"
            with m.State("ASK"):
                with m.Switch(address[CSR_BITS:]):
                    for n, core in enumerate(cores):
                        with m.Case(n):
                            m.d.comb += [
                                core.arvalid.eq(ask), core.rready.eq(bus.rready),
                                bus.rvalid.eq(core.rvalid), bus.rdata.eq(core.rdata),
                                bus.rresp.eq(core.rresp),
                            ]  # fmt: skip
                            with m.If(core.arready):
                                m.d.sync += ask.eq(0)
                    with m.Default():
                        m.d.comb += [bus.rvalid.eq(1), bus.rresp.eq(DECERR)]
                with m.If(bus.rvalid & bus.rready):
                    m.next = "ACCEPT"
