"""From accumulators to output: reciprocal of l, normalised O, raw states."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.numerics.formats import WIDE_EXP_BITS, WIDE_SIG_BITS, Format, OutputFormat
from m890.hdl.numerics.pipeline import (
    delay,
    lookup,
    register,
    shift_left_to_top,
    wire,
)
from m890.hdl.numerics.rounding import FP32, STAGES, round_to, target
from m890.hdl.numerics.tables import RECIPROCAL, RECIPROCAL_INDEX_BITS, RECIPROCAL_UNIT_BITS
from m890.hdl.numerics.types import Wide

RESULT_BITS = 26
"""Significand ahead of rounding: FP32's 24 bits, a guard bit and a sticky one."""
INVERSE_BITS = 23
"""y1, in units of 2^-22, at most 2^22 (which stands for one)."""


class Reciprocal(wiring.Component):
    """Reciprocal of l's significand.

    Function
        docs/numerics.md, "Output": a table of 256 entries and one Newton step.
    Members
        l : In(Wide). Its sign is ignored.
        y1 : Out(23), `latency` cycles later. 1 / x in units of 2^-22, l = x 2^exp with x in [1, 2).
        exp : Out(signed). l's exponent, with y1.
        zero, nan : Out. l is zero, or NaN, with y1.
    Latency
        4: table | multiply | subtract | multiply.
    Throughput
        One per cycle.
    Storage
        A logic table of 256 x 11 bits.
    """

    l: data.View  # noqa: E741
    y1: Signal
    exp: Signal
    zero: Signal
    nan: Signal
    latency = 4

    def __init__(self) -> None:
        super().__init__(
            {
                "l": In(Wide),
                "y1": Out(INVERSE_BITS),
                "exp": Out(signed(WIDE_EXP_BITS)),
                "zero": Out(1),
                "nan": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        top = WIDE_SIG_BITS - 1
        index = self.l.sig[top - RECIPROCAL_INDEX_BITS : top]
        y0 = register(
            m, lookup(m, index, RECIPROCAL, RECIPROCAL_UNIT_BITS, name="y0"), name="y0_late"
        )
        sig = register(m, self.l.sig, name="sig")
        product = register(m, y0 * sig, name="product")
        y0 = register(m, y0, name="y0_late2")
        # 2 - y0 x, in units of 2^-34, cut to 2^-20.
        twice = C(1 << RECIPROCAL_UNIT_BITS + top + 1)
        d = register(m, (twice - product)[14:][:22], name="d")
        y0 = register(m, y0, name="y0_late3")
        m.d.sync += self.y1.eq((y0 * d) >> 9)
        m.d.comb += [
            self.exp.eq(delay(m, self.l.exp, self.latency, name="exp")),
            self.zero.eq(delay(m, ~self.l.sig[top] & ~self.l.nan, self.latency, name="zero")),
            self.nan.eq(delay(m, self.l.nan, self.latency, name="nan")),
        ]
        return m


class Normalise(wiring.Component):
    """One output feature: O divided by l, rounded to the job's output format.

    Function
        docs/numerics.md, "Output": O x y1 x 2^-exp, rounded once; RAW: O x 2^-exp as FP32, below
        FP32's normal range zero. l zero gives zero, NaN in O or l the format's quiet NaN.
    Members
        value : In(Wide). O.
        y1, exp, zero, nan : In. From Reciprocal of the row's l.
        format : In. OutputFormat. All inputs travel together.
        o : Out(32), `latency` cycles later. FP32, or BF16 or FP16 in the low half.
    Latency
        6: multiply | normalise | distance | align | round | pack.
    Throughput
        One feature per cycle.
    """

    value: data.View
    y1: Signal
    exp: Signal
    zero: Signal
    nan: Signal
    format: Signal
    o: Signal
    latency = 6

    def __init__(self) -> None:
        super().__init__(
            {
                "value": In(Wide),
                "y1": In(INVERSE_BITS),
                "exp": In(signed(WIDE_EXP_BITS)),
                "zero": In(1),
                "nan": In(1),
                "format": In(OutputFormat),
                "o": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        value = self.value
        raw = self.format == OutputFormat.RAW
        one = 1 << INVERSE_BITS - 1
        product = register(m, value.sig * Mux(raw, one, self.y1), name="product")
        exp = register(m, value.exp - self.exp, name="exp_product")
        # Below 2^46: y1 = 2^22 with RAW only, and there the product is exact.
        product = product[: WIDE_SIG_BITS + INVERSE_BITS - 1]
        live = register(m, value.sig.any() & ~self.zero, name="live")
        nan = register(m, ~self.zero & (self.nan | value.nan), name="nan")
        sign = register(m, value.sign, name="sign")

        # l's significand and y1 may both be small: up to two leading zeros.
        normal, shift = shift_left_to_top(m, product, (2, 1), name="normal")
        exp = register(m, exp - shift, name="exp_normal")
        kept = RESULT_BITS - 1
        sig = register(m, Cat(normal[:-kept].any(), normal[-kept:]), name="sig")

        format = delay(m, self.format, 2, name="format")
        code, tiny = round_to(
            m,
            sig,
            exp,
            format,
            {
                OutputFormat.FP32: FP32,
                OutputFormat.RAW: FP32,
                OutputFormat.BF16: target(Format.BF16),
                OutputFormat.FP16: target(Format.FP16),
            },
        )

        format = delay(m, format, STAGES, name="format_late")
        live, nan, sign = (delay(m, x, 1 + STAGES, name="flag") for x in (live, nan, sign))
        half = wire(m, format == OutputFormat.FP16, name="half")
        brief = wire(m, format == OutputFormat.BF16, name="brief")
        flushed = tiny & (format == OutputFormat.RAW)
        infinity = wire(m, Mux(half, 0x7C00, Mux(brief, 0x7F80, 0x7F800000)), name="infinity")
        quiet = Mux(half, 0x7E00, Mux(brief, 0x7FC0, 0x7FC00000))
        limited = Mux(code > infinity, infinity, code)[:31]
        signed_code = limited | Mux(half | brief, sign << 15, sign << 31)
        m.d.sync += self.o.eq(Mux(nan, quiet, Mux(live & ~flushed, signed_code, 0)))
        return m


def raw_header(l: data.View) -> tuple[Value, Value]:  # noqa: E741
    """Header of a raw state: E (32 bits, signed) and l x 2^-E as FP32. Combinational."""
    x = Cat(l.sig[: WIDE_SIG_BITS - 1], C(127, 8), l.sign)
    exp = Mux(l.nan, 0, l.exp)
    return Cat(exp, exp[-1].replicate(32 - WIDE_EXP_BITS)), Mux(
        l.nan, 0x7FC00000, Mux(l.sig.any(), x, 0)
    )
