"""The cluster's register window between a random master and cores that answer when they like."""

import random
from typing import Any

import pytest
from amaranth.sim import Simulator

from m890.hdl.config import ClusterConfig, preset
from m890.hdl.control.window import DECERR, Window
from m890.hdl.memory.ports import CSR_BITS


async def passing(ctx, condition, *signals):
    """Samples of the cycle in which the condition holds."""
    while True:
        _, _, holds, *values = await ctx.tick().sample(condition, *signals)
        if holds:
            return values


class Registers:
    """The AXI4-Lite slave of one core: words that were written, and SLVERR for odd ones."""

    def __init__(self, bus, rng):
        self.bus, self.rng = bus, rng
        self.words = {}

    async def writes(self, ctx):
        bus, rng = self.bus, self.rng
        while True:
            have: dict[str, Any] = {"aw": None, "w": None}
            while None in have.values():
                ready = {name: have[name] is None and rng.random() < 0.5 for name in have}
                for name, value in ready.items():
                    ctx.set(getattr(bus, f"{name}ready"), value)
                seen = await ctx.tick().sample(
                    bus.awvalid, bus.wvalid, bus.awaddr, bus.wdata, bus.wstrb
                )
                _, _, awvalid, wvalid, address, data, strobe = seen
                if awvalid and ready["aw"]:
                    have["aw"] = address
                if wvalid and ready["w"]:
                    have["w"] = data, strobe
            ctx.set(bus.awready, 0)
            ctx.set(bus.wready, 0)
            while rng.random() < 0.5:
                await ctx.tick()
            address, (data, strobe) = have["aw"], have["w"]
            if strobe == 15:
                self.words[address] = data
            ctx.set(bus.bresp, 0 if strobe == 15 else 2)
            ctx.set(bus.bvalid, 1)
            await passing(ctx, bus.bready)
            ctx.set(bus.bvalid, 0)

    async def reads(self, ctx):
        bus, rng = self.bus, self.rng
        while True:
            while rng.random() < 0.5:
                await ctx.tick()
            ctx.set(bus.arready, 1)
            (address,) = await passing(ctx, bus.arvalid, bus.araddr)
            ctx.set(bus.arready, 0)
            while rng.random() < 0.5:
                await ctx.tick()
            ctx.set(bus.rdata, self.words.get(address, 0))
            ctx.set(bus.rresp, 0 if address in self.words else 2)
            ctx.set(bus.rvalid, 1)
            await passing(ctx, bus.rready)
            ctx.set(bus.rvalid, 0)


@pytest.mark.parametrize("cores", [2, 3, 4])
def test_accesses_reach_their_core_and_no_other(seed, cores):
    rng = random.Random(seed)
    dut = Window(ClusterConfig(preset("tiny"), cores))
    bus = dut.bus
    registers = [Registers(core, rng) for core in dut.core]
    windows = 1 << (cores - 1).bit_length()
    known = {}

    async def put(ctx, name, **values):
        while rng.random() < 0.5:
            await ctx.tick()
        for key, value in values.items():
            ctx.set(getattr(bus, key), value)
        ctx.set(getattr(bus, f"{name}valid"), 1)
        await passing(ctx, getattr(bus, f"{name}ready"))
        ctx.set(getattr(bus, f"{name}valid"), 0)

    async def answer(ctx, name, *signals):
        while rng.random() < 0.3:
            await ctx.tick()
        ctx.set(getattr(bus, f"{name}ready"), 1)
        seen = await passing(ctx, getattr(bus, f"{name}valid"), *signals)
        ctx.set(getattr(bus, f"{name}ready"), 0)
        return seen

    async def test(ctx):
        for _ in range(120):
            core, address = rng.randrange(windows), 4 * rng.randrange(6)
            where = core << CSR_BITS | address
            if rng.random() < 0.5:
                data, strobe = rng.getrandbits(32), rng.choice((15, 15, 15, 7))
                halves = [("aw", {"awaddr": where}), ("w", {"wdata": data, "wstrb": strobe})]
                rng.shuffle(halves)
                for name, values in halves:
                    await put(ctx, name, **values)
                (response,) = await answer(ctx, "b", bus.bresp)
                assert response == (DECERR if core >= cores else 0 if strobe == 15 else 2)
                if response == 0:
                    known[core, address] = data
            else:
                await put(ctx, "ar", araddr=where)
                data, response = await answer(ctx, "r", bus.rdata, bus.rresp)
                found = (core, address) in known
                assert response == (DECERR if core >= cores else 0 if found else 2)
                if found:
                    assert data == known[core, address]
        for n in range(cores):
            assert registers[n].words == {a: d for (c, a), d in known.items() if c == n}

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    for one in registers:
        sim.add_testbench(one.writes, background=True)
        sim.add_testbench(one.reads, background=True)
    sim.add_testbench(test)
    sim.run()


def test_latency_is_that_of_the_docstring():
    """With a core that takes all at once and answers in the next cycle."""
    dut = Window(ClusterConfig(preset("tiny"), 2))
    bus, core = dut.bus, dut.core[1]
    found = {}

    async def answers(ctx):
        taken = {"b": False, "r": False}
        for ready in (core.awready, core.wready, core.arready):
            ctx.set(ready, 1)
        while True:
            ctx.set(core.bvalid, taken["b"])
            ctx.set(core.rvalid, taken["r"])
            _, _, taken["b"], taken["r"] = await ctx.tick().sample(core.wvalid, core.arvalid)

    async def test(ctx):
        for channel, valids in (("b", ("aw", "w")), ("r", ("ar",))):
            for name in valids:
                ctx.set(getattr(bus, f"{name}valid"), 1)
                ctx.set(bus.awaddr if name == "aw" else bus.araddr, 1 << CSR_BITS)
            ctx.set(getattr(bus, f"{channel}ready"), 1)
            for cycle in range(20):
                _, _, answered = await ctx.tick().sample(getattr(bus, f"{channel}valid"))
                for name in valids:
                    ctx.set(getattr(bus, f"{name}valid"), 0)
                if answered:
                    found[channel] = cycle
                    break

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(answers, background=True)
    sim.add_testbench(test)
    sim.run()
    alone = 1  # the cycle in which the core answers, counted from the one of the address
    assert found == {"b": alone + 2, "r": alone + 1}
