"""The RTL, run natively: everything that any device must do, whatever memory it has."""

from collections.abc import Iterator

import pytest

from m890.firmware.device import Device
from m890.hdl.config import preset
from m890.sim.rtl.device import RtlDevice
from m890.sim.rtl.hbm import share
from m890.testbench.firmware.device_suite import MEMORY, DeviceSuite
from m890.testbench.firmware.integrity import IntegritySuite

pytestmark = pytest.mark.rtl


class TestTiny(DeviceSuite):
    jobs = 40

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        with RtlDevice(preset("tiny"), memory_bytes=MEMORY, latency=30, seed=1) as device:
            yield device


class TestTinyStalled(DeviceSuite):
    """Every channel of the memory port pauses at random."""

    jobs = 40

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        with RtlDevice(preset("tiny"), memory_bytes=MEMORY, latency=3, stall=0.4, seed=2) as device:
            yield device


class TestTinyHbm(DeviceSuite):
    """Beats of different ids come as the banks give them; refresh eight times as often."""

    jobs = 10

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        config = preset("tiny")
        hbm = share(config).with_(refi=800, rfc_bank=40)
        with RtlDevice(config, memory_bytes=MEMORY, hbm=hbm, seed=3) as device:
            yield device


class TestTags(IntegritySuite):
    jobs = 40

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        with RtlDevice(preset("tiny"), memory_bytes=MEMORY, latency=30, seed=3) as device:
            yield device


class TestTagsStalled(IntegritySuite):
    jobs = 40

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        with RtlDevice(preset("tiny"), memory_bytes=MEMORY, latency=3, stall=0.4, seed=4) as device:
            yield device
