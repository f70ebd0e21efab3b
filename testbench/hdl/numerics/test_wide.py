"""Wide floats: addition, products, conversions, against exact rationals."""

import numpy as np
import pytest

from m890.hdl.numerics.types import Wide
from m890.hdl.numerics.wide import MulWide, ScaleWide, WideAdd, fp32_to_wide
from m890.testbench.hdl.numerics import numbers
from m890.testbench.hdl.numerics import reference as ref
from m890.testbench.hdl.numerics.pipelines import Registered, bits_of, run_pipeline

COUNT = 3000


def _pairs(rng: np.random.Generator) -> list[tuple[dict, dict]]:
    """Pairs with all distances of exponents, cancellation to the last bits, and equal numbers."""
    pairs = []
    for _ in range(COUNT):
        a = numbers.wide(rng, near=int(rng.choice([0, 3900, -3900])))
        b = numbers.wide(rng, near=a["exp"], spread=int(rng.choice([0, 2, 28])))
        if rng.integers(6) == 0:
            b = a | {"sign": 1 - a["sign"]} if not a["nan"] and a["sig"] else a
            if b["sig"] and rng.integers(2):
                b = b | {"sig": b["sig"] ^ 1 << int(rng.integers(3))}
        pairs.append((a, b))
    return pairs


def test_add(rng: np.random.Generator) -> None:
    pairs = _pairs(rng)
    dut = WideAdd()
    got = run_pipeline(
        dut,
        {"a": [bits_of(Wide, **a) for a, _ in pairs], "b": [bits_of(Wide, **b) for _, b in pairs]},
        ["o"],
        dut.latency,
    )["o"]
    for (a, b), o in zip(pairs, got, strict=True):
        want = ref.wide_bits(ref.add(ref.wide_number(a), ref.wide_number(b)))
        assert o == want, f"{a} + {b} = {o:#x}, not {want:#x}"


def test_multiply(rng: np.random.Generator) -> None:
    pairs = [(numbers.wide(rng), numbers.wide(rng)) for _ in range(COUNT)]
    dut = MulWide()
    got = run_pipeline(
        dut,
        {"a": [bits_of(Wide, **a) for a, _ in pairs], "b": [bits_of(Wide, **b) for _, b in pairs]},
        ["o"],
        dut.latency,
    )["o"]
    for (a, b), o in zip(pairs, got, strict=True):
        want = ref.wide_bits(ref.multiply(ref.wide_number(a), ref.wide_number(b)))
        assert o == want, f"{a} x {b} = {o:#x}, not {want:#x}"


def test_scale(rng: np.random.Generator) -> None:
    pairs = [(numbers.wide(rng), numbers.bf16_scale(rng)) for _ in range(COUNT)]
    dut = ScaleWide()
    got = run_pipeline(
        dut,
        {"a": [bits_of(Wide, **a) for a, _ in pairs], "scale": [scale for _, scale in pairs]},
        ["o"],
        dut.latency,
    )["o"]
    for (a, scale), o in zip(pairs, got, strict=True):
        want = ref.wide_bits(ref.multiply(ref.wide_number(a), ref.scale_number(scale)))
        assert o == want, f"{a} x {scale:#06x} = {o:#x}, not {want:#x}"


def test_from_fp32(rng: np.random.Generator) -> None:
    values = [int(x) for x in rng.integers(1 << 32, size=500)]
    for exponent in (0, 1, 254, 255):
        for man in (0, 1, 0x7FFFFF):
            values += [exponent << 23 | man, 1 << 31 | exponent << 23 | man]
    dut = Registered({"value": 32}, Wide, fp32_to_wide)
    got = run_pipeline(dut, {"value": values}, ["o"], dut.latency)["o"]
    for value, o in zip(values, got, strict=True):
        assert o == ref.wide_bits(ref.fp32_number(value)), f"{value:#010x}"


@pytest.mark.parametrize("unit", [WideAdd, MulWide, ScaleWide])
def test_latency_is_exact(unit: type) -> None:
    """One operand after another: neither a cycle earlier nor later has the result."""
    dut = unit()
    one, two = (bits_of(Wide, sig=1 << 23, exp=e) for e in (0, 1))
    second = "scale" if unit is ScaleWide else "b"
    operands = {"a": [one, two, one], second: [0x3F80 if unit is ScaleWide else one] * 3}
    want = run_pipeline(dut, operands, ["o"], dut.latency)["o"]
    assert want[0] == want[2] != want[1]
    assert run_pipeline(unit(), operands, ["o"], dut.latency - 1)["o"] != want
