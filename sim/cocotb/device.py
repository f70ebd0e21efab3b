"""The core in a cocotb simulation as a device: the same firmware runs on it as on all others."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from cocotb.clock import Clock
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles, First, RisingEdge, Timer
from cocotb.utils import get_sim_time
from cocotbext.axi import AxiResp
from numpy.typing import NDArray

from m890.firmware.errors import DeviceTimeout, FirmwareError
from m890.hdl.config import CoreConfig
from m890.sim.cocotb.axi import axi_memory, register_master
from m890.sim.cocotb.launch import watch

T = TypeVar("T")
PERIOD = 2
"""Nanoseconds of a cycle."""
PATIENCE = 20_000
"""Cycles without any movement at the memory port after which a wait is hopeless."""


class CocotbDevice:
    """The core's Verilog under cocotb, with cocotbext-axi's memory and register master.

    Function
        Implements `m890.firmware.device.Device`; `memory` shares its bytes with the AXI memory.
        Firmware blocks, simulations do not: it runs in a thread of `use`, never at the same time
        as the simulation. Accesses in the range `broken` meet a bus error; those to a byte
        of `watched` are counted in `touched`.
    Parameters
        memory_bytes : size of the memory, which starts with random bytes of `seed`.
        stall : share of cycles in which each AXI channel pauses.
    """

    def __init__(
        self,
        dut: Any,
        config: CoreConfig,
        *,
        memory_bytes: int = 16 << 20,
        seed: int = 0,
        stall: float = 0.0,
    ) -> None:
        self.config, self._dut = config, dut
        content = np.random.default_rng(seed).bytes(memory_bytes)
        storage = bytearray(content)
        self.memory: NDArray[np.uint8] = np.frombuffer(storage, np.uint8)
        self._ram = axi_memory(dut, storage, seed=seed, stall=stall)
        self._master = register_master(dut, seed=seed, stall=stall)
        self._accesses = 0
        self.broken = self.watched = range(0)
        self.touched = 0
        for half, name in ((self._ram.read_if, "_read"), (self._ram.write_if, "_write")):
            self._count(half, name)

    async def start(self) -> None:
        """Starts the clock and resets the core."""
        watch()
        self._dut.rst.value = 1
        Clock(self._dut.clk, PERIOD, "ns", impl="gpi").start(start_high=False)
        await ClockCycles(self._dut.clk, 4)
        self._dut.rst.value = 0
        await ClockCycles(self._dut.clk, 2)

    async def use(self, function: Callable[["CocotbDevice"], T]) -> T:
        """Runs firmware, `function(device)`, while the simulation waits for it and it for that."""
        return await bridge(function)(self)

    @property
    def cycle(self) -> int:
        """Cycles since the simulation started."""
        return round(get_sim_time("ns")) // PERIOD

    def read(self, address: int) -> int:
        """The register at a byte address; takes some cycles."""
        return resume(self._read)(address)

    def write(self, address: int, value: int) -> None:
        """Sets the register at a byte address; takes some cycles."""
        resume(self._write)(address, value)

    def run(self, cycles: int | None = None) -> int:
        """Let time pass until the interrupt or for `cycles`; None: until the interrupt.

        Returns the cycles that passed. Raises `DeviceTimeout` when nothing moved at the memory port
        for long while waiting for the interrupt.
        """
        return resume(self._run)(cycles)

    def close(self) -> None:
        """Nothing to free: the simulation ends with its test."""

    async def _read(self, address: int) -> int:
        answer = await self._master.read(address, 4)
        self._answered(answer.resp, address)
        return int.from_bytes(answer.data, "little")

    async def _write(self, address: int, value: int) -> None:
        answer = await self._master.write(address, value.to_bytes(4, "little"))
        self._answered(answer.resp, address)

    async def _run(self, cycles: int | None) -> int:
        start, irq = self.cycle, self._dut.irq
        while not int(irq.value) and (cycles is None or self.cycle - start < cycles):
            before = self._accesses
            left = PATIENCE if cycles is None else cycles - (self.cycle - start)
            await First(RisingEdge(irq), Timer(left * PERIOD, "ns"))
            if cycles is None and not int(irq.value) and self._accesses == before:
                raise DeviceTimeout(PATIENCE, "the interrupt")
        await RisingEdge(self._dut.clk)
        return self.cycle - start

    def _count(self, half: Any, name: str) -> None:
        plain = getattr(half, name)

        async def access(address: int, what: Any) -> Any:
            self._accesses += 1
            size = what if isinstance(what, int) else len(what)  # to read, or data to write
            self.touched += address < self.watched.stop and address + size > self.watched.start
            if address in self.broken:
                raise OSError(f"{address:#x} is broken")
            return await plain(address, what)

        setattr(half, name, access)

    def _answered(self, answer: AxiResp, address: int) -> None:
        if answer != AxiResp.OKAY:
            raise FirmwareError(f"register {address:#x} answered with {answer.name}")
