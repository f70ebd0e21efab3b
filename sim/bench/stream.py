"""Share of cycles in which the array takes a useful beat: decode, short agent steps, prefill.

From the doorbell to the last completion, on the core's RTL with a memory that never holds the port
up: FP8 E4M3 KV, all rows used, jobs packed by the firmware's planner, KV already in the pages.
Where the other cycles went is printed and stands in the figures' config. Some jobs of every
workload, chosen at random, are compared with the golden model bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from m890.firmware import stored
from m890.firmware.driver import Driver
from m890.firmware.kvcache import KvCache
from m890.firmware.memory_map import PlaneShape, memory_bytes
from m890.firmware.planner import Plan, Request, plan
from m890.hdl.config import CoreConfig, preset
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.hdl.registers import Stall
from m890.sim import golden
from m890.sim.bench.registry import HIGHER, BenchContext, BenchError, Item
from m890.sim.devices import MEMORIES, memory_of
from m890.sim.rtl.device import RtlDevice

PRESETS = ("small", "m890")
HEAD = 128
LATENCY = 20
SCRATCH = 64 << 20
LIMIT = 4096
"""Tokens of the longest block table."""
OPTIONS = {
    "workload": "only this one: decode_2048, short_256 or prefill_512",
    "memory": f"behind the port: {', '.join(MEMORIES)} (fixed)",
    "latency": f"of the fixed memory, in cycles ({LATENCY}); its bandwidth is the port's",
    "head": f"head size ({HEAD}, or the preset's largest)",
    "jobs": "jobs of decode_2048 (16)",
    "checked": "jobs of each workload that are compared with golden (2)",
}
BETTER = {"stream.*": HIGHER}


@dataclass(frozen=True)
class Workload:
    """Requests [plane][sequence] of one step; `group` query heads share a KV head."""

    name: str
    about: str
    group: int
    tokens: tuple[int, ...]  # per sequence, what its pages must hold
    steps: tuple[tuple[tuple[int, int], ...], ...]  # [plane][sequence] (start, count)


@dataclass(frozen=True)
class Measured:
    """A workload's counters and cycles; `products`: row-lane products that no mask discards."""

    jobs: int
    cycles: int
    useful: int
    products: int
    stalls: dict[str, int]
    kv_bytes: int


def run(context: BenchContext) -> list[Item]:
    """Utilisation and useful products of each workload."""
    names = [context.preset] if context.preset else PRESETS
    return [item for name in names for item in _run(preset(name), context)]


def _run(config: CoreConfig, context: BenchContext) -> list[Item]:
    latency, checked = context.option("latency", LATENCY), context.option("checked", 2)
    memory = context.option("memory", "fixed")
    if memory not in MEMORIES:
        raise BenchError(f"no memory {memory!r}: there are {', '.join(MEMORIES)}")
    head = context.option("head", min(HEAD, config.max_head))
    if head % config.lanes or not config.lanes <= head <= config.max_head:
        raise BenchError(f"head is a multiple of {config.lanes} up to {config.max_head}")
    chosen = _choose(config, context)
    items = []
    for workload in chosen:
        context.progress.say(f"{config.name}, {workload.name}: {workload.about}")
        found = measure(config, workload, context, head, latency, checked)
        _say(context, workload, found)
        facts = {
            "preset": config.name, "device": "rtl", "format": "e4m3", "head": head,
            "jobs": found.jobs, "memory": memory, "cycles": found.cycles,
            **({"latency": latency} if memory == "fixed" else {}),
            **{f"stall_{name}": cycles for name, cycles in found.stalls.items()},
        }  # fmt: skip
        share = found.useful / found.cycles
        products = found.products / (config.rows * config.lanes * found.cycles)
        name = f"{workload.name}.{config.name}"
        items.append(context.item(f"stream.utilisation.{name}", "1", share, **facts))
        items.append(context.item(f"stream.useful.{name}", "1", products, **facts))
    return items


def workloads(config: CoreConfig, rng: np.random.Generator, jobs: int) -> list[Workload]:
    """The three workloads of the contract for one core."""
    rows = config.rows
    planes = max(1, min(config.planes // 2, 4))
    agents = 256 // planes
    short = rng.integers(64, 513, (planes, agents))
    return [
        Workload(
            "decode_2048",
            f"{jobs} jobs: {rows} query heads of one new token on 2,048 tokens each",
            rows, (2048,), (((2047, 1),),) * jobs,
        ),
        Workload(
            "short_256",
            f"256 jobs: {rows} query heads of one new token on 64 to 512 tokens, at random",
            rows, (512,) * agents, tuple(tuple((int(n) - 1, 1) for n in row) for row in short),
        ),
        Workload(
            "prefill_512",
            f"512 new tokens of one query head behind 2,048 tokens, {rows} a job",
            1, (2560,), (((2048, 512),),),
        ),
    ]  # fmt: skip


def _choose(config: CoreConfig, context: BenchContext) -> list[Workload]:
    jobs = context.option("jobs", min(16, config.planes))
    if not 1 <= jobs <= config.planes:
        raise BenchError(f"jobs of decode_2048 are planes: 1 to {config.planes}, not {jobs}")
    every = workloads(config, np.random.default_rng(context.seed), jobs)
    wanted = context.option("workload", "")
    chosen = [w for w in every if wanted in ("", w.name)]
    if not chosen:
        names = ", ".join(w.name for w in every)
        raise BenchError(f"no workload {wanted!r}: there are {names}")
    if any(len(w.tokens) > config.sequences for w in chosen):
        raise BenchError(f"the preset {config.name} has only {config.sequences} sequences")
    return chosen


def measure(
    config: CoreConfig, work: Workload, context: BenchContext, head: int, latency: int,
    checked: int, *, tags: bool = False,
) -> Measured:  # fmt: skip
    """Lays out pages, runs all jobs under one doorbell, and compares some with golden."""
    planes = len(work.steps)
    shape = PlaneShape(planes, Format.E4M3, head, tags=tags)
    pages = sum(-(-n // config.page_tokens) for n in work.tokens)
    size = memory_bytes(config, shape, pages=pages, scratch=SCRATCH)
    with RtlDevice(
        config, memory_bytes=size, seed=context.seed, latency=latency, say=context.progress.say,
        hbm=memory_of(context.option("memory", "fixed"), config),
    ) as device:  # fmt: skip
        driver = Driver(device, ring=1024, scratch_bytes=SCRATCH)
        stage = Stage(driver, shape, work, pages, context.seed)
        commands = np.concatenate([stage.commands(plane) for plane in range(planes)])
        driver.wait_all()
        before, start = driver.counters(), device.cycle
        driver.wait(driver.submit_many(commands))
        cycles = device.cycle - start
        after = driver.counters()
        stage.check(checked)
    delta = {name: after[name] - before[name] for name in after}
    stalls = {s.name.lower(): delta[f"STALL_{s.name}"] for s in Stall if s is not Stall.IDLE}
    # Counters are read outside the measured cycles, in which the core idles.
    stalls = {"idle": cycles - delta["BEATS"] - sum(stalls.values()), **stalls}
    return Measured(
        len(commands), cycles, delta["USEFUL_BEATS"], stage.products(), stalls, delta["KV_BYTES"]
    )


class Stage:
    """Pages, queries and jobs of a workload in a device's memory."""

    def __init__(
        self, driver: Driver, shape: PlaneShape, work: Workload, pages: int, seed: int
    ) -> None:
        self.driver, self.config, self.shape = driver, driver.config, shape
        self.seed = seed
        self.rng = np.random.default_rng([seed, 1])
        self.cache = KvCache(driver, shape, limit=LIMIT, pages=pages)
        self.sequences = [self.cache.create() for _ in work.tokens]
        self._take_pages(work.tokens)
        self.plans = [self._plan(step, work.group) for step in work.steps]
        self.places: list[tuple[int, NDArray[np.uint16]]] = []
        for plane in range(shape.planes):
            for sequence in self.sequences:
                self._fill(plane, sequence)

    def _take_pages(self, tokens: Sequence[int]) -> None:
        """Gives the sequences their pages, by APPENDs of a page each; `_fill` says what is in."""
        size, row = self.config.page_tokens, 2 * self.shape.head
        self.cache.expect(zip(self.sequences, tokens, strict=True))
        source = self.driver.place(np.zeros(size * row, np.uint8))
        for sequence, count in zip(self.sequences, tokens, strict=True):
            pages = -(-count // size)
            values = {
                "sequence": sequence, "start": np.arange(pages) * size, "tokens": size,
                "source_format": int(Format.FP16), "k": source, "v": source, "source_stride": row,
            }  # fmt: skip
            self.driver.wait(self.driver.submit_many(self.driver.pack("APPEND", pages, values)))
        self.driver.free(source)

    def _plan(self, step: Sequence[tuple[int, int]], group: int) -> Plan:
        requests = [
            Request(sequence, start, count, self.cache.block_table(sequence))
            for sequence, (start, count) in zip(self.sequences, step, strict=True)
        ]
        return plan(self.config, requests, group)

    def contents(self, plane: int, sequence: int) -> tuple[NDArray, NDArray]:
        """Codes [2, tokens, head] and scales [2, tokens] of a sequence: the same at every call."""
        tokens = len(self.cache.block_table(sequence)) * self.config.page_tokens
        rng = np.random.default_rng([self.seed, 2, plane, sequence])
        normal = rng.standard_normal((2, tokens, self.shape.head), np.float32)
        codes = normal.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        scales = rng.uniform(0.5, 2, (2, tokens)).astype(ml_dtypes.bfloat16).view(np.uint16)
        return codes, scales

    def _fill(self, plane: int, sequence: int) -> None:
        """Writes a sequence's tokens into its pages."""
        config, layout = self.config, self.shape.layout(self.config)
        lanes = config.lanes
        codes, scales = self.contents(plane, sequence)
        chunks = len(codes[0]) // lanes
        raw = np.zeros((chunks, layout.chunk_bytes), np.uint8)
        for value in (False, True):
            rows = codes[int(value)].reshape(chunks, lanes, -1)
            stored.write_rows(layout, raw, rows, value=value)
            some = scales[int(value)].reshape(chunks, lanes)
            stored.write_scales(layout, raw, some, value=value)
            if layout.tags:
                half = stored.header(layout, raw, value=value)[..., : layout.scale_bytes]
                stored.write_tags(layout, raw, golden.tag(rows, half), value=value)
        raw = raw.reshape(-1, layout.page_bytes)
        base = int(self.cache.plane_base[plane])
        for page, contents in zip(self.cache.block_table(sequence), raw, strict=True):
            at = base + page * self.cache.stride
            self.driver.memory[at : at + layout.page_bytes] = contents

    def commands(self, plane: int) -> NDArray[np.uint8]:
        """The ATTENDs of one plane; outputs in FP16."""
        made, head = self.plans[plane], self.shape.head
        rows = len(made.token)
        normal = self.rng.standard_normal((rows, head), np.float32)
        query = (normal * (head**-0.5 * np.log2(np.e))).astype(np.float16).view(np.uint16)
        query_at, output_at = self.driver.place(query), self.driver.buffer(rows * head * 2)
        self.places.append((output_at, query))
        tables, offsets = made.tables(self.config.port_bytes)
        row = made.first * head * 2
        return self.driver.pack(
            "ATTEND",
            made.jobs,
            {
                "causal": 1, "query_format": int(Format.FP16),
                "output_format": int(OutputFormat.FP16), "plane": plane, "rows": made.rows,
                "segments": [len(s) for s in made.segments],
                "tables": self.driver.place(tables) + offsets, "query": query_at + row,
                "output": output_at + row, "query_stride": 2 * head, "output_stride": 2 * head,
            },
        )  # fmt: skip

    def products(self) -> int:
        """Row-lane products of visible tokens, of K and of V."""
        # Causal and without a window: a row sees what lies before it, itself included.
        return sum(int((made.position + 1).sum()) for made in self.plans) * 2 * self.shape.head

    def check(self, count: int) -> None:
        """Compares the outputs of some jobs with the golden model's."""
        every = [(plane, job) for plane, made in enumerate(self.plans) for job in range(made.jobs)]
        picked = self.rng.choice(len(every), min(count, len(every)), replace=False)
        for plane, job in (every[n] for n in picked):
            made = self.plans[plane]
            rows = slice(int(made.first[job]), int(made.first[job] + made.rows[job]))
            output_at, query = self.places[plane]
            segments = []
            for s in made.segments[job]:
                codes, scales = self.contents(plane, s.sequence)
                mask = np.array([s.row_mask >> r & 1 != 0 for r in range(made.rows[job])])
                segments.append(
                    golden.KvSegment(
                        codes[0].astype(np.uint16), codes[1].astype(np.uint16), s.end, s.start,
                        k_scale=scales[0], v_scale=scales[1], row_mask=mask,
                    )
                )  # fmt: skip
            wanted = golden.attend(
                golden.Job(
                    self.config, Format.E4M3, query[rows], segments, position=made.position[rows],
                    causal=True, output_format=OutputFormat.FP16,
                )
            )  # fmt: skip
            found = self.driver.view(output_at, query.shape, np.uint16)[rows]
            if wanted.output is None or not np.array_equal(found, wanted.output):
                raise BenchError(f"job {job} of plane {plane} does not give golden's output")


def _say(context: BenchContext, work: Workload, found: Measured) -> None:
    """The stall table of a workload."""
    lines = [f"  {found.cycles:>12,} cycles, {found.jobs} jobs, {found.kv_bytes:,} KV bytes"]
    causes = {"useful beats": found.useful} | found.stalls
    causes["other beats"] = found.cycles - sum(causes.values())
    for name, cycles in causes.items():
        if cycles:
            lines.append(f"  {cycles:>12,}  {cycles / found.cycles:7.2%}  {name}")
    context.progress.say("\n".join(lines))
