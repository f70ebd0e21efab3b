"""PageGuard: its verdicts against the rule, whatever the page table does meanwhile."""

import random
from collections import Counter
from typing import Any

import pytest
from amaranth.sim import Simulator

from m890.hdl.commands import Error
from m890.hdl.config import preset
from m890.hdl.pages.guard import PageGuard
from m890.testbench.hdl.kv.support import Image, owners

TINY = preset("tiny").with_(pages=40)


def rule(image: Image, number: int, tenant: int, alone: int) -> Error:
    """What the verdict must be."""
    if number >= TINY.pages:
        return Error.BAD_PAGE
    owner = image.owner(number)
    if owner["damaged"]:
        return Error.TABLE_ERROR
    mine = owner["tenant"] == tenant
    if not owner["live"] or (alone and mine and owner["shared"]):
        return Error.BAD_PAGE
    return Error.OK if mine or (owner["public"] and not alone) else Error.BAD_TENANT


@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_verdicts(stall: float, seed: int) -> None:
    chance, image, dut = random.Random(seed), Image(TINY, seed), PageGuard(TINY)
    met: Counter[tuple[Error, int]] = Counter()

    async def test(ctx: Any) -> None:
        for _ in range(500):
            page = chance.randrange(64) if chance.random() < 0.8 else chance.getrandbits(32)
            fields = {"live": 0.8, "public": 0.3, "shared": 0.5, "damaged": 0.2}
            image.owners[page] = {n: int(chance.random() < p) for n, p in fields.items()}
            image.owners[page]["tenant"] = chance.randrange(TINY.tenants)
            tenant = image.owners[page]["tenant"] if chance.random() < 0.5 else 0
            alone = chance.randrange(2)
            wanted = rule(image, page, tenant, alone)
            ctx.set(dut.number, page)
            ctx.set(dut.tenant, tenant)
            ctx.set(dut.alone, alone)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.number, chance.getrandbits(32))
            ctx.set(dut.tenant, chance.randrange(TINY.tenants))
            ctx.set(dut.alone, chance.randrange(2))
            cycles = 1
            while not ctx.get(dut.done):
                await ctx.tick()
                cycles += 1
                assert cycles < 100
            if not stall:
                assert cycles == (4 if page < TINY.pages else 1)
            for _ in range(chance.randrange(3)):  # the verdict stays
                assert ctx.get(dut.done) and ctx.get(dut.error) == wanted
                await ctx.tick()
            assert ctx.get(dut.error) == wanted
            met[wanted, alone] += 1

    async def serve(ctx: Any) -> None:
        await owners(ctx, image, dut.port, seed=seed, stall=stall)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(test)
    simulator.add_testbench(serve, background=True)
    simulator.run()
    assert len(met) == 8 and min(met.values()) > 10, met
