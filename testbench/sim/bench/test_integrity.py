"""The bench of integrity tags, in small."""

import pytest

from m890.hdl.numerics.formats import Format
from m890.sim.bench import registry
from m890.sim.bench.registry import BenchContext


@pytest.mark.rtl
def test_flips_on_tiny(seed: int) -> None:
    options = {"flips": "6", "utilisation": "no"}
    items = registry.run("integrity", BenchContext(seed, "tiny", options=options))
    values = {item.name: item.value for item in items}
    assert values == {
        "integrity.flips": 6 * len(Format), "integrity.detected": 1.0, "integrity.repaired": 1.0,
    }  # fmt: skip
