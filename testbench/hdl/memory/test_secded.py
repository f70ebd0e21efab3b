"""Error-correcting memory: one wrong bit of a word is corrected, two are detected, every pair."""

import itertools

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from m890.hdl.memory.secded import SecdedSram, check_bits, columns, encode


@pytest.mark.parametrize("width", [1, 4, 5, 16, 41, 120])
def test_columns_are_different_odd_sets_of_three_or_more(width):
    found = columns(width)
    assert len(set(found)) == len(found) == width
    assert all(c.bit_count() % 2 and c.bit_count() > 1 for c in found)
    assert max(found) < 1 << check_bits(width)


class Coder(wiring.Component):
    i: In(7)
    o: Out(check_bits(7))

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(encode(self.i))
        return m


def test_code_words_differ_in_four_bits_or_more():
    """Minimum distance 4: what corrects one wrong bit and detects two."""
    dut, words = Coder(), []

    async def test(ctx):
        for value in range(128):
            ctx.set(dut.i, value)
            await ctx.delay(1e-9)
            words.append(value | ctx.get(dut.o) << 7)

    simulator = Simulator(dut)
    simulator.add_testbench(test)
    simulator.run()
    assert min((a ^ b).bit_count() for a, b in itertools.combinations(words, 2)) == 4


@pytest.mark.parametrize("width", [7, 12])
def test_every_wrong_bit_is_corrected_and_every_two_are_told(width, rng):
    total = width + check_bits(width)
    dut = SecdedSram(width, 4)
    flips = [(), *itertools.combinations(range(total), 1), *itertools.combinations(range(total), 2)]

    # The memory's own rows are written, so that any bit of the code word can be wrong.
    async def test(ctx):
        for bits in flips:
            value = int(rng.integers(1 << width))
            ctx.set(dut.write_address, 1)
            ctx.set(dut.write_data, value)
            ctx.set(dut.write_enable, 1)
            await ctx.tick()
            ctx.set(dut.write_enable, 0)
            row = memory.data[1]
            ctx.set(row, ctx.get(row) ^ sum(1 << b for b in bits))
            ctx.set(dut.read_address[0], 1)
            ctx.set(dut.read_enable[0], 1)
            await ctx.tick()
            assert ctx.get(dut.fatal[0]) == (len(bits) == 2), bits
            assert ctx.get(dut.corrected[0]) == (len(bits) == 1), bits
            if len(bits) < 2:
                assert ctx.get(dut.read_data[0]) == value, bits

    memory = _memory_of(dut)
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(test)
    simulator.run()


def _memory_of(dut):
    """The memory inside, kept when the block is elaborated."""
    made = dut.elaborate(None)
    dut.elaborate = lambda platform: made
    return made.submodules.sram._memory


def test_injection_turns_bits_over():
    dut = SecdedSram(9, 2)

    async def test(ctx):
        for inject in (0, 1, 3):
            ctx.set(dut.inject, inject)
            ctx.set(dut.write_data, 0x155)
            ctx.set(dut.write_enable, 1)
            ctx.set(dut.read_enable[0], 1)
            await ctx.tick().repeat(2)
            found = ctx.get(dut.corrected[0]), ctx.get(dut.fatal[0])
            assert found == (inject == 1, inject == 3)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(test)
    simulator.run()
