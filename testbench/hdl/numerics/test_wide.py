"""Wide floats: addition, products, conversions, against exact rationals."""

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Value

from m890.hdl.numerics.types import Wide
from m890.hdl.numerics.wide import MulWide, ScaleWide, WideAdd, fp32_to_wide, raw_to_wide
from m890.sim.golden import output, score, wide
from m890.testbench.hdl.numerics import golden, numbers
from m890.testbench.hdl.numerics import reference as ref
from m890.testbench.hdl.numerics.pipelines import Registered, bits_of, run_pipeline

COUNT = 3000


def _pairs(rng: np.random.Generator) -> list[tuple[dict, dict]]:
    """Pairs with all distances of exponents, cancellation to the last bits, and equal numbers."""
    pairs = []
    for _ in range(COUNT):
        a = numbers.wide(rng, near=int(rng.choice([0, 3900, -3900])))
        spread = int(rng.choice([0, 2, 28, 80]))
        b = numbers.wide(rng, near=a["exp"], spread=spread)
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
    assert got == golden.bits(
        Wide, wide.add(golden.wides([a for a, _ in pairs]), golden.wides([b for _, b in pairs]))
    )
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
    values = golden.wides([a for a, _ in pairs]).to_float64()
    assert got == golden.scores(score.scale(values, np.array([s for _, s in pairs])))
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


def test_from_raw(rng: np.random.Generator) -> None:
    """Stored states: both limits, exponents of 32 bits, every kind of FP32."""

    def function(m: Module, exponent: Value, value: Value) -> Value:
        o, over, under = raw_to_wide(m, exponent, value)
        return Cat(o.as_value(), over, under)

    exponents, values = [], []
    for near in (0, 4000, -4000, 1 << 30, -(1 << 30), (1 << 31) - 200, 200 - (1 << 31)):
        for _ in range(200):
            exponents.append(near + int(rng.integers(-140, 140)))
            kind = int(rng.choice([0, 1, 254, 255, int(rng.integers(256)), 127]))
            values.append(int(rng.integers(2)) << 31 | kind << 23 | int(rng.integers(1 << 23)))
    for exponent in (-4001, -4000, 4000, 4001):  # of the value itself, on both sides of a limit
        for stored in (-126, 0, 127):
            exponents += [exponent - stored] * 2
            values += [127 + stored << 23, 127 + stored << 23 | 0x7FFFFF]
    dut = Registered({"exponent": 32, "value": 32}, 41, function)
    raw = [e & 0xFFFFFFFF for e in exponents]
    got = run_pipeline(dut, {"exponent": raw, "value": values}, ["o"], dut.latency)["o"]
    stored = np.array(values, np.uint32).view(np.float32)
    want, over, under = output.read_raw(np.array(exponents, np.int64), stored)
    for n, bits in enumerate(golden.bits(Wide, want)):
        assert got[n] == bits | int(over[n]) << 39 | int(under[n]) << 40, f"{exponents[n]}"


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
