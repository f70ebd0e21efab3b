"""What the core takes of an FPGA (LFE5U-85F), block by block, and how fast its blocks are there.

A core that fits is placed and routed whole. One that does not is placed block by block, each alone
between registers, and its Fmax is that of the slowest.
"""

from m890.hdl.config import preset
from m890.sim.bench.registry import HIGHER, LOWER, BenchContext, Item
from m890.sim.rtl.cache import core_design
from m890.sim.synth import figures, place, yosys
from m890.sim.synth.modules import PREFIX, Units

OPTIONS = {
    "speed": "speed grade, 6 to 8 (6)",
    "place": "place and route, for Fmax: yes, no, or blocks, as in exp2,drain (yes)",
    "unit": "only this block and its parts (the core)",
}
BETTER = {"synth.fits.*": HIGHER, "synth.fmax.*": HIGHER, "synth.*": LOWER}


def run(context: BenchContext) -> list[Item]:
    """Counts of the core, of its blocks and of a row's; Fmax; whether it fits."""
    name, say = context.preset or "small", context.progress.say
    units = Units(core_design(preset(name)))
    top = units.module(context.option("unit", units.top))
    netlists = yosys.synthesise(units, units.below(top), yosys.ECP5, say)
    items = []
    for module in units.outline(top):
        counts, block = figures.ecp5(units, module, netlists), module.removeprefix(PREFIX)
        facts = {"preset": name, "instances": units.instances(module, top)}
        for figure in ("lut4", "dsp", "bram", "ff"):
            label = f"synth.{figure}.{name}.{block}"
            items.append(context.item(label, "1", getattr(counts, figure), **facts))
    share = figures.ecp5(units, top, netlists).of(figures.LFE5U_85F)
    items.append(
        context.item(f"synth.fits.{name}", "1", share <= 1, preset=name, device="LFE5U-85F",
                     share=round(share, 3), harness="chains of registers, three pins")
    )  # fmt: skip
    blocks = context.option("place", "yes")
    if blocks != "no":
        items += _fmax(context, units, top, netlists, name, blocks)
    return items


def _fmax(
    context: BenchContext, units: Units, top: str, netlists: dict[str, yosys.Netlist], name: str,
    blocks: str,
) -> list[Item]:  # fmt: skip
    """Fmax of each block that is placed, and the lowest one, which is the core's bound."""
    speed = context.option("speed", 6)
    seed = 1 + context.seed % 1000
    every = figures.to_place(units, top, netlists)
    parts = every if blocks == "yes" else [units.module(block) for block in blocks.split(",")]
    needed = {below: None for part in parts for below in units.below(part)}
    netlists = netlists | yosys.synthesise(units, needed, yosys.ECP5, context.progress.say)
    facts = {"preset": name, "device": "LFE5U-85F", "speed": speed}
    found: dict[str, float] = {}
    for part in context.progress.track(parts, "placing blocks"):
        timing = place.place(units, part, netlists, context.progress.say, speed=speed, seed=seed)
        found[part.removeprefix(PREFIX)] = timing.fmax
    items = [
        context.item(f"synth.fmax.{name}.{block}", "MHz", fmax, **facts)
        for block, fmax in found.items()
    ]
    if blocks == "yes":
        slowest = min(found, key=lambda block: found[block])
        placed = "whole" if parts == [top] else f"{len(parts)} blocks alone"
        items.append(
            context.item(f"synth.fmax.{name}", "MHz", found[slowest], **facts, placed=placed,
                         slowest=slowest)
        )  # fmt: skip
    return items
