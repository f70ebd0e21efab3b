"""One decode job for any device: full rows of the largest head over FP8 tokens of one sequence."""

import time
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from m890.firmware import stored
from m890.firmware.driver import Driver
from m890.firmware.kv import placed
from m890.firmware.records import pack
from m890.hdl.commands import ROW, SEGMENT
from m890.hdl.config import CoreConfig
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format, OutputFormat

SCRATCH = 1 << 18
SETTLE = 0.25
"""Seconds until threads of numpy's linear algebra, which spin a while for more work, sleep."""


@dataclass(frozen=True)
class Timed:
    """What a job took, from doorbell to completion, and the bits that it left.

    `seconds` are of the processor: other work on the machine does not count.
    """

    cycles: int
    seconds: float
    output: str

    @property
    def speed(self) -> float:
        """Simulated cycles per second."""
        return self.cycles / self.seconds


def memory_needed(config: CoreConfig) -> int:
    """Bytes of memory for the job: a plane covers the core's whole pool."""
    layout = PageLayout(config, Format.E4M3, config.max_tiles)
    return (config.pages * layout.page_bytes + SCRATCH + (1 << 20)) & ~4095


def decode(device: Any, tokens: int, seed: int, *, repeat: int = 1) -> Timed:
    """Runs the job `repeat` times; `tokens` is a multiple of the page's. Needs `device.cycle`."""
    driver = Driver(device, ring=16, scratch_bytes=SCRATCH)
    config, rng = driver.config, np.random.default_rng(seed)
    layout = PageLayout(config, Format.E4M3, config.max_tiles)
    count, head = tokens // config.page_tokens, config.max_head
    pool = driver.map.allocate("pages", count * layout.page_bytes, 4096)
    elements = rng.standard_normal(pool.end - pool.start).astype(ml_dtypes.float8_e4m3fn)
    chunks = elements.view(np.uint8).reshape(-1, layout.chunk_bytes)
    for value in (False, True):
        scales = rng.uniform(0.5, 2, (len(chunks), config.lanes)).astype(ml_dtypes.bfloat16)
        stored.write_scales(layout, chunks, scales.view(np.uint16), value=value)
    driver.memory[pool.start : pool.end] = chunks.reshape(-1)
    driver.submit(
        "PLANE", plane=0, format=int(Format.E4M3), head=config.max_tiles, base=pool.start,
        stride=layout.page_bytes,
    )  # fmt: skip
    order = rng.permutation(np.sort(placed.take(driver, count)))
    placed.adopt(driver, 0, order, driver.buffer(4 * count))
    query = (rng.standard_normal((config.rows, head)) * head**-0.5).astype(np.float16)
    rows = pack(ROW, config.rows, {"position": tokens - 1})
    segment = pack(SEGMENT, 1, {"start": 0, "end": tokens, "row_mask": (1 << config.rows) - 1})
    gap = np.zeros(-rows.size % config.port_bytes, np.uint8)
    output = driver.buffer(2 * query.size)
    job = {
        "plane": 0, "rows": config.rows, "segments": 1, "causal": 1, "query_format": 1,
        "output_format": int(OutputFormat.FP16), "query": driver.place(query), "output": output,
        "query_stride": 2 * head, "output_stride": 2 * head,
        "tables": driver.place(np.concatenate([rows.reshape(-1), gap, segment.reshape(-1)])),
    }  # fmt: skip
    driver.wait_all()
    time.sleep(SETTLE)
    cycle, start = device.cycle, time.process_time()
    for _ in range(repeat):
        driver.wait(driver.submit("ATTEND", **job))
    seconds = time.process_time() - start
    bits = driver.view(output, query.shape, np.uint16).tobytes().hex()
    return Timed(device.cycle - cycle, seconds, bits)
