"""Simulated cycles per second of one decode job: native, under cocotb, in Amaranth's simulator.

Large cores run natively only, unless asked otherwise. All run the same job, doorbell to completion,
and must leave the same bits. Seconds are those of the processor (each simulation is one thread), so
that other work on the machine does not count. Native and cocotb hold the core to the rules of AXI;
cocotb runs as in the tests, with cocotbext-axi and pauses on its channels.
"""

import importlib.util

from m890.hdl.config import CoreConfig, preset
from m890.sim.bench.decode_job import Timed, decode, memory_needed
from m890.sim.bench.registry import HIGHER, BenchContext, BenchError, Item
from m890.sim.rtl.build import BLOCK_ROWS

PRESETS = ("small", "m890")
LATENCY = 20
REPEAT = 40
"""Runs of the job natively: once would be too short to time."""
OPTIONS = {
    "tokens": "tokens of the decode job (256)",
    "cocotb": "also under cocotb (yes; no for large cores)",
    "pysim": "also in Amaranth's simulator, which takes most of the time (yes; no for large cores)",
}
BETTER = {"simspeed.*": HIGHER}


def run(context: BenchContext) -> list[Item]:
    """Cycles per second of each simulator, and how many times faster native is."""
    names = [context.preset] if context.preset else PRESETS
    return [item for name in names for item in _run(preset(name), context)]


def _run(config: CoreConfig, context: BenchContext) -> list[Item]:
    tokens = context.option("tokens", 256)
    limit = config.pages * config.page_tokens
    if tokens % config.page_tokens or not 0 < tokens <= limit:
        raise BenchError(f"tokens is a multiple of {config.page_tokens} up to {limit}")
    # The other two simulate every row for itself: hours for `m890`.
    others = {"cocotb": _cocotb, "pysim": _pysim}
    affordable = config.rows < BLOCK_ROWS
    kinds = {"native": _native}
    kinds |= {n: measure for n, measure in others.items() if context.option(n, affordable)}
    found: dict[str, Timed] = {}
    for name, measure in kinds.items():
        found[name] = measure(config, tokens, context)
        context.progress.say(f"{config.name}, {name}: {found[name].speed:,.0f} cycles/s")
    if len({timed.output for timed in found.values()}) > 1:
        raise BenchError("the simulators do not agree: the core or a simulator is wrong")
    items, native = [], found["native"].speed
    for name, timed in found.items():
        facts = {"preset": config.name, "tokens": tokens, "cycles": timed.cycles,
                 "seconds": timed.seconds}  # fmt: skip
        label = f"simspeed.{name}.{config.name}"
        items.append(context.item(label, "cycles/s", timed.speed, **facts))
        if name != "native":
            label = f"simspeed.native_over_{name}.{config.name}"
            items.append(context.item(label, "1", native / timed.speed, **facts))
    return items


def _native(config: CoreConfig, tokens: int, context: BenchContext) -> Timed:
    from m890.sim.rtl.build import build
    from m890.sim.rtl.cache import core_design
    from m890.sim.rtl.device import RtlDevice

    design = core_design(config)
    device = RtlDevice(
        config, memory_bytes=memory_needed(config), latency=LATENCY, seed=context.seed,
        design=design, library=build(design, fastest=True, say=context.progress.say).library,
    )  # fmt: skip
    try:
        return decode(device, tokens, context.seed, repeat=REPEAT)
    finally:
        device.close()


def _cocotb(config: CoreConfig, tokens: int, context: BenchContext) -> Timed:
    if not all(importlib.util.find_spec(name) for name in ("cocotb", "cocotbext")):
        raise BenchError("cocotb is not installed: run `make setup`, or install m890[dev]")
    from m890.sim.cocotb.speed import measure

    context.progress.say("building the simulation for cocotb (once) and running the job in it ...")
    return measure(config, tokens, context.seed)


def _pysim(config: CoreConfig, tokens: int, context: BenchContext) -> Timed:
    from m890.sim.pysim.device import PysimDevice

    context.progress.say("running the job in Amaranth's simulator (about a minute) ...")
    device = PysimDevice(
        config, memory_bytes=memory_needed(config), latency=LATENCY, seed=context.seed
    )
    return decode(device, tokens, context.seed)
