"""The KV cache on the RTL: every page and token as on the model device."""

import pytest

from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.kvcache import KvCache
from m890.firmware.memory_map import PlaneShape
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.sim.rtl.device import RtlDevice
from m890.sim.timing.device import ModelDevice
from m890.testbench.firmware.cache import play

pytestmark = pytest.mark.rtl
TINY, MEMORY = preset("tiny"), 1 << 18


def played(device: Device, seed: int) -> list:
    driver = Driver(device, ring=8, scratch_bytes=1 << 14)
    shape = PlaneShape(2, Format.FP16, 8)
    cache = KvCache(driver, shape, pages=14, quotas={0: 9, 1: 5}, host_pages=6)
    seen = play(cache, seed, 300)
    assert cache.host.moved > 5
    return seen


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_the_same_pages_as_on_the_model_device(seed: int, stall: float) -> None:
    with RtlDevice(TINY, memory_bytes=MEMORY, latency=20, stall=stall, seed=seed) as device:
        found = played(device, seed)
    wanted = played(ModelDevice(TINY, MEMORY, seed=seed), seed)
    for n, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one == other, n
    refused = [x for x in wanted if isinstance(x, str)]
    assert any("pages are needed" in x for x in refused)
