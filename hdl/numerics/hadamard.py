"""Walsh-Hadamard rotation of 16-bit rows, and the parts that its inverse shares."""

from collections.abc import Sequence

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.numerics.decode import decode16
from m890.hdl.numerics.formats import CODINGS, ELEMENT_EXP_BITS, SIG_BITS, Format
from m890.hdl.numerics.pipeline import (
    bundle,
    delay,
    largest,
    register,
    shift_left_to_top,
    wire,
)
from m890.hdl.numerics.rotation import ROTATE_FRACTION_BITS, signs
from m890.hdl.numerics.rounding import STAGES, round_to, target
from m890.hdl.numerics.types import Element

ROUNDING_BITS = 13
"""Significand ahead of rounding: FP16's 11 bits, a guard bit and a sticky one."""


ALIGN_STAGES = 2
"""Cycles that `aligned` takes."""


def level_stages(values: int) -> int:
    """Cycles of a tree or a transform of `values` (a power of two): two levels in each."""
    return values.bit_length() // 2


def largest_key(m: Module, keys: Sequence[Value], *, name: str) -> Value:
    """The largest of some values, level_stages(len(keys)) cycles later."""
    level = 0
    while len(keys) > 1:
        level += 1
        keys = [
            register(m, largest(m, keys[n : n + 4], name=f"{name}{level}_{n // 4}_of"),
                     name=f"{name}{level}_{n // 4}")
            for n in range(0, len(keys), 4)
        ]  # fmt: skip
    return keys[0]


def transform(m: Module, values: Sequence[Value], *, name: str) -> list[Value]:
    """The transform of signed integers, unnormalised, level_stages(len(values)) cycles later."""
    values, step = list(values), 1
    for level in range(len(values).bit_length() - 1):
        following: list[Value] = []
        for n, value in enumerate(values):
            other = values[n ^ step]
            total = other - value if n & step else value + other
            stored = level % 2 == 1 or 2 * step == len(values)
            place = register if stored else wire
            following.append(place(m, total, name=f"{name}{level}_{n}"))
        values, step = following, 2 * step
    return values


def aligned(m: Module, sig: Value, distance: Value, sign: Value, more: int, *, name: str) -> Signal:
    """+-floor(sig 2^more / 2^distance), ALIGN_STAGES cycles later; negative where `sign` is set."""
    widest = len(sig) + more
    far = widest.bit_length()
    amount = Mux(distance[far:].any(), (1 << far) - 1, distance[:far])
    amount = register(m, amount, name=f"{name}_amount")
    sig, sign = register(m, sig, name=f"{name}_sig"), register(m, sign, name=f"{name}_sign")
    magnitude = wire(m, Cat(C(0, more), sig) >> amount, name=f"{name}_magnitude")
    negated = Mux(sign, -magnitude, magnitude)
    return register(m, negated, signed(widest + 1), name=f"{name}_value")


def magnitude_of(m: Module, value: Value, *, name: str) -> tuple[Signal, Signal]:
    """Magnitude and sign of a signed value, one cycle later."""
    negative = value[-1]
    size = Mux(negative, -value, value)[: len(value) - 1]
    return register(m, size, name=name), register(m, negative, name=f"{name}_sign")


class RotateRound(wiring.Component):
    """One rotated element from its sum; Rotate has `lanes` of them.

    Function
        total x 2^(exp - ROTATE_FRACTION_BITS - shift), RNE to BF16 or FP16, overflow to Inf.
    Members
        total : In(signed). Sum of `lanes` aligned elements. is_fp16, nan : In, with it.
        exp : In(signed). Exponent that the elements are aligned to, one cycle after `total`.
        code : Out(16), `latency` cycles after `total`.
    Latency
        7: magnitude | normalise, twice | distance | align | round | pack.
    """

    total: Signal
    is_fp16: Signal
    nan: Signal
    exp: Signal
    code: Signal
    latency = 4 + STAGES

    def __init__(self, lanes: int, shift: int) -> None:
        self._more = lanes.bit_length() - 1 - shift
        bits = signed(ROTATE_FRACTION_BITS + 1 + lanes.bit_length())
        exp = signed(ELEMENT_EXP_BITS)
        super().__init__(
            {"total": In(bits), "is_fp16": In(1), "nan": In(1), "exp": In(exp), "code": Out(16)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size, sign = magnitude_of(m, self.total, name="size")
        coarse, high = shift_left_to_top(m, size, (16, 8, 4), name="coarse")
        coarse = register(m, coarse, name="normal_coarse")
        high, exp = register(m, high, name="shift_coarse"), register(m, self.exp, name="exp")
        fine, low = shift_left_to_top(m, coarse, (2, 1), name="fine")
        kept = ROUNDING_BITS - 1
        sig = register(m, Cat(fine[:-kept].any(), fine[-kept:]), name="sig")
        # An aligned element's top bit weighs 2^exp; the sum has log2(lanes) bits more.
        exp = register(
            m, exp + self._more - Cat(low, high), signed(ELEMENT_EXP_BITS + 1), name="exp_normal"
        )
        is_fp16 = delay(m, self.is_fp16, 3, name="is_fp16")
        code, _ = round_to(
            m, sig, exp, is_fp16, {1: target(Format.FP16), 0: target(Format.BF16)}
        )  # fmt: skip
        is_fp16 = delay(m, is_fp16, STAGES, name="is_fp16_late")
        nan = delay(m, self.nan, 3 + STAGES, name="nan")
        sign = delay(m, sign, 2 + STAGES, name="sign")
        infinity = wire(m, Mux(is_fp16, _infinity(Format.FP16), _infinity(Format.BF16)), name="inf")
        quiet = Mux(is_fp16, _quiet(Format.FP16), _quiet(Format.BF16))
        limited = Mux(code > infinity, infinity, code)[:15]
        m.d.sync += self.code.eq(Mux(nan, quiet, Cat(limited, sign)))
        return m


class Rotate(wiring.Component):
    """Rotates the `lanes` features of one beat.

    Function
        docs/numerics.md, "Rotation": signs, alignment to the largest exponent, butterflies of
        integers, 2^-shift, RNE to the format that the beat came in.
    Members
        i : In(lanes x 16). Elements as BF16 or FP16 bits. is_fp16 : In, with them.
        o : Out(lanes x 16), `latency` cycles later.
    Latency
        10 + 2 ceil(log2(lanes) / 2): decode | largest exponent, two levels at a time | distance |
        align | butterflies, two levels at a time | RotateRound.
    Throughput
        One beat per cycle.
    Parameters
        shift : `rotation.kv_shift` or `query_shift`.
    Source
        The fast Walsh-Hadamard transform: log2(lanes) levels of butterflies.
    """

    i: data.View
    is_fp16: Signal
    o: data.View

    def __init__(self, lanes: int, shift: int) -> None:
        self._lanes, self._shift = lanes, shift
        layout = data.ArrayLayout(16, lanes)
        super().__init__({"i": In(layout), "is_fp16": In(1), "o": Out(layout)})

    @staticmethod
    def cycles(lanes: int) -> int:
        """The latency for a number of lanes."""
        return 3 + 2 * level_stages(lanes) + RotateRound.latency

    @property
    def latency(self) -> int:
        return self.cycles(self._lanes)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes, levels = self._lanes, level_stages(self._lanes)
        bias = 1 << ELEMENT_EXP_BITS - 2
        elements, keys = [], []
        for n in range(lanes):
            element = bundle(Element, name=f"element{n}")
            m.d.sync += element.eq(decode16(m, self.i[n], self.is_fp16, name=f"decoded{n}"))
            # Zeros have the format's least exponent, so they never are the largest beside others.
            keys.append((element.exp + bias)[: ELEMENT_EXP_BITS - 1])
            elements.append(element)
        top = largest_key(m, keys, name="top")
        nan = delay(m, Cat(e.nan for e in elements).any(), levels, name="nan")
        values = []
        for n, (element, negate) in enumerate(zip(elements, signs(lanes), strict=True)):
            late = delay(m, element, levels, name=f"late{n}")
            distance = wire(m, (top - bias - late.exp)[: ELEMENT_EXP_BITS - 1], name=f"distance{n}")
            values.append(
                aligned(
                    m, late.sig, distance, late.sign ^ negate,
                    ROTATE_FRACTION_BITS + 1 - SIG_BITS, name=f"lane{n}",
                )
            )  # fmt: skip
        sums = transform(m, values, name="level")
        since = ALIGN_STAGES + levels  # from the largest exponent to the sums
        exp = register(
            m, delay(m, top, since, name="top_late") - bias, signed(ELEMENT_EXP_BITS), name="exp"
        )
        nan = delay(m, nan, since, name="nan_late")
        is_fp16 = delay(m, self.is_fp16, 1 + levels + since, name="is_fp16")
        for n, total in enumerate(sums):
            m.submodules[f"round{n}"] = unit = RotateRound(lanes, self._shift)
            m.d.comb += [
                unit.total.eq(total),
                unit.is_fp16.eq(is_fp16),
                unit.nan.eq(nan),
                unit.exp.eq(exp),
                self.o[n].eq(unit.code),
            ]
        return m


def _infinity(format: Format) -> int:
    coding = CODINGS[format]
    return (1 << coding.exp_bits) - 1 << coding.man_bits


def _quiet(format: Format) -> int:
    return _infinity(format) | 1 << CODINGS[format].man_bits - 1


BEAT = ("data_valid", "data", "last", "error")
"""What a ReadPort brings, in every cycle."""


class RotateBeats(wiring.Component):
    """Read data on their way to a requester, rotated where `enable` is set.

    Function
        Rotate per beat; its companions are delayed with it. Without `enable` everything passes.
    Members
        enable, is_fp16 : In. Steady while beats are under way.
        data_valid, data, last, error : In, as of a ReadPort.
        o_valid, o_data, o_last, o_error : Out. The same, later.
    Latency
        Rotate's, or 0 without `enable`.
    Throughput
        One beat per cycle.
    Parameters
        A configuration without `rotation` has no Rotate; `enable` is then ignored.
    """

    enable: Signal
    is_fp16: Signal
    data_valid: Signal
    data: Signal
    last: Signal
    error: Signal
    o_valid: Signal
    o_data: Signal
    o_last: Signal
    o_error: Signal

    def __init__(self, config: CoreConfig, shift: int) -> None:
        self._config, self._shift = config, shift
        beat = {"valid": 1, "data": config.port_bits, "last": 1, "error": 1}
        super().__init__(
            {
                "enable": In(1),
                "is_fp16": In(1),
                **{"data_valid" if n == "valid" else n: In(s) for n, s in beat.items()},
                **{f"o_{n}": Out(s) for n, s in beat.items()},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += [
            self.o_valid.eq(self.data_valid),
            self.o_data.eq(self.data),
            self.o_last.eq(self.last),
            self.o_error.eq(self.error),
        ]
        if not self._config.rotation:
            return m
        m.submodules.rotate = rotate = Rotate(self._config.lanes, self._shift)
        m.d.comb += [
            rotate.i.eq(Mux(self.enable, self.data, 0)),  # nothing toggles where it is not wanted
            rotate.is_fp16.eq(self.is_fp16),
        ]
        late = rotate.latency
        valid = delay(m, self.data_valid & self.enable, late, name="valid", reset=True)
        last = delay(m, self.last, late, name="last")
        error = delay(m, self.error, late, name="error")
        with m.If(self.enable):
            m.d.comb += [
                self.o_valid.eq(valid),
                self.o_data.eq(rotate.o),
                self.o_last.eq(last),
                self.o_error.eq(error),
            ]
        return m
