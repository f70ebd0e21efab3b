"""`m890 verilog` and `m890 waves`: what they write, and one sentence for wrong input."""

from pathlib import Path
from typing import Any

import pytest

from m890.hdl.config import CoreConfig
from m890.hdl.verilog import VerilogDesign, generate
from m890.sim.cli import app
from m890.sim.cli import verilog as verilog_command
from m890.sim.cli import waves as waves_command
from m890.testbench.sim.rtl.standin import StandIn


@pytest.fixture
def m890(capsys: pytest.CaptureFixture):
    """Runs a command line; returns its exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = app.main(arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def small_designs(monkeypatch: pytest.MonkeyPatch) -> list[CoreConfig]:
    """A stand-in instead of the core, which takes long; the configurations asked for."""
    asked: list[CoreConfig] = []

    def make(config: CoreConfig, **options: Any) -> VerilogDesign:
        asked.append(config)
        return generate(config, StandIn(config), **options)

    monkeypatch.setattr(verilog_command, "core_design", make)
    monkeypatch.setattr(verilog_command, "generate", make)
    return asked


def test_verilog_writes_its_files_and_names_them(m890, small_designs, tmp_path: Path) -> None:
    code, out, err = m890("verilog", "tiny", "-o", str(tmp_path / "out"))
    assert code == 0, err
    written = sorted(Path(line).name for line in out.splitlines())
    assert written == [f"m890_core.{x}" for x in ("core", "f", "h", "json", "v", "vlt")]
    assert all(Path(line).exists() for line in out.splitlines())
    assert "lint-clean by Verilator" in err.replace("\n", " ")
    assert small_designs[0].name == "tiny"


def test_verilog_takes_own_parameters_and_prefix(m890, small_designs, tmp_path: Path) -> None:
    code, _, err = m890(
        "verilog", "small", "--rows", "3", "--lanes", "8", "--no-softcap", "--prefix", "mine",
        "--no-lint", "-o", str(tmp_path),
    )  # fmt: skip
    assert code == 0, err
    (config,) = small_designs
    assert (config.rows, config.lanes, config.softcap) == (3, 8, False)
    assert config.pages == 8192 and config.name == "small_custom"
    assert "module mine_core(" in (tmp_path / "mine_core.v").read_text()
    assert "#define MINE_ROWS 3" in (tmp_path / "mine_core.h").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verilog", "huge", "-o", "x"], "unknown preset 'huge'"),
        (["verilog", "tiny"], "Missing option"),
        (["verilog", "tiny", "--rows", "65", "-o", "x"], "rows must be 1 to 64, not 65"),
        (["verilog", "tiny", "--lanes", "12", "-o", "x"], "lanes must be 8, 16, 32 or 64"),
        (["verilog", "tiny", "--prefix", "9", "-o", "x"], "cannot be '9'"),
        (["verilog", "tiny", "--cores", "5", "-o", "x"], "less than or equal to 4"),
        (["verilog", "tiny", "--shared-port", "-o", "x"], "one core has one port"),
        (["verilog", "tiny", "-o", __file__], "is a file"),
        (["waves", "dance"], "no session 'dance': there are prefill"),
        (["waves", "--preset", "huge"], "unknown preset 'huge'"),
        (["waves", "--format", "fp12"], "no format 'fp12'"),
        (["waves", "--commands", "5:3"], "written 3:9, not '5:3'"),
        (["waves", "--commands", "a"], "written 3:9, not 'a'"),
        (["waves", "--context", "0"], "0"),
        (["waves", "-o", __file__], ""),
    ],
)
def test_wrong_input_is_one_sentence(m890, arguments: list[str], message: str) -> None:
    code, out, err = m890(*arguments)
    assert code == 2 and not out
    assert err.startswith("m890: ") and err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3:9", slice(3, 9)), ("3:", slice(3, None)), (":9", slice(0, 9)), ("4", slice(4, 5))],
)
def test_ranges_of_commands(text: str, expected: slice) -> None:
    assert waves_command._range(text) == expected


@pytest.mark.rtl
def test_waves_of_some_commands(m890, tmp_path: Path) -> None:
    code, out, err = m890(
        "waves", "draft", "--commands", "2:", "--context", "9", "-o", str(tmp_path)
    )
    assert code == 0, err
    *files, command = out.splitlines()
    assert files == [str(tmp_path / f"draft.{x}") for x in ("fst", "gtkw", "png")]
    assert command == f"gtkwave {files[0]} {files[1]}"
    markers = [x for x in Path(files[1]).read_text().splitlines() if x.startswith("[markername]")]
    assert any("ATTEND" in m and "(verify) starts" in m for m in markers)


@pytest.mark.rtl
def test_markers_are_where_the_commands_are(tmp_path: Path) -> None:
    """The counter that stamps completions, as the waves show it, at the cycle of a marker."""
    from m890.hdl.config import preset
    from m890.sim.report.fst import Fst
    from m890.sim.rtl import gtkw, sessions
    from m890.sim.rtl.device import RtlDevice

    path = tmp_path / "all.fst"
    with RtlDevice(preset("tiny"), memory_bytes=64 << 20, latency=20, waves=True) as device:
        with device.waves(path):
            log = sessions.play("prefill", device, scale=sessions.Scale(context=9))
        offset = device.counter_offset()
    (count,) = Fst(path).read("m890_core.control.counters.cycles")
    for entry in log:
        for cycle in (entry.start, entry.end):
            assert count.at(gtkw.TICKS * (cycle + offset)) == cycle
