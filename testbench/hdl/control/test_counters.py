"""Counters against sums in Python, every cycle, with words so short that they carry often."""

import random

import pytest
from amaranth.sim import Simulator

from m890.hdl.config import preset
from m890.hdl.control import counters
from m890.hdl.registers import COUNTERS, Stall


@pytest.fixture
def word(monkeypatch):
    """Bits of a counter's half; 32 in the core."""
    monkeypatch.setattr(counters, "WORD", 5)
    return 5


def test_counters_sum_up_and_every_cycle_counts_once(seed, word):
    print(f"seed {seed}")
    rng = random.Random(seed)
    dut = counters.Counters(preset("tiny"))
    modulus = 1 << 2 * word
    expected = dict.fromkeys(COUNTERS, 0)
    late = []  # events of the array show one cycle later than the others

    def count(inputs):
        direct = {
            "READ_BYTES": 16 * inputs["read_beat"],
            "KV_BYTES": 16 * inputs["kv_beat"],
            "WRITE_BYTES": inputs["write_bytes"],
            "TOKENS": inputs["tokens"],
            "JOBS": inputs["job"],
        }
        if not inputs["attending"]:
            cause = Stall.IDLE
        elif inputs["stall"] == Stall.IDLE:
            cause = Stall.QUERY
        else:
            cause = Stall(inputs["stall"])
        array = {"CYCLES": 1, "USEFUL_BEATS": inputs["useful"]}
        if inputs["beat"]:
            array["BEATS"] = 1
        else:
            array[f"STALL_{cause.name}"] = 1
        return direct, array

    async def test(ctx):
        lows, before = None, {}
        for n in range(600):
            clear = n in (200, 201, 300)
            inputs = {
                "beat": rng.randrange(2), "useful": rng.randrange(2), "stall": rng.randrange(8),
                "attending": rng.random() < 0.9, "job": rng.randrange(2),
                "tokens": rng.randrange(20), "read_beat": rng.randrange(2),
                "kv_beat": rng.randrange(2), "write_bytes": rng.randrange(17), "clear": clear,
            }  # fmt: skip
            for name, value in inputs.items():
                ctx.set(getattr(dut, name), Stall(value) if name == "stall" else value)
            highs = {}
            for k, name in enumerate(COUNTERS):
                ctx.set(dut.select, k)
                highs[name] = ctx.get(dut.high)
            if lows is not None:  # the upper word belongs to the lower one of the cycle before
                values = {m: lows[m] | highs[m] << word for m in COUNTERS}
                assert values == before, n
                stalls = sum(values[f"STALL_{s.name}"] for s in Stall)
                assert (values["CYCLES"] - values["BEATS"] - stalls) % modulus == 0
            lows = {}
            for k, name in enumerate(COUNTERS):
                ctx.set(dut.select, k)
                lows[name] = ctx.get(dut.low)
            before = dict(expected)
            await ctx.tick()
            direct, array = count(inputs)
            late.append(array)
            if clear:
                expected.update(dict.fromkeys(COUNTERS, 0))
                lows = None
            else:
                for part in (direct, late[-2] if len(late) > 1 else {}):
                    for name, value in part.items():
                        expected[name] = (expected[name] + value) % modulus

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(test)
    sim.run()


def test_the_cycle_counter_is_exact_beyond_its_lower_word(word):
    dut = counters.Counters(preset("tiny"))

    async def test(ctx):
        for n in range(200):
            assert ctx.get(dut.cycles) == n
            await ctx.tick()
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        for n in range(70):
            assert ctx.get(dut.cycles) == n
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(test)
    sim.run()
