"""Synthesis: counts that follow from the design, Fmax that follows from its path, what is kept."""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Cat, Module, Shape
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import preset
from m890.hdl.memory.sram import Sram
from m890.hdl.numerics.exp2 import ScaleP
from m890.hdl.numerics.formats import SIG_BITS, WIDE_EXP_BITS
from m890.hdl.numerics.types import Operand
from m890.hdl.verilog import generate
from m890.sim import toolchain
from m890.sim.bench import registry
from m890.sim.bench.registry import BenchContext
from m890.sim.cli import app, synth
from m890.sim.synth import figures, place, yosys
from m890.sim.synth.modules import HARNESS, UnitError, Units

TINY = preset("tiny")
needs_tools = pytest.mark.skipif(
    not (toolchain.find_yosys() and toolchain.find_nextpnr()),
    reason=toolchain.find_yosys().reason or toolchain.find_nextpnr().reason,
)


class Leaf(wiring.Component):
    """The exclusive or of eight bits, in a register; one port has a keyword of Verilog as name."""

    release: In(8)
    o: Out(1)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.sync += self.o.eq(self.release.xor())
        return m


class Tree(wiring.Component):
    """Three leaves, two of them in a branch, and a memory of 1,024 x 36 bits."""

    i: In(24)
    address: In(10)
    word: Out(36)
    o: Out(3)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = Sram(36, 1024)
        m.submodules.branch = branch = Branch()
        m.submodules.leaf = leaf = Leaf()
        m.d.comb += [
            memory.write_address.eq(self.o),
            memory.write_data.eq(self.i),
            memory.write_enable.eq(1),
            memory.read_address[0].eq(self.address),
            self.word.eq(memory.read_data[0]),
            branch.i.eq(self.i[:16]),
            leaf.release.eq(self.i[16:]),
            self.o.eq(Cat(branch.o, leaf.o)),
        ]
        return m


class Branch(wiring.Component):
    i: In(16)
    o: Out(2)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for n in range(2):
            m.submodules[f"leaf{n}"] = leaf = Leaf()
            m.d.comb += [leaf.release.eq(self.i.word_select(n, 8)), self.o[n].eq(leaf.o)]
        return m


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache."""
    monkeypatch.setenv("M890_CACHE", str(tmp_path))
    return tmp_path


def quiet(text: str) -> None:
    """Progress that nobody sees."""


def units_of(component: wiring.Component, name: str) -> Units:
    return Units(generate(TINY, component, name=f"m890_{name}"))


def test_units_are_the_hierarchy() -> None:
    units = units_of(Tree(), "tree")
    assert units.shown() == ["tree", "branch", "leaf"]
    assert units.parts("m890_branch") == {"m890_leaf": 2}
    assert units.instances("m890_leaf") == 3
    assert units.instances("m890_leaf", "m890_branch") == 2
    below = units.below("m890_tree")
    assert set(below) == {"m890_leaf", "m890_branch", "m890_sram", "m890_tree"}
    assert below.index("m890_leaf") < below.index("m890_branch") < below.index("m890_tree")
    assert units.place_of("branch.leaf1.o_TRELLIS_FF_Q", "m890_tree") == "branch.leaf1"
    assert units.place_of("o_TRELLIS_FF_Q.x", "m890_tree") == ""
    with pytest.raises(UnitError, match="no block 'twig': there are tree, branch, leaf"):
        units.module("twig")


@needs_tools
def test_counts_add_up_over_the_hierarchy(cold: Path) -> None:
    """Eight inputs of an exclusive or take three LUT4 at least; Yosys prefers fast ones."""
    units = units_of(Tree(), "tree")
    netlists = yosys.synthesise(units, units.below("m890_tree"), yosys.ECP5, quiet)
    leaf, branch, tree, sram = (
        figures.ecp5(units, f"m890_{n}", netlists) for n in ("leaf", "branch", "tree", "sram")
    )
    assert leaf.ff == 1 and leaf.lut4 >= 3
    assert (branch.lut4, branch.ff) == (2 * leaf.lut4, 2 * leaf.ff)
    assert (tree.bram, tree.ff) == (sram.bram, 3 * leaf.ff + sram.ff)
    assert tree.lut4 == 3 * leaf.lut4 + sram.lut4 + netlists["m890_tree"].cells.get("LUT4", 0)
    assert leaf.of(figures.Ecp5(lut4=10, ff=1, dsp=1, bram=1)) == 1


@needs_tools
def test_memories_are_block_ram(cold: Path) -> None:
    """36,864 bits are two blocks of 18 Kibit; beside them is what gives the old word back where
    the address is just written: at most the written word and both addresses."""
    units = units_of(Tree(), "tree")
    netlists = yosys.synthesise(units, ["m890_sram"], yosys.ECP5, quiet)
    found = figures.ecp5(units, "m890_sram", netlists)
    assert (found.bram, found.lutram, found.dsp) == (2, 0, 0) and found.ff <= 2 * (36 + 10)


@needs_tools
def test_gates_and_depth(cold: Path) -> None:
    """A tree of seven exclusive ors is three deep."""
    units = units_of(Tree(), "tree")
    netlists = yosys.synthesise(units, units.below("m890_tree"), yosys.GATES, quiet)
    leaf = figures.gates(units, "m890_leaf", netlists)
    assert (leaf.gates, leaf.mux, leaf.ff, leaf.memory) == (7, 0, 1, 0)
    assert leaf.depth >= 3
    tree = figures.gates(units, "m890_tree", netlists)
    assert (tree.gates, tree.ff, tree.memory) == (21, 3, 1024 * 36)
    assert tree.depth == leaf.depth


@needs_tools
def test_block_alone_has_its_registers_and_multipliers(cold: Path) -> None:
    """And nothing is synthesised twice."""
    units = units_of(ScaleP(), "scale_p")
    netlists = yosys.synthesise(units, ["m890_scale_p"], yosys.ECP5, quiet)
    found = figures.ecp5(units, "m890_scale_p", netlists)
    product = SIG_BITS + 8  # 8 bits of a BF16 significand
    assert found.ff == product + WIDE_EXP_BITS + 2 + Shape.cast(Operand).width
    assert (found.dsp, found.bram) == (1, 0)

    timing = place.place(units, "m890_scale_p", netlists, quiet, speed=6, seed=1)
    assert timing.delay == pytest.approx(1000 / timing.fmax, rel=1e-3)
    assert timing.used["MULT18X18D"] == 1 and timing.used["TRELLIS_FF"] > found.ff
    assert {step.block for step in timing.path} <= {"", HARNESS}

    def fail(*arguments: Any) -> None:
        raise AssertionError("a tool ran again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yosys, "_run", fail)
        patch.setattr(place, "_route", fail)
        again = yosys.synthesise(units, ["m890_scale_p"], yosys.ECP5, quiet)
        assert again == netlists
        assert place.place(units, "m890_scale_p", again, quiet, speed=6, seed=1) == timing


@needs_tools
def test_a_refusal_is_one_error(cold: Path) -> None:
    units = units_of(Leaf(), "leaf")
    units.design.modules["m890_leaf"].instances.append(("twig", "m890_leaf"))
    flow = yosys.Flow("wrong", "no_such_command")
    with pytest.raises(yosys.SynthesisError, match="Yosys refused: .*no_such_command"):
        yosys.synthesise(units, ["m890_leaf"], flow, quiet)


STAND_IN = """\
#!{python}
import os, pathlib, re, signal, time
asked = re.findall(r"^read_verilog -sv (\\w+)[.]v$", pathlib.Path("run.ys").read_text(), re.M)
with open("{log}", "a") as log:
    print(*asked, file=log)
for name in asked[:{most}]:
    pathlib.Path(name + ".il").write_text("netlist of " + name)
    stat = '{{"modules": {{"m": {{"num_cells_by_type": {{"LUT4": 3}}}}}}}}'
    pathlib.Path(name + ".stat").write_text(stat)
    pathlib.Path(name + ".done").write_text("done")
    end = time.monotonic() + 60
    while not list(pathlib.Path("{cache}").glob(name + "-*.json")) and time.monotonic() < end:
        time.sleep(0.02)
if {most} < len(asked):
    os.kill(os.getppid(), {signal})
    time.sleep(600)
"""
"""Takes Yosys' place: `most` modules, each only once the one before is kept; then a signal to m890,
and it would go on for ten minutes."""


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=lambda n: str(int(n))
)
def test_a_stopped_run_goes_on_from_where_it_was(
    cold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, number: int, code: int
) -> None:
    """What was mapped is in the cache before the end, and is not asked for again."""
    program, log = tmp_path / "stand-in", tmp_path / "asked"
    tool = toolchain.Tool("Yosys", path=program)
    monkeypatch.setattr(toolchain, "find_yosys", lambda: tool)
    design = generate(TINY, Tree(), name="m890_tree")
    monkeypatch.setattr(synth, "core_design", lambda config: design)

    def run(most: int) -> int:
        text = STAND_IN.format(
            python=sys.executable, log=log, most=most, cache=cold / "synth", signal=int(number)
        )
        program.write_text(text)
        program.chmod(0o755)
        return app.main(["synth", "tiny", "--no-place"])

    begin = time.monotonic()
    assert run(2) == code
    assert time.monotonic() - begin < 120, "the stand-in was waited for"
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1] == "m890: stopped."
    kept = {path.name.partition("-")[0] for path in (cold / "synth").glob("*.json")}
    assert not list(cold.glob("synth/tmp*")), "a half made file"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run(9) == 0
    first, second = (line.split() for line in log.read_text().splitlines())
    assert kept == {*first[:2]} and second == first[2:]


@pytest.mark.parametrize(
    "arguments, part",
    [
        (("synth",), "Missing argument"),
        (("synth", "huge"), "unknown preset 'huge'"),
        (("synth", "tiny", "--unit", "twig"), "no block 'twig': there are core, control"),
        (("synth", "tiny", "--speed", "9"), "--speed"),
        (("synth", "tiny", "--list", "--json"), "leave --json away"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: tuple[str, ...], part: str, capsys: Any) -> None:
    assert app.main(arguments) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and last.startswith("m890: ") and part in last and last.endswith(".")


def test_a_missing_tool_says_how_to_get_it(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(toolchain, "package_version", lambda name: None)
    assert app.main(["synth", "tiny", "--unit", "exp2"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("m890: Yosys is missing: run `make setup`")


@needs_tools
def test_bench_of_one_unit() -> None:
    options = {"unit": "scale_p", "place": "no"}
    items = registry.run("synth", BenchContext(3, "tiny", options=options))
    values = {item.name: item.value for item in items}
    assert set(values) == {
        *(f"synth.{f}.tiny.scale_p" for f in ("lut4", "dsp", "bram", "ff")), "synth.fits.tiny"
    }  # fmt: skip
    assert values["synth.dsp.tiny.scale_p"] == 1 and values["synth.fits.tiny"] == 1


@needs_tools
def test_bench_places_the_blocks_that_it_is_told() -> None:
    """Each alone; the bound of the whole is told where all of it is placed, here one block."""
    options = {"unit": "exp2", "place": "scale_p,exp2"}
    named = {
        i.name: i.value for i in registry.run("synth", BenchContext(3, "tiny", options=options))
    }
    whole = {
        i.name: i.value
        for i in registry.run("synth", BenchContext(3, "tiny", options={"unit": "exp2"}))
    }
    alone = {"synth.fmax.tiny.scale_p", "synth.fmax.tiny.exp2"}
    assert {name for name in named if "fmax" in name} == alone
    assert {name for name in whole if "fmax" in name} == {"synth.fmax.tiny", "synth.fmax.tiny.exp2"}
    fmax = named["synth.fmax.tiny.exp2"]
    assert fmax != named["synth.fmax.tiny.scale_p"]
    assert fmax == whole["synth.fmax.tiny.exp2"] == whole["synth.fmax.tiny"] > 50
