"""A cluster as Verilog: lint-clean, and its core is the one that a core alone has."""

import json
import re
from pathlib import Path

import pytest

from m890.hdl.config import ClusterConfig, preset
from m890.hdl.verilog import emit
from m890.sim.rtl.cache import core_design
from m890.sim.rtl.lint import lint

TINY = preset("tiny")
CONFIGS = [ClusterConfig(TINY, 2), ClusterConfig(TINY, 3, shared=True)]


def modules(text: str) -> dict[str, str]:
    return {m[1]: m[0] for m in re.finditer(r"^module (\w+)\(.*?^endmodule", text, re.M | re.S)}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_cluster_is_lint_clean(config: ClusterConfig) -> None:
    lint(core_design(config))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_all_cores_are_one_module_the_same_as_alone(config: ClusterConfig) -> None:
    design = core_design(config)
    top = design.modules["m890_cluster"]
    assert [module for _, module in top.instances].count("m890_core") == config.cores
    alone, here = modules(core_design(TINY).text), modules(design.text)
    assert {name: here.get(name) for name in alone} == alone
    assert len(here) - len(alone) == (7 if config.shared else 2), "little stands around the cores"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_ports_and_parameters(config: ClusterConfig, tmp_path: Path) -> None:
    design = core_design(config)
    widths = {p.name: p.width for p in design.ports}
    assert widths["irq"] == config.cores
    assert widths["s_axil_awaddr"] == 12 + config.core_bits
    if config.shared:
        assert widths["m_axi_arid"] == 4 + config.core_bits
    else:
        assert widths["m_axi_0_arid"] == widths["m_axi_1_bid"] == 4
    files = {path.name: path for path in emit(design, tmp_path)}
    assert set(files) == {f"m890_cluster.{x}" for x in ("core", "f", "h", "json", "v", "vlt")}
    told = json.loads(files["m890_cluster.json"].read_text())["parameters"]
    assert (told["cores"], told["shared"], told["rows"]) == (config.cores, config.shared, 4)
    assert "#define M890_ROWS 4" in files["m890_cluster.h"].read_text()
