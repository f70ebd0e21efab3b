"""OwnerArbiter: every question is answered as its own, and neither requester waits for long."""

import random
from typing import Any

import pytest
from amaranth.sim import Simulator

from m890.hdl.config import preset
from m890.hdl.pages.owners import OwnerArbiter
from m890.testbench.hdl.kv.support import MINE, Image, owners

TINY = preset("tiny").with_(pages=64)
QUESTIONS = 200


@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize("pause", [0.0, 0.7])
def test_answers_go_to_who_asked(stall: float, pause: float, seed: int) -> None:
    image, dut = Image(TINY, seed), OwnerArbiter(TINY)
    for page in range(TINY.pages):
        image.owners[page] = MINE | {"tenant": page % TINY.tenants, "public": page // 32}
    waits: list[list[int]] = [[], []]

    async def ask(ctx: Any, n: int) -> None:
        chance, port = random.Random(seed + n), dut.port[n]
        for _ in range(QUESTIONS):
            while chance.random() < pause:
                (_, _, answered) = await ctx.tick().sample(port.valid)
                assert not answered, "an answer to nobody"
            page = chance.randrange(TINY.pages)
            ctx.set(port.request.payload, page)
            ctx.set(port.request.valid, 1)
            ready, waited = False, -1
            while not ready:
                (_, _, ready) = await ctx.tick().sample(port.request.ready)
                waited += 1
                assert waited < 200
            ctx.set(port.request.valid, 0)
            owner: Any = None
            answered = False
            while not answered:
                _, _, answered, owner = await ctx.tick().sample(port.valid, port.owner)
            assert {name: owner[name] for name in MINE} == image.owner(page)
            waits[n].append(waited)

    async def serve(ctx: Any) -> None:
        await owners(ctx, image, dut.owner, seed=seed, stall=stall)

    async def steady(ctx: Any) -> None:
        """A question that was offered stays until it is taken."""
        request, before = dut.owner.request, None
        while True:
            _, _, valid, ready, page = await ctx.tick().sample(
                request.valid, request.ready, request.payload
            )
            assert before is None or (valid and page == before), "an offer changed"
            before = page if valid and not ready else None

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for n in range(2):

        async def start(ctx: Any, n: int = n) -> None:
            await ask(ctx, n)

        simulator.add_testbench(start)
    simulator.add_testbench(serve, background=True)
    simulator.add_testbench(steady, background=True)
    simulator.run()
    assert [len(w) for w in waits] == [QUESTIONS, QUESTIONS]
    if not stall and pause:
        assert max(map(max, waits)) <= 4
