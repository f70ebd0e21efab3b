"""The bench of bandwidth: its figures, that the traffic is whole, and that bad maps show."""

from typing import Any

import numpy as np
import pytest

from m890.hdl.config import preset
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.sim.bench import bandwidth, registry
from m890.sim.bench.bandwidth import Work
from m890.sim.bench.registry import BenchContext, BenchError
from m890.sim.rtl.hbm import AddressMap, HbmTiming, share


def figures(name: str, seed: int, **options: str) -> dict[str, registry.Item]:
    items = registry.run("bandwidth", BenchContext(seed, name, options=options))
    return {item.name: item for item in items}


@pytest.mark.rtl
def test_on_the_core(seed: int) -> None:
    """It checks itself that the core read every page once."""
    found = figures("tiny", seed, jobs="4", tokens="64", head="16")
    assert set(found) == {
        "bandwidth.random_over_sequential.tiny", "bandwidth.sequential_over_peak.tiny"
    }  # fmt: skip
    ratio, share_of_peak = (item.value for item in found.values())
    config: dict[str, Any] = dict(found["bandwidth.sequential_over_peak.tiny"].config)
    kv_bytes, cycles = 4 * 64 * 2 * 16 * 2, config["sequential_cycles"]
    assert config["kv_bytes"] == kv_bytes
    assert ratio == pytest.approx(cycles / config["random_cycles"])
    assert share_of_peak == pytest.approx(kv_bytes / cycles / (32 * 1600 / (2 * 1200)))
    # The port of tiny moves 16 bytes per cycle, less than its memory: 0.75 is the most there is.
    # These jobs are short, so that latency counts as much as the rate.
    assert 0.15 < share_of_peak <= 0.75 and 0.5 < ratio < 1.5


@pytest.mark.parametrize("format", ["fp16", "e4m3"])
def test_random_pages_stream_at_the_rate_of_sequential_ones(format: str, seed: int) -> None:
    """m890's own traffic without the core: the goal of the project, and what the record says."""
    found = figures("m890", seed, device="player", format=format, jobs="8")
    assert found["bandwidth.random_over_sequential.m890"].value >= 0.95
    assert 0.9 <= found["bandwidth.sequential_over_peak.m890"].value < 1


def _cycles(timing: HbmTiming, pages: np.ndarray) -> int:
    config = preset("m890")
    work = Work(config, PageLayout(config, Format.FP16, 2), 4, 1024)
    return bandwidth.by_player(work, timing, pages, BenchContext(0)).cycles


def test_a_map_that_keeps_pages_in_one_bank_group_is_slower() -> None:
    good = share(preset("m890"))
    columns = AddressMap(32, (("column", 5), ("bank", 2), ("group", 2)), False)
    pages = np.arange(64)
    assert _cycles(good.with_(map=columns), pages) > 1.15 * _cycles(good, pages)


def test_the_player_asks_as_the_fetchers_do() -> None:
    """Every beat of the pages once: K with its scales by one id, V by the other."""
    config = preset("m890")
    work = Work(config, PageLayout(config, Format.E4M3, 2), 2, 128)
    asked = bandwidth.fetched(work, np.array([7, 3, 0, 5]))
    assert sum(r.beats for r in asked) * config.port_bytes == work.kv_bytes
    covered = {r.address + b * config.port_bytes for r in asked for b in range(r.beats)}
    stride = work.layout.page_bytes
    assert covered == {
        page * stride + at for page in (7, 3, 0, 5) for at in range(0, stride, config.port_bytes)
    }
    for id, first, beats in ((0, 0, 2 + 64), (1, work.layout.v_offset, 64)):
        mine = [r for r in asked if r.id == id]
        assert mine[0].address == 7 * stride + first
        assert sum(r.beats for r in mine) == 4 * beats
        assert all(r.beats <= 32 and r.address // 4096 == (r.address + r.beats * 128 - 1) // 4096
                   for r in mine)  # fmt: skip


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "gpu"}, "no device 'gpu': there are rtl, player"),
        ({"format": "fp32"}, "no format 'fp32': there are bf16, fp16"),
        ({"head": "24"}, "a multiple of 16 up to 128"),
        ({"jobs": "65"}, "jobs are 1 to 64, not 65"),
        ({"tokens": "100"}, "tokens are whole pages of 16, not 100"),
        ({"tokens": "16384"}, "the jobs need 16384 pages, the pool has 8192"),
    ],
)
def test_wrong_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        registry.run("bandwidth", BenchContext(1, "small", options=options))
