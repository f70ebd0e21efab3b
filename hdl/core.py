"""The core: wiring of control, attention engine, append unit and memory arbiters."""

from typing import Any

from amaranth.hdl import EnableInserter, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.engine import AttentionEngine
from m890.hdl.config import CoreConfig
from m890.hdl.control.control import Control
from m890.hdl.kv.append import Append
from m890.hdl.memory.ports import Axi4, AxiLite
from m890.hdl.memory.read_arbiter import ReadArbiter
from m890.hdl.memory.write_arbiter import WriteArbiter


class Core(wiring.Component):
    """One attention core: `rows x lanes` multipliers on one memory port.

    Function
        Executes the commands of `m890.hdl.commands` from a ring in memory.
    Members
        axi : AXI4 master, `2 x lanes` bytes wide. csr : AXI4-Lite slave (`m890.hdl.registers`).
        irq : level, high while an enabled interrupt is pending.
    Throughput
        One beat of `lanes` KV elements per cycle with all rows.
    Errors
        Bad commands complete with an error code and change nothing.
    Parameters
        config : see CoreConfig. external_rows : rows are instances of one Verilog module,
        elaborated once (`external_modules`); False elaborates every row, for Amaranth's simulator.
    """

    axi: Any
    csr: Any
    irq: Signal

    READERS = (
        "ring", "loader", "table", "append_table", "append", "page_list", "k", "v", "bias", "raw",
        "page",
    )  # fmt: skip
    """AXI read ids; the first six wait for each other's data in short bursts and go first."""
    WRITERS = ("completion", "page_entry", "append", "output", "page")
    """AXI write ids; the first two go first."""

    def __init__(self, config: CoreConfig, *, external_rows: bool = True) -> None:
        self.config = config
        self._external_rows = external_rows
        self._engine = AttentionEngine(config, external_rows=external_rows)
        super().__init__({"axi": Out(Axi4(config)), "csr": In(AxiLite()), "irq": Out(1)})

    def external_modules(self) -> list[tuple[str, wiring.Component]]:
        """Modules that are instantiated by name, to be elaborated once each."""
        if not self._external_rows:
            return []
        return self._engine.array.external_modules()

    def elaborate(self, platform: object) -> Module:
        c = self.config
        m = Module()
        m.submodules.control = control = Control(c)
        m.submodules.attention = engine = self._engine
        append = Append(c)
        m.submodules.append = EnableInserter(append.busy)(append)
        kv = {self.READERS.index(name) for name in ("k", "v")}
        m.submodules.reads = reads = ReadArbiter(c, len(self.READERS), control=range(6), kv=kv)
        m.submodules.writes = writes = WriteArbiter(c, len(self.WRITERS), control=(0, 1))
        read_ports = (
            control.ring, control.loader, engine.table, append.table, append.read,
            control.page_list, engine.k, engine.v, engine.bias, engine.raw, control.page_read,
        )  # fmt: skip
        for inner, outer in zip(read_ports, reads.port, strict=True):
            wiring.connect(m, inner, outer)
        write_ports = (
            control.completion, control.page_entry, append.write, engine.write, control.page_write
        )  # fmt: skip
        for inner, outer in zip(write_ports, writes.port, strict=True):
            wiring.connect(m, inner, outer)
        for half in (reads.axi, writes.axi):
            for name, member in half.signature.members.items():
                ours, theirs = getattr(self.axi, name), getattr(half, name)
                m.d.comb += ours.eq(theirs) if member.flow is Out else theirs.eq(ours)

        wiring.connect(m, control.append, append.command)
        wiring.connect(m, append.done, control.append_done)
        wiring.connect(m, control.job, engine.job)
        wiring.connect(m, control.segment, engine.segment)
        wiring.connect(m, engine.done, control.attend_done)
        wiring.connect(m, engine.owner, control.owner[0])
        wiring.connect(m, append.owner, control.owner[1])
        wiring.connect(m, wiring.flipped(self.csr), control.csr)
        m.d.comb += [
            self.irq.eq(control.irq),
            engine.row.eq(control.row),
            engine.query.eq(control.query),
            control.slot_free.eq(engine.slot_free),
            engine.loading.eq(control.loading),
            control.beat.eq(engine.beat),
            control.useful.eq(engine.useful),
            control.stall.eq(engine.cause),
            control.read_beat.eq(reads.beat),
            control.kv_beat.eq(reads.kv_beat),
            control.write_bytes.eq(writes.bytes),
        ]
        return m
