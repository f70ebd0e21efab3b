"""Integrity tags: utilisation with tags over that without, and flips of one bit that are detected.

Utilisation is that of the bench stream, `decode_2048` and `short_256` in the same seed, the worse
of the two ratios. Flips are of random bits of rows, scales and tags, in all formats, one per job.
"""

from collections.abc import Iterator

import numpy as np

from m890.firmware import errors
from m890.firmware.driver import Driver
from m890.firmware.memory_map import PlaneShape, memory_bytes
from m890.firmware.records import pack
from m890.hdl.commands import ROW, SEGMENT
from m890.hdl.config import CoreConfig, preset
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim.bench import stream
from m890.sim.bench.registry import BenchContext, BenchError, Item
from m890.sim.rtl.device import RtlDevice

WORKLOADS = ("decode_2048", "short_256")
FLIPS = 200
SCRATCH = 1 << 20
PAGES = 4
OPTIONS = {
    "flips": f"flips of one bit in each format ({FLIPS})",
    "jobs": "jobs of decode_2048 (16)",
    "utilisation": "yes or no: measure utilisation too (yes)",
}


def run(context: BenchContext) -> list[Item]:
    """Of `small`, or the preset that is asked for."""
    config, count = preset(context.preset or "small"), context.option("flips", FLIPS)
    if count < 1:
        raise BenchError(f"flips is 1 or more, not {count}")
    items = []
    if context.option("utilisation", True):
        ratios = dict(_utilisation(config, context))
        facts = {"preset": config.name, "device": "rtl", "format": "e4m3", **ratios}
        worst = min(ratios.values())
        items.append(context.item("integrity.utilisation_ratio", "1", worst, **facts))
    flips, detected = 0, 0
    for format in context.progress.track(list(Format), "flips"):
        flips += count
        detected += flip(config, format, count, context.seed, context)
    facts = {"preset": config.name, "device": "rtl"}
    items.append(context.item("integrity.flips", "1", flips, **facts))
    items.append(context.item("integrity.detected", "1", detected / flips, **facts))
    return items


def _utilisation(config: CoreConfig, context: BenchContext) -> Iterator[tuple[str, float]]:
    """Ratio of each workload."""
    head = min(stream.HEAD, config.max_head)
    rng = np.random.default_rng(context.seed)
    jobs = context.option("jobs", min(16, config.planes))
    for work in stream.workloads(config, rng, jobs):
        if work.name not in WORKLOADS:
            continue
        off, on = (
            stream.measure(config, work, context, head, stream.LATENCY, 1, tags=tags)
            for tags in (False, True)
        )
        ratio = on.useful / on.cycles / (off.useful / off.cycles)
        context.progress.say(
            f"{work.name}: {off.useful / off.cycles:.4f} without tags, {on.cycles} cycles with"
            f" them for {off.cycles}"
        )
        yield work.name, ratio


def flip(config: CoreConfig, format: Format, count: int, seed: int, context: BenchContext) -> int:
    """Flips a random bit of a written token `count` times; how many were named rightly."""
    rng = np.random.default_rng([seed, format])
    shape = PlaneShape(1, format, 2 * config.lanes, tags=True)
    size = memory_bytes(config, shape, pages=PAGES, scratch=SCRATCH)
    with RtlDevice(config, memory_bytes=size, seed=seed, say=context.progress.say) as device:
        driver = Driver(device, ring=16, scratch_bytes=SCRATCH)
        base, job = _prepare(driver, shape, rng)
        return sum(_detects(driver, shape.layout(config), base, job, rng) for _ in range(count))


def _prepare(
    driver: Driver, shape: PlaneShape, rng: np.random.Generator
) -> tuple[int, dict[str, int]]:
    """A plane whose tokens the core has appended, all but one chunk's last, and a job on them."""
    config, layout = driver.config, shape.layout(driver.config)
    tokens, head = PAGES * config.page_tokens, shape.head
    base = driver.map.allocate("pages", config.pages * layout.page_bytes, 4096).start
    driver.submit(
        "PLANE", plane=0, format=int(shape.format), head=layout.tiles, tags=1, base=base,
        stride=layout.page_bytes,
    )  # fmt: skip
    table = driver.place(np.arange(PAGES, dtype="<u4"))
    driver.submit("SEQUENCE", sequence=0, table=table, capacity=tokens)
    rows = rng.standard_normal((2, tokens, head)).astype(np.float16)
    at = driver.place(rows)
    driver.submit(
        "APPEND", plane=0, sequence=0, start=0, tokens=tokens - 1, source_format=int(Format.FP16),
        k=at, v=at + rows[0].nbytes, source_stride=2 * head,
    )  # fmt: skip
    row = pack(ROW, 1, {})
    segment = pack(SEGMENT, 1, {"start": 0, "end": tokens - 1, "row_mask": 1})
    gap = np.zeros(-row.size % config.port_bytes, np.uint8)
    job = {
        "plane": 0, "rows": 1, "segments": 1, "query_format": 1,
        "output_format": int(OutputFormat.FP16), "query": at, "query_stride": 2 * head,
        "output": driver.buffer(2 * head), "output_stride": 2 * head,
        "tables": driver.place(np.concatenate([row.reshape(-1), gap, segment.reshape(-1)])),
    }  # fmt: skip
    driver.wait_all()
    driver.wait(driver.submit("ATTEND", **job))
    return base, job


def _detects(
    driver: Driver, layout: PageLayout, base: int, job: dict[str, int], rng: np.random.Generator
) -> bool:
    """Whether a flip is named rightly; all is as before then."""
    config = driver.config
    token = int(rng.integers(PAGES * config.page_tokens - 1))
    page, inside = divmod(token, config.page_tokens)
    value, part = bool(rng.integers(2)), int(rng.integers(3))
    if part == 0:  # else a bit of the row would hardly ever be one of its scales or tag
        at = layout.element(inside, int(rng.integers(layout.tiles * config.lanes)), value=value)
        at += int(rng.integers(max(1, layout.coding.bits // 8)))
    elif part == 1 and layout.scale_bytes:
        at = layout.scale(inside, value=value) + int(rng.integers(layout.scale_bytes))
    else:
        at = layout.tag(inside, value=value) + int(rng.integers(2))
    at += base + page * layout.page_bytes
    bit = np.uint8(1 << rng.integers(8))
    driver.memory[at] ^= bit
    try:
        driver.wait(driver.submit("ATTEND", **job))
    except errors.BadTag as found:
        return (found.sequence, found.plane, found.token) == (0, 0, token)
    finally:
        driver.memory[at] ^= bit
    return False
