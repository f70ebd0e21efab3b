"""Decoding: every code of every format."""

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Shape, Value

from m890.hdl.numerics.decode import bias_to_wide, decode, decode16, decode_each
from m890.hdl.numerics.formats import CODINGS, ELEMENT_FORMATS, Format
from m890.hdl.numerics.four_bits import CODE_BITS
from m890.hdl.numerics.types import Element
from m890.sim.golden.elements import ungroup
from m890.testbench.hdl.numerics import reference as ref
from m890.testbench.hdl.numerics.pipelines import Registered, run_pipeline

# Every 8-bit code, and every 16-bit code but for some of the mantissa's middle.
CODES = {
    8: list(range(256)),
    16: sorted({c for c in range(1 << 16) if c & 0x7F in (0, 1, 127) or c >> 7 & 0xFF in (0, 255)}),
}


def _same(got: int, want: int) -> bool:
    """Equality of elements; of zero and NaN only the significand's being zero, or not, matters."""
    alike = (got >> 21, got & 2047 != 0) == (want >> 21, want & 2047 != 0)
    return got == want or (alike and (got >> 21 != 0 or got & 2047 == 0))


@pytest.mark.parametrize("format", ELEMENT_FORMATS)
def test_every_code(format: Format) -> None:
    codes = CODES[CODINGS[format].bits]
    dut = Registered({"raw": 16, "format": 4}, Element, decode)
    got = run_pipeline(dut, {"raw": codes, "format": [format] * len(codes)}, ["o"], 1)["o"]
    for code, o in zip(codes, got, strict=True):
        assert _same(o, ref.decode(code, format)), f"{format.name} {code:#x}"


@pytest.mark.parametrize("format", [f for f in Format if CODINGS[f].grouped])
def test_every_code_under_every_scale(format: Format) -> None:
    """Among others of other formats, in the lane beside."""
    scales, codes = (x.ravel() for x in np.mgrid[:256, :16])
    raws = codes | scales << CODE_BITS

    def function(m: Module, raw: Value, format: Value) -> Value:
        return Cat(map(Value.cast, decode_each(m, [raw, raw[::-1]], format)))

    width = Shape.cast(Element).width
    dut = Registered({"raw": 16, "format": 4}, 2 * width, function)
    got = run_pipeline(dut, {"raw": raws.tolist(), "format": [format] * len(raws)}, ["o"], 1)["o"]
    words = ungroup(codes[:, None], scales[:, None], format).ravel().tolist()
    for code, word, o in zip(raws, words, got, strict=True):
        want = ref.decode(word, Format.BF16)
        assert _same(o & (1 << width) - 1, want), f"{format.name} {code:#x}"


@pytest.mark.parametrize("format", [Format.BF16, Format.FP16])
def test_queries(format: Format) -> None:
    codes = CODES[16]
    dut = Registered({"raw": 16, "is_fp16": 1}, Element, decode16)
    flags = [int(format == Format.FP16)] * len(codes)
    got = run_pipeline(dut, {"raw": codes, "is_fp16": flags}, ["o"], 1)["o"]
    for code, o in zip(codes, got, strict=True):
        assert _same(o, ref.decode(code, format)), f"{format.name} {code:#x}"


@pytest.mark.parametrize("format", [Format.BF16, Format.FP16])
def test_bias(format: Format) -> None:
    def function(m: Module, raw: Value, is_fp16: Value) -> Value:
        bias, masks = bias_to_wide(m, raw, is_fp16)
        return Cat(Value.cast(bias), masks)

    codes = CODES[16]
    dut = Registered({"raw": 16, "is_fp16": 1}, 40, function)
    flags = [int(format == Format.FP16)] * len(codes)
    got = run_pipeline(dut, {"raw": codes, "is_fp16": flags}, ["o"], 1)["o"]
    minus_infinity = 0xFC00 if format == Format.FP16 else 0xFF80
    for code, o in zip(codes, got, strict=True):
        want = ref.wide_bits(ref.float_number(code, format)) | (code == minus_infinity) << 39
        assert o == want, f"{format.name} {code:#x}"
