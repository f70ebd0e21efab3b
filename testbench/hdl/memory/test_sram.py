"""Memories: what a read returns, also where its address is just written."""

from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from m890.hdl.memory.sram import Sram


@pytest.mark.parametrize("collisions", [True, False])
def test_reads(rng: np.random.Generator, collisions: bool) -> None:
    """The word before this cycle's write, held until the next read; block tests see its inverse
    where nobody may need it."""
    depth, width = 4, 9
    dut = Sram(width, depth, reads=2, collisions=collisions)
    words: list[int | None] = [None] * depth
    met = 0

    async def check(ctx: Any) -> None:
        nonlocal met
        want: list[int | None] = [None, None]
        for _ in range(400):
            write, at, word = (int(rng.integers(n)) for n in (2, depth, 1 << width))
            ctx.set(dut.write_enable, write)
            ctx.set(dut.write_address, at)
            ctx.set(dut.write_data, word)
            for n in range(2):
                read, address = int(rng.integers(2)), int(rng.integers(depth))
                ctx.set(dut.read_enable[n], read)
                ctx.set(dut.read_address[n], address)
                if read:
                    want[n] = before = words[address]
                    if write and address == at and before is not None:
                        met += 1
                        want[n] = before if collisions else before ^ (1 << width) - 1
            if write:
                words[at] = word
            await ctx.tick()
            for n in range(2):
                if want[n] is not None:
                    assert ctx.get(dut.read_data[n]) == want[n]

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(check)
    simulator.run()
    assert met > 10
