"""Units that stand still while nothing is asked of them."""

from typing import Any

from amaranth.hdl import Cat, EnableInserter, Module, Signal, Value

Gated = Any
"""A unit whose registers have an enable; Amaranth's own type for it is not public."""
LINGER = 4
"""Cycles in which a unit still moves after its last reason to: what it holds comes to rest."""


def sleeps(m: Module, *reasons: Value, linger: int = LINGER) -> Gated:
    """What a unit's `elaborate` returns for `m`, so that its registers and memories stand still.

    The unit is awake in each cycle with one of the `reasons` and for `linger` cycles behind it, and
    after reset. A reason is anything that changes a register of the unit by more than `linger`
    cycles of coming to rest do: an offer that is taken, an answer from memory, a state that moves
    on. A clock gate in silicon; in a simulator, time (docs/decisions/0017).
    """
    stir = Signal()
    m.d.comb += stir.eq(Cat(*(r.bool() for r in reasons)).any())
    if not linger:
        return EnableInserter(stir)(m)
    awake, late = Signal(), Signal(range(linger + 1), init=linger)
    m.d.comb += awake.eq(stir | late.bool())
    with m.If(stir):
        m.d.sync += late.eq(linger)
    with m.Elif(late.bool()):
        m.d.sync += late.eq(late - 1)
    return EnableInserter(awake)(m)
