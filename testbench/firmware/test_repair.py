"""Repair of damaged tokens on the model device."""

from collections.abc import Iterator

import pytest

from m890.firmware.device import Device
from m890.hdl.config import preset
from m890.sim.timing.device import ModelDevice
from m890.testbench.firmware.repair_suite import MEMORY, RepairSuite


class TestRepair(RepairSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        yield ModelDevice(preset("tiny"), MEMORY, seed=1)


class TestRepairOfTwoChunksPerPage(RepairSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        yield ModelDevice(preset("tiny").with_(page_tokens=16), MEMORY, seed=2)
