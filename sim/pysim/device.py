"""The core in the Amaranth simulator as a device: no tool but Python, and slow."""

from collections import deque
from typing import Any

import numpy as np
from amaranth.sim import Simulator
from numpy.typing import NDArray

from m890.firmware.errors import DeviceTimeout, FirmwareError
from m890.hdl.config import CoreConfig
from m890.hdl.core import Core

PATIENCE = 20_000
"""Cycles without any movement at the memory port after which a wait is hopeless."""


class PysimDevice:
    """The core's Amaranth design, simulated by Amaranth, with a memory of fixed latency.

    Function
        Implements `m890.firmware.device.Device`: for looking at the design without a compiler, and
        for the bench of simulation speed. The simulation moves only while a method waits for it.
    Parameters
        latency : cycles from a burst's address to its first beat, and from its last beat to its
            answer. One beat per cycle and direction.
    """

    def __init__(
        self, config: CoreConfig, *, memory_bytes: int = 16 << 20, latency: int = 20, seed: int = 0
    ) -> None:
        self.config, self._latency = config, latency
        self.memory: NDArray[np.uint8] = np.random.default_rng(seed).integers(
            0, 256, memory_bytes, np.uint8
        )
        self.cycle = 0
        self._moved = 0  # cycle of the last beat
        self._irq = False
        self._access: tuple[int, int | None] | None = None  # register, value to write
        self._answer: tuple[int, int] | None = None  # response, value read
        self._core = Core(config, external_rows=False)
        self._simulator = Simulator(self._core)
        self._simulator.add_clock(2e-9)
        self._simulator.add_testbench(self._memory_port, background=True)
        self._simulator.add_testbench(self._registers, background=True)

    def read(self, address: int) -> int:
        """The register at a byte address; takes some cycles."""
        return self._perform(address, None)

    def write(self, address: int, value: int) -> None:
        """Sets the register at a byte address; takes some cycles."""
        self._perform(address, value)

    def run(self, cycles: int | None = None) -> int:
        """Let time pass until the interrupt or for `cycles`; None: until the interrupt.

        Returns the cycles that passed. Raises `DeviceTimeout` when nothing moved at the memory port
        for long while waiting for the interrupt.
        """
        start = self._moved = self.cycle
        while not self._irq and (cycles is None or self.cycle - start < cycles):
            self._simulator.advance()
            if cycles is None and self.cycle - self._moved > PATIENCE:
                raise DeviceTimeout(PATIENCE, "the interrupt")
        return self.cycle - start

    def close(self) -> None:
        """Nothing to free."""

    def _perform(self, address: int, value: int | None) -> int:
        self._access, self._answer = (address, value), None
        while self._answer is None:
            self._simulator.advance()
        response, result = self._answer
        if response:
            raise FirmwareError(f"register {address:#x} answered with bus error {response}")
        return result

    async def _registers(self, ctx: Any) -> None:
        """AXI4-Lite master: one access after the other."""
        bus = self._core.csr
        ctx.set(bus.wstrb, 15)
        while True:
            if self._access is None:
                await ctx.tick()
                continue
            (address, value), self._access = self._access, None
            if value is None:
                ctx.set(bus.araddr, address)
                ctx.set(bus.arvalid, 1)
                await ctx.tick().until(bus.arready)
                ctx.set(bus.arvalid, 0)
                ctx.set(bus.rready, 1)
                self._answer = await ctx.tick().sample(bus.rresp, bus.rdata).until(bus.rvalid)
                ctx.set(bus.rready, 0)
            else:
                ctx.set(bus.awaddr, address)
                ctx.set(bus.wdata, value)
                ctx.set(bus.awvalid, 1)
                ctx.set(bus.wvalid, 1)  # the core takes both in the same cycle
                await ctx.tick().until(bus.awready & bus.wready)
                ctx.set(bus.awvalid, 0)
                ctx.set(bus.wvalid, 0)
                ctx.set(bus.bready, 1)
                (response,) = await ctx.tick().sample(bus.bresp).until(bus.bvalid)
                self._answer = response, 0
                ctx.set(bus.bready, 0)

    async def _memory_port(self, ctx: Any) -> None:
        """AXI4 slave: a read and a write beat per cycle, answers in order."""
        axi, size = self._core.axi, self.config.port_bytes
        reads: deque[tuple[int, int, int, bool]] = deque()  # due, id, address, last
        writes: deque[tuple[int, int]] = deque()  # id, address
        beats_in: deque[tuple[int, int, int]] = deque()  # data, strobes, last
        answers: deque[tuple[int, int]] = deque()  # due, id
        channels = (
            axi.arvalid, axi.arid, axi.araddr, axi.arlen, axi.awvalid, axi.awid, axi.awaddr,
            axi.wvalid, axi.wdata, axi.wstrb, axi.wlast,
        )  # fmt: skip
        given = answered = False
        written = 0
        for ready in (axi.arready, axi.awready, axi.wready):
            ctx.set(ready, 1)
        while True:
            if reads and reads[0][0] <= self.cycle:
                _, number, address, last = reads.popleft()
                word = self.memory[address : address + size].tobytes()
                ctx.set(axi.rdata, int.from_bytes(word, "little"))
                ctx.set(axi.rid, number)
                ctx.set(axi.rlast, last)
                ctx.set(axi.rvalid, 1)
                given, self._moved = True, self.cycle
            elif given:
                ctx.set(axi.rvalid, 0)
                given = False
            if answers and answers[0][0] <= self.cycle:
                ctx.set(axi.bid, answers.popleft()[1])
                ctx.set(axi.bvalid, 1)
                answered = True
            elif answered:
                ctx.set(axi.bvalid, 0)
                answered = False
            seen = await ctx.tick().sample(self._core.irq, *channels)
            self.cycle += 1
            _, _, irq, ar, read_id, at, length, aw, write_id, target, w, data, strobe, last = seen
            self._irq = bool(irq)
            if ar:
                due = self.cycle + self._latency - 1
                beats = ((due, read_id, at + n * size, n == length) for n in range(length + 1))
                reads.extend(beats)
            if aw:
                writes.append((write_id, target))
            if w:
                beats_in.append((data, strobe, last))
            while writes and beats_in:
                data, strobe, last = beats_in.popleft()
                number, address = writes[0]
                self._store(address + written * size, data, strobe)
                written, self._moved = written + 1, self.cycle
                if last:
                    writes.popleft()
                    answers.append((self.cycle + self._latency - 1, number))
                    written = 0

    def _store(self, address: int, data: int, strobe: int) -> None:
        size = self.config.port_bytes
        word = np.frombuffer(data.to_bytes(size, "little"), np.uint8)
        enable = np.frombuffer(strobe.to_bytes(-(-size // 8), "little"), np.uint8)
        mask = np.unpackbits(enable, bitorder="little")[:size].astype(bool)
        self.memory[address : address + size][mask] = word[mask]
