"""The pages of an APPEND, of whatever number, by induction over its steps, in a small instance."""

import pytest

from m890.hdl.pages import prepare
from m890.testbench.formal.page_append import (
    BEGIN,
    CYCLES,
    EACH,
    GOES_ON,
    MORE,
    PAST,
    ROOM,
    START,
    AppendPart,
)
from m890.testbench.formal.page_machine import READABLE
from m890.testbench.formal.page_parts import page_manager
from m890.testbench.formal.page_state import ALONE, PIN_BITS, REFERENCE_BITS, REFERENCES
from m890.testbench.formal.small import few_bits
from m890.testbench.formal_runner import prove

pytestmark = [pytest.mark.formal, pytest.mark.soak]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    few_bits(monkeypatch, REFERENCE_BITS, PIN_BITS)


@pytest.mark.parametrize("part", CYCLES)
def test_a_part_of_an_append_leads_to_the_next(part):
    proof = prove(
        AppendPart(part), depth=CYCLES[part], anything=START, only_last=True, timeout=1800
    )
    assert proof, proof


TWINS = {
    "it asks for no room for copies": (
        BEGIN, "f.room(shared + missing,", "f.room(missing,", ROOM
    ),
    "it copies its first page only": (
        BEGIN, "at.eq(first), stop.eq(there)", "at.eq(first), stop.eq(first + 1)", PAST
    ),
    "it keeps its reference to a page that it copied": (
        EACH, 'f.operate(Op.DROP, "PREPARE DROPPED"', 'f.operate(Op.LOOK, "PREPARE DROPPED"',
        REFERENCES,
    ),
    "it leaves the page that it copied in the table": (
        EACH, 'f.entry(address, f.page, "PREPARE ENTERED")',
        'f.entry(address, old, "PREPARE ENTERED")', READABLE,
    ),
    "it takes an entry that memory refused for written": (
        EACH, 'f.walk(address, Const(1), Op.LOOK, one.tenant, "PREPARE READ")', "pass", REFERENCES
    ),
    "it copies the same page again": (
        EACH, "at.eq(at + 1), shared.eq(shared - 1)", "shared.eq(shared - 1)", GOES_ON
    ),
    "it counts a page whose entry memory refused": (
        MORE, 'm.next = "PREPARE UNDO"\n            with m.Else():',
        "m.d.sync += one.pages.eq(one.pages + 1)\n            with m.Else():", REFERENCES,
    ),
    "it loses the pages that it has if it is given no more": (
        MORE, "with m.If(at == one.pages):", "with m.If(at != one.pages):", REFERENCES
    ),
    "it takes later pages for its own": (
        MORE, "with m.If(past >= one.shared):", "with m.If(past != 0):", ALONE
    ),
}  # fmt: skip
"""A part, one line of it changed, and what then does not hold."""


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_append_is_found(twin):
    part, old, new, message = TWINS[twin]
    unit = page_manager(prepare, (old, new))
    proof = prove(
        AppendPart(part, unit, message), depth=CYCLES[part], anything=START, only_last=True,
        timeout=1800,
    )  # fmt: skip
    assert message in proof.broken, proof
