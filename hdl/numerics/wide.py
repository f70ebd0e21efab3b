"""Arithmetic on wide floats: from integers and FP32, addition, products."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.numerics.formats import RAW_EXP_LIMIT, WIDE_EXP_BITS, WIDE_SIG_BITS
from m890.hdl.numerics.pipeline import (
    bundle,
    nearest_even,
    register,
    registers,
    shift_left_to_top,
    shift_right_sticky,
    wire,
)
from m890.hdl.numerics.types import Wide

LEAST_EXP = -(1 << WIDE_EXP_BITS - 1)


def pack_wide(
    m: Module, *, sign: Value, exp: Value, sig: Value, nan: Value | int, name: str
) -> data.View:
    """The wide float of a rounded significand of 25 bits (bit 24: the rounding carried).

    Bit 23 or 24 of `sig` is set, or it is zero. NaN and zero get their canonical fields.
    Combinational.
    """
    o = bundle(Wide, name=name)
    carry = sig[WIDE_SIG_BITS]
    live = (carry | sig[WIDE_SIG_BITS - 1]) & ~Value.cast(nan)
    with m.If(live):
        m.d.comb += [
            # After a carry all lower bits are zero.
            o.sig.eq(Cat(sig[: WIDE_SIG_BITS - 1], 1)),
            o.exp.eq(exp + carry),
            o.sign.eq(sign),
        ]
    m.d.comb += o.nan.eq(nan)
    return o


def fp32_to_wide(m: Module, value: Value, *, name: str = "wide") -> data.View:
    """FP32 bits as a wide float: subnormals are zero, Inf and NaN are NaN. Combinational."""
    o = bundle(Wide, name=name)
    exponent = value[23:31]
    with m.If(exponent.all()):
        m.d.comb += o.nan.eq(1)
    with m.Elif(exponent.any()):
        m.d.comb += [
            o.sig.eq(Cat(value[:23], 1)),
            o.exp.eq(exponent - 127),
            o.sign.eq(value[31]),
        ]
    return o


def raw_to_wide(
    m: Module, exponent: Value, value: Value, *, name: str = "raw"
) -> tuple[data.View, Signal, Signal]:
    """A stored value of a raw state, FP32 `value` x 2^`exponent` (32 bits), as a wide float.

    Returns it with its OVERFLOW (it is NaN then) and UNDERFLOW (zero) flags. Combinational.
    """
    plain = fp32_to_wide(m, value, name=f"{name}_fp32")
    exp = Signal(signed(34), name=f"{name}_exp")
    live = plain.sig[WIDE_SIG_BITS - 1]
    over, under = Signal(name=f"{name}_overflow"), Signal(name=f"{name}_underflow")
    o = bundle(Wide, name=name)
    m.d.comb += [
        exp.eq(exponent.as_signed() + plain.exp),
        over.eq(live & (exp > RAW_EXP_LIMIT)),
        under.eq(live & (exp < -RAW_EXP_LIMIT)),
    ]
    with m.If(over):
        m.d.comb += o.nan.eq(1)
    with m.Elif(~under):
        m.d.comb += o.eq(plain)
        with m.If(live):
            m.d.comb += o.exp.eq(exp)
    return o, over, under


class ScaleWide(wiring.Component):
    """A wide float times a BF16 scale.

    Function
        o = a x |scale|, rounded RNE to 24 bits. A subnormal scale counts as zero; an Inf or NaN
        scale gives NaN.
    Members
        a, scale : In. The factors; `scale` as BF16 bits.
        o : Out. The product, `latency` cycles later.
    Latency
        2.
    Throughput
        One product per cycle.
    """

    a: data.View
    scale: Signal
    o: data.View
    latency = 2

    def __init__(self) -> None:
        super().__init__({"a": In(Wide), "scale": In(16), "o": Out(Wide)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        exponent = self.scale[7:15]
        significand = Cat(self.scale[:7], exponent.any())
        # A subnormal scale has significand 0.m here, which must not count.
        used = Mux(exponent.any(), significand, 0)
        _product(
            m, self.o, self.a.sig, used,
            exp=self.a.exp + exponent - 127, sign=self.a.sign, nan=self.a.nan | exponent.all(),
        )  # fmt: skip
        return m


class MulWide(wiring.Component):
    """The product of two wide floats.

    Function
        o = a x b, rounded RNE to 24 bits.
    Members
        a, b : In. The factors.
        o : Out. The product, `latency` cycles later.
    Latency
        2.
    Throughput
        One product per cycle.
    """

    a: data.View
    b: data.View
    o: data.View
    latency = 2

    def __init__(self) -> None:
        super().__init__({"a": In(Wide), "b": In(Wide), "o": Out(Wide)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        _product(
            m, self.o, self.a.sig, self.b.sig,
            exp=self.a.exp + self.b.exp, sign=self.a.sign ^ self.b.sign,
            nan=self.a.nan | self.b.nan,
        )  # fmt: skip
        return m


def _product(
    m: Module, o: data.View, a: Value, b: Value, *, exp: Value, sign: Value, nan: Value
) -> None:
    """Two stages: multiply; normalise by one bit, round and pack.

    The factors have their top bit set, or are zero. A long `b` is multiplied in halves, whose sum
    is the second stage's: an FPGA's multipliers would need two sums in the first.
    """
    if len(b) > WIDE_SIG_BITS // 2:
        half = len(b) // 2
        low = register(m, a * b[:half], name="low")
        high = register(m, a * b[half:], name="high")
        product = wire(m, (low + (high << half))[: len(a) + len(b)], name="product")
    else:
        product = register(m, a * b, name="product")
    top = len(product) - 1
    exp = register(m, exp, name="product_exp")
    sign = register(m, sign, name="product_sign")
    nan = register(m, nan, name="product_nan")
    normal, _ = shift_left_to_top(m, product, (1,), name="normal")
    packed = pack_wide(
        m, sign=sign, exp=exp + product[top], nan=nan, name="rounded",
        sig=nearest_even(m, normal, top + 1 - WIDE_SIG_BITS, name="rounded_sig"),
    )  # fmt: skip
    m.d.sync += o.eq(packed)


class WideAdd(wiring.Component):
    """The sum of two wide floats.

    Function
        o = a + b: exact, then rounded RNE to 24 bits. x + (-x) = +0.
    Members
        a, b : In. The addends.
        o : Out. The sum, `latency` cycles later.
    Latency
        5: order by magnitude, distance | align | add | normalise | round.
    Throughput
        One sum per cycle.
    """

    a: data.View
    b: data.View
    o: data.View
    latency = 5

    def __init__(self) -> None:
        super().__init__({"a": In(Wide), "b": In(Wide), "o": Out(Wide)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        keys = []
        for name, addend in (("key_a", self.a), ("key_b", self.b)):
            # Zero orders below everything; a biased exponent makes the order that of integers.
            biased = addend.exp.as_unsigned() ^ -LEAST_EXP
            keys.append(wire(m, Mux(addend.sig[-1], Cat(addend.sig, biased), 0), name=name))
        key_a, key_b = keys
        swap = wire(m, key_a < key_b, name="swap")
        large = register(m, Mux(swap, key_b, key_a), name="large")
        small = register(m, Mux(swap, key_a, key_b)[:WIDE_SIG_BITS], name="small")
        sign = register(m, Mux(swap, self.b.sign, self.a.sign), name="sign")
        subtract = register(m, self.a.sign ^ self.b.sign, name="subtract")
        nan = register(m, self.a.nan | self.b.nan, name="nan")
        # Both distances beside the comparison, not one behind it. A zero's exponent says nothing,
        # but then there is nothing to align. 31 places clear a significand of 26 bits.
        amounts = []
        for name, distance in (("down", self.a.exp - self.b.exp), ("up", self.b.exp - self.a.exp)):
            distance = wire(m, distance, name=name)
            amounts.append(Mux(distance[5:].any(), 31, distance[:5])[:5])
        amount = register(m, Mux(swap, amounts[1], amounts[0]), name="amount")

        # Three bits below the significand: guard, round, and sticky as the lowest one. With them
        # the rounded sum is that of the exact one.
        shifted, lost = shift_right_sticky(Cat(C(0, 2), small), amount)
        aligned = register(m, Cat(lost, shifted), name="aligned")
        large, sign, subtract, nan = registers(
            m, "_2", large=large, sign=sign, subtract=subtract, nan=nan
        )

        augend = Cat(C(0, 3), large[:WIDE_SIG_BITS])
        bits = len(augend) + 1
        total = register(m, Mux(subtract, augend - aligned, augend + aligned)[:bits], name="total")
        exp, sign, nan = registers(m, "_3", exp=large[WIDE_SIG_BITS:], sign=sign, nan=nan)

        shifted, shift = shift_left_to_top(m, total, (16, 8, 4, 2, 1), name="total")
        normal = register(m, shifted, name="normal")
        # The top bit of `total` weighs twice the larger addend's.
        exp = register(m, exp + (LEAST_EXP + 1) - shift, signed(WIDE_EXP_BITS), name="normal_exp")
        sign, nan = registers(m, "_4", sign=sign, nan=nan)

        rounded = nearest_even(m, normal, bits - WIDE_SIG_BITS, name="rounded_sig")
        m.d.sync += self.o.eq(
            pack_wide(m, sign=sign, exp=exp, sig=rounded, nan=nan, name="rounded")
        )
        return m
