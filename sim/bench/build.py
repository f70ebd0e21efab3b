"""Seconds from a configuration to a simulator that runs, cold and from the cache, and its memory.

`generate` elaborates and writes the Verilog, `verilate` makes C++ of it, `compile` a library. Cold
starts with an empty cache, Verilator's runtime included; cached does the same again.
"""

import resource
import tempfile
import time
from pathlib import Path

from m890.hdl.config import preset
from m890.sim.bench.registry import LOWER, BenchContext, Item
from m890.sim.rtl.build import Build, build
from m890.sim.rtl.cache import core_design

PRESETS = ("small", "m890")
OPTIONS = {"waves": "build with waves (no)"}
BETTER = {"build.*": LOWER}
STAGES = ("generate", "verilate", "compile", "total")


def run(context: BenchContext) -> list[Item]:
    """Every stage of each preset, cold and cached, in a cache of its own."""
    names = [context.preset] if context.preset else PRESETS
    return [item for name in names for item in _run(name, context)]


def _run(name: str, context: BenchContext) -> list[Item]:
    config, waves = preset(name), context.option("waves", False)
    items = []
    with tempfile.TemporaryDirectory() as folder:
        for state in ("cold", "cached"):
            context.progress.say(f"{name}, {state}")
            started = time.perf_counter()
            design = core_design(config, Path(folder))
            generated = time.perf_counter()
            made: Build = build(design, trace=waves, say=context.progress.say, cache=Path(folder))
            ended = time.perf_counter()
            if made.cached != (state == "cached"):
                raise RuntimeError(f"the {state} build was {'not ' * made.cached}made anew")
            seconds = {
                "generate": generated - started,
                "verilate": 0.0,
                "compile": ended - generated,
                **made.seconds,
                "total": ended - started,
            }
            for stage in STAGES:
                key = f"build.{stage}.{state}.{name}"
                items.append(context.item(key, "s", seconds[stage], preset=name, waves=waves))
            if state == "cold":
                own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                peak = max(own, made.peak_memory) / 1024
        items.append(context.item(f"build.peak_memory.{name}", "MiB", peak, preset=name))
    return items
