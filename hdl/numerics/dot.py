"""Fused dot product of one beat: exact products, aligned to the largest, summed, rounded once."""

from collections.abc import Iterable
from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.numerics.formats import (
    DOT_FRACTION_BITS,
    ELEMENT_EXP_BITS,
    SIG_BITS,
    WIDE_EXP_BITS,
    WIDE_SIG_BITS,
)
from m890.hdl.numerics.pipeline import (
    delay,
    largest,
    nearest_even,
    register,
    shift_left_to_top,
    wire,
)
from m890.hdl.numerics.types import Wide
from m890.hdl.numerics.wide import pack_wide

PRODUCT_BITS = 2 * SIG_BITS
GUARD_BITS = DOT_FRACTION_BITS - (PRODUCT_BITS - 2)
ALIGNED_BITS = PRODUCT_BITS + GUARD_BITS
EXP_BITS = WIDE_EXP_BITS + 1
BIAS = (1 << WIDE_EXP_BITS - 1) + (1 << ELEMENT_EXP_BITS - 1)
"""Of a product's exponent: not below zero, so that all is compared and subtracted unsigned."""
INACTIVE = 0
"""Biased exponent of an inactive lane: not above that of any product."""


def factors_layout(lanes: int, exp_bits: int) -> data.StructLayout:
    """One side of a beat's products. live, nan: lanes that are not zero, and that are NaN."""
    factor = data.StructLayout({"sig": SIG_BITS, "exp": exp_bits, "sign": 1})
    return data.StructLayout(
        {"factors": data.ArrayLayout(factor, lanes), "live": lanes, "nan": lanes}
    )


def factor(number: Any, exp_bits: int) -> Value:
    """Of an Element or Operand what multiplies: significand, biased exponent, sign."""
    exp = number.exp
    extended = Cat(exp, exp[-1].replicate(exp_bits - len(exp)))
    return Cat(number.sig, extended ^ (1 << exp_bits - 1), number.sign)


def live_and_nan(numbers: Iterable[Any]) -> tuple[Value, Value]:
    """Of Elements or Operands the two sets of lanes that a beat's factors come with."""
    pairs = [(number.sig.any(), number.nan) for number in numbers]
    return Cat(live for live, _ in pairs), Cat(nan for _, nan in pairs)


class DotProduct(wiring.Component):
    """Dot product of `lanes` stationary operands and `lanes` streamed elements.

    Function
        docs/numerics.md, "Fused dot product": products of the active lanes, aligned to the largest
        exponent with 22 fraction bits (truncated), summed exactly, rounded RNE to a wide float.
    Members
        a : In(factors_layout(lanes, WIDE_EXP_BITS)). Query elements or p, which are Operands.
        b : In(factors_layout(lanes, ELEMENT_EXP_BITS)). Elements of the beat, keys or values.
        o : Out(Wide). The dot product, `latency` cycles later.
    Latency
        7 + 2 ceil(log2(lanes) / 2): multiply | largest exponent (two tree levels per cycle) |
        distance | align | add (two tree levels per cycle) | magnitude | normalise (2) | round.
    Throughput
        One beat per cycle.
    Parameters
        lanes : a power of two, at least 2.
    Source
        Kaul et al., "Optimized fused floating-point many-term dot-product hardware", ARITH 2019.
    """

    a: Any
    b: Any
    o: data.View

    def __init__(self, lanes: int) -> None:
        if lanes < 2 or lanes & (lanes - 1):
            raise ValueError(f"lanes must be a power of two of at least 2, not {lanes}")
        self.lanes = lanes
        super().__init__(
            {
                "a": In(factors_layout(lanes, WIDE_EXP_BITS)),
                "b": In(factors_layout(lanes, ELEMENT_EXP_BITS)),
                "o": Out(Wide),
            }
        )

    @property
    def tree_stages(self) -> int:
        """Cycles of a tree over the lanes that takes two levels per cycle."""
        return self.lanes.bit_length() // 2

    @staticmethod
    def latency_of(lanes: int) -> int:
        """Latency of a unit of so many lanes."""
        return 7 + 2 * (lanes.bit_length() // 2)

    @property
    def latency(self) -> int:
        return self.latency_of(self.lanes)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        signs, products, exps = [], [], []
        active = wire(m, self.a.live & self.b.live, name="active")
        for n in range(self.lanes):
            a, b = self.a.factors[n], self.b.factors[n]
            # Sign and product share a register of less than 32 bits.
            term = register(m, Cat(a.sig * b.sig, a.sign ^ b.sign), name=f"term{n}")
            products.append(term[:PRODUCT_BITS])
            signs.append(term[PRODUCT_BITS])
            exp = (a.exp + b.exp)[:EXP_BITS]
            exps.append(register(m, Mux(active[n], exp, INACTIVE), name=f"exp{n}"))
        nan = register(m, (active & (self.a.nan | self.b.nan)).any(), name="nan")

        tops, stage = list(exps), 0
        while len(tops) > 1:
            stage += 1
            tops = [
                register(
                    m, largest(m, tops[n : n + 4], name=f"top{stage}_{n // 4}"),
                    name=f"top{stage}_{n // 4}",
                )
                for n in range(0, len(tops), 4)
            ]  # fmt: skip
        top = tops[0]
        assert stage == self.tree_stages

        # A distance of ALIGNED_BITS or more clears the product. An inactive lane's product is zero.
        aligned, negative = [], []
        for n in range(self.lanes):
            exp = delay(m, exps[n], stage, name=f"exp{n}_late")
            distance = wire(m, (top - exp)[:EXP_BITS], name=f"distance{n}")
            clamped = Mux(distance[5:].any(), 31, distance[:5])
            amount = register(m, clamped, unsigned(5), name=f"amount{n}")
            term = delay(m, Cat(products[n], signs[n]), stage + 1, name=f"term{n}_late")
            magnitude = Cat(C(0, GUARD_BITS), term[:PRODUCT_BITS]) >> amount
            sign = term[PRODUCT_BITS]
            # Ones' complement here; the missing ones are added in the tree, where they are cheaper.
            # Each leaf is 2^ALIGNED_BITS too large, and so never negative.
            ones = magnitude ^ sign.replicate(ALIGNED_BITS)
            leaf = register(m, Cat(ones, ~sign), name=f"leaf{n}")
            aligned.append(leaf)
            negative.append(~leaf[ALIGNED_BITS])

        total = [
            register(
                m, sum(aligned[n : n + 4], sum(negative[n : n + 4], C(0))), name=f"sum1_{n // 4}",
                shape=unsigned(ALIGNED_BITS + 3),
            )
            for n in range(0, self.lanes, 4)
        ]  # fmt: skip
        level = 1
        while len(total) > 1:
            level += 1
            total = [
                register(
                    m, sum(total[n : n + 4], C(0)), name=f"sum{level}_{n // 4}",
                    shape=unsigned(ALIGNED_BITS + 1 + 2 * level),
                )
                for n in range(0, len(total), 4)
            ]  # fmt: skip
        assert level == self.tree_stages
        since = 2 + level
        # Without what all leaves have too much, it is a signed number.
        top_bit = ALIGNED_BITS + self.lanes.bit_length() - 1
        m.d.sync += self.o.eq(
            _round(
                m, Cat(total[0][:top_bit], ~total[0][top_bit]).as_signed(),
                exp=delay(m, top, since, name="top_late"),
                nan=delay(m, nan, stage + since, name="nan_late"),
            )
        )  # fmt: skip
        return m


def _round(m: Module, total: Value, *, exp: Value, nan: Value) -> data.View:
    """total x 2^(exp - BIAS - DOT_FRACTION_BITS) as a wide float, after three registers."""
    bits = len(total) - 1
    sign = register(m, total[-1], name="total_sign")
    magnitude = register(m, Mux(total[-1], -total, total)[:bits], name="magnitude")
    exp = register(m, exp, name="magnitude_exp")

    steps = (16, 8, 4, 2, 1)
    shifted, high = shift_left_to_top(m, magnitude, steps[:2], name="magnitude")
    coarse = register(m, shifted, name="coarse")
    exp = register(m, (exp - (high << 3))[:EXP_BITS], name="coarse_exp")
    shifted, low = shift_left_to_top(m, coarse, steps[2:], name="coarse")
    fine = register(m, shifted, name="fine")
    # The top bit, once set, weighs 2^(exp + bits - 1 - DOT_FRACTION_BITS).
    rest = bits - 1 - DOT_FRACTION_BITS - BIAS
    exp = register(m, exp - low + rest, signed(EXP_BITS), name="fine_exp")

    return pack_wide(
        m, sign=delay(m, sign, 2, name="sign"), exp=exp, nan=delay(m, nan, 3, name="nan"),
        sig=nearest_even(m, fine, bits - WIDE_SIG_BITS, name="rounded_sig"), name="rounded",
    )  # fmt: skip
