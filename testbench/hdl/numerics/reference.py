"""docs/numerics.md for one number at a time, with exact rationals: an independent reference.

A number is None (NaN) or a Fraction. The golden model is the specification in vectorised code; this
one is slow, literal, and shares nothing with it or with the RTL but the tables.
"""

from fractions import Fraction

from m890.hdl.numerics import tables
from m890.hdl.numerics.formats import CODINGS, Format, OutputFormat
from m890.hdl.numerics.types import Element, Operand, Wide
from m890.testbench.hdl.numerics.pipelines import bits_of

Number = Fraction | None


def exponent_of(x: Fraction) -> int:
    """floor(log2 |x|)."""
    top = abs(x.numerator).bit_length() - x.denominator.bit_length()
    return top if abs(x) >= Fraction(2) ** top else top - 1


def nearest_even(x: Fraction, unit: Fraction) -> Fraction:
    """x rounded to a multiple of unit; Python's round is RNE on rationals."""
    return round(x / unit) * unit


def to_bits(x: Fraction, bits: int) -> Fraction:
    """x rounded to `bits` significant bits."""
    return nearest_even(x, Fraction(2) ** (exponent_of(x) - bits + 1)) if x else x


def power(exp: int) -> Fraction:
    return Fraction(2) ** exp


def wide_bits(x: Number) -> int:
    """x rounded to a wide float, as bits."""
    if x is None:
        return bits_of(Wide, nan=1)
    x = to_bits(x, 24)
    if not x:
        return 0
    exp = exponent_of(x)
    return bits_of(Wide, sig=int(abs(x) * power(23 - exp)), exp=exp, sign=x < 0)


def wide_number(fields: dict[str, int]) -> Number:
    if fields["nan"]:
        return None
    return (-1) ** fields["sign"] * fields["sig"] * power(fields["exp"] - 23)


def decode(raw: int, format: Format) -> int:
    """The Element of a stored number, as bits."""
    c = CODINGS[format]
    raw &= (1 << c.bits) - 1
    if format == Format.INT8:
        x = raw - 256 if raw & 128 else raw
        return bits_of(Element, sig=abs(x) << 3, exp=7, sign=x < 0)
    man, sign = raw & (1 << c.man_bits) - 1, raw >> c.bits - 1
    exponent = raw >> c.man_bits & (1 << c.exp_bits) - 1
    top = (1 << c.exp_bits) - 1
    nan = exponent == top if c.specials == "ieee" else raw & 127 == 127
    if nan:
        return bits_of(Element, sig=1024, exp=0, sign=sign, nan=1)
    if exponent:
        sig = (man | 1 << c.man_bits) << 10 - c.man_bits
        return bits_of(Element, sig=sig, exp=exponent - c.bias, sign=sign)
    return bits_of(Element, sig=man << 10 - c.man_bits, exp=1 - c.bias, sign=sign)


def float_number(raw: int, format: Format) -> Number:
    """A 16-bit float's value; None for NaN and Inf."""
    c = CODINGS[format]
    man, exponent = raw & (1 << c.man_bits) - 1, raw >> c.man_bits & (1 << c.exp_bits) - 1
    if exponent == (1 << c.exp_bits) - 1:
        return None
    sign = -1 if raw >> 15 else 1
    if not exponent:
        return sign * man * power(1 - c.bias - c.man_bits)
    return sign * (man + (1 << c.man_bits)) * power(exponent - c.bias - c.man_bits)


def dot(a: list[dict[str, int]], b: list[dict[str, int]]) -> Number:
    """Fused dot product of decoded operands (fields of Operand and Element)."""
    active = [(x, y) for x, y in zip(a, b, strict=True) if x["sig"] and y["sig"]]
    if any(x["nan"] or y["nan"] for x, y in active):
        return None
    if not active:
        return Fraction(0)
    emax = max(x["exp"] + y["exp"] for x, y in active)
    total = 0
    for x, y in active:
        m = (x["sig"] * y["sig"] << 2) >> (emax - x["exp"] - y["exp"])
        total += -m if x["sign"] ^ y["sign"] else m
    return total * power(emax - 22)


def scale_number(scale: int) -> Number:
    """A BF16 scale: subnormal is zero, the sign is ignored."""
    exponent = scale >> 7 & 255
    if exponent == 255:
        return None
    return Fraction(0) if exponent == 0 else abs(float_number(scale, Format.BF16) or Fraction(0))


def multiply(a: Number, b: Number) -> Number:
    return None if a is None or b is None else a * b


def add(a: Number, b: Number) -> Number:
    return None if a is None or b is None else a + b


def fp32_number(raw: int) -> Number:
    """FP32 as the core reads it: subnormals are zero, Inf is NaN."""
    exponent = raw >> 23 & 255
    if exponent == 255:
        return None
    if exponent == 0:
        return Fraction(0)
    return (-1) ** (raw >> 31) * (raw & 0x7FFFFF | 1 << 23) * power(exponent - 150)


def operand_bits(x: Number) -> int:
    """x rounded to 11 bits, as an Operand's bits; zero and NaN in their canonical form."""
    if x is None:
        return bits_of(Operand, sig=1024, nan=1)
    x = to_bits(x, 11)
    if not x:
        return 0
    exp = exponent_of(x)
    return bits_of(Operand, sig=int(abs(x) * power(10 - exp)), exp=exp, sign=x < 0)


def floor_log(x: Fraction, fraction_bits: int) -> int:
    return (x * (1 << fraction_bits)).__floor__()


def exp2(s: Number) -> tuple[Number, str]:
    """p before it is packed, and the status bit it sets."""
    if s is None:
        return None, "invalid"
    t = floor_log(s, 16)
    limit = 3840 << 16
    if t < -limit:
        return Fraction(0), "underflow"
    n, f = min(t, limit - 1) >> 16, min(t, limit - 1) & 0xFFFF
    i, r = f >> 10, f & 0x3FF
    m = tables.EXP2_BASE[i] + (tables.EXP2_SLOPE[i] * r >> 10)
    return to_bits(m * power(n - 17), 11), "overflow" if t >= limit else ""


def soft_cap(s: Number, cap: int, inverse: int) -> Number:
    """c tanh(s / c), not yet rounded to a wide float."""
    c, i = (fp32_number(x) or Fraction(0) for x in (cap, inverse))
    if s is None or not c:
        return s
    x = to_bits(s * i, 24)
    u = min(floor_log(abs(x), 20), (8 << 20) - 1)
    k, r = u >> 16, u & 0xFFFF
    t = (
        tables.TANH_C0[k]
        + (tables.TANH_C1[k] * r >> 16)
        + (tables.TANH_C2[k] * (r * r >> 16) >> 16)
    )
    t = max(0, min(t, 1 << 22))
    return (-1 if x < 0 else 1) * t * power(-22) * c


def reciprocal(l: Fraction) -> tuple[int, int]:  # noqa: E741
    """y1 and l's exponent."""
    exp = exponent_of(l)
    sig = int(l * power(23 - exp))
    y0 = tables.RECIPROCAL[sig >> 15 & 255]
    return y0 * ((1 << 35) - y0 * sig >> 14) >> 9, exp


def to_float(x: Fraction, exp_bits: int, man_bits: int, *, negative: bool) -> int:
    """IEEE bits of x, RNE, gradual underflow, overflow to Inf."""
    sign = negative << exp_bits + man_bits
    bias = (1 << exp_bits - 1) - 1
    least = 1 - bias
    unit = power(max(exponent_of(x) if x else least, least) - man_bits)
    magnitude = abs(nearest_even(x, unit))
    if magnitude >= power(bias + 1):
        return sign | ((1 << exp_bits) - 1) << man_bits
    if magnitude < power(least):
        return sign | int(magnitude * power(man_bits - least))
    exp = exponent_of(magnitude)
    return sign | exp + bias << man_bits | int(magnitude * power(man_bits - exp)) - (1 << man_bits)


OUTPUTS = {OutputFormat.BF16: (8, 7), OutputFormat.FP16: (5, 10), OutputFormat.FP32: (8, 23)}


def normalise(o: Number, l: Number, format: OutputFormat) -> int:  # noqa: E741
    """The stored output feature."""
    exp_bits, man_bits = OUTPUTS.get(format, (8, 23))
    if l == 0:
        return 0
    if o is None or l is None:
        return ((1 << exp_bits + 1) - 1) << man_bits - 1
    if not o:
        return 0
    y1, exp = reciprocal(abs(l))
    if format == OutputFormat.RAW:
        x = o * power(-exp)
        if abs(x) < power(-126):
            return 0
    else:
        x = o * y1 * power(-22 - exp)
    return to_float(x, exp_bits, man_bits, negative=o < 0)
