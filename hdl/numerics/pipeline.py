"""Helpers of the fixed-latency units: delays, look-up tables, normalisation, rounding.

A unit takes an operand in every cycle and gives its result `latency` cycles later, without
handshake: the parent delays its own valid bit. Data registers have no reset, valid bits need one.
"""

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, ShapeLike, Signal, Value


def delay(m: Module, value: Any, cycles: int, *, name: str = "late", reset: bool = False) -> Any:
    """`value` (a value or a view) `cycles` cycles later.

    `reset` clears the registers at reset: for valid bits. Data is left without.
    """
    for n in range(cycles):
        late = Signal(value.shape(), name=f"{name}_{n + 1}", reset_less=not reset)
        m.d.sync += late.eq(value)
        value = late
    return value


def bundle(shape: ShapeLike, *, name: str) -> Any:
    """A signal of a struct's shape, typed so that its fields are known to exist."""
    return Signal(shape, name=name)


def register(m: Module, value: Any, shape: ShapeLike | None = None, *, name: str) -> Any:
    """`value` one cycle later, cut or extended to `shape` where one is given."""
    late = Signal(value.shape() if shape is None else shape, name=name, reset_less=True)
    m.d.sync += late.eq(value)
    return late


def registers(m: Module, suffix: str, **values: Any) -> Any:
    """Several values one cycle later, in order; their names get `suffix`."""
    return tuple(register(m, value, name=name + suffix) for name, value in values.items())


def wire(m: Module, value: Value, *, name: str) -> Signal:
    """`value` with a name: Amaranth writes an expression out again at each of its uses."""
    named = Signal(value.shape(), name=name)
    m.d.comb += named.eq(value)
    return named


def lookup(m: Module, index: Value, table: Sequence[int], shape: ShapeLike, *, name: str) -> Signal:
    """`table[index]`, combinational: a logic table that any technology maps."""
    if len(table) != 1 << len(index):
        raise ValueError(f"{name} has {len(table)} entries, its index {len(index)} bits")
    word = Signal(shape, name=name)
    with m.Switch(index):
        for n, entry in enumerate(table):
            with m.Case(n):
                m.d.comb += word.eq(entry)
    return word


def largest(m: Module, values: Sequence[Value], *, name: str) -> Value:
    """The largest of values (a power of two of them), in comparisons two by two."""
    level = 0
    while len(values) > 1:
        level += 1
        values = [
            wire(m, Mux(low < high, high, low), name=f"{name}_{level}_{n}")
            for n, (low, high) in enumerate(zip(values[::2], values[1::2], strict=True))
        ]
    return values[0]


def shift_left_to_top(
    m: Module, value: Value, steps: Sequence[int], *, name: str
) -> tuple[Value, Value]:
    """`value` shifted left until its top bit is set, and the shift, one power of two per step.

    Steps descend; each tests whether that many top bits are zero. A caller that splits `steps` over
    two stages joins the parts of the shift with Cat, lower part first. Zero stays zero.
    """
    bits = len(value)
    shift = []
    for step in steps:
        clear = wire(m, ~value[max(bits - step, 0) :].any(), name=f"{name}_clear{step}")
        shift.append(clear)
        value = wire(m, Mux(clear, (value << step)[:bits], value), name=f"{name}_by{step}")
    return value, Cat(*reversed(shift))


def shift_right_sticky(value: Value, amount: Value) -> tuple[Value, Value]:
    """`value >> amount` and whether any bit that fell out was set. Both should be signals."""
    ones = Const((1 << len(value)) - 1, len(value))
    return value >> amount, (value & ~(ones << amount)[: len(value)]).any()


def nearest_even(m: Module, value: Value, drop: int, *, name: str) -> Value:
    """`value / 2^drop` rounded to nearest, ties to even; one bit longer than what is kept."""
    if drop == 0:
        return Cat(value, Const(0, 1))
    rounded = value[drop:] + (value[drop - 1] & (value[: drop - 1].any() | value[drop]))
    return wire(m, rounded, name=name)
