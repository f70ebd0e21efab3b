"""The range check against integers, near every edge."""

import random

import pytest
from amaranth.sim import Simulator

from m890.hdl.config import preset
from m890.hdl.control.address_check import AddressCheck


@pytest.mark.parametrize("name", ["tiny", "m890"])
def test_ranges_are_judged_exactly_and_in_time(seed, name):
    print(f"seed {seed}")
    rng = random.Random(seed)
    config = preset(name)
    port = config.port_bytes
    dut = AddressCheck(config)
    answers = set()

    async def test(ctx):
        for _ in range(150):
            count = rng.getrandbits(rng.randrange(25))
            stride = rng.getrandbits(rng.randrange(33)) // port
            size = rng.getrandbits(rng.randrange(25))
            address = rng.getrandbits(rng.choice((20, 30, 40, 64))) // port * port
            end = address + (count * stride + size) * port
            limit = min(max(0, end // port + rng.choice((-1, 0, 0, 1))), (1 << 40) // port)
            ok = address < 1 << 40 and end <= limit * port
            answers.add(ok)
            operands = {"address": address, "count": count, "stride": stride, "size": size}
            for operand, value in operands.items():
                ctx.set(getattr(dut, operand), value)
            ctx.set(dut.limit, limit)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            for operand in operands:  # read at the start only
                ctx.set(getattr(dut, operand), rng.getrandbits(20))
            cycles = 1
            while ctx.get(dut.busy):
                cycles += 1
                await ctx.tick()
            assert cycles == 4 + count.bit_length(), "the latency that the docstring states"
            assert ctx.get(dut.ok) == ok, (operands, limit)

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(test)
    sim.run()
    assert answers == {True, False}
