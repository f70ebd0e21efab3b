"""Rounding of an exact number to a storage format, shared by output and append."""

from collections.abc import Mapping
from dataclasses import dataclass

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value

from m890.hdl.numerics.formats import CODINGS, Format
from m890.hdl.numerics.pipeline import delay, register, shift_right_sticky, wire

STAGES = 3
"""Cycles that `round_to` takes."""


@dataclass(frozen=True)
class Target:
    """A format to round to: `man_bits` below the leading one, `least` the lowest normal exponent.

    An integer format is one whose numbers are all subnormal.
    """

    man_bits: int
    least: int
    fields: int  # exponent fields, 0 the subnormal one


FP32 = Target(23, -126, 255)


def target(format: Format) -> Target:
    """How `format` rounds."""
    c = CODINGS[format]
    if not c.exp_bits:
        return Target(c.man_bits, c.man_bits, 1)
    return Target(c.man_bits, 1 - c.bias, (1 << c.exp_bits) - 1)


def round_to(
    m: Module, sig: Value, exp: Value, select: Value, targets: Mapping[int, Target]
) -> tuple[Value, Value]:
    """Magnitude bits of sig x 2^exp in `targets[select]`, RNE with gradual underflow.

    `sig` has its top bit set, which weighs 2^exp, or is zero; its lowest bit is sticky. An unknown
    `select` takes the first target. Returns, STAGES cycles later, the code (beyond the format's
    largest where the number is: the caller saturates) and whether the number was below `least`.
    """
    bits = len(sig)
    widest = max(t.man_bits for t in targets.values())
    drop, least, most = Signal(range(bits)), Signal(range(-128, 128)), Signal(8)
    first = next(iter(targets.values()))
    with m.Switch(select):
        for code, t in targets.items():
            if t is not first:
                with m.Case(code):
                    m.d.comb += _constants(drop, least, most, bits, t)
        with m.Default():
            m.d.comb += _constants(drop, least, most, bits, first)

    above = wire(m, exp - least, name="round_above")
    tiny = wire(m, above < 0, name="round_below")
    depth = wire(m, -above, name="round_depth")
    amount = Mux(tiny, Mux(depth[5:].any(), 31, depth[:5]), 0) + drop
    amount = wire(m, amount, name="round_shift")
    amount = register(m, Mux(amount > 31, 31, amount)[:5], name="round_amount")
    # The exponent field less one: the significand's leading one adds it.
    subnormal = tiny | ~sig[-1]
    field = register(m, Mux(subnormal, 0, Mux(above > most, most, above))[:8], name="round_field")
    tiny = register(m, tiny, name="round_tiny")
    sig = register(m, sig, name="round_sig")

    # One place lower than the format's last bit: the half that decides the rounding.
    shifted, lost = shift_right_sticky(Cat(C(0, 1), sig), amount)
    shifted = wire(m, shifted, name="round_shifted")
    up = register(m, shifted[0] & (lost | shifted[1]), name="round_up")
    whole = register(m, shifted[1 : widest + 2], name="round_whole")
    field = register(m, field, name="round_field_late")

    placed = Signal(widest + 8, name="round_placed")
    with m.Switch(delay(m, select, 2, name="round_select")):
        for code, t in targets.items():
            if t is not first:
                with m.Case(code):
                    m.d.comb += placed.eq(field << t.man_bits)
        with m.Default():
            m.d.comb += placed.eq(field << first.man_bits)
    code = register(m, (placed + whole + up)[: widest + 9], name="round_code")
    return code, delay(m, tiny, STAGES - 1, name="round_tiny")


def _constants(drop: Signal, least: Signal, most: Signal, bits: int, t: Target) -> list:
    return [drop.eq(bits - 1 - t.man_bits), least.eq(t.least), most.eq(t.fields)]
