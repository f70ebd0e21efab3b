"""Soft cap of a score: c tanh(s / c), by table."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.numerics.formats import WIDE_SIG_BITS
from m890.hdl.numerics.pipeline import bundle, delay, lookup, register, shift_left_to_top, wire
from m890.hdl.numerics.tables import (
    TANH_C0,
    TANH_C1,
    TANH_C2,
    TANH_INDEX_BITS,
    TANH_STEP_BITS,
    TANH_UNIT_BITS,
)
from m890.hdl.numerics.types import Wide
from m890.hdl.numerics.wide import MulWide, fp32_to_wide

ARGUMENT_BITS = TANH_INDEX_BITS + TANH_STEP_BITS
"""|s / c| in fixed point below 8, 20 fraction bits: 3 + 20."""
LARGEST_EXP = 2
"""Exponent of the largest argument below 8."""


def _signed_bits(table: tuple[int, ...]) -> int:
    return max(max(table).bit_length(), (-min(table) - 1).bit_length()) + 1


def _normal(m: Module, value: Value, name: str) -> data.View:
    """FP32 bits as a wide float; anything but a normal number is zero."""
    wide = fp32_to_wide(m, value, name=name)
    normal = bundle(Wide, name=f"{name}_normal")
    m.d.comb += normal.eq(Mux(wide.nan, 0, wide.as_value()))
    return normal


class SoftCap(wiring.Component):
    """Soft cap of a score.

    Function
        docs/numerics.md, "Score", step 2: o = c tanh(s / c), through a table of 128 parabolas over
        |s / c| < 8. With `enable` low, or c not a normal number, o = s, `latency` cycles later too.
        A 1 / c that is not normal counts as zero.
    Members
        s : In(Wide). The score.
        cap, inverse : In(32). c and 1 / c as FP32.
        enable : In. All inputs travel together, so that scores of two jobs may follow each other.
        o : Out(Wide). The capped score, `latency` cycles later.
    Latency
        11: multiply by 1 / c (2) | distance | fixed point | table, r^2 | steps | sum |
        normalise (2) | multiply by c (2).
    Throughput
        One score per cycle.
    Storage
        Logic tables of 128 x 66 bits.
    """

    s: data.View
    cap: Signal
    inverse: Signal
    enable: Signal
    o: data.View
    latency = 7 + 2 * MulWide.latency

    def __init__(self) -> None:
        super().__init__(
            {"s": In(Wide), "cap": In(32), "inverse": In(32), "enable": In(1), "o": Out(Wide)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.by_inverse = argument = MulWide()
        m.d.comb += [argument.a.eq(self.s), argument.b.eq(_normal(m, self.inverse, "b"))]
        x = argument.o

        distance = wire(m, LARGEST_EXP - x.exp, name="distance")
        far = register(m, distance < 0, name="far")
        amount = register(m, Mux(distance[5:].any(), 31, distance[:5]), name="amount")
        sig = register(m, x.sig, name="x_sig")
        # |x| with the largest exponent has its significand's lowest bit below the fraction.
        fixed = sig[WIDE_SIG_BITS - ARGUMENT_BITS :] >> amount
        u = register(m, Mux(far, C((1 << ARGUMENT_BITS) - 1), fixed), name="u")

        index, step = u[TANH_STEP_BITS:], u[:TANH_STEP_BITS]
        c0, c1, c2 = (
            register(
                m, lookup(m, index, t, signed(_signed_bits(t)), name=f"c{n}"), name=f"c{n}_late"
            )
            for n, t in enumerate((TANH_C0, TANH_C1, TANH_C2))
        )
        r = register(m, step, name="r")
        square = register(m, (step * step)[TANH_STEP_BITS:], name="square")
        linear = register(m, (c1 * r) >> TANH_STEP_BITS, name="linear")
        curve = register(m, (c2 * square) >> TANH_STEP_BITS, name="curve")
        # The tables keep the sum in 0 ... 2^22 for every u (a test tries them all): no clamp.
        total = delay(m, c0, 1, name="c0_late2") + linear + curve
        t = register(m, total[: TANH_UNIT_BITS + 1], name="t")

        steps = (16, 8, 4, 2, 1)
        shifted, high = shift_left_to_top(m, t, steps[:2], name="t")
        coarse = register(m, shifted, name="coarse")
        high = register(m, high, name="high")
        fine, low = shift_left_to_top(m, coarse, steps[2:], name="coarse")
        m.submodules.by_cap = product = MulWide()
        tanh = product.a
        # t's top bit weighs one.
        exp = Mux(fine.any(), -Cat(low, high), 0)
        m.d.sync += [
            tanh.sig.eq(Cat(C(0, WIDE_SIG_BITS - len(fine)), fine)),
            tanh.exp.eq(exp),
        ]
        sign, nan = x.sign, x.nan
        m.d.comb += [
            tanh.sign.eq(delay(m, sign, 7, name="sign")),
            tanh.nan.eq(delay(m, nan, 7, name="nan")),
            product.b.eq(_normal(m, delay(m, self.cap, 9, name="cap_late"), "c")),
        ]
        exponent = self.cap[23:31]
        used = self.enable & exponent.any() & ~exponent.all()
        late = delay(m, Cat(self.s.as_value(), used), self.latency, name="s_late")
        m.d.comb += self.o.eq(Mux(late[-1], product.o.as_value(), late[:-1]))
        return m
