"""Decoding of stored numbers to elements; all functions are combinational."""

from amaranth.hdl import C, Cat, Module, Signal, Value
from amaranth.lib import data

from m890.hdl.numerics.formats import (
    CODINGS,
    ELEMENT_FORMATS,
    SIG_BITS,
    WIDE_SIG_BITS,
    Coding,
    Format,
)
from m890.hdl.numerics.pipeline import bundle, shift_left_to_top
from m890.hdl.numerics.types import Element, Wide

NAN_SIG = 1 << SIG_BITS - 1
"""Significand of a NaN: nonzero, so that its lane is active."""


def decode(m: Module, raw: Value, format: Value, *, name: str = "element") -> data.View:
    """The element that `raw` (16 bits) is in `format` (a Format code; others decode as BF16)."""
    o = bundle(Element, name=name)
    with m.Switch(format):
        for code in ELEMENT_FORMATS:
            if code != Format.BF16:
                with m.Case(code):
                    _decode(m, o, raw, CODINGS[code])
        with m.Default():
            _decode(m, o, raw, CODINGS[Format.BF16])
    return o


def decode16(m: Module, raw: Value, is_fp16: Value, *, name: str = "element") -> data.View:
    """The element of a query: FP16 or BF16."""
    o = bundle(Element, name=name)
    with m.If(is_fp16):
        _decode(m, o, raw, CODINGS[Format.FP16])
    with m.Else():
        _decode(m, o, raw, CODINGS[Format.BF16])
    return o


def _decode(m: Module, o: data.View, raw: Value, coding: Coding) -> None:
    man, exp, sign = coding.man_bits, coding.exp_bits, raw[coding.bits - 1]
    m.d.comb += o.sign.eq(sign)
    if not exp:
        magnitude = Signal(man + 1)  # 8 bits: -128 is legal
        with m.If(sign):
            m.d.comb += magnitude.eq(-raw[: man + 1].as_signed())
        with m.Else():
            m.d.comb += magnitude.eq(raw[: man + 1])
        m.d.comb += [o.sig.eq(magnitude << SIG_BITS - 1 - man), o.exp.eq(man)]
        return
    mantissa, exponent = raw[:man], raw[man : man + exp]
    with m.If(exponent.all() & (mantissa.all() if coding.specials == "fn" else 1)):
        m.d.comb += [o.sig.eq(NAN_SIG), o.nan.eq(1)]
    with m.Else():
        m.d.comb += [
            o.sig.eq(Cat(mantissa, exponent.any()) << SIG_BITS - 1 - man),
            o.exp.eq(exponent + ~exponent.any() - coding.bias),
        ]


def bias_to_wide(
    m: Module, raw: Value, is_fp16: Value, *, name: str = "bias"
) -> tuple[data.View, Signal]:
    """An additive bias as a wide float, and whether it masks its token (it is -Inf).

    Subnormals are exact. +Inf and NaN are NaN; so is -Inf, whose token the mask removes.
    """
    element = decode16(m, raw, is_fp16, name=f"{name}_element")
    o = bundle(Wide, name=name)
    masks = Signal(name=f"{name}_masks")
    sig, shift = shift_left_to_top(m, element.sig, (8, 4, 2, 1), name=f"{name}_sig")
    with m.If(element.nan):
        m.d.comb += o.nan.eq(1)
    with m.Elif(sig.any()):
        m.d.comb += [
            o.sig.eq(Cat(C(0, WIDE_SIG_BITS - SIG_BITS), sig)),
            o.exp.eq(element.exp - shift),
            o.sign.eq(element.sign),
        ]
    infinities = {f: (1 << CODINGS[f].exp_bits + 1) - 1 << CODINGS[f].man_bits for f in
                  (Format.FP16, Format.BF16)}  # fmt: skip
    with m.If(is_fp16):
        m.d.comb += masks.eq(raw == infinities[Format.FP16])
    with m.Else():
        m.d.comb += masks.eq(raw == infinities[Format.BF16])
    return o, masks
