"""A cluster of cores on one memory, run natively: every core is a core, whatever the others do."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m890.firmware.cluster import drivers
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.hdl.config import ClusterConfig, preset
from m890.hdl.numerics.formats import Format
from m890.hdl.registers import IDENT
from m890.sim.rtl.cluster import RtlCluster
from m890.sim.rtl.device import RtlDevice
from m890.sim.rtl.hbm import share
from m890.sim.timing.device import ModelDevice
from m890.testbench.firmware.device_suite import MEMORY, DeviceSuite
from m890.testbench.firmware.scene import Scene
from m890.testbench.firmware.test_cluster import backends
from m890.testbench.firmware.test_cluster import play as play_steps
from m890.testbench.firmware.test_split import check as check_split

pytestmark = pytest.mark.rtl
TINY = preset("tiny")
TWO, FOUR = ClusterConfig(TINY, 2), ClusterConfig(TINY, 4, shared=True)


class TestCoreOfTwo(DeviceSuite):
    """The second of two cores with a port each."""

    jobs = 10

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        with RtlCluster(TWO, memory_bytes=MEMORY, latency=30, seed=5) as cluster:
            yield cluster.cores[1]


class TestCoreOfFour(DeviceSuite):
    """The last of four cores behind one port that pauses at random."""

    jobs = 10

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        with RtlCluster(FOUR, memory_bytes=MEMORY, latency=3, stall=0.3, seed=6) as cluster:
            yield cluster.cores[3]


def play(
    all_drivers: list[Driver], seeds: list[int], format: Format, rounds: int = 3
) -> list[list[NDArray]]:
    """Random jobs on all cores at once, held to golden; each core's completions, round by round."""
    scenes = [
        Scene(driver, np.random.default_rng(seed), format, 2)
        for driver, seed in zip(all_drivers, seeds, strict=True)
    ]
    found: list[list[NDArray]] = [[] for _ in scenes]
    for _ in range(rounds):
        jobs = [[scene.job() for _ in range(4)] for scene in scenes]
        tags = []
        for driver, mine in zip(all_drivers, jobs, strict=True):
            packed = [driver.pack("ATTEND", 1, job.command) for job in mine]
            tags.append(driver.submit_many(np.concatenate(packed)))
        for n, (scene, mine) in enumerate(zip(scenes, jobs, strict=True)):
            done = scene.driver.wait(tags[n])
            for job, status in zip(mine, done["status"].tolist(), strict=True):
                scene.check(job, status)
                scene.free(job)
            found[n].append(done)
    return found


@pytest.mark.parametrize("format", [Format.FP16, Format.E4M3, Format.INT4], ids=lambda f: f.name)
@pytest.mark.parametrize("memory", ["stalled", "hbm3"])
@pytest.mark.parametrize("config", [TWO, FOUR], ids=lambda c: c.name)
def test_jobs_of_all_cores_at_once(
    config: ClusterConfig, memory: str, format: Format, seed: int
) -> None:
    timing: dict[str, Any] = {"latency": 5, "stall": 0.3}
    if memory == "hbm3":
        timing = {"hbm": share(TINY)}
    with RtlCluster(config, memory_bytes=4 * MEMORY, seed=seed, **timing) as cluster:
        made = drivers(cluster, ring=16, scratch_bytes=1 << 20)
        found = play(made, [seed + n for n in range(config.cores)], format)
        # They really ran at the same time: together, in fewer cycles than one after the other.
        spans = [int(d["end"].max()) - int(d["start"].min()) for done in found for d in done]
        busy = sum(d["beats"].sum() for done in found for d in done)
        assert all(driver.counters()["JOBS"] == 12 for driver in made)
        assert max(spans) < sum(spans) and busy > 0


def test_a_core_with_its_own_port_takes_the_cycles_of_a_lone_core(seed: int) -> None:
    """What stands around the core costs no cycle, nor does what the other core does."""
    options: dict[str, Any] = {"memory_bytes": 2 * MEMORY, "latency": 30, "seed": seed}
    part = (0, MEMORY)
    with RtlDevice(TINY, **options) as device:
        lone = Driver(device, ring=16, scratch_bytes=1 << 20, part=part)
        alone = play([lone], [seed], Format.E4M3)[0]
    with RtlCluster(TWO, **options) as cluster:
        made = drivers(cluster, ring=16, scratch_bytes=1 << 20)
        beside = play(made, [seed, seed + 1], Format.E4M3)[0]
    for one, other in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(one["end"] - one["start"], other["end"] - other["start"])


@pytest.mark.parametrize("config", [TWO, FOUR], ids=lambda c: c.name)
def test_registers_and_interrupts_are_each_cores_own(config: ClusterConfig) -> None:
    with RtlCluster(config, memory_bytes=MEMORY, latency=3) as cluster:
        made = drivers(cluster, ring=16)
        assert [driver.read("IDENT") for driver in made] == [IDENT] * config.cores
        for n, driver in enumerate(made):
            driver.write("IRQ_ENABLE", n % 4)
        assert [d.read("IRQ_ENABLE") for d in made] == [n % 4 for n in range(config.cores)]
        for driver in made:
            driver.write("IRQ_ENABLE", 3)
        tag = made[1].submit("NOP")
        assert cluster.cores[0].run(500) == 500, "another core's interrupt stopped the wait"
        assert cluster.cores[1].run() == 0
        made[1].wait(tag)
        assert made[0].read("RING_HEAD") == 0 and made[1].read("RING_HEAD") == 1


@pytest.mark.parametrize("config", [TWO, FOUR], ids=lambda c: c.name)
def test_heads_divided_between_cores_have_the_bits_of_one(
    config: ClusterConfig, rng: np.random.Generator, seed: int
) -> None:
    """Agents' steps through the firmware, against one core of the model."""
    size = config.cores * MEMORY
    with RtlCluster(config, memory_bytes=size, latency=9, stall=0.2, seed=seed) as cluster:
        one, many = backends(ModelDevice(TINY, MEMORY), cluster, format=Format.E4M3)
        play_steps(one, many, rng, 3)


@pytest.mark.parametrize("format", [Format.E4M3, Format.INT8], ids=lambda f: f.name)
@pytest.mark.parametrize("config", [TWO, FOUR], ids=lambda c: c.name)
def test_a_context_divided_between_cores_merges_as_golden_says(
    config: ClusterConfig, format: Format, rng: np.random.Generator, seed: int
) -> None:
    size = config.cores * MEMORY
    with RtlCluster(config, memory_bytes=size, latency=9, stall=0.2, seed=seed) as cluster:
        check_split(cluster, format, rng, rotate=format == Format.INT8)
