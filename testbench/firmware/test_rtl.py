"""The suite of all devices on the core's RTL, Verilated."""

from collections.abc import Iterator

import pytest

from m890.firmware.device import Device
from m890.hdl.config import preset
from m890.sim.rtl.device import RtlDevice
from m890.testbench.firmware.device_suite import MEMORY, DeviceSuite

pytestmark = pytest.mark.rtl


class TestTinyRtl(DeviceSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        device = RtlDevice(preset("tiny"), memory_bytes=MEMORY, latency=30, stall=0.1, seed=1)
        yield device
        device.close()
