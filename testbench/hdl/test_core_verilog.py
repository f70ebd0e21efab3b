"""The whole core as Verilog: lint-clean in every preset, one module per kind."""

from dataclasses import replace

import pytest

from m890.hdl.config import preset
from m890.hdl.verilog import generate
from m890.sim.rtl.cache import core_design
from m890.sim.rtl.lint import lint

LARGE = [pytest.param(name, marks=pytest.mark.soak) for name in ("edge", "m890")]


@pytest.mark.parametrize("name", ["tiny", "small", *LARGE])
def test_core_is_lint_clean(name: str) -> None:
    """A minute of work for `m890`, so the large presets are part of the long tests."""
    lint(core_design(preset(name)))


def test_a_core_of_one_row_is_lint_clean() -> None:
    lint(generate(replace(preset("tiny"), name="one", rows=1)))


def test_rows_and_other_identical_modules_are_written_once() -> None:
    design = core_design(preset("small"))
    text = design.text
    array = next(m for m in design.modules.values() if m.source == "RowArray")
    config = preset("small")
    for name, count in (("m890_row", config.rows), ("m890_score", config.score_units)):
        assert text.count(f"module {name}(") == 1 and design.modules[name].external
        assert [module for _, module in array.instances].count(name) == count
    assert len(design.modules) == text.count("\nendmodule")
    assert len(design.modules) < 200


def test_core_names_its_states_and_ports() -> None:
    design = core_design(preset("tiny"))
    states = [m for m in design.modules.values() if any(n.endswith("_state") for n in m.enums)]
    assert len(states) >= 10
    assert {p.name for p in design.ports} >= {"clk", "rst", "irq", "m_axi_araddr", "s_axil_rdata"}
