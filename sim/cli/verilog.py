"""`m890 verilog`: writes the Verilog of a core and the files that go with it."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from m890.hdl.config import PRESETS, ClusterConfig, CoreConfig, preset
from m890.hdl.verilog import emit, generate
from m890.sim import toolchain
from m890.sim.cli import errors, output
from m890.sim.rtl.cache import core_design
from m890.sim.rtl.lint import lint


def command(
    preset_name: Annotated[
        str, typer.Argument(metavar="PRESET", help=f"One of {', '.join(PRESETS)}.")
    ],
    folder: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")],
    rows: Annotated[int | None, typer.Option(help="Query vectors held at once.")] = None,
    lanes: Annotated[int | None, typer.Option(help="Multipliers per row.")] = None,
    page_tokens: Annotated[int | None, typer.Option(help="Tokens per page.")] = None,
    max_head: Annotated[int | None, typer.Option(help="Largest head size.")] = None,
    pages: Annotated[int | None, typer.Option(help="Pages of the pool.")] = None,
    planes: Annotated[int | None, typer.Option(help="Plane table entries.")] = None,
    sequences: Annotated[int | None, typer.Option(help="Sequence table entries.")] = None,
    tenants: Annotated[int | None, typer.Option(help="Tenant table entries.")] = None,
    max_segments: Annotated[int | None, typer.Option(help="Segments per job.")] = None,
    p_depth: Annotated[int | None, typer.Option(help="Chunks that K may run ahead of V.")] = None,
    drain_lanes: Annotated[int | None, typer.Option(help="Features normalised per cycle.")] = None,
    load_lanes: Annotated[
        int | None, typer.Option(help="Features rotated, or quantised, per cycle.")
    ] = None,
    fifo_beats: Annotated[int | None, typer.Option(help="Port beats buffered per stream.")] = None,
    score_rows: Annotated[int | None, typer.Option(help="Rows that share a score unit.")] = None,
    softcap: Annotated[bool | None, typer.Option(help="Build the soft-cap unit.")] = None,
    address_bits: Annotated[int | None, typer.Option(help="Bits of a byte address.")] = None,
    cores: Annotated[int, typer.Option(help="Cores of a cluster.", min=1, max=4)] = 1,
    shared_port: Annotated[
        bool, typer.Option("--shared-port", help="With --cores: one memory port for all.")
    ] = False,
    prefix: Annotated[str, typer.Option(help="What module names start with.")] = "m890",
    check: Annotated[bool, typer.Option("--lint/--no-lint", help="Lint by Verilator.")] = True,
) -> None:
    """Write the Verilog of a preset or of your own parameters, and what goes with it.

    With --cores it is that of a cluster: cores on one memory.

    Written are the Verilog, a file list, a FuseSoC core file, a C header of registers and
    commands, a JSON of ports and parameters, and the lint waivers.

    Example: m890 verilog small --rows 4 --lanes 8 --page-tokens 8 -o build/verilog
    """
    options = locals()
    given = {f.name: options[f.name] for f in fields(CoreConfig) if options.get(f.name) is not None}
    config = preset(preset_name).with_(**given)
    if given:
        config = config.with_(name=f"{preset_name}_custom")
    if not re.fullmatch(r"[A-Za-z]\w*", prefix):
        raise errors.UserError(f"a prefix starts module names, so it cannot be {prefix!r}")
    if folder.exists() and not folder.is_dir():
        raise errors.UserError(f"{folder} is a file, and the Verilog needs a folder")
    console = output.stderr()
    if shared_port and cores == 1:
        raise errors.UserError("one core has one port: give --cores too")
    many = f"{cores} cores of " if cores > 1 else ""
    console.print(f"generating {many}{config.rows} rows x {config.lanes} lanes ...")
    whole = ClusterConfig(config, cores, shared_port) if cores > 1 else config
    design = core_design(whole) if prefix == "m890" else generate(whole, prefix=prefix)
    paths = emit(design, folder)
    if not check:
        linted = "not linted"
    elif tool := toolchain.find_verilator():
        lint(design)
        linted = f"lint-clean by Verilator {tool.version}"
    else:
        linted = "not linted, for Verilator is missing"
    for path in paths:
        print(path)
    lines = design.text.count("\n")
    console.print(f"{lines:,} lines, {len(design.modules)} modules, {linted}")
