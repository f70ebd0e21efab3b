"""The core in Amaranth's simulator as a device: golden's numbers through the driver."""

import numpy as np
import pytest

from m890.firmware import errors
from m890.firmware.driver import Driver
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.hdl.registers import ADDRESS
from m890.sim.pysim.device import PysimDevice
from m890.testbench.firmware.device_suite import DeviceSuite
from m890.testbench.firmware.scene import Scene


@pytest.fixture(scope="module")
def device() -> PysimDevice:
    """Made once: compiling the core takes some seconds."""
    return PysimDevice(preset("tiny"), memory_bytes=2 << 20, latency=7)


def test_jobs_and_appends(device: PysimDevice, rng: np.random.Generator) -> None:
    suite, driver = DeviceSuite(), Driver(device, ring=4, scratch_bytes=1 << 18)
    scene = Scene(driver, rng, Format.E4M3, 1, planes=2, sequences=1, pages=2)
    suite._run(scene, [scene.job(kinds=[0]), scene.job(kinds=[1, 2])])
    suite._append(scene, Format.FP16, 1, specials=True)


def test_failure_has_its_name(device: PysimDevice) -> None:
    driver = Driver(device, ring=4, scratch_bytes=1 << 18)
    with pytest.raises(errors.BadPlane):
        driver.wait(driver.submit("PLANE", plane=65535))


def test_no_register_is_an_error(device: PysimDevice) -> None:
    with pytest.raises(errors.FirmwareError, match="bus error 2"):
        device.read(0xFFC)


def test_run(device: PysimDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of cycles, then for ever: nothing comes, and that is noticed."""
    device.write(ADDRESS["IRQ_STATUS"], 3)
    device.run(2)
    assert device.run(10) == 10
    monkeypatch.setattr("m890.sim.pysim.device.PATIENCE", 50)
    with pytest.raises(errors.DeviceTimeout):
        device.run(None)
