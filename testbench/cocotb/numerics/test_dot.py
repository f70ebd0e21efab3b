"""The fused dot product in Verilog against golden."""

from typing import Any

import cocotb
import numpy as np

from m890.hdl.config import preset
from m890.hdl.numerics.formats import ELEMENT_EXP_BITS, WIDE_EXP_BITS
from m890.hdl.numerics.types import Wide
from m890.sim.golden.dot import dot
from m890.testbench.cocotb.numerics.units import Units, latency, stream
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.hdl.numerics import golden, numbers


@cocotb.test()
async def random_beats(dut: Any) -> None:
    """Near and far exponents, masked lanes, NaN."""
    lanes, rng = config().lanes, np.random.default_rng(seed())
    a, b = [], []
    for _ in range(400):
        near, spread = int(rng.choice([0, 3700, -3700])), int(rng.choice([0, 3, 12, 100]))
        nan = float(rng.choice([0, 0, 0.05]))
        a += [numbers.operand(rng, near=near, spread=spread, nan=nan) for _ in range(lanes)]
        b += [numbers.operand(rng, spread=spread, nan=nan) for _ in range(lanes)]

    operands = {
        "a": golden.factors(a, lanes, WIDE_EXP_BITS),
        "b": golden.factors(b, lanes, ELEMENT_EXP_BITS),
    }
    got = await stream(dut, "dot", operands, ["o"], latency(config(), "dot"))
    want = dot(
        golden.elements(a).reshaped((-1, lanes)), golden.elements(b).reshaped((-1, lanes))
    )
    assert got["o"] == golden.bits(Wide, want)


@on_both_simulators
def test_dot(bench: Bench) -> None:
    bench.run(Units, preset("tiny"))
