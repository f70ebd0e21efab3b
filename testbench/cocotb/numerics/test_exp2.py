"""exp2, the V scale of p and the soft cap in Verilog against golden."""

from typing import Any

import cocotb
import numpy as np

from m890.hdl.config import preset
from m890.hdl.numerics.types import Operand, Wide
from m890.sim.golden import score
from m890.testbench.cocotb.numerics.units import Units, latency, stream
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.hdl.numerics import golden, numbers
from m890.testbench.hdl.numerics.pipelines import bits_of

FLAGS = ("overflow", "underflow", "invalid")


@cocotb.test()
async def powers(dut: Any) -> None:
    """All magnitudes, and both sides of the two limits."""
    rng = np.random.default_rng(seed())
    scores = [numbers.wide(rng, near=near, spread=8) for near in (-18, 0, 8) for _ in range(200)]
    scores += [numbers.wide(rng, spread=4000) for _ in range(50)]
    for sign in (0, 1):
        for sig in (0xF00000 - 1, 0xF00000, 0xF00000 + 1, 0xFFFFFF, 0x800000):
            scores += [{"sig": sig, "exp": e, "sign": sign, "nan": 0} for e in (10, 11, 12, 4090)]
    operands = {"s": [bits_of(Wide, **s) for s in scores]}
    got = await stream(dut, "exp2", operands, ["p", *FLAGS], latency(config(), "exp2"))
    want = score.exp2(golden.wides(scores).to_float64())
    assert got["p"] == golden.bits(Operand, want.p)
    for flag in FLAGS:
        assert got[flag] == [int(x) for x in getattr(want, flag)], flag


@cocotb.test()
async def scaled_powers(dut: Any) -> None:
    rng = np.random.default_rng(seed())
    ps = []
    for _ in range(400):
        p = numbers.operand(rng, near=int(rng.choice([0, 3700, -3700])), spread=30, nan=0)
        ps.append(p | {"sign": 0, "sig": p["sig"] and p["sig"] | 1024})
    scales = [numbers.bf16_scale(rng) for _ in ps]
    operands = {"p": [bits_of(Operand, **p) for p in ps], "scale": scales}
    got = await stream(dut, "scale_p", operands, ["o"], latency(config(), "scale_p"))
    assert got["o"] == golden.bits(Operand, score.scale_p(golden.elements(ps), np.array(scales)))


@cocotb.test()
async def capped_scores(dut: Any) -> None:
    """Scores from nearly zero to far beyond the cap; every eighth passes by."""
    rng = np.random.default_rng(seed())
    scores = [numbers.wide(rng, near=5, spread=int(rng.choice([4, 30]))) for _ in range(400)]
    cap, inverse = np.float32(30), np.float32(1 / 30)
    enable = [int(rng.integers(8) > 0) for _ in scores]
    operands = {
        "s": [bits_of(Wide, **s) for s in scores], "enable": enable,
        "cap": [int(cap.view(np.uint32))] * 400, "inverse": [int(inverse.view(np.uint32))] * 400,
    }  # fmt: skip
    got = await stream(dut, "softcap", operands, ["o"], latency(config(), "softcap"))
    values = golden.wides(scores).to_float64()
    capped = score.soft_cap(values, float(cap), float(inverse))
    assert got["o"] == golden.scores(np.where(enable, capped, values))


@on_both_simulators
def test_exp2(bench: Bench) -> None:
    bench.run(Units, preset("tiny"))
