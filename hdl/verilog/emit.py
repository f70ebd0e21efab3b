"""The folder of generated files: Verilog, file list, FuseSoC core, C header, ports, waivers."""

import json
from pathlib import Path

from m890.hdl.verilog.design import VerilogDesign
from m890.hdl.verilog.header import c_header

WAIVERS = {
    "PROCASSINIT": "registers are declared with their reset value and assigned in a process:"
    " FPGAs take it as the power-up value",
    "UNUSEDSIGNAL": "carries of additions that are cut, fields of structures shown by name, and"
    " reset pins of modules without registers",
    "WIDTHEXPAND": "the writer leaves leading zeros of constants out",
    "DECLFILENAME": "all modules are in one file",
}
"""Verilator's warnings that come from the Verilog writer's habits, and why each is harmless."""


def emit(design: VerilogDesign, folder: Path) -> list[Path]:
    """Write all files of a design; returns their paths. The folder is made if need be."""
    name = design.name
    files = {
        f"{name}.v": design.text,
        f"{name}.f": f"{name}.v\n",
        f"{name}.vlt": waivers(),
        f"{name}.core": _fusesoc(design),
        f"{name}.h": c_header(design.config, _prefix(name).upper()),
        f"{name}.json": json.dumps(design.ports_json(), indent=2) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return [folder / file for file in files]


def _prefix(name: str) -> str:
    """What the names of a design's modules start with."""
    return name.removesuffix("_core").removesuffix("_cluster")


def waivers() -> str:
    """The waiver file: what it names is the writer's habit, everything else is an error."""
    lines = ["`verilator_config"]
    for rule, reason in WAIVERS.items():
        lines += [f"// {reason}", f"lint_off -rule {rule}"]
    return "\n".join(lines) + "\n"


def _fusesoc(design: VerilogDesign) -> str:
    name, kind = design.name, "core" if design.cluster is None else "cluster"
    return f"""\
CAPI=2:
name: m890:core:{name}:0.1.0
description: "m890 attention {kind}, {design.label}: \
{design.config.rows} rows x {design.config.lanes} lanes"

filesets:
  rtl:
    files:
      - {name}.v: {{file_type: verilogSource-2005}}
  lint:
    files:
      - {name}.vlt: {{file_type: vlt}}
  software:
    files:
      - {name}.h: {{file_type: user}}

targets:
  default: &default
    filesets: [rtl, software]
    toplevel: {name}
  lint:
    <<: *default
    filesets: [lint, rtl]
    default_tool: verilator
    tools:
      verilator:
        mode: lint-only
        verilator_options: [-Wall]
"""
