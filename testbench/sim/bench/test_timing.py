"""The model device's cycles are the RTL's, within bounds that are published beside the figures."""

import pytest

from m890.hdl.config import preset
from m890.sim.bench import registry, timing
from m890.sim.bench.registry import BenchContext, BenchError
from m890.sim.timing.device import ModelDevice
from m890.sim.timing.model import Timing

BOUNDS = {"append": 0.06, "appends": 0.06, "attend": 0.2, "jobs": 0.2}
"""Largest errors; of all other commands, those of the page manager, PAGES."""
PAGES = 0.06
COMMANDS = {
    "append", "appends", "attend", "copy", "create", "fork", "jobs", "pages", "pin", "query",
    "quota", "release", "trim", "unpin",
}  # fmt: skip


@pytest.mark.rtl
def test_every_commands_cycles_are_near_the_rtls(seed: int) -> None:
    """Scenes that differ in planes, head size, format, sharing and memory latency."""
    items = registry.run("timing", BenchContext(seed, "tiny", options={"scenes": "4"}))
    assert {item.name for item in items} == {f"timing.error.{name}.tiny" for name in COMMANDS}
    for item in items:
        name = item.name.split(".")[2]
        assert item.value <= BOUNDS.get(name, PAGES), item
        commands, mean = item.config["commands"], item.config["mean"]
        assert isinstance(commands, int) and commands >= 8
        assert isinstance(mean, float) and mean <= item.value


@pytest.mark.rtl
@pytest.mark.soak
@pytest.mark.parametrize("latency", [0, 60])
def test_so_are_those_of_small(seed: int, latency: int) -> None:
    options = {"scenes": "8", "latency": str(latency)}
    for item in registry.run("timing", BenchContext(seed, "small", options=options)):
        assert item.value <= BOUNDS.get(item.name.split(".")[2], PAGES), item


def test_scenes_repeat_with_their_seed_and_follow_the_memory() -> None:
    """Of the same commands, those that reach memory take longer in a slower one."""

    def play(seed: int, latency: int) -> list[tuple[str, int]]:
        config = preset("tiny")
        size = timing._memory(config)
        device = ModelDevice(config, size, timing=Timing(memory=latency))
        return timing.Scene(device, seed).play()

    quick, again, slow = play(3, 20), play(3, 20), play(3, 200)
    assert quick == again != play(4, 20)
    assert {name for name, _ in quick} == COMMANDS
    for (name, few), (_, many) in zip(quick, slow, strict=True):
        assert many >= few
        if name in ("append", "appends", "attend", "copy", "jobs", "pages", "pin", "unpin"):
            assert many >= few + 180, "no access to memory is in it"


@pytest.mark.parametrize("options", [{"scenes": "0"}, {"latency": "-1"}])
def test_wrong_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(BenchError, match="scenes start at 1, and latency at 0"):
        registry.run("timing", BenchContext(1, "tiny", options=options))
