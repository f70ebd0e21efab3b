"""Queues in Verilog: registers and memory, depths that are no powers of two."""

import random
from typing import Any

import cocotb
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig, preset
from m890.hdl.memory.queue import Queue
from m890.testbench.cocotb.runner import Bench, on_both_simulators, seed
from m890.testbench.cocotb.streams import Clocked

DEPTHS = {1: False, 2: False, 3: False, 4: True, 5: True, 16: True}
"""Depth -> whether it is a memory."""
WIDTH = 20


class Queues(wiring.Component):
    """Queues of all kinds side by side."""

    def __init__(self, config: CoreConfig) -> None:
        one = stream.Signature(WIDTH)
        super().__init__(
            {f"i{d}": In(one) for d in DEPTHS}
            | {f"o{d}": Out(one) for d in DEPTHS}
            | {f"level{d}": Out(range(d + 1)) for d in DEPTHS}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for depth, sram in DEPTHS.items():
            m.submodules[f"queue{depth}"] = queue = Queue(WIDTH, depth, sram=sram)
            wiring.connect(m, wiring.flipped(getattr(self, f"i{depth}")), queue.i)
            wiring.connect(m, queue.o, wiring.flipped(getattr(self, f"o{depth}")))
            m.d.comb += getattr(self, f"level{depth}").eq(queue.level)
        return m


@cocotb.test()
@cocotb.parametrize(stalls=[(0.0, 0.0), (0.0, 0.6), (0.6, 0.0), (0.4, 0.4)])
async def order_and_level(dut: Any, stalls: tuple[float, float]) -> None:
    """All payloads in order; `level` is their number inside."""
    chance = random.Random(seed())
    clocked, sent, ends = Clocked(dut), {}, {}
    for depth in DEPTHS:
        sent[depth] = [chance.getrandbits(WIDTH) for _ in range(120)]
        source = clocked.source(f"i{depth}", sent[depth], stall=stalls[0], seed=seed())
        ends[depth] = source, clocked.sink(f"o{depth}", stall=stalls[1], seed=seed())
    levels = {d: getattr(dut, f"level{d}") for d in DEPTHS}
    await clocked.start()
    before = dict.fromkeys(DEPTHS, 0)  # payloads inside before this edge's transfers
    while any(sink.count < 120 for _, sink in ends.values()):
        await clocked.tick()
        for depth, (source, sink) in ends.items():
            assert int(levels[depth].value) == before[depth] <= depth
            before[depth] = source.sent - sink.count
        assert clocked.cycle < 3000, f"not done: {[str(sink) for _, sink in ends.values()]}"
    await clocked.tick(5)
    for depth, (_, sink) in ends.items():
        assert sink.taken == sent[depth], f"depth {depth}"


@on_both_simulators
def test_queue(bench: Bench) -> None:
    bench.run(Queues, preset("tiny"))
