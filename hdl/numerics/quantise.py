"""Append's arithmetic: the scale of a row from its largest magnitude, and its elements' codes."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.numerics.decode import decode16
from m890.hdl.numerics.formats import (
    CODINGS,
    ELEMENT_EXP_BITS,
    GROUP,
    SIG_BITS,
    Coding,
    Format,
)
from m890.hdl.numerics.pipeline import delay, lookup, register, shift_left_to_top
from m890.hdl.numerics.rounding import STAGES, round_to, target
from m890.hdl.numerics.tables import (
    GROUP_MAX_EXP,
    GROUP_SCALES,
    GROUP_UP,
    SCALE_INVERSE,
    SCALE_INVERSE_UNIT_BITS,
    SCALE_UP,
    SCALE_UP_BITS,
)

SCALE_ONE = 0x3F80
"""BF16 bits of 1: the scale of zeros, and of formats without scales."""
SCALE_EXP_BITS = ELEMENT_EXP_BITS + 1
"""Exponent of a scale before it is clamped."""


def beat_groups(lanes: int) -> int:
    """Groups of features with scales of their own in a beat of `lanes`: 1 or more."""
    return max(1, lanes // GROUP)


def finite_magnitude(raw: Value, is_fp16: Value) -> Value:
    """Magnitude bits of a 16-bit float, zero for Inf and NaN: their order is that of numbers."""
    special = Mux(is_fp16, raw[10:15].all(), raw[7:15].all())
    return Mux(special, 0, raw[:15])


def _normal(m: Module, raw: Value, is_fp16: Value, *, name: str) -> tuple[Value, Value]:
    """Normalised significand and exponent of a 16-bit float, after two registers."""
    element = decode16(m, raw, is_fp16, name=f"{name}_element")
    sig = register(m, element.sig, name=f"{name}_sig")
    exp = register(m, element.exp, name=f"{name}_exp")
    normal, shift = shift_left_to_top(m, sig, (8, 4, 2, 1), name=f"{name}_shift")
    return (
        register(m, normal, name=f"{name}_normal"),
        register(m, exp - shift, signed(SCALE_EXP_BITS), name=f"{name}_normal_exp"),
    )


class RowScale(wiring.Component):
    """Scale of an appended row.

    Function
        docs/numerics.md, "Append": amax / qmax of the format, rounded up to BF16; in formats with
        E8M0 scales the group's power of two; 1 where amax is zero or the format has no scale.
    Members
        amax : In(15). The largest `finite_magnitude` of the row, or of the group.
        is_fp16 : In. The source's format: FP16, else BF16.
        format : In(4). The plane's format (Format).
        scale : Out(16). BF16 bits, `latency` cycles later; an E8M0 scale is its exponent field.
    Latency
        5: decode | normalise | multiply | round up | limit.
    Throughput
        One row per cycle.
    """

    amax: Signal
    is_fp16: Signal
    format: Signal
    scale: Signal
    latency = 5

    def __init__(self) -> None:
        super().__init__(
            {"amax": In(15), "is_fp16": In(1), "format": In(4), "scale": Out(16)},
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sig, exp = _normal(m, Cat(self.amax, C(0, 1)), self.is_fp16, name="amax")
        format = delay(m, self.format, 2, name="format")

        multiplier, shift = Signal(SCALE_UP_BITS), Signal(4)
        scaled = Signal()
        with m.Switch(format):
            for code, up in SCALE_UP.items():
                with m.Case(code):
                    m.d.comb += [
                        multiplier.eq(up.multiplier),
                        shift.eq(up.shift),
                        scaled.eq(1),
                    ]
        group, grouped = self._group(m, sig, exp, format)
        product = register(m, sig * multiplier, name="product")
        exp = register(m, exp - shift, signed(SCALE_EXP_BITS), name="exp")
        unit = register(m, ~(scaled | grouped) | ~sig.any(), name="unit")
        group = delay(m, register(m, group, name="group"), 1, name="group")
        grouped = delay(m, register(m, grouped, name="grouped"), 1, name="grouped")

        # Normalised factors: the product has one leading zero at most. Up: any bit below counts.
        top = len(product) - 1
        normal, _ = shift_left_to_top(m, product, (1,), name="normal")
        eight = register(m, normal[-8:] + normal[:-8].any(), name="eight")
        # amax = sig 2^(exp - 10), multiplier in units of 2^-17: the top bit weighs 2^exp.
        exp = register(m, exp + product[top] - 1, signed(SCALE_EXP_BITS), name="exp_late")
        unit = register(m, unit, name="unit_late")

        carry = eight[8]
        biased = exp + carry + 127
        mantissa = Mux(carry, 0, eight[:7])
        word = Mux(biased < 1, Cat(C(0, 7), C(1, 8)), Cat(mantissa, biased[:8]))
        m.d.sync += self.scale.eq(Mux(unit, SCALE_ONE, Mux(grouped, Cat(C(0, 7), group), word)))
        return m

    @staticmethod
    def _group(m: Module, sig: Value, exp: Value, format: Value) -> tuple[Signal, Signal]:
        """E8M0 scale of a group whose largest magnitude this is; whether the format has such."""
        double, grouped = Signal(), Signal()
        with m.Switch(format):
            for code, least in GROUP_UP.items():
                with m.Case(code):
                    m.d.comb += [grouped.eq(1), double.eq(sig >= least)]
        least, most = GROUP_SCALES
        field = Signal(signed(SCALE_EXP_BITS + 1))
        m.d.comb += field.eq(exp + double + 127 - GROUP_MAX_EXP)
        scale = Signal(8, name="group_scale")
        m.d.comb += scale.eq(Mux(field < least, least, Mux(field > most, most, field[:8])))
        return scale, grouped


class QuantiseLane(wiring.Component):
    """Code of one element; `Quantise` has `lanes` of them.

    Function
        x times the reciprocal of the scale, RNE to the format, saturated: docs/numerics.md,
        "Append".
    Members
        raw, is_fp16, format : In. As for Quantise.
        inverse, exp : In. SCALE_INVERSE of the scale and its exponent, two cycles after `raw`.
        code : Out(16). event : Out. `latency` cycles after `raw`.
    Latency
        8: decode | normalise | multiply | normalise | distance | align | round | limit.
    """

    raw: Signal
    is_fp16: Signal
    format: Signal
    inverse: Signal
    exp: Signal
    code: Signal
    event: Signal
    latency = 5 + STAGES

    def __init__(self) -> None:
        super().__init__(
            {
                "raw": In(16),
                "is_fp16": In(1),
                "format": In(4),
                "inverse": In(SCALE_INVERSE_UNIT_BITS + 1),
                "exp": In(signed(ELEMENT_EXP_BITS)),
                "code": Out(16),
                "event": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        raw, is_fp16 = self.raw, self.is_fp16
        special = Mux(is_fp16, raw[10:15].all(), raw[7:15].all())
        nan = special & Mux(is_fp16, raw[:10].any(), raw[:7].any())
        sig, exp = _normal(m, raw, is_fp16, name="x")

        product = register(m, sig * self.inverse, name="product")
        exp = register(m, exp - self.exp, signed(SCALE_EXP_BITS + 1), name="product_exp")
        # inverse is in (2^15, 2^16]: the product is below 2^27, with one leading zero at most.
        product = product[: SIG_BITS + SCALE_INVERSE_UNIT_BITS]
        top = len(product) - 1
        normal, _ = shift_left_to_top(m, product, (1,), name="normal")
        keep = SIG_BITS + 1
        rounding = register(m, Cat(normal[:-keep].any(), normal[-keep:]), name="rounding")
        # inverse's 2^16 stands for one, and weighs the product's top bit.
        exp = register(m, exp + product[top] - 1, signed(SCALE_EXP_BITS + 1), name="rounding_exp")

        format = delay(m, self.format, 4, name="format")
        code, _ = round_to(m, rounding, exp, format, {f: target(f) for f in CODINGS})
        since = self.latency - 1
        format = delay(m, format, STAGES, name="format_late")
        special = delay(m, special, since, name="special")
        nan = delay(m, nan, since, name="nan")
        sign = delay(m, raw[15], since, name="sign")
        with m.Switch(format):
            for f, coding in CODINGS.items():
                if f != Format.BF16:
                    with m.Case(f):
                        m.d.sync += self._limit(coding, code, sign, special, nan)
            with m.Default():
                m.d.sync += self._limit(CODINGS[Format.BF16], code, sign, special, nan)
        return m

    def _limit(self, coding: Coding, code: Value, sign: Value, special: Value, nan: Value) -> list:
        """The stored code from the rounded magnitude, and the QUANTISE event."""
        largest = _largest(coding)
        beyond = code > largest
        magnitude = Mux(beyond | special, largest, code)[: coding.bits - 1]
        if coding.exp_bits:
            word = Mux(nan, _quiet(coding), Cat(magnitude, sign))
        else:
            word = Mux(nan, 0, Mux(sign, -magnitude, magnitude)[: coding.bits])
        # Where there are scales, what is beyond was rounded there, or its format wants it so.
        event = special | beyond if coding.qmax is None else special
        return [self.code.eq(word), self.event.eq(event)]


class Quantise(wiring.Component):
    """Codes of `lanes` elements of an appended row that share a scale.

    Function
        docs/numerics.md, "Append": x / scale through the reciprocal table, RNE to the format,
        saturated.
    Members
        raw : In(lanes x 16). Elements as BF16 or FP16 bits.
        is_fp16 : In. Format of `raw`.
        scale : In(16). The scale of the row, or of the elements' group, as BF16 bits (RowScale).
        format : In(4). The plane's format (Format). All inputs travel together.
        codes : Out(lanes x 16), `latency` cycles later. Narrow formats in the low bits.
        event : Out. An element was not finite, or beyond a format without scales (QUANTISE).
    Latency
        8, see QuantiseLane.
    Throughput
        `lanes` elements per cycle.
    Storage
        A logic table of 128 x 17 bits.
    """

    raw: data.View
    is_fp16: Signal
    scale: Signal
    format: Signal
    codes: data.View
    event: Signal
    latency = QuantiseLane.latency

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(
            {
                "raw": In(data.ArrayLayout(16, lanes)),
                "is_fp16": In(1),
                "scale": In(16),
                "format": In(4),
                "codes": Out(data.ArrayLayout(16, lanes)),
                "event": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word = lookup(
            m, self.scale[:7], SCALE_INVERSE, SCALE_INVERSE_UNIT_BITS + 1, name="inverse"
        )
        inverse = delay(m, word, 2, name="inverse_late")
        exp = delay(m, self.scale[7:15], 2, name="exp_late") - 127
        events = []
        for n in range(self.lanes):
            lane = m.submodules[f"lane{n}"] = QuantiseLane()
            m.d.comb += [
                lane.raw.eq(self.raw[n]),
                lane.is_fp16.eq(self.is_fp16),
                lane.format.eq(self.format),
                lane.inverse.eq(inverse),
                lane.exp.eq(exp),
                self.codes[n].eq(lane.code),
            ]
            events.append(lane.event)
        m.d.comb += self.event.eq(Cat(*events).any())
        return m


def _largest(coding: Coding) -> int:
    """The largest finite magnitude code."""
    if not coding.exp_bits:
        return coding.qmax or 0
    codes = (1 << coding.exp_bits + coding.man_bits) - 1
    return codes - {"none": 0, "fn": 1, "ieee": 1 << coding.man_bits}[coding.specials]


def _quiet(coding: Coding) -> int:
    """The canonical quiet NaN; zero where there is none."""
    if coding.specials == "none":
        return 0
    codes = (1 << coding.exp_bits + coding.man_bits) - 1
    if coding.specials == "fn":
        return codes
    return codes - (1 << coding.man_bits) + 1 + (1 << coding.man_bits - 1)
