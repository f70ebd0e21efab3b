"""`docs/numerics.md` word for word in Python integers and fractions, one value at a time.

It is slow and shares no arithmetic with `m890.sim.golden`; only tables and formats are common. A
wide float is a Fraction (its 24 bits by construction) or None for NaN.
"""

from fractions import Fraction
from typing import NamedTuple

from m890.hdl.numerics import tables
from m890.hdl.numerics.formats import CODINGS, Format

Wide = Fraction | None
ZERO = Fraction(0)


class Element(NamedTuple):
    sign: int
    sig: int
    exp: int
    nan: bool


def power(exponent: int) -> Fraction:
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


def floor_log2(x: Fraction) -> int:
    """e with 2^e <= x < 2^(e + 1), x > 0."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if power(e) <= x else e - 1


def rne(x: Fraction) -> int:
    """The nearest integer, ties to even (Python's own rule for fractions)."""
    return round(x)


def to_bits(x: Wide, bits: int) -> Wide:
    """RNE to a significand of `bits` bits."""
    if x is None or x == 0:
        return x
    unit = power(floor_log2(abs(x)) - bits + 1)
    return rne(x / unit) * unit


def wide(x: Wide) -> Wide:
    return to_bits(x, 24)


def add(a: Wide, b: Wide) -> Wide:
    return None if a is None or b is None else wide(a + b)


def decode(code: int, format: Format) -> Element:
    if format is Format.INT8:
        x = code - 256 if code >= 128 else code
        return Element(int(x < 0), abs(x) << 3, 7, False)
    exp_bits, man_bits, bias, shift = {
        Format.FP16: (5, 10, 15, 0),
        Format.BF16: (8, 7, 127, 3),
        Format.E4M3: (4, 3, 7, 7),
        Format.E5M2: (5, 2, 15, 8),
    }[format]
    sign = code >> (exp_bits + man_bits)
    e = code >> man_bits & ((1 << exp_bits) - 1)
    m = code & ((1 << man_bits) - 1)
    if format is Format.E4M3:
        nan = code in (0x7F, 0xFF)
    else:
        nan = e == (1 << exp_bits) - 1
    if nan:
        return Element(sign, 1024, 0, True)
    if e == 0:
        return Element(sign, m << shift, 1 - bias, False)
    return Element(sign, (m | 1 << man_bits) << shift, e - bias, False)


def ungroup(code: int, scale: int, format: Format) -> int:
    """BF16 bits of a 4-bit code and its E8M0 scale."""
    if scale == 255:
        return 0x7FC0
    if format is Format.INT4:
        x = Fraction(code - 16 if code >= 8 else code)
    else:
        e, m = code >> 1 & 3, code & 1
        x = (1 + Fraction(m, 2)) * power(e - 1) if e else Fraction(m, 2)
        x = -x if code >= 8 else x
    x *= power(scale - 127)
    if abs(x) >= power(128):
        return 0x7FC0
    if abs(x) < power(-126):
        return 0
    exp = floor_log2(abs(x))
    return (exp + 127) << 7 | int(abs(x) / power(exp - 7)) - 128 | (x < 0) << 15


def decode_scale(code: int) -> Wide:
    """BF16: sign ignored, subnormal 0, Inf and NaN NaN."""
    e, m = code >> 7 & 0xFF, code & 0x7F
    if e == 255:
        return None
    return ZERO if e == 0 else Fraction(128 + m, 128) * power(e - 127)


def decode_float(code: int, format: Format) -> float | Fraction:
    """A bias: a fraction, or float inf, -inf, nan."""
    exp_bits, man_bits = (5, 10) if format is Format.FP16 else (8, 7)
    e = code >> man_bits & ((1 << exp_bits) - 1)
    if e == (1 << exp_bits) - 1:
        if code & ((1 << man_bits) - 1):
            return float("nan")
        return float("-inf") if code >> 15 else float("inf")
    element = decode(code, format)
    return (-1) ** element.sign * element.sig * power(element.exp - 10)


def dot(a: list[Element], b: list[Element]) -> Wide:
    active = [(x, y) for x, y in zip(a, b, strict=True) if x.sig and y.sig]
    if any(x.nan or y.nan for x, y in active):
        return None
    if not active:
        return ZERO
    emax = max(x.exp + y.exp for x, y in active)
    total = 0
    for x, y in active:
        product = x.sig * y.sig
        m = (product << 2) >> (emax - x.exp - y.exp)
        total += -m if x.sign ^ y.sign else m
    return wide(total * power(emax - 22))


def scale(s: Wide, code: int) -> Wide:
    k = decode_scale(code)
    return None if s is None or k is None else wide(s * k)


def soft_cap(s: Wide, c: Fraction, inverse: Fraction) -> Wide:
    """c and inverse as they count: zero unless normal."""
    if s is None or c == 0:
        return s
    x = wide(s * inverse)
    assert x is not None
    u = min(int(abs(x) * 2**20), 8 * 2**20 - 1)
    i, r = u >> 16, u & 0xFFFF
    t = (
        tables.TANH_C0[i]
        + ((tables.TANH_C1[i] * r) >> 16)
        + ((tables.TANH_C2[i] * ((r * r) >> 16)) >> 16)
    )
    t = min(max(t, 0), 2**22)
    sign = (x > 0) - (x < 0)
    return wide(sign * t * power(-22) * c)


def exp2(s: Wide) -> tuple[Element, str]:
    """(p, event): event is "", "overflow", "underflow" or "invalid"."""
    if s is None:
        return Element(0, 1024, 0, True), "invalid"
    t, event = (s * 2**16).__floor__(), ""
    if s >= 3840:
        t, event = 3840 * 2**16 - 1, "overflow"
    if s < -3840:
        return Element(0, 0, 0, False), "underflow"
    n, f = t >> 16, t & 0xFFFF
    i, r = f >> 10, f & 0x3FF
    m = tables.EXP2_BASE[i] + ((tables.EXP2_SLOPE[i] * r) >> 10)
    sig = rne(Fraction(m, 128))
    if sig == 1 << 11:
        sig, n = 1024, n + 1
    return Element(0, sig, n, False), event


def value(p: Element) -> Wide:
    return None if p.nan else (-1) ** p.sign * p.sig * power(p.exp - 10)


def scale_p(p: Element, code: int) -> Element:
    v = decode_scale(code)
    if p.sig == 0 or v == 0:
        return Element(0, 0, 0, False)
    if p.nan or v is None:
        return Element(0, 1024, 0, True)
    pv = to_bits(p.sig * power(p.exp - 10) * v, 11)
    assert pv is not None
    exp = floor_log2(pv)
    return Element(0, int(pv / power(exp - 10)), exp, False)


def sum_slots(slots: list[Wide]) -> Wide:
    four = [add(slots[i], slots[i + 4]) for i in range(4)]
    two = [add(four[i], four[i + 2]) for i in range(2)]
    return add(two[0], two[1])


FLOATS = {"BF16": (8, 7, 0x7FC0), "FP16": (5, 10, 0x7E00), "FP32": (8, 23, 0x7FC00000)}


def to_float(x: Fraction, exp_bits: int, man_bits: int, negative: bool) -> int:
    """Bits of an IEEE format: RNE once, gradual underflow, overflow to Inf."""
    bias = 2 ** (exp_bits - 1) - 1
    sign = int(negative) << (exp_bits + man_bits)
    x = abs(x)
    if x == 0:
        return sign
    e = max(floor_log2(x), 1 - bias)
    m = rne(x / power(e - man_bits))
    if m == 1 << (man_bits + 1):
        m, e = m >> 1, e + 1
    if e > bias:
        return sign | (2**exp_bits - 1) << man_bits
    if m < 1 << man_bits:
        return sign | m
    return sign | (e + bias) << man_bits | (m - (1 << man_bits))


def output(total: Wide, o: Wide, kind: str) -> int:
    exp_bits, man_bits, nan = FLOATS[kind]
    if total == 0:
        return 0
    if total is None or o is None:
        return nan
    exp = floor_log2(total)
    sig = int(total / power(exp - 23))
    y0 = tables.RECIPROCAL[sig >> 15 & 0xFF]
    d = (2**35 - y0 * sig) >> 14
    y1 = (y0 * d) >> 9
    return to_float(o * y1 * power(-22 - exp), exp_bits, man_bits, o < 0)


def from_fp32(bits: int) -> Wide:
    """FP32 of a raw state or a sink: subnormal is zero, Inf is NaN."""
    e, m = bits >> 23 & 0xFF, bits & 0x7FFFFF
    if e == 255:
        return None
    return ZERO if e == 0 else (-1) ** (bits >> 31) * (2**23 + m) * power(e - 150)


def read_raw(exponent: int, bits: int) -> tuple[Wide, str]:
    x = from_fp32(bits)
    if x is None or x == 0:
        return x, ""
    exp = exponent + floor_log2(abs(x))
    if exp > 4000:
        return None, "overflow"
    if exp < -4000:
        return ZERO, "underflow"
    return x * power(exponent), ""


def raw(total: Wide, o: list[Wide]) -> tuple[int, int, list[int]]:
    """(E, bits of l, bits of O)."""
    if total == 0:
        return 0, 0, [0] * len(o)
    if total is None:
        return 0, 0x7FC00000, [0x7FC00000] * len(o)
    exp = floor_log2(total)

    def fp32(x: Wide) -> int:
        if x is None:
            return 0x7FC00000
        x *= power(-exp)
        return 0 if abs(x) < power(-126) else to_float(x, 8, 23, x < 0)

    return exp, fp32(total), [fp32(x) for x in o]


def append(
    row: list[int], source: Format, format: Format
) -> tuple[list[int], int | list[int] | None, bool]:
    """(codes; scale, scales of the groups, or None; QUANTISE)."""
    finite = [decode(c, source) for c in row]
    special = any(e.nan for e in finite)
    if CODINGS[format].grouped:
        codes, scales = [], []
        for at in range(0, len(row), 32):
            some, scale = _append_group(row[at : at + 32], source, format)
            codes += some
            scales.append(scale)
        return codes, scales, special
    if not CODINGS[format].scaled:
        out = [_append_plain(c, source, format) for c in row]
        return [c for c, _ in out], None, any(flag for _, flag in out)
    amax = max((e.sig * power(e.exp - 10) for e in finite if not e.nan), default=ZERO)
    qmax = {Format.INT8: 127, Format.E4M3: 448, Format.E5M2: 57344}[format]
    k = {Format.INT8: 6, Format.E4M3: 8, Format.E5M2: 15}[format]
    c = -((-(2**17) * 2**k) // qmax)
    exp, m = 0, 0
    if amax:
        aexp = floor_log2(amax)
        asig = int(amax / power(aexp - 10))
        product = asig * c
        drop = product.bit_length() - 8
        top = -((-product) >> drop)
        s = top * power(drop + aexp - 10 - 17 - k)
        exp = floor_log2(s)
        m = int(s / power(exp - 7)) - 128
        if exp < -126:
            exp, m = -126, 0
    inverse = rne(Fraction(2**16 * 128, 128 + m))
    codes = []
    for code, e in zip(row, finite, strict=True):
        bits = {Format.FP16: 10, Format.BF16: 7}[source]
        if e.nan and code & ((1 << bits) - 1):
            codes.append({Format.INT8: 0, Format.E4M3: 0x7F, Format.E5M2: 0x7E}[format])
            continue
        q = qmax * ONE if e.nan else e.sig * power(e.exp - 10) * inverse * power(-16 - exp)
        codes.append(_quantise(q, e.sign, format, qmax))
    return codes, (exp + 127) << 7 | m, special


ONE = Fraction(1)


def _append_group(row: list[int], source: Format, format: Format) -> tuple[list[int], int]:
    """Codes of up to 32 features and their E8M0 scale."""
    elements = [decode(c, source) for c in row]
    amax = max((e.sig * power(e.exp - 10) for e in elements if not e.nan), default=ZERO)
    scale = 127
    if amax:
        top = floor_log2(amax)
        scale = top - 2 + 127
        if format is Format.MXFP4 and amax >= Fraction(7, 4) * power(top):
            scale += 1
        scale = min(max(scale, 2), 252)
    qmax = 7 if format is Format.INT4 else 6
    mantissa = (1 << {Format.FP16: 10, Format.BF16: 7}[source]) - 1
    codes = []
    for code, e in zip(row, elements, strict=True):
        if e.nan and code & mantissa:
            codes.append(0)
            continue
        q = qmax * ONE if e.nan else e.sig * power(e.exp - 10) / power(scale - 127)
        if format is Format.INT4:
            n = min(rne(q), qmax)
            codes.append((-n if e.sign else n) & 15)
        else:
            grid = [ZERO, ONE / 2, ONE, ONE * 3 / 2, 2 * ONE, 3 * ONE, 4 * ONE, 6 * ONE]
            # Ties go to the even code: its last mantissa bit is 0.
            best = min(range(8), key=lambda n: (abs(grid[n] - q), n & 1))
            codes.append(best | e.sign << 3)
    return codes, scale


def _quantise(q: Fraction, sign: int, format: Format, qmax: int) -> int:
    if format is Format.INT8:
        n = min(rne(q), qmax)
        return (-n if sign else n) & 0xFF
    coding = CODINGS[format]
    least = 1 - coding.bias
    e = max(floor_log2(q), least) if q else least
    rounded = min(rne(q / power(e - coding.man_bits)) * power(e - coding.man_bits), qmax * ONE)
    for code in range(0x7F):
        element = decode(code, format)
        if not element.nan and element.sig * power(element.exp - 10) == rounded:
            return code | sign << 7
    raise AssertionError(f"{rounded} is no value of {format.name}")


def _append_plain(code: int, source: Format, format: Format) -> tuple[int, bool]:
    element = decode(code, source)
    exp_bits, man_bits, nan = FLOATS[format.name]
    source_bits = FLOATS[source.name][1]
    largest = ((2**exp_bits - 1) << man_bits) - 1
    if element.nan:
        if code & ((1 << source_bits) - 1):
            return nan, True
        return element.sign << 15 | largest, True
    if source is format:
        return code, False
    x = element.sig * power(element.exp - 10)
    bits = to_float(x, exp_bits, man_bits, bool(element.sign))
    if bits & 0x7FFF > largest:
        return element.sign << 15 | largest, True
    return bits, False
