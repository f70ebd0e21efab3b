"""Soft cap against its table formula in exact rationals."""

import numpy as np

from m890.hdl.numerics.softcap import SoftCap
from m890.hdl.numerics.tables import (
    TANH_C0,
    TANH_C1,
    TANH_C2,
    TANH_STEP_BITS,
    TANH_UNIT_BITS,
)
from m890.hdl.numerics.types import Wide
from m890.sim.golden import score
from m890.testbench.hdl.numerics import golden, numbers
from m890.testbench.hdl.numerics import reference as ref
from m890.testbench.hdl.numerics.pipelines import bits_of, run_pipeline


def _fp32(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def test_softcap(rng: np.random.Generator) -> None:
    """Several caps one after another, scores from nearly zero to far beyond the cap, and bypass."""
    scores, caps, inverses, enables = [], [], [], []
    for cap in (1.0, 30.0, 72.134752, -50.0, 1e-30, 3e38):
        near = int(np.floor(np.log2(abs(cap))))
        for _ in range(600):
            scores.append(numbers.wide(rng, near=near, spread=int(rng.choice([4, 30]))))
            caps.append(_fp32(cap))
            inverses.append(_fp32(1 / cap))
            enables.append(int(rng.integers(8) > 0))
    for _ in range(200):  # malformed numbers: subnormal, Inf, NaN, any
        scores.append(numbers.wide(rng))
        caps.append(int(rng.choice([0, 1, 0x7F800000, 0x7FC00000, int(rng.integers(1 << 32))])))
        inverses.append(int(rng.choice([0, 1, 0x7F800000, int(rng.integers(1 << 32))])))
        enables.append(1)
    dut = SoftCap()
    got = run_pipeline(
        dut,
        {
            "s": [bits_of(Wide, **s) for s in scores],
            "cap": caps,
            "inverse": inverses,
            "enable": enables,
        },
        ["o"],
        dut.latency,
    )["o"]
    values = golden.wides(scores).to_float64()
    floats = [np.array(x, np.uint32).view(np.float32) for x in (caps, inverses)]
    capped = [
        score.soft_cap(np.array([v]), c, i)[0] if e else v
        for v, c, i, e in zip(values, *floats, enables, strict=True)
    ]
    assert got == golden.scores(np.array(capped))
    for s, cap, inverse, enable, o in zip(scores, caps, inverses, enables, got, strict=True):
        number = ref.wide_number(s)
        want = ref.wide_bits(ref.soft_cap(number, cap, inverse) if enable else number)
        assert o == want, f"{s} cap {cap:#x} inverse {inverse:#x} enable {enable}: {o:#x}"


def test_no_clamp_is_needed() -> None:
    """The RTL leaves out the clamp: no argument gets outside 0 ... 2^22."""
    c0, c1, c2 = (np.array(t, np.int64) for t in (TANH_C0, TANH_C1, TANH_C2))
    r = np.arange(1 << TANH_STEP_BITS, dtype=np.int64)
    square = r * r >> TANH_STEP_BITS
    for i in range(len(c0)):
        t = c0[i] + (c1[i] * r >> TANH_STEP_BITS) + (c2[i] * square >> TANH_STEP_BITS)
        assert t.min() >= 0 and t.max() <= 1 << TANH_UNIT_BITS


def test_follows_tanh(rng: np.random.Generator) -> None:
    """The formula itself: within 2^-17 of c tanh(s / c), relative to c."""
    values = np.concatenate([rng.uniform(-200, 200, 400), rng.uniform(-1, 1, 100)])
    for value in values:
        mantissa, exponent = np.frexp(np.float32(value))
        exact = ref.Fraction(float(np.ldexp(mantissa, exponent)))
        got = ref.soft_cap(exact, _fp32(30.0), _fp32(1 / 30.0))
        assert got is not None
        assert abs(float(got) - 30 * np.tanh(float(exact) / 30)) < 30 * 2**-17
