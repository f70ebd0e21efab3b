"""The bench of sharing on the model device, small."""

import pytest

from m890.sim.bench import registry
from m890.sim.bench.registry import BenchContext, BenchError, Item


def measure(**options: str) -> dict[str, Item]:
    chosen = {"device": "model", "shared": "64", "own": "16", "head": "16"} | options
    items = registry.run("sharing", BenchContext(1, "small", options=chosen))
    return {item.name: item for item in items}


@pytest.mark.parametrize("agents,group,jobs", [("8", "1", 1), ("3", "4", 2)])
def test_reads_what_is_ideal(agents: str, group: str, jobs: int) -> None:
    """Whole pages are shared, so that nothing is read in vain."""
    items = measure(agents=agents, group=group)
    ideal = items["sharing.ideal_ratio"].value
    count = int(agents)
    assert ideal == (64 * jobs + 16 * count) / (80 * count)
    assert items["sharing.read_ratio"].value == pytest.approx(ideal, rel=1e-9)
    assert items["sharing.read_ratio"].config["device"] == "model"


def test_page_border_inside_the_prompt() -> None:
    """The tokens behind the last whole page are copied, and read by each agent."""
    items = measure(agents="4", shared="70", own="10")
    assert items["sharing.read_ratio"].value > items["sharing.ideal_ratio"].value


@pytest.mark.parametrize(
    "option,value,message",
    [
        ("device", "fpga", "no device 'fpga': there are rtl, model"),
        ("format", "fp64", "no format 'fp64'"),
        ("agents", "0", "start at 1"),
        ("group", "9", "group ends at 8"),
    ],
)
def test_wrong_options(option: str, value: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        measure(**{option: value})
