"""The one wrapper around on-chip memories, so that an ASIC flow can put macros in one place."""

from typing import Any

from amaranth.hdl import Elaboratable, Module, ShapeLike
from amaranth.lib import memory


class Sram(Elaboratable):
    """A synchronous memory: one write port, any number of read ports, contents undefined at start.

    Function
        A read enabled in cycle n shows its word in cycle n + 1 and holds it until the next read. A
        read of the address written in the same cycle returns the old word, or, without
        `collisions`, anything.
    Members
        write_address, write_data, write_enable : the write port. With `granularity`, `write_enable`
            has one bit per `granularity` bits of the word.
        read_address[i], read_enable[i], read_data[i] : read port i. A `read_enable` is 1 wherever
            nothing drives it, also in branches: drive 0 first where words must be held.
    Latency
        1 cycle.
    Storage
        depth x width bits, 1 write port, `reads` read ports.
    Parameters
        collisions : False where nobody needs what a read of the address just written returns. The
            simulators return the old word all the same; synthesis need not, and block RAM, which
            has no such mode, takes half the blocks then and no logic beside them.
        block : Block RAM pays for this memory, shallow as it is.
    """

    def __init__(
        self, shape: ShapeLike, depth: int, *, reads: int = 1, granularity: int | None = None,
        collisions: bool = True, block: bool = False,
    ) -> None:  # fmt: skip
        hints: Any = {} if collisions else {"no_rw_check": 1}  # of Yosys
        if block:
            hints["ram_style"] = "block"
        self._memory = memory.Memory(shape=shape, depth=depth, init=[], attrs=hints)
        self.depth = depth
        self._write = self._memory.write_port(granularity=granularity)
        self._reads = [self._memory.read_port(domain="sync") for _ in range(reads)]
        self.write_address = self._write.addr
        self.write_data: Any = self._write.data
        self.write_enable = self._write.en
        self.read_address = [port.addr for port in self._reads]
        self.read_data: list[Any] = [port.data for port in self._reads]
        self.read_enable = [port.en for port in self._reads]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = self._memory
        return m
