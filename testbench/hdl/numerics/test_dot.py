"""Fused dot product against its definition in integers."""

import numpy as np
import pytest

from m890.hdl.numerics.dot import DotProduct
from m890.hdl.numerics.formats import ELEMENT_EXP_BITS, WIDE_EXP_BITS
from m890.hdl.numerics.types import Wide
from m890.sim.golden.dot import dot
from m890.testbench.hdl.numerics import golden, numbers
from m890.testbench.hdl.numerics import reference as ref
from m890.testbench.hdl.numerics.pipelines import run_pipeline


def _beat(rng: np.random.Generator, lanes: int) -> tuple[list[dict], list[dict]]:
    """One beat: near exponents, far ones, cancelling lanes, or nearly all lanes inactive."""
    near = int(rng.choice([0, 0, 3700, -3700]))
    spread = int(rng.choice([0, 3, 12, 100]))
    nan = float(rng.choice([0, 0, 0.05]))
    a = [numbers.operand(rng, near=near, spread=spread, nan=nan) for _ in range(lanes)]
    b = [numbers.operand(rng, spread=min(spread, 100), nan=nan) for _ in range(lanes)]
    if rng.integers(4) == 0:  # pairs of lanes that cancel but for a bit
        for n in range(0, lanes, 2):
            a[n + 1] = a[n] | {"sign": 1 - a[n]["sign"]}
            b[n + 1] = dict(b[n])
        b[0]["sig"] ^= int(rng.integers(2))
    if rng.integers(6) == 0:  # masked lanes: p = 0 before anything, NaN included
        for n in range(lanes):
            if rng.integers(lanes):
                a[n] = {"sig": 0, "exp": int(rng.integers(-4096, 4096)), "sign": 0, "nan": 0}
    return a, b


@pytest.mark.parametrize("lanes", [8, 16, 32])
def test_dot(rng: np.random.Generator, lanes: int) -> None:
    beats = [_beat(rng, lanes) for _ in range(16000 // lanes)]
    dut = DotProduct(lanes)

    a, b = ([x for beat in beats for x in beat[side]] for side in range(2))
    got = run_pipeline(
        dut,
        {
            "a": golden.factors(a, lanes, WIDE_EXP_BITS),
            "b": golden.factors(b, lanes, ELEMENT_EXP_BITS),
        },
        ["o"],
        dut.latency,
    )["o"]
    want = dot(
        golden.elements(a).reshaped((-1, lanes)), golden.elements(b).reshaped((-1, lanes))
    )
    assert got == golden.bits(Wide, want)
    for (a, b), o in zip(beats, got, strict=True):
        want = ref.wide_bits(ref.dot(a, b))
        assert o == want, f"{a}\n{b}\n{o:#x}, not {want:#x}"


@pytest.mark.parametrize(("lanes", "latency"), [(8, 11), (16, 11), (32, 13), (64, 13)])
def test_latency(lanes: int, latency: int) -> None:
    """The latencies that the documentation's formula promises for the presets."""
    assert DotProduct.latency_of(lanes) == latency


@pytest.mark.parametrize("lanes", [0, 1, 12])
def test_bad_lanes(lanes: int) -> None:
    with pytest.raises(ValueError, match=f"not {lanes}"):
        DotProduct(lanes)
