"""Tenants and the host pool on the model device."""

from collections.abc import Iterator

import pytest

from m890.firmware.device import Device
from m890.hdl.config import preset
from m890.sim.timing.device import ModelDevice
from m890.testbench.firmware.repair_suite import MEMORY
from m890.testbench.firmware.tenant_suite import TenantSuite


class TestTenants(TenantSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        yield ModelDevice(preset("tiny"), MEMORY, seed=1)
