"""The bench of simulation speed, on the smallest job."""

import pytest

from m890.sim.bench import registry
from m890.sim.bench.registry import BenchContext, BenchError


@pytest.mark.rtl
@pytest.mark.cocotb
def test_same_job_everywhere() -> None:
    """Figures are there and positive; that the outputs are equal the bench checks itself."""
    options = {"tokens": "16", "pysim": "no"}
    items = registry.run("simspeed", BenchContext(3, "tiny", options=options))
    names = {item.name: item for item in items}
    assert set(names) == {
        "simspeed.native.tiny", "simspeed.cocotb.tiny", "simspeed.native_over_cocotb.tiny"
    }  # fmt: skip
    assert all(item.value > 0 for item in items)
    assert names["simspeed.cocotb.tiny"].config["tokens"] == 16


@pytest.mark.parametrize("tokens", ["0", "7", "100000000"])
def test_wrong_tokens(tokens: str) -> None:
    with pytest.raises(BenchError, match="tokens is a multiple of 8 up to 512"):
        registry.run("simspeed", BenchContext(3, "tiny", options={"tokens": tokens}))


@pytest.mark.rtl
@pytest.mark.soak
def test_large_core_runs_natively_only() -> None:
    items = registry.run("simspeed", BenchContext(3, "edge"))
    assert [item.name for item in items] == ["simspeed.native.edge"]
    assert items[0].value > 0
