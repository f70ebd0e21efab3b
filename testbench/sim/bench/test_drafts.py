"""The bench of drafts on the model device: one agent."""

import pytest

from m890.sim.bench import registry
from m890.sim.bench.registry import BenchContext, BenchError


def test_drafts_write_more_per_step_and_the_same_text() -> None:
    options = {"tasks": "1", "agents": "1"}
    items = registry.run("drafts", BenchContext(1, "small", options=options))
    value = {item.name: item.value for item in items}
    assert set(value) == {
        "drafts.tokens_per_step", "drafts.cycles_per_token.draft", "drafts.cycles_per_token.plain",
    }  # fmt: skip
    assert 1 < value["drafts.tokens_per_step"] <= 2, "a draft of one node"
    assert value["drafts.cycles_per_token.draft"] < value["drafts.cycles_per_token.plain"]
    facts = items[0].config
    assert (facts["nodes"], facts["device"], facts["same_text"]) == (1, "model", 1.0)


@pytest.mark.parametrize(
    "option,value,message",
    [
        ("device", "fpga", "no device 'fpga': there are rtl, model"),
        ("format", "fp64", "no format 'fp64'"),
        ("agents", "0", "start at 1"),
        ("nodes", "-1", "nodes at 0"),
    ],
)
def test_wrong_options(option: str, value: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        registry.run("drafts", BenchContext(1, "small", options={option: value}))
