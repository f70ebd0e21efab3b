"""Tenants and the host pool on the RTL."""

from collections.abc import Iterator

import pytest

from m890.firmware.device import Device
from m890.hdl.config import preset
from m890.sim.rtl.device import RtlDevice
from m890.testbench.firmware.repair_suite import MEMORY
from m890.testbench.firmware.tenant_suite import TenantSuite

pytestmark = pytest.mark.rtl


class TestTenants(TenantSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        with RtlDevice(preset("tiny"), memory_bytes=MEMORY, latency=20, seed=1) as device:
            yield device
