"""The bench of the agent: its names, and answers that the device shares with the reference."""

import pytest

from m890.sim.bench import BenchContext, BenchError, registry


def test_the_device_answers_as_the_reference() -> None:
    options = {"model": "3", "rtl": "0"}
    items = {i.name: i for i in registry.run("agent", BenchContext(5, options=options))}
    assert set(items) == {"agent.solved.float", "agent.agreement.model.fp16", "agent.tasks.model"}
    assert items["agent.agreement.model.fp16"].value == 1
    assert items["agent.tasks.model"].value == 3
    assert items["agent.agreement.model.fp16"].config["tokens"] > 600  # type: ignore[operator]


@pytest.mark.parametrize(
    "options", [{"model": "0", "rtl": "0"}, {"format": "fp4"}, {"tasks": "3"}]
)
def test_wrong_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(BenchError):
        registry.run("agent", BenchContext(1, options=options))
