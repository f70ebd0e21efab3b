"""Rate at which pages in random places stream from an HBM3-like memory, over pages in a row.

Decode jobs with all rows used, each on tokens of its own, under one doorbell. The core is its RTL,
or `-o device=player`: the bursts of its K and V fetchers without the core. FP16 KV by default, of
which the array takes twice what the memory gives, so that the memory alone decides. The bytes are
those of the KV pages, the cycles those from the doorbell to the last completion.

Random pages are a random choice, in random order, of SPREAD times as many (or of the whole pool, if
it is smaller). The core's page manager gives them in rising order; the jobs' sequences are created
on lists of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m890.firmware.driver import Driver
from m890.firmware.kv import placed
from m890.firmware.records import pack
from m890.hdl.commands import ROW, SEGMENT
from m890.hdl.config import CoreConfig, preset
from m890.hdl.kv.fetch import LONGEST_PIECE
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim.bench.registry import HIGHER, BenchContext, BenchError, Item
from m890.sim.rtl import player
from m890.sim.rtl.device import RtlDevice
from m890.sim.rtl.hbm import HbmTiming, share

DEVICES = ("rtl", "player")
HEAD = 128
SCRATCH = 64 << 20
SPREAD = 4
OPTIONS = {
    "device": f"what reads: {', '.join(DEVICES)} (rtl)",
    "format": "KV format (fp16)",
    "head": f"head size ({HEAD}, or the preset's largest)",
    "jobs": "decode jobs (16)",
    "tokens": "tokens of each (2048)",
    "core_mhz": "clock of the core; the memory's is fixed (1200)",
}
BETTER = {"bandwidth.*": HIGHER}


@dataclass(frozen=True)
class Work:
    """Jobs on `tokens` tokens each, and the pages of all of them, job by job."""

    config: CoreConfig
    layout: PageLayout
    jobs: int
    tokens: int

    @property
    def pages(self) -> int:
        """Pages of all jobs."""
        return self.jobs * self.tokens // self.config.page_tokens

    @property
    def kv_bytes(self) -> int:
        """Bytes of them."""
        return self.pages * self.layout.page_bytes


@dataclass(frozen=True)
class Measured:
    """Cycles, and what the memory was given in them."""

    cycles: int
    counters: dict[str, int]


def run(context: BenchContext) -> list[Item]:
    """Sequential and random pages, and the two ratios."""
    work = _work(preset(context.preset or "m890"), context)
    device = context.option("device", "rtl")
    if device not in DEVICES:
        raise BenchError(f"no device {device!r}: there are {', '.join(DEVICES)}")
    timing = share(work.config, HbmTiming(core_mhz=context.option("core_mhz", 1200)))
    rng = np.random.default_rng(context.seed)
    places = {
        "sequential": np.arange(work.pages),
        "random": rng.permutation(min(SPREAD * work.pages, work.config.pages))[: work.pages],
    }
    measure = on_rtl if device == "rtl" else by_player
    found = {}
    for name, pages in places.items():
        found[name] = one = measure(work, timing, pages, context)
        context.progress.say(
            f"{name}: {one.cycles:,} cycles, {work.kv_bytes / one.cycles:.1f} of {timing.peak:.1f} "
            f"bytes per cycle, {one.counters['activations']:,} activations"
        )
    facts = {
        "preset": work.config.name, "device": device, "format": work.layout.format.name.lower(),
        "head": work.layout.tiles * work.config.lanes, "jobs": work.jobs, "tokens": work.tokens,
        "core_mhz": timing.core_mhz, "pseudo_channels": timing.pseudo_channels,
        "peak": timing.peak, "kv_bytes": work.kv_bytes,
        **{f"{name}_cycles": one.cycles for name, one in found.items()},
        **{f"{name}_activations": one.counters["activations"] for name, one in found.items()},
    }  # fmt: skip
    name, sequential = work.config.name, found["sequential"].cycles
    ratio, share_of_peak = sequential / found["random"].cycles, work.kv_bytes / sequential
    return [
        context.item(f"bandwidth.random_over_sequential.{name}", "1", ratio, **facts),
        context.item(
            f"bandwidth.sequential_over_peak.{name}", "1", share_of_peak / timing.peak, **facts
        ),
    ]


def _work(config: CoreConfig, context: BenchContext) -> Work:
    text = context.option("format", "fp16")
    if text.upper() not in Format.__members__:
        raise BenchError(f"no format {text!r}: there are {', '.join(Format.__members__).lower()}")
    head = context.option("head", min(HEAD, config.max_head))
    if head % config.lanes or not config.lanes <= head <= config.max_head:
        raise BenchError(f"head is a multiple of {config.lanes} up to {config.max_head}")
    jobs, tokens = context.option("jobs", 16), context.option("tokens", 2048)
    if not 1 <= jobs <= config.sequences:
        raise BenchError(f"jobs are 1 to {config.sequences}, not {jobs}")
    if tokens < 1 or tokens % config.page_tokens:
        raise BenchError(f"tokens are whole pages of {config.page_tokens}, not {tokens}")
    layout = PageLayout(config, Format[text.upper()], head // config.lanes)
    work = Work(config, layout, jobs, tokens)
    if work.pages > config.pages:
        raise BenchError(f"the jobs need {work.pages} pages, the pool has {config.pages}")
    return work


def on_rtl(
    work: Work, timing: HbmTiming, pages: NDArray[np.int64], context: BenchContext
) -> Measured:
    """The core's RTL reads the pages: what they hold does not matter for the time."""
    config, stride = work.config, work.layout.page_bytes
    pool = config.pages * stride
    size = pool + stride + SCRATCH + (8 << 20)
    with RtlDevice(
        config, memory_bytes=-(-size // 4096) * 4096, hbm=timing, seed=context.seed,
        say=context.progress.say,
    ) as device:  # fmt: skip
        driver = Driver(device, ring=1024, scratch_bytes=SCRATCH)
        base = driver.map.allocate("pages", pool, 4096).start
        driver.submit(
            "PLANE", plane=0, format=int(work.layout.format), head=work.layout.tiles, base=base,
            stride=stride,
        )  # fmt: skip
        _open(driver, work, pages)
        commands = _jobs(driver, work)
        driver.wait_all()
        counters, moved, start = driver.counters(), device.memory_counters(), device.cycle
        driver.wait(driver.submit_many(commands))
        cycles = device.cycle - start
        read = driver.counters()["KV_BYTES"] - counters["KV_BYTES"]
        if read != work.kv_bytes:
            raise BenchError(f"the core read {read} KV bytes of {work.kv_bytes}")
        after = device.memory_counters()
        return Measured(cycles, {name: after[name] - moved[name] for name in after})


def _open(driver: Driver, work: Work, pages: NDArray[np.int64]) -> None:
    """A sequence per job, on these pages."""
    count = int(pages.max()) + 1
    if (placed.take(driver, count) != np.arange(count)).any():
        raise BenchError("the page manager was not as after reset")
    for job, own in enumerate(pages.reshape(work.jobs, -1)):
        placed.adopt(driver, job, own, driver.buffer(4 * own.size))


def _jobs(driver: Driver, work: Work) -> NDArray[np.uint8]:
    """An ATTEND per sequence, all rows at its last token."""
    config, head = work.config, work.layout.tiles * work.config.lanes
    rows = pack(ROW, config.rows, {"position": work.tokens - 1}).reshape(-1)
    gap = np.zeros(-rows.size % config.port_bytes, np.uint8)
    tables = []
    for job in range(work.jobs):
        segment = {"sequence": job, "end": work.tokens, "row_mask": (1 << config.rows) - 1}
        parts = [rows, gap, pack(SEGMENT, 1, segment).reshape(-1)]
        tables.append(driver.place(np.concatenate(parts)))
    size = config.rows * head * 2
    return driver.pack(
        "ATTEND",
        work.jobs,
        {
            "plane": 0, "rows": config.rows, "segments": 1, "causal": 1,
            "query_format": int(Format.FP16), "output_format": int(OutputFormat.FP16),
            "query": driver.place(np.zeros(size, np.uint8)), "tables": tables,
            "output": [driver.buffer(size) for _ in range(work.jobs)],
            "query_stride": 2 * head, "output_stride": 2 * head,
        },
    )  # fmt: skip


def by_player(
    work: Work, timing: HbmTiming, pages: NDArray[np.int64], context: BenchContext
) -> Measured:
    """The K and V fetchers' bursts, whose beats are taken as they come."""
    memory = np.zeros((int(pages.max()) + 1) * work.layout.page_bytes, np.uint8)
    played = player.play(
        timing, work.config.port_bytes, memory, fetched(work, pages), window=work.config.fifo_beats
    )
    return Measured(played.cycles, played.counters)


def fetched(work: Work, pages: NDArray[np.int64]) -> list[player.Request]:
    """What the fetchers of K (with its scales) and of V ask for."""
    config, layout = work.config, work.layout
    port, piece = config.port_bytes, min(LONGEST_PIECE, config.fifo_beats // 2)
    requests, halves = [], ((0, layout.v_offset), (layout.v_offset, layout.chunk_bytes))
    for id, (first, end) in enumerate(halves):
        for page in pages.tolist():
            for chunk in range(config.chunks_per_page):
                at = page * layout.page_bytes + chunk * layout.chunk_bytes + first
                requests += player.bursts(at, (end - first) // port, port, piece, id)
    return requests
