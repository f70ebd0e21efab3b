"""Sums and products of wide floats in Verilog against golden."""

from typing import Any

import cocotb
import numpy as np

from m890.hdl.config import preset
from m890.hdl.numerics.types import Wide
from m890.sim.golden import score, wide
from m890.testbench.cocotb.numerics.units import Units, latency, stream
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.hdl.numerics import golden, numbers
from m890.testbench.hdl.numerics import reference as ref
from m890.testbench.hdl.numerics.pipelines import bits_of

COUNT = 500


def bits(values: list[dict]) -> list[int]:
    return [bits_of(Wide, **x) for x in values]


@cocotb.test()
async def sums(dut: Any) -> None:
    """All distances of exponents, cancellation."""
    rng = np.random.default_rng(seed())
    a = [numbers.wide(rng, near=int(rng.choice([0, 3900, -3900]))) for _ in range(COUNT)]
    b = [numbers.wide(rng, near=x["exp"], spread=int(rng.choice([0, 2, 28]))) for x in a]
    b = [x | {"sign": 1 - x["sign"]} if x["sig"] and rng.integers(8) == 0 else y
         for x, y in zip(a, b, strict=True)]  # fmt: skip
    got = await stream(dut, "add", {"a": bits(a), "b": bits(b)}, ["o"], latency(config(), "add"))
    assert got["o"] == golden.bits(Wide, wide.add(golden.wides(a), golden.wides(b)))


@cocotb.test()
async def products(dut: Any) -> None:
    rng = np.random.default_rng(seed())
    a, b = ([numbers.wide(rng) for _ in range(COUNT)] for _ in range(2))
    operands = {"a": bits(a), "b": bits(b)}
    got = await stream(dut, "multiply", operands, ["o"], latency(config(), "multiply"))
    for x, y, o in zip(a, b, got["o"], strict=True):
        assert o == ref.wide_bits(ref.multiply(ref.wide_number(x), ref.wide_number(y))), f"{x} {y}"


@cocotb.test()
async def scales(dut: Any) -> None:
    rng = np.random.default_rng(seed())
    a = [numbers.wide(rng) for _ in range(COUNT)]
    scale = [numbers.bf16_scale(rng) for _ in range(COUNT)]
    operands = {"a": bits(a), "scale": scale}
    got = await stream(dut, "scale", operands, ["o"], latency(config(), "scale"))
    want = score.scale(golden.wides(a).to_float64(), np.array(scale))
    assert got["o"] == golden.scores(want)


@on_both_simulators
def test_wide(bench: Bench) -> None:
    bench.run(Units, preset("tiny"))
