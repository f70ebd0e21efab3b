"""Cycles and bytes of a FORK: a sequence of 65,536 tokens, whole, and with an open tail page.

Both forks run on the RTL, from the command's take-up to its completion; the memory answers after
`latency` cycles. The first shares whole pages only; the second ends within the last page, which is
copied in every plane. What it writes beyond the first is the copy, and a beat for the tail's entry
in the block table.
"""

import numpy as np

from m890.firmware.driver import Driver
from m890.hdl.config import CoreConfig, preset
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.sim.bench.registry import FACT, LOWER, BenchContext, BenchError, Item
from m890.sim.rtl.device import RtlDevice

OPTIONS = {
    "tokens": "tokens of the sequence, whole pages (65536)",
    "planes": "planes that the tail page is copied in (4)",
    "head": "head size (128, or the preset's largest)",
    "latency": "memory latency in cycles (20)",
}
BETTER = {"fork.pages.*": FACT, "fork.tail_page_bytes.*": FACT, "fork.*": LOWER}
SCRATCH = 1 << 20
APPEND = 512
"""Tokens per APPEND."""
TAIL_ENTRY_BEATS = 1
"""The new page's number is written by itself, behind those of the whole pages."""


def run(context: BenchContext) -> list[Item]:
    """Forks, for one preset."""
    name = context.preset or "small"
    config = preset(name)
    tokens, planes = context.option("tokens", 65536), context.option("planes", 4)
    head, latency = context.option("head", min(128, config.max_head)), context.option("latency", 20)
    whole = tokens // config.page_tokens
    if tokens % config.page_tokens or not 1 <= whole < config.pages:
        limit = (config.pages - 1) * config.page_tokens
        raise BenchError(f"tokens is a multiple of {config.page_tokens} up to {limit}")
    if not 1 <= planes <= config.planes:
        raise BenchError(f"planes is 1 to {config.planes}")
    if head % config.lanes or not config.lanes <= head <= config.max_head:
        raise BenchError(f"head is a multiple of {config.lanes} up to {config.max_head}")
    layout = PageLayout(config, Format.E4M3, head // config.lanes)
    size = planes * config.pages * layout.page_bytes + 16 * tokens + SCRATCH + (8 << 20)
    context.progress.say(f"appending {tokens:,} tokens, then forking them ...")
    with RtlDevice(
        config, memory_bytes=(size & ~4095), latency=latency, seed=context.seed,
        say=context.progress.say,
    ) as device:  # fmt: skip
        driver = Driver(device, ring=16, scratch_bytes=SCRATCH)
        tables = _fill(driver, layout, planes, tokens)
        shared, shared_beats = _fork(device, driver, tables, tokens, 1)
        copied, copied_beats = _fork(device, driver, tables, tokens - config.page_tokens // 2, 2)
    facts = {
        "preset": name, "tokens": tokens, "planes": planes, "head": head, "format": "e4m3",
        "latency": latency,
    }  # fmt: skip
    written = (copied_beats - shared_beats - TAIL_ENTRY_BEATS) * config.port_bytes
    figures = (
        ("pages", "pages", whole),
        ("cycles", "cycles", copied),
        ("tail_cycles", "cycles", copied - shared),
        ("cycles_per_page", "cycles", shared / whole),
        ("bytes_copied", "B", written),
        ("tail_page_bytes", "B", planes * layout.page_bytes),
    )
    return [context.item(f"fork.{n}.{name}", unit, value, **facts) for n, unit, value in figures]


def _table(config: CoreConfig, tokens: int) -> int:
    """Bytes of a block table, whole port beats."""
    return -(-4 * (tokens // config.page_tokens) // config.port_bytes) * config.port_bytes


def _fill(driver: Driver, layout: PageLayout, planes: int, tokens: int) -> int:
    """Defines the planes and gives sequence 0 its tokens; returns the address of block tables."""
    config, head = layout.config, layout.tiles * layout.config.lanes
    for plane in range(planes):
        base = driver.map.allocate(f"plane {plane}", config.pages * layout.page_bytes).start
        driver.submit(
            "PLANE", plane=plane, format=int(layout.format), head=layout.tiles, base=base,
            stride=layout.page_bytes,
        )  # fmt: skip
    rows = min(APPEND, tokens)
    source = driver.place(np.ones((2, rows, head), np.float16))
    tables = driver.map.allocate("block tables", 3 * _table(config, tokens)).start
    driver.submit("CREATE", sequence=0, table=tables, limit=tokens)
    for start in range(0, tokens, rows):
        driver.submit(
            "APPEND", sequence=0, plane=0, start=start, tokens=min(rows, tokens - start),
            source_format=int(Format.FP16), k=source, v=source + 2 * rows * head,
            source_stride=2 * head, commit=1,
        )  # fmt: skip
    driver.wait_all()
    return tables


def _fork(
    device: RtlDevice, driver: Driver, tables: int, tokens: int, target: int
) -> tuple[int, int]:
    """Cycles of a fork of sequence 0, and beats that it wrote."""
    config = driver.config
    limit = -(-tokens // config.page_tokens) * config.page_tokens
    before = device.port_beats()[1]
    (done,) = driver.wait(
        driver.submit(
            "FORK", sequence=0, target=target, tokens=tokens, limit=limit,
            table=tables + target * _table(config, limit),
        )
    )  # fmt: skip
    return int(done["end"] - done["start"]), device.port_beats()[1] - before
