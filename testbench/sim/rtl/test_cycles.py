"""Cycles of small scenes on RTL: the stall table of docs/stalls.md holds, cycle for cycle.

`python -m m890.testbench.sim.rtl.test_cycles` writes the table anew after a change of the RTL.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from m890.firmware.driver import Driver
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.hdl.registers import Stall
from m890.sim.rtl.device import RtlDevice
from m890.testbench.firmware.device_suite import MEMORY
from m890.testbench.firmware.scene import Scene

pytestmark = pytest.mark.rtl

PAGE = Path(__file__).resolve().parents[3] / "docs" / "stalls.md"
LATENCY = 20
PORT = 16
"""Bytes per cycle of tiny's port."""
COLUMNS = ("cycles", "beats", *(s.name.lower() for s in Stall if s is not Stall.IDLE))


@dataclass(frozen=True)
class Case:
    """`jobs` jobs of four rows under one doorbell, each on tokens 0 ... tokens - 1."""

    name: str
    tokens: int
    jobs: int = 1
    tiles: int = 2
    format: Format = Format.FP16
    bandwidth: float | None = None
    latency: int = LATENCY
    options: dict[str, object] = field(default_factory=dict)
    kinds: tuple[int, ...] = (0,)

    @property
    def beats(self) -> int:
        """K and V of every chunk of a segment of tokens."""
        lanes = preset("tiny").lanes
        chunks = -(-self.tokens // lanes)
        return self.jobs * chunks * 2 * self.tiles * lanes * self.kinds.count(0)


CASES = (
    Case("one job, 8 tokens", 8),
    Case("one job, 64 tokens", 64),
    Case("one job, 64 tokens, one tile", 64, tiles=1),
    Case("one job, 64 tokens, FP8", 64, format=Format.E4M3),
    Case("one job, 64 tokens, latency 100", 64, latency=100),
    Case("eight jobs, 64 tokens", 64, jobs=8),
    Case("eight jobs, 8 tokens", 8, jobs=8),
    Case("eight jobs, 8 tokens, one tile", 8, jobs=8, tiles=1),
    Case("one job, 64 tokens, half the bandwidth", 64, bandwidth=PORT / 2),
    Case("one job, 64 tokens with bias", 64, options={"bias": True}),
    Case("one job, a stored state, 64 tokens", 64, kinds=(2, 0)),
)


def measure(case: Case) -> dict[str, int]:
    """Counters of the cycles in which a job is in the core."""
    with RtlDevice(
        preset("tiny"), memory_bytes=MEMORY, latency=case.latency, bandwidth=case.bandwidth, seed=1
    ) as device:
        driver = Driver(device, ring=64)
        pages = -(-case.tokens // device.config.page_tokens)
        scene = Scene(driver, np.random.default_rng(1), case.format, case.tiles, pages=pages)
        options = {
            "rows": device.config.rows, "kinds": case.kinds, "output": OutputFormat.FP16,
            "bias": False, "causal": False, "window": 0, "sink": False, "softcap": 0.0, "plane": 0,
            **case.options,
        }  # fmt: skip
        jobs = [scene.job(**options) for _ in range(case.jobs)]
        for job in jobs:
            _whole(scene, job.command, case)
        driver.wait_all()
        before = driver.counters()
        commands = np.concatenate([driver.pack("ATTEND", 1, job.command) for job in jobs])
        driver.wait(driver.submit_many(commands))
        after = driver.counters()
    stalls = {
        s.name.lower(): after[f"STALL_{s.name}"] - before[f"STALL_{s.name}"]
        for s in Stall
        if s is not Stall.IDLE
    }
    beats = after["BEATS"] - before["BEATS"]
    return {"cycles": beats + sum(stalls.values()), "beats": beats, **stalls}


def _whole(scene: Scene, command: dict[str, int], case: Case) -> None:
    """Every row sees all tokens: the segments' ranges and row masks are overwritten."""
    rows = command["rows"] * 16
    table = command["tables"] + rows
    for n, kind in enumerate(case.kinds):
        entry = scene.driver.view(table + 32 * n, (32,), np.uint8)
        entry[16:24] = 0xFF
        if kind == 0:
            entry[4:12] = np.array([0, case.tokens], "<u4").view(np.uint8)


def table() -> dict[str, dict[str, int]]:
    """The page's table: a row per scene."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in PAGE.read_text("utf-8").splitlines()
        if re.match(r"\| [a-z]+ job", line)
    ]
    return {
        name: dict(zip(COLUMNS, (int(n.replace(",", "")) for n in numbers), strict=True))
        for name, *numbers in rows
    }


@pytest.fixture(scope="module")
def documented() -> Iterator[dict[str, dict[str, int]]]:
    yield table()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_documented_stalls(case: Case, documented: dict[str, dict[str, int]]) -> None:
    """Every cause of every scene, and as many beats as the tiles ask for."""
    found = measure(case)
    assert found["beats"] == case.beats
    assert found == documented[case.name], "renew the table of docs/stalls.md, and say why"


def test_no_scene_is_missing(documented: dict[str, dict[str, int]]) -> None:
    assert list(documented) == [case.name for case in CASES]


if __name__ == "__main__":
    lines = ["| scene | " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * len(COLUMNS) + "|"]
    for one in CASES:
        lines.append(
            f"| {one.name} | " + " | ".join(f"{n:,}" for n in measure(one).values()) + " |"
        )
    text = PAGE.read_text("utf-8")
    first, last = "<!-- scenes -->", "<!-- end of scenes -->"
    head, rest = text.split(first)
    PAGE.write_text("\n".join([head + first, "", *lines, "", last + rest.split(last)[1]]), "utf-8")
