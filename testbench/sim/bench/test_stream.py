"""The bench of utilisation: its workloads, and its counting on a few jobs of tiny."""

import dataclasses

import numpy as np
import pytest

from m890.hdl.config import preset
from m890.sim import golden
from m890.sim.bench import registry, stream
from m890.sim.bench.registry import BenchContext, BenchError

WORK = stream.Workload("few", "", 4, (24, 24), (((16, 1), (8, 1)), ((23, 1), (12, 1))))
"""Two planes, two sequences: four jobs of four rows, on 17, 9, 24 and 13 tokens."""


@pytest.mark.parametrize("name", ["small", "m890"])
def test_the_workloads_are_the_contracts(name: str, rng: np.random.Generator) -> None:
    config = preset(name)
    decode, short, prefill = stream.workloads(config, rng, 16)
    assert [w.name for w in (decode, short, prefill)] == ["decode_2048", "short_256", "prefill_512"]
    assert {step for plane in decode.steps for step in plane} == {(2047, 1)}
    lengths = [start + 1 for plane in short.steps for start, _ in plane]
    assert len(lengths) == 256 and len(set(lengths)) > 100
    assert 64 <= min(lengths) < 100 and 480 < max(lengths) <= 512
    assert prefill.steps == (((2048, 512),),)
    for work in (decode, short):  # every query head of a KV head: rows are full
        assert work.group == config.rows
        assert all(len(plane) == len(work.tokens) <= config.sequences for plane in work.steps)


@pytest.mark.rtl
def test_counts_what_is_visible(seed: int) -> None:
    config, tiles = preset("tiny"), 2
    found = stream.measure(config, WORK, BenchContext(seed), 16, 20, 4)
    lengths, lanes = (17, 9, 24, 13), config.lanes
    chunks = sum(-(-n // lanes) for n in lengths)
    assert found.jobs == 4
    assert found.useful == tiles * (sum(lengths) + chunks * lanes)
    assert found.products == config.rows * sum(lengths) * 2 * tiles * lanes
    assert found.useful < found.cycles
    assert sum(found.stalls.values()) == found.cycles - 2 * tiles * lanes * chunks
    assert min(found.stalls.values()) >= 0


@pytest.mark.rtl
def test_hbm3_costs_cycles_and_changes_no_bit(seed: int) -> None:
    """Every job is compared with golden; the memory's latency and rate show as stalls."""
    config = preset("tiny")
    fixed = stream.measure(config, WORK, BenchContext(seed), 16, 20, 4)
    context = BenchContext(seed, options={"memory": "hbm3"})
    banks = stream.measure(config, WORK, context, 16, 20, 4)
    assert banks.useful == fixed.useful and banks.kv_bytes == fixed.kv_bytes
    assert banks.cycles > fixed.cycles


@pytest.mark.rtl
def test_a_wrong_output_is_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = golden.attend

    def wrong(job: golden.Job) -> golden.Result:
        result = right(job)
        assert result.output is not None
        return dataclasses.replace(result, output=result.output ^ 1)

    monkeypatch.setattr(golden, "attend", wrong)
    with pytest.raises(BenchError, match="golden's output"):
        stream.measure(preset("tiny"), WORK, BenchContext(seed), 16, 20, 1)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("small", {"workload": "prefill"}, "no workload 'prefill': there are decode_2048"),
        ("small", {"head": "20"}, "a multiple of 16 up to 128"),
        ("small", {"head": "256"}, "a multiple of 16 up to 128"),
        ("small", {"memory": "ddr"}, "no memory 'ddr': there are fixed, hbm3"),
        ("small", {"jobs": "65"}, "1 to 64, not 65"),
        ("tiny", {}, "tiny has only 16 sequences"),
    ],
)
def test_wrong_options(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        registry.run("stream", BenchContext(1, name, options=options))
