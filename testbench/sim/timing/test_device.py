"""The model device: everything that any device must do, and its modelled time."""

from collections.abc import Iterator

import numpy as np
import pytest

from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.errors import DeviceTimeout
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.sim.timing.device import ModelDevice
from m890.testbench.firmware.device_suite import MEMORY, DeviceSuite
from m890.testbench.firmware.integrity import IntegritySuite
from m890.testbench.firmware.page_suite import PageSuite
from m890.testbench.firmware.scene import Scene


class TestTiny(DeviceSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        yield ModelDevice(preset("tiny"), MEMORY, seed=1)


class TestTwoChunksPerPage(DeviceSuite):
    """Pages of more than one chunk, and rows beyond 32 bits of mask."""

    jobs = 10

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        config = preset("tiny").with_(page_tokens=16, rows=40, softcap=True)
        yield ModelDevice(config, MEMORY, seed=2)


class TestTags(IntegritySuite):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        yield ModelDevice(preset("tiny"), MEMORY, seed=3)


class TestTagsOfTwoChunksPerPage(IntegritySuite):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        yield ModelDevice(preset("tiny").with_(page_tokens=16), MEMORY, seed=4)


class TestPages(PageSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        yield ModelDevice(preset("tiny"), MEMORY, seed=5)


class TestPagesOfTwoChunks(PageSuite):
    commands = 100

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        yield ModelDevice(preset("tiny").with_(page_tokens=16), MEMORY, seed=6)


def test_timeout_without_work() -> None:
    driver = Driver(ModelDevice(preset("tiny"), MEMORY))
    with pytest.raises(DeviceTimeout, match="nothing moved"):
        driver.device.run(None)
    assert driver.device.run(100) == 100


@pytest.mark.parametrize("format", [Format.FP16, Format.E4M3])
def test_time_grows_with_the_work(rng: np.random.Generator, format: Format) -> None:
    """A job takes at least its beats; a second one of the same doorbell hides the latency."""
    driver = Driver(ModelDevice(preset("tiny"), MEMORY), log=10)
    scene = Scene(driver, rng, format, 2, pages=6)
    jobs = [scene.job(kinds=[0], causal=False, window=0, bias=False, rows=4) for _ in range(2)]
    driver.submit_many(np.concatenate([driver.pack("ATTEND", 1, j.command) for j in jobs]))
    driver.wait_all()
    entries = [entry for entry in driver.log if entry.name == "ATTEND"]
    assert len(entries) == 2
    for entry in entries:
        assert entry.end - entry.start >= entry.beats
    assert entries[1].start >= entries[0].start
