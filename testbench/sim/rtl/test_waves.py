"""Waves: what the FST holds, windows, save files with names, floats and markers."""

import io
import math
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from m890.hdl.config import preset
from m890.sim.report import waveform
from m890.sim.report.fst import Fst, FstError
from m890.sim.rtl import float_filter, gtkw
from m890.sim.rtl.device import RtlDevice
from m890.testbench.sim.rtl.test_device import DESIGN, start

pytestmark = pytest.mark.rtl
TINY = preset("tiny")
BEATS = 5


def make(**options: object) -> RtlDevice:
    return RtlDevice(TINY, memory_bytes=1 << 16, latency=6, design=DESIGN, waves=True, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RtlDevice, int]:
    path = tmp_path_factory.mktemp("waves") / "copy.fst"
    device = make()
    device.memory[:] = np.arange(1 << 16, dtype=np.uint32).view(np.uint8)[: 1 << 16]
    with device.waves(path):
        begin = device.cycle
        start(device, BEATS)
        device.run()
    return path, device, begin


def test_signals_have_their_values_at_the_cycle(recorded: tuple[Path, RtlDevice, int]) -> None:
    path, device, _ = recorded
    fst = Fst(path)
    done, buffer, irq, state, clk = fst.read(
        *(f"m890_core.{n}" for n in ("done", "buffer", "irq", "fsm_state", "clk"))
    )
    assert done.values == list(range(BEATS + 1))
    beats = device.memory[0x1000 : 0x1000 + 16 * BEATS].reshape(BEATS, 16)
    assert buffer.values[1:] == [int.from_bytes(beat.tobytes(), "little") for beat in beats]
    assert (irq.values, irq.times[-1]) == ([0, 1], 10 * (device.cycle - 1))
    order = [DESIGN.modules["m890_core"].enums["fsm_state"][v or 0] for v in state.values]
    cycle = ["REQUEST", "READ", "FLIP", "ADDRESS", "WRITE", "ANSWER"]
    assert order == ["IDLE", *cycle * BEATS, "REQUEST", "IDLE"]
    assert set(np.diff(clk.times)) == {5}, "one cycle is ten ticks"


def test_submodules_and_structures_are_there_and_temporaries_are_not(
    recorded: tuple[Path, RtlDevice, int],
) -> None:
    signals = Fst(recorded[0]).signals
    assert signals["m890_core.flip2.o"] == 32
    assert signals["m890_core.tag__kind"] == 2
    own = [name.rsplit(".", 1)[-1] for name in signals]
    assert not [name for name in own if name.startswith("_")]


def test_window_bounds_the_recording(tmp_path: Path) -> None:
    with make() as device:
        first = device.cycle + 30
        device.start_waves(tmp_path / "window.fst", first, first + 25)
        start(device, BEATS)
        device.run()
    fst = Fst(tmp_path / "window.fst")
    assert (fst.start, fst.end) == (10 * first, 10 * (first + 24) + 5)


def test_device_with_waves_runs_the_same_cycles(tmp_path: Path) -> None:
    taken = []
    for path in (None, tmp_path / "on.fst"):
        with make(seed=3, stall=0.2) as device:
            if path:
                device.start_waves(path)
            start(device, 20)
            taken.append((device.run(), device.memory.tobytes()))
    assert taken[0] == taken[1]


def test_wrong_recordings_are_refused(tmp_path: Path) -> None:
    with make() as device:
        with pytest.raises(ValueError, match="window from cycle 9 to 5 is empty"):
            device.start_waves(tmp_path / "a.fst", 9, 5)
        with pytest.raises(FileNotFoundError):
            device.start_waves(tmp_path / "missing" / "a.fst")
        device._waves = False
        with pytest.raises(ValueError, match="waves=True"):
            device.start_waves(tmp_path / "a.fst")


def test_damaged_file_is_refused(recorded: tuple[Path, RtlDevice, int], tmp_path: Path) -> None:
    data = recorded[0].read_bytes()
    for cut in (0, 7, len(data) // 2, len(data) - 3):
        (tmp_path / "cut.fst").write_bytes(data[:cut])
        with pytest.raises(FstError):
            Fst(tmp_path / "cut.fst")


def test_save_file_names_signals_that_exist(
    recorded: tuple[Path, RtlDevice, int], tmp_path: Path
) -> None:
    fst = tmp_path / "copy.fst"
    fst.write_bytes(recorded[0].read_bytes())
    marks = [(f"job {n}", 10 + n) for n in range(30)]
    save = gtkw.write(DESIGN, fst, marks, start=10)
    text = save.read_text()
    signals = Fst(fst).signals
    named = re.findall(r"^(m890_core\.[\w.]+)(?:\[(\d+):0\])?$", text, re.M)
    assert len(named) > 40
    for name, high in named:
        assert signals[name] == int(high or 0) + 1
    for title in ("core", *gtkw.PINS):
        assert text.count(f"-{title}\n") == 2, "each group begins and ends"
    assert "[markername] Ajob 0\n" in text and "[markername] Zjob 25\n" in text
    line = next(x for x in text.splitlines() if x.startswith("*"))
    assert line.split()[1:5] == [str(gtkw.SCALE * t) for t in (100, 100, 110, 120)]
    filters = re.findall(r"^\^>?\d+ (.*)$", text, re.M)
    assert len(filters) == 3 and all(Path(f).exists() for f in filters)
    assert "2 READ\n" in Path(filters[0]).read_text()


def test_filter_program_answers_line_by_line(
    recorded: tuple[Path, RtlDevice, int], tmp_path: Path
) -> None:
    path = tmp_path / "bf16.py"
    float_filter.write_filter("bf16", path)
    assert os.access(path, os.X_OK)
    done = subprocess.run([path], input="3F80\nC0A0\nxx\n", capture_output=True, text=True)
    assert done.stdout.splitlines() == ["1", "-5", "xx"]


@pytest.mark.parametrize("kind", float_filter.KINDS)
def test_floats_are_shown_as_they_are(kind: str, rng: np.random.Generator) -> None:
    if kind in float_filter._INTERNAL:
        sig_bits, exp_bits = float_filter._INTERNAL[kind]
        for _ in range(200):
            sig = int(rng.integers(1 << sig_bits - 1, 1 << sig_bits))
            exp, sign = int(rng.integers(-200, 200)), int(rng.integers(0, 2))
            word = sig | (exp & (1 << exp_bits) - 1) << sig_bits | sign << sig_bits + exp_bits
            value = (-1) ** sign * math.ldexp(sig, exp - sig_bits + 1)
            assert float(float_filter.text(kind, word)) == pytest.approx(value, rel=1e-5)
        assert float_filter.text(kind, 0) == "0"
        assert float_filter.text(kind, 1 << sig_bits + exp_bits + 1) == "NaN"
        return
    bits = {"bf16": 16, "fp16": 16, "fp32": 32}[kind]
    for word in rng.integers(0, 1 << bits, 200):
        wide = np.uint32(word << 16 if kind == "bf16" else word)
        known = wide.view(np.float32) if kind != "fp16" else np.uint16(word).view(np.float16)
        shown = float(float_filter.text(kind, int(word)))
        assert shown == pytest.approx(float(known), rel=1e-4, nan_ok=True)


def test_numbers_beyond_a_double_are_shown_with_their_exponent() -> None:
    word = (1 << 23) | (3000 << 24)
    assert float_filter.text("wide", word) == "1*2^3000"
    out = io.StringIO()
    float_filter.serve("wide", io.StringIO(f"{word:x}\n"), out)
    assert out.getvalue() == "1*2^3000\n"


def test_picture_of_a_window(recorded: tuple[Path, RtlDevice, int], tmp_path: Path) -> None:
    path, _, begin = recorded
    names = {"m890_core.fsm_state": DESIGN.modules["m890_core"].enums["fsm_state"]}
    signals = ["m890_core.clk", "m890_core.fsm_state", "m890_core.flip0.o"]
    picture = tmp_path / "waves.png"
    waveform.draw(path, signals, picture, start=begin, end=begin + 40, names=names)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="has no signal m890_core.nothing"):
        waveform.draw(path, ["m890_core.nothing"], picture)
    with pytest.raises(ValueError, match="is empty"):
        waveform.draw(path, signals, picture, start=50, end=50)
