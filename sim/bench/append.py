"""Port beats of one token's append for one KV head, over the least possible, in every format.

Beats of the memory port are counted at the RTL's port, over APPENDs of one token each: source rows
read and page beats written, without the commands, their completions and the block table's beat. The
pages are there before, as they are for every plane of a step but the first. The least possible are
the port beats of K's and V's source rows and of their stored bytes, each rounded up; K and V count
apart, as no job reads them at once, and scales and tags fill up their last beats.
"""

from dataclasses import dataclass

import numpy as np

from m890.firmware.driver import Driver
from m890.hdl.config import CoreConfig, preset
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.sim.bench.registry import LOWER, BenchContext, BenchError, Item
from m890.sim.rtl.device import RtlDevice

OPTIONS = {
    "head": "head size (128, or the preset's largest)",
    "tags": "pages with integrity tags (no)",
    "tokens": "appends that are counted (40)",
}
BETTER = {"append.*": LOWER}
HEAD = 128
SCRATCH = 1 << 20
TABLE_BEATS = 1
"""Beats of the block table that an APPEND of one token reads."""


@dataclass(frozen=True)
class Beats:
    """Beats of the port, per token."""

    read: float
    written: float


def run(context: BenchContext) -> list[Item]:
    """The ratio of every format, for one preset and head size."""
    name = context.preset or "small"
    config = preset(name)
    head = context.option("head", min(HEAD, config.max_head))
    tags, tokens = context.option("tags", False), context.option("tokens", 40)
    if head % config.lanes or not config.lanes <= head <= config.max_head:
        raise BenchError(f"head is a multiple of {config.lanes} up to {config.max_head}")
    if tokens < 1:
        raise BenchError("tokens starts at 1")
    largest = PageLayout(config, Format.BF16, head // config.lanes, tags=True).page_bytes
    size = (config.pages * largest + SCRATCH + (2 << 20)) & ~4095
    items = []
    with RtlDevice(
        config, memory_bytes=size, seed=context.seed, say=context.progress.say
    ) as device:
        driver = Driver(device, ring=16, scratch_bytes=SCRATCH)
        base = driver.map.allocate("pages", config.pages * largest).start
        for format in Format:
            layout = PageLayout(config, format, head // config.lanes, tags)
            beats = measure(device, driver, layout, base, tokens, context.seed)
            least = least_beats(layout)
            items.append(
                context.item(
                    f"append.beats_ratio.{format.name.lower()}", "1",
                    (beats.read + beats.written) / least, preset=name, format=format.name.lower(),
                    head=head, tags=tags, tokens=tokens, read=beats.read, written=beats.written,
                    least=least,
                )
            )  # fmt: skip
    return items


def least_beats(layout: PageLayout) -> int:
    """The fewest port beats for a token's four rows: two read, two written."""
    config = layout.config
    codes = layout.tiles * config.lanes * layout.coding.bits // 8
    beside = 2 * (layout.scale_bytes + (2 if layout.tags else 0))

    def beats(size: int) -> int:
        return -(-size // config.port_bytes)

    stored = min(beats(codes + n) + beats(codes + beside - n) for n in range(beside + 1))
    return 2 * layout.tiles + stored


def measure(
    device: RtlDevice, driver: Driver, layout: PageLayout, base: int, tokens: int, seed: int
) -> Beats:
    """Appends tokens one by one, across pages; their beats without those of their commands."""
    config: CoreConfig = layout.config
    head = layout.tiles * config.lanes
    rows = np.random.default_rng(seed).standard_normal((2, tokens, head)).astype(np.float16)
    pages = -(-tokens // config.page_tokens)
    source, table = driver.place(rows), driver.buffer(4 * pages)
    driver.wait(
        driver.submit(
            "PLANE", plane=0, format=int(layout.format), head=layout.tiles, base=base,
            stride=layout.page_bytes, tags=int(layout.tags),
        )
    )  # fmt: skip
    driver.wait(driver.submit("CREATE", table=table, limit=pages * config.page_tokens))

    def append(token: int, count: int) -> None:
        at = source + token * 2 * head
        driver.wait(
            driver.submit(
                "APPEND", start=token, tokens=count, source_format=int(Format.FP16), k=at,
                v=at + tokens * 2 * head, source_stride=2 * head,
            )
        )  # fmt: skip

    append(0, tokens)  # takes the pages
    commands = np.zeros(2)
    appends = np.zeros(2)
    for token in range(tokens):
        before = np.array(device.port_beats())
        driver.wait(driver.submit("NOP"))
        between = np.array(device.port_beats())
        append(token, 1)
        commands += between - before
        appends += np.array(device.port_beats()) - between
    driver.wait(driver.submit("RELEASE"))
    driver.free(source, table)
    read, written = (appends - commands) / tokens
    return Beats(float(read) - TABLE_BEATS, float(written))
