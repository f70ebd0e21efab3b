"""p = 2^s of a score, and p times a token's V scale."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.numerics.decode import NAN_SIG
from m890.hdl.numerics.formats import (
    SCORE_FRACTION_BITS,
    SCORE_LIMIT,
    SIG_BITS,
    WIDE_EXP_BITS,
    WIDE_SIG_BITS,
)
from m890.hdl.numerics.pipeline import (
    delay,
    lookup,
    nearest_even,
    register,
    registers,
    shift_left_to_top,
    shift_right_sticky,
    wire,
)
from m890.hdl.numerics.tables import EXP2_BASE, EXP2_SLOPE, EXP2_STEP_BITS, EXP2_UNIT_BITS
from m890.hdl.numerics.types import Operand, Wide

SCORE_BITS = SCORE_LIMIT.bit_length() + SCORE_FRACTION_BITS
"""Magnitude of a fixed-point score."""
LARGEST_EXP = SCORE_LIMIT.bit_length() - 1
"""Exponent of the largest score that is not beyond the limit for its exponent alone."""


class Exp2(wiring.Component):
    """p = 2^s of a score.

    Function
        docs/numerics.md, "Score", steps 5 and 6: s becomes fixed point with 16 fraction bits
        (floor), its integer part p's exponent; the fraction goes through a table of 64 entries and
        a linear step, and is rounded RNE to 11 bits.
    Members
        s : In(Wide). The score.
        p : Out(Operand), `latency` cycles later. sig is 0 where s underflows.
        overflow : Out. s >= SCORE_LIMIT: p is the largest one.
        underflow : Out. s < -SCORE_LIMIT: p is zero.
        invalid : Out. s is NaN: so is p.
    Latency
        7: distance | align | floor and limit | table | step | sum | round.
    Throughput
        One score per cycle.
    Storage
        Logic tables of 64 x 30 bits.
    """

    s: data.View
    p: data.View
    overflow: Signal
    underflow: Signal
    invalid: Signal
    latency = 7

    def __init__(self) -> None:
        super().__init__(
            {
                "s": In(Wide),
                "p": Out(Operand),
                "overflow": Out(1),
                "underflow": Out(1),
                "invalid": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        s = self.s
        distance = wire(m, LARGEST_EXP - s.exp, name="distance")
        far = register(m, distance < 0, name="far")
        amount = register(m, Mux(distance[5:].any(), 31, distance[:5]), name="amount")
        sig, sign, nan = registers(m, "_1", sig=s.sig, sign=s.sign, nan=s.nan)

        # The significand as a fixed-point score of the largest exponent, before the shift.
        top = Cat(C(0, SCORE_BITS - WIDE_SIG_BITS), sig)
        shifted, lost = shift_right_sticky(top, amount)
        magnitude = register(m, shifted, name="magnitude")
        lost = register(m, lost, name="lost")
        far, sign, nan = registers(m, "_2", far=far, sign=sign, nan=nan)

        # floor(-x) = -ceil(x) = ~x where a fraction was lost, and -x where none was.
        whole = Cat(magnitude, C(0, 1))
        floor = Mux(sign, ~whole + ~lost, whole)[: SCORE_BITS + 1].as_signed()
        limit = SCORE_LIMIT << SCORE_FRACTION_BITS
        above = ~sign & (far | (magnitude >= limit))
        # A score this large has no bits below the fixed point: `lost` plays no part.
        below = sign & (far | (magnitude > limit))
        t = register(m, Mux(above, limit - 1, floor), signed(SCORE_BITS + 1), name="t")
        flags = register(m, Cat(above & ~nan, below & ~nan, nan), name="flags")

        fraction = t[:SCORE_FRACTION_BITS]
        index, r = fraction[EXP2_STEP_BITS:], fraction[:EXP2_STEP_BITS]
        base_bits, slope_bits = EXP2_UNIT_BITS + 1, max(EXP2_SLOPE).bit_length()
        base = register(m, lookup(m, index, EXP2_BASE, base_bits, name="base"), name="base_late")
        slope = register(
            m, lookup(m, index, EXP2_SLOPE, slope_bits, name="slope"), name="slope_late"
        )
        r = register(m, r, name="r")
        step = register(m, (slope * r) >> EXP2_STEP_BITS, name="step")
        # Below 2^(base_bits): the last step ends short of 2.
        mantissa = register(m, (delay(m, base, 1, name="base_late2") + step)[:base_bits], name="m")

        rounded = nearest_even(m, mantissa, base_bits - SIG_BITS, name="rounded")
        carry = rounded[SIG_BITS]
        exponent = delay(m, t[SCORE_FRACTION_BITS:].as_signed(), 3, name="n")
        flags = delay(m, flags, 3, name="flags_late")
        above, below, nan = flags
        with m.If(nan):
            m.d.sync += [self.p.eq(0), self.p.sig.eq(NAN_SIG), self.p.nan.eq(1)]
        with m.Elif(below):
            m.d.sync += self.p.eq(0)
        with m.Else():
            m.d.sync += [
                self.p.sig.eq(Cat(rounded[: SIG_BITS - 1], 1)),
                self.p.exp.eq(exponent + carry),
                self.p.sign.eq(0),
                self.p.nan.eq(0),
            ]
        m.d.sync += [
            self.overflow.eq(above),
            self.underflow.eq(below),
            self.invalid.eq(nan),
        ]
        return m


class ScaleP(wiring.Component):
    """p times its token's V scale.

    Function
        o = p x |scale|, rounded RNE to 11 bits. A subnormal scale counts as zero, an Inf or NaN
        scale gives NaN; a factor of zero gives zero whatever the other one is, so that a masked
        token has no effect.
    Members
        p : In(Operand). Normalised, zero or NaN.
        scale : In(16). BF16 bits.
        o : Out(Operand). The product, `latency` cycles later.
    Latency
        2: multiply | round.
    Throughput
        One product per cycle.
    """

    p: data.View
    scale: Signal
    o: data.View
    latency = 2

    def __init__(self) -> None:
        super().__init__({"p": In(Operand), "scale": In(16), "o": Out(Operand)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        exponent, mantissa = self.scale[7:15], self.scale[:7]
        used = Mux(exponent.any(), Cat(mantissa, 1), 0)
        product = register(m, self.p.sig * used, name="product")
        exp = register(m, self.p.exp + exponent - 127, signed(WIDE_EXP_BITS), name="exp")
        sign = register(m, self.p.sign, name="sign")
        nan = register(m, self.p.nan | exponent.all(), name="nan")

        top = len(product) - 1
        normal, _ = shift_left_to_top(m, product, (1,), name="normal")
        rounded = nearest_even(m, normal, top + 1 - SIG_BITS, name="rounded")
        carry = rounded[SIG_BITS]
        with m.If(~product.any()):
            m.d.sync += self.o.eq(0)
        with m.Elif(nan):
            m.d.sync += [self.o.eq(0), self.o.sig.eq(NAN_SIG), self.o.nan.eq(1)]
        with m.Else():
            m.d.sync += [
                self.o.sig.eq(Cat(rounded[: SIG_BITS - 1], 1)),
                self.o.exp.eq(exp + product[top] + carry),
                self.o.sign.eq(sign),
                self.o.nan.eq(0),
            ]
        return m
