"""Decoding of stored numbers to elements; all functions are combinational."""

from collections.abc import Sequence

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data

from m890.hdl.numerics import four_bits
from m890.hdl.numerics.formats import (
    CODINGS,
    ELEMENT_EXP_BITS,
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
_MANTISSA = SIG_BITS - 1
_FOUR_BITS = tuple(int(f) for f, coding in CODINGS.items() if coding.grouped)


def decode(m: Module, raw: Value, format: Value, *, name: str = "element") -> data.View:
    """The element that `raw` (16 bits) is in `format` (a Format code; others decode as BF16)."""
    return decode_each(m, [raw], format, name=name)[0]


def decode_each(
    m: Module, raws: Sequence[Value], format: Value, *, name: str = "element"
) -> list[data.View]:
    """The elements that `raws` are in `format`; what depends on it alone is there once.

    Those of 4 bits have their scales with them: `four_bits.with_scale`.
    """
    codings = {int(f): CODINGS[f] for f in ELEMENT_FORMATS if f != Format.BF16}
    is_mx = format == Format.MXFP4
    as_bf16 = [four_bits.bf16(m, raw, is_mx, name=f"{name}{n}") for n, raw in enumerate(raws)]
    return _decode(m, raws, format, codings, name, as_bf16)


def decode16(m: Module, raw: Value, is_fp16: Value, *, name: str = "element") -> data.View:
    """The element of a query: FP16 or BF16."""
    return _decode(m, [raw], is_fp16, {1: CODINGS[Format.FP16]}, name)[0]


def _decode(
    m: Module,
    raws: Sequence[Value],
    key: Value,
    codings: dict[int, Coding],
    name: str,
    of_four: Sequence[Value] = (),
) -> list[data.View]:
    """Elements in the coding that `key` names, BF16 if none; of 4-bit formats, `of_four` in BF16.

    A format's fields are brought to common places, behind which all formats share the logic.
    """
    # Added to the exponent, modulo 2^9; the exponent of Inf and NaN; the only mantissa of NaN.
    offset, top, last = Signal(ELEMENT_EXP_BITS), Signal(9), Signal(_MANTISSA)
    fn = Signal()
    parts = [
        {"exponent": Signal(8), "mantissa": Signal(_MANTISSA), "hidden": Signal(), "sign": Signal()}
        for _ in raws
    ]
    default = CODINGS[Format.BF16]
    cases = [((code,), coding, raws) for code, coding in codings.items()]
    cases += [(_FOUR_BITS, default, of_four)] if of_four else []
    with m.Switch(key):
        for codes, coding, words in [*cases, ((), default, raws)]:
            with m.Case(*codes) if codes else m.Default():
                exp, man = coding.exp_bits, coding.man_bits
                for raw, part in zip(words, parts, strict=True):
                    m.d.comb += part["sign"].eq(raw[coding.bits - 1])
                    if exp:
                        exponent, mantissa = raw[man : man + exp], raw[:man]
                        hidden = exponent.any()
                    else:  # 8 bits: -128 is legal
                        magnitude = Mux(raw[man], -raw[: man + 1], raw[: man + 1])
                        exponent, mantissa, hidden = C(0), magnitude[:man], magnitude[man]
                    m.d.comb += [
                        part["exponent"].eq(exponent),
                        part["mantissa"].eq(mantissa << _MANTISSA - man),
                        part["hidden"].eq(hidden),
                    ]
                # An integer counts as subnormal: exponent 0, then `man` of its own.
                bias = coding.bias if exp else 1 - man
                m.d.comb += [
                    offset.eq(-bias),
                    top.eq((1 << exp) - 1 if exp else -1),
                    last.eq(((1 << man) - 1) << _MANTISSA - man),
                    fn.eq(coding.specials == "fn"),
                ]
    out = []
    for part in parts:
        o = bundle(Element, name=name)
        exponent, mantissa = part["exponent"], part["mantissa"]
        m.d.comb += [
            o.sign.eq(part["sign"]),
            o.sig.eq(Cat(mantissa, part["hidden"])),
            o.exp.eq(exponent + ~exponent.any() + offset),
            o.nan.eq((exponent == top) & (~fn | (mantissa == last))),
        ]
        out.append(o)
    return out


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
