"""The cluster: cores of one configuration on one memory, their registers in one window."""

from typing import Any

from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import ClusterConfig
from m890.hdl.control.window import Window
from m890.hdl.core import Core
from m890.hdl.memory.interconnect import Interconnect
from m890.hdl.memory.ports import Axi4, AxiLite


class Cluster(wiring.Component):
    """Two to four cores on one memory.

    Function
        The cores know nothing of each other: each has its ring, its page manager and its planes,
        in memory that all of them reach. Firmware divides heads or contexts between them and merges
        raw states by adding (docs/cluster.md).
    Members
        axi : AXI4 master, the port of all cores (`shared`), its id with the core's number on top;
        or axi[n], a port per core. csr : AXI4-Lite, the registers of core n from byte n x 4,096 on.
        irq[n] : the interrupt of core n.
    Throughput
        That of its cores: `cores` beats of `lanes` KV elements per cycle. A shared port gives all
        cores together 2 x `lanes` bytes per cycle.
    Parameters
        config : see ClusterConfig.
    """

    axi: Any
    csr: Any
    irq: Signal

    CORE_MODULE = "m890_core"
    """All cores are instances of one Verilog module, elaborated once."""

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._core = Core(config.core)
        axi = Axi4(config.core, config.core_bits if config.shared else 0)
        super().__init__(
            {
                "axi": Out(axi) if config.shared else Out(axi).array(config.cores),
                "csr": In(AxiLite(config.core_bits)),
                "irq": Out(config.cores),
            }
        )

    def external_modules(self) -> list[tuple[str, wiring.Component]]:
        """Modules that are instantiated by name, to be elaborated once each."""
        return [(self.CORE_MODULE, self._core), *self._core.external_modules()]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.window = window = Window(config)
        wiring.connect(m, wiring.flipped(self.csr), window.bus)
        if config.shared:
            m.submodules.interconnect = interconnect = Interconnect(config)
            for name, member in interconnect.axi.signature.members.items():
                ours, theirs = getattr(self.axi, name), getattr(interconnect.axi, name)
                m.d.comb += ours.eq(theirs) if member.flow is Out else theirs.eq(ours)
            ports = interconnect.core
        else:
            ports = self.axi
        for n in range(config.cores):
            wires = {"axi": ports[n], "csr": window.core[n]}
            connections: dict[str, Value] = {}
            for prefix, interface in (("m_axi", "axi"), ("s_axil", "csr")):
                members = getattr(self._core, interface).signature.members
                for name, member in members.items():
                    way = "i" if member.flow is In else "o"
                    connections[f"{way}_{prefix}_{name}"] = getattr(wires[interface], name)
            m.submodules[f"core{n}"] = Instance(
                self.CORE_MODULE, i_clk=ClockSignal(), i_rst=ResetSignal(), o_irq=self.irq[n],
                **connections,
            )  # fmt: skip
        return m
