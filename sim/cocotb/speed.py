"""Speed of the core under cocotb: the bench's decode job, as the tests would run it."""

import json
import tempfile
from pathlib import Path
from typing import Any

import cocotb

from m890.hdl.config import CoreConfig, preset
from m890.sim.bench.decode_job import Timed, decode, memory_needed
from m890.sim.cocotb.axi import held_offers
from m890.sim.cocotb.device import CocotbDevice
from m890.sim.cocotb.launch import launch, parameters
from m890.sim.rtl.cache import core_design

RESULT = "timed.json"
STALL = 0.2
"""The share of cycles in which channels pause in the tests, on average."""


def measure(
    config: CoreConfig,
    tokens: int,
    seed: int,
    *,
    stall: float = STALL,
    simulator: str = "verilator",
) -> Timed:
    """Builds (or finds) the simulation of a preset and times one decode job in it.

    Memory and registers are cocotbext-axi's, its channels pause in a share `stall` of the cycles,
    and the core's offers are watched, as in the tests. Raises RuntimeError where the simulation
    fails.
    """
    told = {"preset": config.name, "tokens": tokens, "seed": seed, "stall": stall}
    with tempfile.TemporaryDirectory() as folder:
        (outcome,) = launch(
            core_design(config), __name__, simulator, Path(folder), seed=seed, parameters=told
        )
        if outcome.message:
            raise RuntimeError(f"the job under cocotb failed: {outcome.message}")
        return Timed(**json.loads((Path(folder) / RESULT).read_text()))


@cocotb.test()
async def decode_job(dut: Any) -> None:
    """In the simulation: runs the job and leaves the result in the working folder."""
    told = parameters()
    config, tokens, seed = preset(told["preset"]), told["tokens"], told["seed"]
    size = memory_needed(config)
    device = CocotbDevice(dut, config, memory_bytes=size, seed=seed, stall=told["stall"])
    await device.start()
    cocotb.start_soon(held_offers(dut))
    timed = await device.use(lambda device: decode(device, tokens, seed))
    Path(RESULT).write_text(json.dumps(vars(timed)))
