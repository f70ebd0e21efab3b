"""exp2 of scores and the V scale of p, against exact rationals."""

from fractions import Fraction

import numpy as np

from m890.hdl.numerics.exp2 import Exp2, ScaleP
from m890.hdl.numerics.types import Operand, Wide
from m890.sim.golden import score
from m890.testbench.hdl.numerics import golden, numbers
from m890.testbench.hdl.numerics import reference as ref
from m890.testbench.hdl.numerics.pipelines import bits_of, fields_of, run_pipeline

FLAGS = ("overflow", "underflow", "invalid")


def _scores(rng: np.random.Generator) -> list[dict]:
    """All magnitudes, the fixed point's edges, and both sides of the two limits."""
    scores = [numbers.wide(rng, near=near, spread=8) for near in (-18, 0, 8) for _ in range(1000)]
    scores += [numbers.wide(rng, spread=4000) for _ in range(200)]
    for sign in (0, 1):
        for sig in (0xF00000 - 1, 0xF00000, 0xF00000 + 1, 0xFFFFFF, 0x800000):
            scores += [{"sig": sig, "exp": e, "sign": sign, "nan": 0} for e in (10, 11, 12, 4090)]
        for exp in range(-45, 12):  # powers of two: floor of a whole number and of a tiny one
            scores += [{"sig": s, "exp": exp, "sign": sign, "nan": 0} for s in (1 << 23, 0xFFFFFF)]
    return scores


def test_exp2(rng: np.random.Generator) -> None:
    scores = _scores(rng)
    dut = Exp2()
    got = run_pipeline(dut, {"s": [bits_of(Wide, **s) for s in scores]}, ["p", *FLAGS], dut.latency)
    want = score.exp2(golden.wides(scores).to_float64())
    assert got["p"] == golden.bits(Operand, want.p)
    for flag in FLAGS:
        assert got[flag] == list(getattr(want, flag))
    for n, s in enumerate(scores):
        p, status = ref.exp2(ref.wide_number(s))
        assert got["p"][n] == ref.operand_bits(p), f"{s}: {fields_of(Operand, got['p'][n])}"
        assert {f: got[f][n] for f in FLAGS} == {f: f == status for f in FLAGS}, f"{s}"


def test_scale_p(rng: np.random.Generator) -> None:
    ps = []
    for _ in range(3000):
        p = numbers.operand(rng, near=int(rng.choice([0, 3700, -3700])), spread=30, nan=0.03)
        ps.append(
            p | {"sign": 0, "sig": p["sig"] and p["sig"] | 1024}
            if not p["nan"]
            else {"sig": 1024, "exp": 0, "sign": 0, "nan": 1}
        )
    scales = [numbers.bf16_scale(rng) for _ in ps]
    dut = ScaleP()
    got = run_pipeline(
        dut, {"p": [bits_of(Operand, **p) for p in ps], "scale": scales}, ["o"], dut.latency
    )["o"]
    assert got == golden.bits(Operand, score.scale_p(golden.elements(ps), np.array(scales)))
    for p, scale, o in zip(ps, scales, got, strict=True):
        number = None if p["nan"] else p["sig"] * ref.power(p["exp"] - 10)
        factor = ref.scale_number(scale)
        want = Fraction(0) if number == 0 or factor == 0 else ref.multiply(number, factor)
        assert o == ref.operand_bits(want), f"{p} x {scale:#06x} = {fields_of(Operand, o)}"
