"""Parts of proofs: rules of streams, counting, following one payload out of many."""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Assert, Assume, Const, Module, Mux, Signal, Value

COUNT = 5
"""Bits of the counters of proofs: no proof runs for more than 31 cycles."""
FALLS, STAYS = "valid does not fall", "the payload stays"


def checks(only: str) -> Callable[[Value, str], Any]:
    """What makes assertions, in their callers' lines; with `only`, of that name and no others.

    A twin is refuted by the assertion that it is to break, not by one that breaks earlier.
    """

    def check(holds: Value, message: str) -> Any:
        return Assert(holds if only in ("", message) else Const(1), message, src_loc_at=1)

    return check


def keeps_rules(
    m: Module,
    valid: Value,
    ready: Value,
    payload: Value,
    what: str,
    check: Callable[..., Any] = Assert,
) -> None:
    """valid never falls and the payload never changes before the transfer.

    The messages do not say `what`: a proof names assertions by the line they are written in.
    """
    waiting, held = Signal(name=f"{what}_waiting"), Signal(len(payload), name=f"{what}_held")
    m.d.sync += [waiting.eq(valid & ~ready), held.eq(payload)]
    with m.If(waiting):
        m.d.comb += [
            check(valid, FALLS),
            check(payload == held, STAYS),
        ]


def source_keeps_rules(m: Module, stream: Any, what: str) -> None:
    """As assumption, of a source that the proof plays."""
    keeps_rules(m, stream.valid, stream.ready, Value.cast(stream.payload), what, Assume)


def count(m: Module, event: Value, name: str) -> Signal:
    """How often `event` was true in earlier cycles."""
    total = Signal(COUNT, name=name)
    m.d.sync += total.eq(total + Mux(event, 1, 0))
    return total


def catch(m: Module, event: Value, number: Value, which: Value, value: Value, name: str) -> Signal:
    """`value` at the `which`-th event; `number` counts events before this cycle."""
    caught = Signal(len(value), name=name)
    with m.If(event & (number == which)):
        m.d.sync += caught.eq(value)
    return caught
