"""`m890 synth`: what a core, or one block of it, takes on ECP5, and how fast it is there."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from m890.hdl.config import PRESETS, preset
from m890.sim.cli import errors, output
from m890.sim.rtl.cache import core_design
from m890.sim.synth import figures, place, yosys
from m890.sim.synth.modules import PREFIX, Units


def command(
    preset_name: Annotated[
        str, typer.Argument(metavar="PRESET", help=f"One of {', '.join(PRESETS)}.")
    ],
    unit: Annotated[str | None, typer.Option(help="Only this block; see --list.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the blocks and end.")] = False,
    gates: Annotated[
        bool, typer.Option("--gates", help="Gates and logic depth, of no technology.")
    ] = False,
    placing: Annotated[
        bool, typer.Option("--place/--no-place", help="Place and route, for Fmax.")
    ] = True,
    speed: Annotated[
        int, typer.Option(help="Speed grade of the LFE5U-85F.", min=6, max=place.SPEEDS[-1])
    ] = 6,
    seed: Annotated[int, typer.Option(help="Of place and route.", min=1)] = 1,
    json: Annotated[bool, typer.Option("--json", help="Write the figures as JSON.")] = False,
) -> int:
    """Synthesise a core, or one block, with open tools: LUTs, DSPs, block RAM, Fmax on ECP5.

    Modules are synthesised one by one and kept, so a second run does only what has changed. What
    is too large for a quarter of an LFE5U-85F is placed and routed block by block.

    Example: m890 synth small --unit exp2
    """
    config = preset(preset_name)
    if json and listing:
        raise errors.UserError("--list is for people: leave --json away")
    with output.Progress("synth") as progress:
        progress.say(f"the Verilog of {preset_name} ...")
        units = Units(core_design(config))
        module = units.module(unit or units.top)
        if listing:
            return _list(units)
        flow = yosys.GATES if gates else yosys.ECP5
        netlists = yosys.synthesise(units, units.below(module), flow, progress.say)
        measure = figures.gates if gates else figures.ecp5
        blocks = {m: measure(units, m, netlists) for m in units.outline(module)}
        timings: dict[str, place.Timing] = {}
        if placing and not gates:
            for part in figures.to_place(units, module, netlists):
                timings[part] = place.place(
                    units, part, netlists, progress.say, speed=speed, seed=seed
                )
    if json:
        output.write_json(_as_json(units, preset_name, module, blocks, timings))
        return 0
    _blocks(units, module, blocks)
    if not gates:
        _device(figures.ecp5(units, module, netlists))
    if timings:
        _timings(units, timings, speed)
    return 0


def _list(units: Units) -> int:
    table = Table("block", "class", "instances", box=None, pad_edge=False)
    for unit in units.shown():
        module = units.names[unit]
        table.add_row(unit, units.source(module), f"{units.instances(module)}")
    output.console().print(table)
    return 0


def _name(module: str) -> str:
    return module.removeprefix(PREFIX)


def _blocks(units: Units, top: str, blocks: dict[str, Any]) -> None:
    """A row per block, its parts counted in; below each other as in the design."""
    fields = list(asdict(blocks[top]))
    table = Table("block", "instances", *fields, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for module, counts in blocks.items():
        values = [f"{value:,}" for value in asdict(counts).values()]
        table.add_row(_name(module), f"{units.instances(module, top)}", *values)
    output.console().print(table)


def _device(counts: figures.Ecp5) -> None:
    """The share of the device that the block takes."""
    device = figures.LFE5U_85F
    shares = [
        f"{getattr(counts, name) / getattr(device, name):.0%} of its {label}"
        for name, label in (("lut4", "LUTs"), ("ff", "registers"), ("dsp", "multipliers"),
                            ("bram", "block RAM"))
    ]  # fmt: skip
    verdict = "fits" if counts.of(device) <= 1 else "does not fit"
    output.console().print(f"\n{verdict} an LFE5U-85F: {', '.join(shares)}")


def _timings(units: Units, timings: dict[str, place.Timing], speed: int) -> None:
    """Fmax of each placed block, the slowest first, and where its critical path runs."""
    out = output.console()
    out.print(f"\nplaced and routed, each alone in registers, speed grade {speed}:")
    table = Table("block", "Fmax, MHz", "critical path, ns (logic + routing)", box=None,
                  pad_edge=False)  # fmt: skip
    for module, timing in sorted(timings.items(), key=lambda t: t[1].fmax):
        table.add_row(_name(module), f"{timing.fmax:.1f}", path_text(timing))
    out.print(table)


def path_text(timing: place.Timing) -> str:
    """The critical path as the blocks that it runs through."""
    steps = [
        f"{step.block or 'its own logic'} {step.logic:.1f} + {step.routing:.1f}, {step.cells} cells"
        for step in timing.path
    ]
    return f"{timing.start} to {timing.end}: {'; '.join(steps)}"


def _as_json(
    units: Units, name: str, top: str, blocks: dict[str, Any], timings: dict[str, place.Timing]
) -> dict[str, Any]:
    return {
        "preset": name,
        "unit": _name(top),
        "blocks": {
            _name(m): {"instances": units.instances(m, top), **asdict(b)} for m, b in blocks.items()
        },
        "placed": {_name(m): asdict(t) for m, t in timings.items()},
    }
