"""Reciprocal, normalisation and raw headers, against exact rationals."""

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Value
from amaranth.lib import data

from m890.hdl.numerics.formats import OutputFormat
from m890.hdl.numerics.output import INVERSE_BITS, Normalise, Reciprocal, raw_header
from m890.hdl.numerics.types import Wide
from m890.sim.golden import output
from m890.testbench.hdl.numerics import golden, numbers
from m890.testbench.hdl.numerics import reference as ref
from m890.testbench.hdl.numerics.pipelines import Registered, bits_of, run_pipeline


def _sums(rng: np.random.Generator, count: int) -> list[dict]:
    """Values of l: positive, of every exponent, at both ends of each table entry."""
    sums = [numbers.wide(rng, spread=3990, nan=0.02) | {"sign": 0} for _ in range(count)]
    for i in range(256):
        for low in (0, 0x7FFF):
            sums.append({"sig": 1 << 23 | i << 15 | low, "exp": i - 128, "sign": 0, "nan": 0})
    return sums


def test_reciprocal(rng: np.random.Generator) -> None:
    sums = _sums(rng, 2000)
    dut = Reciprocal()
    got = run_pipeline(
        dut, {"l": [bits_of(Wide, **x) for x in sums]}, ["y1", "exp", "zero", "nan"], dut.latency
    )
    for n, x in enumerate(sums):
        number = ref.wide_number(x)
        assert (got["zero"][n], got["nan"][n]) == (number == 0, number is None)
        if number:
            y1, exp = ref.reciprocal(number)
            assert (got["y1"][n], got["exp"][n]) == (y1, exp & 0x1FFF), f"{x}"
            assert abs(y1 * ref.power(-22 - exp) * number - 1) < ref.power(-16)


@pytest.mark.parametrize("format", OutputFormat)
def test_normalise(rng: np.random.Generator, format: OutputFormat) -> None:
    """Both ends of the format's range, ties, subnormals, O and l zero or NaN."""
    exp_bits = ref.OUTPUTS.get(format, (8, 23))[0]
    ends = [0, 1 << exp_bits - 1, -(1 << exp_bits - 1) + 2, -(1 << exp_bits - 1) - 15]
    values, sums = [], []
    for x in _sums(rng, 3000):
        near = int(rng.choice(ends)) + x["exp"]
        o = numbers.wide(rng, near=near, spread=int(rng.choice([1, 4, 12, 300])))
        values.append(o | {"exp": max(-4096, min(4095, o["exp"]))})
        if rng.integers(3) == 0:
            x = x | {"sig": 1 << 23} if x["sig"] else x  # y1 nearly one: ties appear
        sums.append(x)
    ones = [ref.wide_number(x) for x in sums]
    pairs = [ref.reciprocal(x) if x else (12345, 77) for x in ones]
    dut = Normalise()
    got = run_pipeline(
        dut,
        {
            "value": [bits_of(Wide, **v) for v in values],
            "y1": [y1 for y1, _ in pairs],
            "exp": [exp for _, exp in pairs],
            "zero": [int(x == 0) for x in ones],
            "nan": [int(x is None) for x in ones],
            "format": [format] * len(values),
        },
        ["o"],
        dut.latency,
    )["o"]
    total, value = golden.wides(sums), golden.wides(values)[..., None]
    if format == OutputFormat.RAW:
        want = output.raw(total, value)[2].view(np.uint32)
        want = np.where(np.isnan(want.view(np.float32)), 0x7FC00000, want)
    else:
        want = output.normalise(total, value, format)
    assert got == [int(x) for x in want.ravel()]
    for value, x, o in zip(values, ones, got, strict=True):
        want = ref.normalise(ref.wide_number(value), x, format)
        assert o == want, f"{format.name}: {value} / {x}: {o:#x}, not {want:#x}"


def test_ties(rng: np.random.Generator) -> None:
    """Ties happen only where y1 is a power of two, which no l gives: they are forced here."""
    values = []
    for _ in range(1500):
        sig = int(rng.integers(1 << 23)) | 1 << 23
        drop = int(rng.choice([13, 16]))
        values.append(
            {"sig": sig >> drop << drop | 1 << drop - 1, "exp": int(rng.integers(-28, 20)),
             "sign": int(rng.integers(2)), "nan": 0}
        )  # fmt: skip
    for format, (exp_bits, man_bits) in ref.OUTPUTS.items():
        dut = Normalise()
        count = len(values)
        got = run_pipeline(
            dut,
            {
                "value": [bits_of(Wide, **v) for v in values],
                "y1": [1 << INVERSE_BITS - 2] * count,
                "exp": [0] * count,
                "format": [format] * count,
            },
            ["o"],
            dut.latency,
        )["o"]
        for value, o in zip(values, got, strict=True):
            x = ref.wide_number(value)
            assert x is not None
            assert o == ref.to_float(x / 2, exp_bits, man_bits, negative=x < 0), f"{value}"


def test_raw_header(rng: np.random.Generator) -> None:
    def function(m: Module, l: data.View) -> Value:  # noqa: E741
        return Cat(*raw_header(l))

    sums = _sums(rng, 500)
    dut = Registered({"l": Wide}, 64, function)
    got = run_pipeline(dut, {"l": [bits_of(Wide, **x) for x in sums]}, ["o"], dut.latency)["o"]
    for x, o in zip(sums, got, strict=True):
        number = ref.wide_number(x)
        if not number:
            want = 0 if number == 0 else 0x7FC00000 << 32
        else:
            exp = ref.exponent_of(number)
            scaled = ref.to_float(number * ref.power(-exp), 8, 23, negative=False)
            want = exp & 0xFFFFFFFF | scaled << 32
        assert o == want, f"{x}"
