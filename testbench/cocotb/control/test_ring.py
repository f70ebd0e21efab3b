"""The command ring in Verilog: order, wrapping, room, bus errors, stalls."""

import random
from typing import Any

import cocotb

from m890.hdl.commands import COMMAND_BYTES
from m890.hdl.config import preset
from m890.hdl.control.ring import PREFETCH, RingFetch
from m890.testbench.cocotb.ports import Bytes, ReadServer
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.cocotb.streams import Clocked

BASE, SIZE = 0x780, 8


@cocotb.test()
@cocotb.parametrize(stalls=[(0.0, 0.0), (0.5, 0.5), (0.0, 0.9)])
async def commands_in_order(dut: Any, stalls: tuple[float, float]) -> None:
    """The entries are rewritten as soon as `head` has passed them."""
    c, chance = config(), random.Random(seed())
    image = Bytes(0x2000, c.port_bytes, seed())
    clocked = Clocked(dut)
    out = clocked.sink("o", stall=stalls[1], seed=seed())
    ReadServer(
        clocked, ("read",), image, port_bytes=c.port_bytes, address_bits=c.address_bits,
        latency=6, stall=stalls[0], seed=seed(),
    )  # fmt: skip
    await clocked.start(enable=1, base=BASE, size=SIZE, tail=0, clear=0)
    sent: list[int] = []
    tail = known = 0  # written, and as the ring saw it before this edge
    while out.count < 60:
        head = int(dut.head.value)
        assert out.count <= head <= min(tail, out.count + PREFETCH)
        if tail < 60 and tail - head < SIZE and not chance.randrange(3):
            for _ in range(chance.randint(1, min(SIZE - (tail - head), 60 - tail))):
                at = BASE + tail % SIZE * COMMAND_BYTES
                command = chance.randbytes(COMMAND_BYTES)
                image.bytes[at : at + COMMAND_BYTES] = command
                sent.append(int.from_bytes(command, "little"))
                tail += 1
            dut.tail.value = tail
        await clocked.tick()
        assert not int(dut.idle.value) or out.count == known
        known = tail
        assert clocked.cycle < 6000, f"{out.count} of {tail} commands came"
    await clocked.tick(30)
    assert out.taken == sent
    assert int(dut.idle.value) == 1
    dut.enable.value = 0  # as the registers do it
    await clocked.tick()
    dut.clear.value, dut.tail.value = 1, 0
    await clocked.tick()
    dut.clear.value, dut.enable.value = 0, 1
    await clocked.tick(30)
    assert int(dut.head.value) == 0 and out.count == 60


@cocotb.test()
async def a_failed_beat_marks_its_command(dut: Any) -> None:
    c = config()
    image = Bytes(0x2000, c.port_bytes, seed())
    clocked = Clocked(dut)
    out = clocked.sink("o", stall=0.3, seed=seed())
    ReadServer(
        clocked, ("read",), image, port_bytes=c.port_bytes, address_bits=c.address_bits,
        seed=seed(),
    )  # fmt: skip
    beats = COMMAND_BYTES // c.port_bytes
    for n in range(beats):  # command n fails in beat n
        image.errors.add(BASE + n * COMMAND_BYTES + n * c.port_bytes)
    await clocked.start(enable=1, base=BASE, size=SIZE, tail=beats + 2, clear=0)
    await clocked.until(lambda: out.count == beats + 2, 2000, after=20)
    assert [x >> 8 * COMMAND_BYTES for x in out.taken] == [1] * beats + [0, 0]


@on_both_simulators
def test_ring(bench: Bench) -> None:
    bench.run(RingFetch, preset("tiny"))
