"""Speed-up of decode on 2 and 4 cores of one memory over one core, KV heads divided between them.

Figures: `cluster.speedup.{own,shared}.N.P`, cycles of one core over those of N cores of the preset
P with a memory port each (`own`) or one for all (`shared`), from the first doorbell to the last
completion; `cluster.cycles.{own,shared}.N.P` besides. Full rows of one new token per KV head, FP8
E4M3 KV, on the RTL of four cores, of which one, two or all have work, with a memory that never
holds a port up (or HBM3-like behind each port). Some jobs of every core are compared with the
golden model bit for bit.
"""

import numpy as np

from m890.firmware.driver import Driver
from m890.firmware.memory_map import PlaneShape, memory_bytes
from m890.hdl.config import ClusterConfig, CoreConfig, preset
from m890.hdl.numerics.formats import Format
from m890.sim.bench.registry import HIGHER, LOWER, BenchContext, BenchError, Item
from m890.sim.bench.stream import LATENCY, Stage, Workload
from m890.sim.devices import MEMORIES, memory_of
from m890.sim.rtl.cluster import RtlCluster

PRESETS = ("tiny", "small")
TOKENS = {"tiny": 384}
"""Context where the pool does not hold the default."""
SCRATCH = 8 << 20
OPTIONS = {
    "memory": f"behind every port: {', '.join(MEMORIES)} (fixed)",
    "latency": f"of the fixed memory, in cycles ({LATENCY}); its bandwidth is the port's",
    "tokens": "of context (2048; tiny 384)",
    "planes": "KV heads, a job each; a multiple of 4 (16)",
    "checked": "jobs of each core that are compared with golden (1)",
}
BETTER = {"cluster.speedup.*": HIGHER, "cluster.cycles.*": LOWER}


def run(context: BenchContext) -> list[Item]:
    """One, two and four cores, with either kind of port."""
    names = [context.preset] if context.preset else PRESETS
    return [item for name in names for item in _run(preset(name), context)]


def _run(config: CoreConfig, context: BenchContext) -> list[Item]:
    memory, latency = context.option("memory", "fixed"), context.option("latency", LATENCY)
    if memory not in MEMORIES:
        raise BenchError(f"no memory {memory!r}: there are {', '.join(MEMORIES)}")
    planes = context.option("planes", 16)
    if planes % 4 or not 4 <= planes <= config.planes:
        raise BenchError(f"planes are a multiple of 4 up to {config.planes}, not {planes}")
    tokens = context.option("tokens", TOKENS.get(config.name, 2048))
    checked, head = context.option("checked", 1), min(128, config.max_head)
    facts = {
        "preset": config.name, "device": "rtl", "format": "e4m3", "head": head, "tokens": tokens,
        "planes": planes, "memory": memory, **({"latency": latency} if memory == "fixed" else {}),
    }  # fmt: skip
    items = []
    for ports, shared in (("own", False), ("shared", True)):
        cluster, alone = ClusterConfig(config, 4, shared), 0
        for busy in (1, 2, 4):
            cycles = _cycles(cluster, busy, planes, tokens, head, checked, context)
            alone = alone or cycles
            context.progress.say(f"{ports}, {busy} cores: {alone / cycles:.3f} of one core's speed")
            name = f"{ports}.{busy}.{config.name}"
            items.append(context.item(f"cluster.cycles.{name}", "cycles", cycles, **facts))
            if busy > 1:
                items.append(context.item(f"cluster.speedup.{name}", "1", alone / cycles, **facts))
    return items


def _cycles(
    cluster: ClusterConfig, busy: int, planes: int, tokens: int, head: int, checked: int,
    context: BenchContext,
) -> int:  # fmt: skip
    """Cycles of all jobs on the first `busy` cores."""
    config = cluster.core
    work = Workload("decode", "", config.rows, (tokens,), (((tokens - 1, 1),),) * (planes // busy))
    shape, pages = PlaneShape(planes // busy, Format.E4M3, head), -(-tokens // config.page_tokens)
    size = memory_bytes(config, shape, pages=pages, scratch=SCRATCH)
    with RtlCluster(
        cluster, memory_bytes=busy * size, seed=context.seed, say=context.progress.say,
        latency=context.option("latency", LATENCY),
        hbm=memory_of(context.option("memory", "fixed"), config),
    ) as whole:  # fmt: skip
        stages = []
        for n, core in enumerate(whole.cores[:busy]):
            driver = Driver(core, scratch_bytes=SCRATCH, part=(n * size, (n + 1) * size))
            stages.append(Stage(driver, shape, work, pages, context.seed + n))
        commands = [np.concatenate([s.commands(p) for p in range(shape.planes)]) for s in stages]
        for stage in stages:
            stage.driver.wait_all()
        start = whole.cycle
        tags = [s.driver.submit_many(c) for s, c in zip(stages, commands, strict=True)]
        for stage, mine in zip(stages, tags, strict=True):
            stage.driver.wait(mine)
        cycles = whole.cycle - start
        for stage in stages:
            stage.check(checked)
    return cycles
