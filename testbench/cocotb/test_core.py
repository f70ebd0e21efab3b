"""The whole core in Verilog: the real driver through AXI with pauses, against golden."""

from collections.abc import Callable
from typing import Any

import cocotb
import numpy as np
import pytest

from m890.firmware import errors
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.kv import placed
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.sim.cocotb.axi import held_offers
from m890.sim.cocotb.device import CocotbDevice
from m890.sim.cocotb.launch import parameters
from m890.sim.rtl.cache import core_design
from m890.testbench.cocotb.runner import Bench, config, seed
from m890.testbench.firmware.bad_input import FAR
from m890.testbench.firmware.device_suite import DeviceSuite
from m890.testbench.firmware.scene import Scene

MEMORY = {"tiny": 2 << 20, "small": 64 << 20}


async def with_driver(dut: Any, stall: float, firmware: Callable[[Driver], None]) -> None:
    """Runs firmware on the core and checks the rules of its memory port meanwhile."""
    size = MEMORY[config().name]
    device = CocotbDevice(dut, config(), memory_bytes=size, seed=seed(), stall=stall)
    await device.start()
    cocotb.start_soon(held_offers(dut))

    await device.use(lambda device: firmware(take_over(device)))


def take_over(device: Device) -> Driver:
    """A new driver resets the rings and lays the memory out anew."""
    return Driver(device, ring=16, scratch_bytes=1 << 18)


def rng() -> np.random.Generator:
    return np.random.default_rng(seed())


def jobs(driver: Driver, formats: list[Format], count: int) -> None:
    """Random jobs of formats, several at once."""
    some = rng()
    for format in formats:
        tiles = int(some.choice([1, 2]))
        driver = take_over(driver.device)
        scene = Scene(driver, some, format, tiles, planes=1, sequences=2, pages=3)
        DeviceSuite()._run(scene, [scene.job() for _ in range(count)])


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.3])
async def random_jobs(dut: Any, stall: float) -> None:
    formats = list(Format) if parameters()["long"] else [Format.FP16, Format.INT8]
    count = 3 if parameters()["long"] else 2
    await with_driver(dut, stall, lambda driver: jobs(driver, formats, count))


@cocotb.test()
async def stored_states_merge(dut: Any) -> None:
    await with_driver(dut, 0.2, lambda d: DeviceSuite().test_raw_states_merge(d, rng()))


@cocotb.test()
async def appended_tokens_are_attended_to(dut: Any) -> None:
    """Under one doorbell: the job sees what the APPEND before it wrote."""
    await with_driver(dut, 0.3, lambda d: DeviceSuite().test_append_then_attend(d, rng()))


@cocotb.test()
async def appends(dut: Any) -> None:
    def firmware(driver: Driver) -> None:
        formats = list(Format) if parameters()["long"] else [Format.E4M3]
        for format in formats:
            driver = take_over(driver.device)
            scene = Scene(driver, rng(), format, 2, planes=2, sequences=1, pages=2)
            for plane in range(2):
                DeviceSuite()._append(scene, Format.BF16, plane, specials=True)

    await with_driver(dut, 0.2, firmware)


@cocotb.test()
async def bus_errors_are_reported(dut: Any) -> None:
    """A page that memory refuses fails the job by name; without the fault the same job is right."""

    def firmware(driver: Driver) -> None:
        suite, device = DeviceSuite(), driver.device
        assert isinstance(device, CocotbDevice)
        scene = Scene(driver, rng(), Format.E4M3, 1, planes=1, sequences=1, pages=2)
        job = scene.job(kinds=[0], causal=False, window=0, bias=False)
        driver.view(suite._entry(scene, job, 0), (32,), np.uint8)[16:24] = 255  # all rows
        device.broken = range(scene.region.start, scene.region.end)
        with pytest.raises(errors.BusError):
            suite._submit(driver, [job])
        device.broken = range(0)
        suite._run(scene, [scene.job()])

    await with_driver(dut, 0.2, firmware)


@cocotb.test()
async def no_byte_of_a_strangers_page_is_read(dut: Any) -> None:
    """A block table that names another tenant's page: the job fails, and no access touches it."""

    def firmware(driver: Driver) -> None:
        suite, device = DeviceSuite(), driver.device
        assert isinstance(device, CocotbDevice)
        scene = Scene(driver, rng(), Format.FP16, 1, planes=1, sequences=1, pages=2)
        (page,) = placed.take(driver, 1, tenant=1).tolist()
        at = int(scene.base[0]) + page * scene.stride
        sequence = scene.sequences[0]
        table = driver.view(sequence.table, (2,), "<u4")
        own = table.copy()
        for entry in range(2):
            table[:] = own
            table[entry] = page
            device.watched, device.touched = range(at, at + scene.stride), 0
            with pytest.raises(errors.BadTenant) as caught:
                suite._submit(driver, [suite._over_all(scene, 0)])
            assert (caught.value.field, device.touched) == ("segment.sequence", 0)
        table[:] = own
        at = int(scene.base[0]) + int(own[0]) * scene.stride
        device.watched = range(at, at + scene.stride)
        suite._run(scene, [suite._over_all(scene, 0)])
        assert device.touched > 0

    await with_driver(dut, 0.2, firmware)


@cocotb.test()
async def bad_input_is_refused(dut: Any) -> None:
    """By name, without a changed byte, and the next job is right."""

    def firmware(driver: Driver) -> None:
        suite = DeviceSuite()

        def fresh() -> tuple[Driver, np.random.Generator]:
            return take_over(driver.device), rng()

        suite.test_failure_among_others(*fresh())
        suite.test_bad_attend(*fresh(), "output", FAR, errors.BadAddress)
        if parameters()["long"]:
            suite.test_bad_opcode(*fresh())
            suite.test_bad_append(*fresh(), "tokens", 0, errors.BadRange)
            suite.test_bad_row(*fresh())
            suite.test_bad_page(*fresh(), 0xFFFFFFFF)
            suite.test_ring_overrun(take_over(driver.device))

    await with_driver(dut, 0.1, firmware)


@pytest.mark.cocotb
@pytest.mark.parametrize(
    ("simulator", "name"),
    [
        ("verilator", "tiny"),
        ("verilator", "small"),
        pytest.param("icarus", "tiny", marks=pytest.mark.icarus),
    ],
)
def test_core(bench: Bench, name: str) -> None:
    """Everything on `tiny`; on `small` stalled jobs, appends; Icarus, fifty times slower: some."""
    only = None
    if bench.simulator == "icarus":
        only = "stall=0.3|appended|refused|stranger"
    elif name == "small":
        only = "stall=0.3|appends"
    long = bench.simulator == "verilator"
    bench.run(core_design(preset(name)), preset(name), tests=only, long=long)
