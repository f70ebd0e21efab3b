"""The large presets' RTL, run natively: the whole device suite, rows built on their own."""

from collections.abc import Iterator

import pytest

from m890.firmware.device import Device
from m890.firmware.memory_map import PlaneShape, memory_bytes
from m890.hdl.config import CoreConfig, preset
from m890.hdl.numerics.formats import Format
from m890.sim.rtl.device import RtlDevice
from m890.testbench.firmware.device_suite import DeviceSuite

pytestmark = [pytest.mark.rtl, pytest.mark.soak]


def memory_of(config: CoreConfig) -> int:
    """Bytes for the suite's planes of the largest head in 16 bits: reserved, hardly touched."""
    return memory_bytes(config, PlaneShape(2, Format.FP16, config.max_head), pages=64)


class TestEdge(DeviceSuite):
    """Every channel of the memory port pauses at random."""

    scratch = 8 << 20

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        config = preset("edge")
        with RtlDevice(
            config, memory_bytes=memory_of(config), latency=10, stall=0.2, seed=3
        ) as device:
            yield device


class TestM890(DeviceSuite):
    jobs = 10
    scratch = 32 << 20

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        config = preset("m890")
        with RtlDevice(config, memory_bytes=memory_of(config), latency=30, seed=4) as device:
            yield device
