"""Both arbiters in Verilog, with cocotbext-axi's memory behind them."""

import random
from typing import Any

import cocotb
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig, preset
from m890.hdl.memory.ports import Axi4, ReadPort, WritePort
from m890.hdl.memory.read_arbiter import ReadArbiter
from m890.hdl.memory.write_arbiter import WriteArbiter
from m890.sim.cocotb.axi import axi_memory
from m890.testbench.cocotb.ports import Requester, Writer, write_beat
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.cocotb.streams import Clocked

PORTS = 3
MEMORY = 1 << 16
READ_ONLY = MEMORY // 2
"""Below it memory is read, from it on written, each writer its own part."""


class Arbiters(wiring.Component):
    """A read and a write arbiter on one AXI port; requester 0 is of the control class."""

    axi: Any

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {"axi": Out(Axi4(config))}
            | {f"read{n}": In(ReadPort(config)) for n in range(PORTS)}
            | {f"write{n}": In(WritePort(config)) for n in range(PORTS)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.reads = reads = ReadArbiter(self._config, PORTS, control=(0,))
        m.submodules.writes = writes = WriteArbiter(self._config, PORTS, control=(0,))
        for n in range(PORTS):
            wiring.connect(m, wiring.flipped(getattr(self, f"read{n}")), reads.port[n])
            wiring.connect(m, wiring.flipped(getattr(self, f"write{n}")), writes.port[n])
        for half in (reads.axi, writes.axi):
            for name, member in half.signature.members.items():
                ours, theirs = getattr(self.axi, name), getattr(half, name)
                m.d.comb += ours.eq(theirs) if member.flow is Out else theirs.eq(ours)
        return m


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.4])
async def random_traffic(dut: Any, stall: float) -> None:
    """Every requester gets its beats in order and its answers; bytes without strobe stay."""
    c, chance = config(), random.Random(seed())
    size, bits = c.port_bytes, c.address_bits
    memory = bytearray(chance.randbytes(MEMORY))
    bad = size * chance.randrange(READ_ONLY // size)
    bad_write = READ_ONLY + size * chance.randrange(READ_ONLY // size)
    clocked = Clocked(dut)
    ram = axi_memory(dut, memory, seed=seed(), stall=stall)
    fail_at(ram.read_if, "_read", bad)
    fail_at(ram.write_if, "_write", bad_write)
    readers, writers = [], []
    expected: list[list[tuple[int, int, int]]] = []
    errors: list[list[int]] = []
    image = bytearray(memory)
    for n in range(PORTS):
        options = {"stall": stall, "seed": seed() + n}
        reader, writer = Requester(clocked, f"read{n}", **options), None
        readers.append(reader)
        expected.append([])
        for _ in range(12):
            count = chance.choice([1, 2, chance.randint(1, 40), chance.randint(200, 300)])
            at = size * chance.randrange(READ_ONLY // size - count)
            reader.source.put(at | count << bits)
            for k in range(at, at + count * size, size):
                word = int.from_bytes(memory[k : k + size], "little")
                last = k == at + (count - 1) * size
                expected[n].append((word, int(last), 2 * int(k == bad) and 1))
        writer = Writer(clocked, f"write{n}", **options)
        writers.append(writer)
        errors.append([])
        part = READ_ONLY // PORTS // size * size
        for _ in range(10):
            count = chance.choice([1, 2, chance.randint(1, 40), chance.randint(200, 280)])
            at = READ_ONLY + n * part + size * chance.randrange(part // size - count)
            writer.requests.put(at | count << bits)
            for k in range(at, at + count * size, size):
                beat = chance.getrandbits(8 * size)
                beat |= chance.choice([(1 << size) - 1, chance.getrandbits(size)]) << 8 * size
                writer.beats.put(beat)
                if k != bad_write:
                    write_beat(image, k, beat, size)
            covered = at <= bad_write < at + count * size
            errors[n].append(int(covered))

    def done() -> bool:
        return all(len(r.beats) == len(e) for r, e in zip(readers, expected, strict=True)) and all(
            len(w.errors) == len(e) for w, e in zip(writers, errors, strict=True)
        )

    await clocked.start()
    await clocked.until(done, 30000, after=10)
    for n in range(PORTS):
        got = [beat if not beat[2] else (0, *beat[1:]) for beat in readers[n].beats]
        assert got == [b if not b[2] else (0, *b[1:]) for b in expected[n]], f"reader {n}"
        assert writers[n].errors == errors[n], f"writer {n}"
    assert memory == image


def fail_at(half: Any, name: str, address: int) -> None:
    """Makes the memory answer accesses of one beat with an error."""
    plain = getattr(half, name)

    async def access(at: int, what: Any) -> Any:
        if at // half.byte_lanes * half.byte_lanes == address:
            raise ValueError("this beat fails")
        return await plain(at, what)

    setattr(half, name, access)


@on_both_simulators
def test_arbiters(bench: Bench) -> None:
    bench.run(Arbiters, preset("tiny"))
