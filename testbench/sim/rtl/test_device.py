"""The native device: memory model, registers, time, errors, random start, cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m890.firmware.errors import DeviceTimeout
from m890.hdl.config import preset
from m890.hdl.verilog import generate
from m890.sim.report.fst import Fst
from m890.sim.rtl import build as building
from m890.sim.rtl.device import BusError, ProtocolError, RtlDevice
from m890.sim.rtl.hbm import HbmTiming, share
from m890.testbench.sim.rtl.standin import IDENT, REGISTERS, StandIn

pytestmark = pytest.mark.rtl
TINY = preset("tiny")
SOURCE, TARGET = 0x1000, 0x8000
DESIGN = generate(TINY, StandIn(TINY))


def make(**options: Any) -> RtlDevice:
    options.setdefault("design", DESIGN)
    return RtlDevice(TINY, memory_bytes=1 << 16, **options)


def start(device: RtlDevice, beats: int, *, invert: bool = True, source: int = SOURCE) -> None:
    values = {
        "SOURCE": source,
        "TARGET": TARGET,
        "BEATS": beats,
        "INVERT": int(invert),
        "CONTROL": 1,
    }
    for name, value in values.items():
        device.write(REGISTERS[name], value)


@pytest.fixture
def device() -> Iterator[RtlDevice]:
    with make(latency=3) as made:
        yield made


@pytest.mark.parametrize(
    "timing",
    [
        {"latency": 1},
        {"latency": 40},
        {"latency": 2, "bandwidth": 5.0},
        {"latency": 3, "stall": 0.4},
        {"latency": 7, "stall": 0.1, "bandwidth": 11.5},
        {"hbm": share(TINY)},
        {"hbm": HbmTiming(path=1, pseudo_channels=3, refi=1000)},
    ],
)
def test_copies_whatever_the_memory_does(
    timing: dict[str, Any], rng: np.random.Generator, seed: int
) -> None:
    with make(seed=seed, **timing) as device:
        device.memory[:] = rng.integers(0, 256, device.memory.size)
        before = device.memory.copy()
        beats = int(rng.integers(1, 100))
        start(device, beats)
        device.run()
        size = beats * TINY.port_bytes
        np.testing.assert_array_equal(
            device.memory[TARGET : TARGET + size], before[SOURCE : SOURCE + size] ^ 255
        )
        before[TARGET : TARGET + size] = device.memory[TARGET : TARGET + size]
        np.testing.assert_array_equal(device.memory, before, "bytes beside the target changed")
        assert device.read(REGISTERS["STATUS"]) == beats


def test_latency_is_that_of_the_parameters() -> None:
    cycles = []
    for latency in (5, 25):
        with make(latency=latency) as device:
            start(device, 10)
            cycles.append(device.run())
    assert cycles[1] - cycles[0] == 10 * 2 * 20  # per beat a read and a write


def test_bandwidth_bounds_the_bytes_per_cycle() -> None:
    with make(latency=1, bandwidth=2.0) as device:
        start(device, 100)
        cycles = device.run()
    moved = 2 * 100 * TINY.port_bytes
    assert 0.95 * moved / 2.0 <= cycles <= 1.05 * moved / 2.0


def test_hbm_counts_what_its_banks_do() -> None:
    with make(hbm=share(TINY)) as device:
        start(device, 100)
        device.run()
        counted = device.memory_counters()
    # The stand-in reads and writes one beat of 16 bytes at a time; the last may still be queued.
    assert counted["reads"] == 100 and 97 <= counted["writes"] <= 100
    assert counted["activations"] >= 2 and counted["refreshes"] > 0
    with make(latency=3) as device:
        start(device, 10)
        device.run()
        assert not any(device.memory_counters().values())


def test_runs_repeat_with_their_seed_and_differ_without(seed: int) -> None:
    def cycles(chosen: int) -> int:
        with make(latency=2, stall=0.3, seed=chosen) as device:
            start(device, 50)
            return device.run()

    assert cycles(seed) == cycles(seed)
    assert len({cycles(seed + n) for n in range(4)}) > 1


def test_memories_start_with_random_words() -> None:
    words = []
    for seed in range(4):
        with make(seed=seed) as device:
            words.append(device.read(REGISTERS["SCRATCH"]))
    assert len(set(words)) == 4


def test_run_counts_cycles_and_stops_at_the_interrupt(device: RtlDevice) -> None:
    before = device.cycle
    assert device.run(123) == 123
    assert device.cycle == before + 123
    start(device, 4)
    taken = device.run(100_000)
    assert taken < 100_000
    assert device.run() == 0, "the interrupt is still pending"
    device.write(REGISTERS["CONTROL"], 2)
    assert device.run(10) == 10


def test_registers_read_back(device: RtlDevice) -> None:
    assert device.read(REGISTERS["IDENT"]) == IDENT
    device.write(REGISTERS["SOURCE"], 0xDEADBEEF)
    assert device.read(REGISTERS["SOURCE"]) == 0xDEADBEEF


def test_waiting_for_nothing_ends(device: RtlDevice) -> None:
    device._patience = 500
    with pytest.raises(DeviceTimeout, match="nothing moved for 500 cycles"):
        device.run()


@pytest.mark.parametrize("memory", [{"latency": 2}, {"hbm": share(TINY)}])
def test_errors_are_answered_and_leave_memory_alone(memory: dict[str, Any]) -> None:
    with make(errors=(TARGET + 32, TARGET + 48), **memory) as device:
        device.memory[SOURCE : SOURCE + 64] = 1
        start(device, 4, invert=False)
        device.run()
        assert device.read(REGISTERS["STATUS"]) == 4 | 1 << 31
        target = device.memory[TARGET : TARGET + 64].reshape(4, 16)
        np.testing.assert_array_equal(target[:, 0], [1, 1, 0, 1])


@pytest.mark.parametrize("memory", [{"latency": 3}, {"hbm": share(TINY)}])
def test_access_outside_memory_is_an_error(memory: dict[str, Any]) -> None:
    with make(**memory) as device:
        start(device, 1, source=1 << 20)
        device.run()
        assert device.read(REGISTERS["STATUS"]) == 1 | 1 << 31


def test_breach_of_the_bus_rules_is_named() -> None:
    with make(latency=1) as device:
        device.write(REGISTERS["BREAK"], 1)
        start(device, 2)
        with pytest.raises(ProtocolError, match="wlast does not mark the last beat"):
            device.run()
    with make(latency=1, check=False) as device:
        device.write(REGISTERS["BREAK"], 1)
        start(device, 2)
        device.run()


def test_unaligned_address_is_named() -> None:
    with make(latency=1) as device:
        start(device, 1, source=SOURCE + 1)
        with pytest.raises(ProtocolError, match="not aligned"):
            device.run()


def test_register_that_never_answers(device: RtlDevice) -> None:
    device.write(REGISTERS["BREAK"], 2)
    with pytest.raises(BusError, match="never answered"):
        device.read(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_bytes": 5000}, "multiple of 4096"),
        ({"latency": 0}, "latency must be 1 or more"),
        ({"stall": 1.0}, "stall must be a probability below 1"),
        ({"bandwidth": 0.0}, "bandwidth must be up to 32"),
        ({"bandwidth": 33.0}, "bandwidth must be up to 32"),
        ({"stall": 0.1, "hbm": share(TINY)}, "bandwidth and stall belong to the fixed memory"),
        ({"bandwidth": 8.0, "hbm": share(TINY)}, "belong to the fixed memory, not to hbm"),
    ],
)
def test_wrong_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RtlDevice(TINY, design=DESIGN, **options)


def test_closed_device_says_so(device: RtlDevice) -> None:
    device.close()
    device.close()
    with pytest.raises(ValueError, match="closed"):
        device.run(1)


def test_build_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = building.build(DESIGN, say=lambda text: None)
    said: list[str] = []
    assert building.build(DESIGN, say=said.append).cached and not said
    assert first.library.exists()
    changed = generate(TINY, StandIn(TINY))
    changed.text += "// another text is another build\n"
    monkeypatch.setenv("M890_CACHE", str(tmp_path))
    monkeypatch.setattr(building, "_run", lambda command: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(RuntimeError):
        building.build(changed, say=said.append)
    assert said and "building the tiny simulator" in said[0]
    left = [p for p in (tmp_path / "builds").iterdir() if p.suffix != ".lock"]
    assert not left, "a failed build leaves nothing"


def test_external_module_may_be_built_on_its_own(rng: np.random.Generator, tmp_path: Path) -> None:
    """As the rows of large cores are: the same cycles, the same bytes, and waves of the rest."""
    design = generate(TINY, StandIn(TINY, external=True))
    content = rng.integers(0, 256, 1 << 16)
    results = []
    for own in (False, True):
        library = building.build(design, hierarchical=own, trace=own, say=lambda text: None)
        with make(design=design, library=library.library, latency=3, stall=0.2, seed=5) as device:
            device.memory[:] = content
            start(device, 40)
            results.append((device.run(), device.memory.tobytes()))
    assert results[0] == results[1]
    with make(design=design, library=library.library, waves=True) as device:
        with device.waves(tmp_path / "rest.fst"):
            start(device, 2)
            device.run()
    signals = Fst(tmp_path / "rest.fst").signals
    assert any(path.endswith("m_axi_araddr") for path in signals)
    assert not any(path.endswith("_now") for path in signals), "the seam's own variables"


def test_verilog_that_verilator_refuses_is_named() -> None:
    broken = generate(TINY, StandIn(TINY))
    broken.text = broken.text.replace("endmodule", "endmodul", 1)
    with pytest.raises(building.BuildError, match="verilator_bin failed: %Error"):
        building.build(broken, say=lambda text: None)
