"""The bench of forks on the RTL, tiny."""

import pytest

from m890.sim.bench import registry
from m890.sim.bench.registry import BenchContext, BenchError, Item


def measure(**options: str) -> dict[str, Item]:
    chosen = {"tokens": "256", "planes": "2"} | options
    items = registry.run("fork", BenchContext(1, "tiny", options=chosen))
    return {item.name.removeprefix("fork.").removesuffix(".tiny"): item for item in items}


def test_whole_pages_are_counted_and_the_tail_alone_is_copied() -> None:
    found = {name: item.value for name, item in measure().items()}
    assert found["pages"] == 32
    assert found["bytes_copied"] == found["tail_page_bytes"]
    # e4m3, 32 features: 8 tokens of K and V with their two scales, in both planes
    assert found["tail_page_bytes"] == 2 * 8 * (2 * 32 + 2 * 2)
    assert found["tail_cycles"] > found["tail_page_bytes"] / 16
    assert found["cycles"] > found["tail_cycles"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("tokens", "12", "tokens is a multiple of 8"),
        ("tokens", "512", "up to 504"),
        ("planes", "0", "planes is 1 to 16"),
        ("head", "12", "head is a multiple of 8"),
    ],
)
def test_wrong_options(option: str, value: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        measure(**{option: value})
