"""The page manager's commands, by induction over commands in a small instance."""

import pytest

from m890.hdl.commands import Opcode
from m890.hdl.pages import commands, manager
from m890.testbench.formal.page_machine import (
    ENDS,
    INSIDE,
    REFUSED,
    SETS,
    START,
    TAKEN,
    TELLS,
    WITHIN,
    PageMachine,
)
from m890.testbench.formal.page_parts import page_manager
from m890.testbench.formal.page_state import (
    ALONE,
    KEPT,
    PIN_BITS,
    REACHED,
    REFERENCE_BITS,
    REFERENCES,
    SIZES,
)
from m890.testbench.formal.small import few_bits
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
CYCLES = {
    Opcode.RELEASE: 24,
    Opcode.QUERY: 16,
    Opcode.QUOTA: 17,
    Opcode.TRIM: 24,
    Opcode.CREATE: 30,
    Opcode.PIN: 24,
    Opcode.UNPIN: 26,
    Opcode.FORK: 56,
}
"""Cycles until the longest run of a command is over, where memory answers at once."""
LONG = {
    "COPY outward": (Opcode.COPY, 40, {"inward": 0}),
    "COPY of blank pages": (Opcode.COPY, 60, {"inward": 1, "blank": 1}),
    "COPY inward": (Opcode.COPY, 70, {"inward": 1, "blank": 0}),
}
"""A part of what a command may do, its cycles, and fields that are given."""
QUICK = (Opcode.RELEASE, Opcode.QUERY, Opcode.QUOTA)
"""Commands whose proofs take seconds."""
NEAR = tuple(o for o in CYCLES if CYCLES[o] <= 30)
"""Commands whose twins are refuted in seconds."""
TIMEOUT = 1800
"""Seconds until a proof is given up: ten times what the longest takes."""


@pytest.fixture(autouse=True)
def few(monkeypatch):
    few_bits(monkeypatch, REFERENCE_BITS, PIN_BITS)


def marks(opcode, quick=QUICK):
    return () if opcode in quick else pytest.mark.soak


@pytest.mark.parametrize("opcode", [pytest.param(o, id=o.name, marks=marks(o)) for o in CYCLES])
def test_a_command_keeps_what_holds_between_commands(opcode):
    proof = prove(
        PageMachine(opcode), depth=CYCLES[opcode], anything=START, only_last=True, timeout=TIMEOUT
    )
    assert proof, proof


@pytest.mark.soak
@pytest.mark.parametrize("part", LONG)
def test_a_long_command_keeps_what_holds_between_commands(part):
    opcode, cycles, fields = LONG[part]
    machine = PageMachine(opcode, fields=fields)
    proof = prove(machine, depth=cycles, anything=START, only_last=True, timeout=TIMEOUT)
    assert proof, proof


TWINS = {
    "RELEASE forgets a reference": (
        Opcode.RELEASE, commands, 'self._again(Op.DROP, "GIVEN UP")',
        'self._again(Op.LOOK, "GIVEN UP")', REFERENCES,
    ),
    "pages given up are not freed": (
        Opcode.RELEASE, commands, 'self._insist(Op.COLLECT, "COLLECT",',
        'self._insist(Op.LOOK, "COLLECT",', KEPT,
    ),
    "what memory refuses is left as it is": (
        Opcode.RELEASE, commands, "with m.If(~refused | ~self.drop):", "with m.If(~refused):", KEPT
    ),
    "a sequence is saved in a commit's cycle only": (
        Opcode.RELEASE, manager, "with m.If(~self.commit):", "with m.If(self.commit):", ENDS,
    ),
    "TRIM gives up the pages that it keeps": (
        Opcode.TRIM, commands, "self._drop_behind(keep)",
        "self._drop_behind(Const(0, places_bits(self.config)))", REFERENCES,
    ),
    "TRIM goes on behind its sequence's pages": (
        Opcode.TRIM, commands, "self._remember(at, self.one.pages - keep,",
        "self._remember(at, self.one.pages,", INSIDE,
    ),
    "TRIM keeps pages in mind that it gave up": (
        Opcode.TRIM, commands, "self._change(keep, least(one.shared, keep))",
        "self._change(keep, one.shared)", SIZES,
    ),
    "all of a walk that failed is undone": (
        Opcode.UNPIN, commands, "self.m.d.sync += self._count.eq(walker.index)", "", REFUSED,
    ),
    "PIN does not tell its sequence": (
        Opcode.PIN, commands, "Mux(one.shared < past, past, one.shared)", "one.shared", ALONE
    ),
    "CREATE takes pages that are not pinned": (
        Opcode.CREATE, commands, "f.walk(c.list, count, Op.PINNED,",
        "f.walk(c.list, count, Op.LOOK,", ALONE,
    ),
    "CREATE forgets whom it acts for": (
        Opcode.CREATE, commands, "entry_.tenant.eq(self.tenant)", "entry_.tenant.eq(0)", REACHED
    ),
    "FORK does not tell its source": (
        Opcode.FORK, commands, "Mux(one.shared < self._count, self._count, one.shared)",
        "one.shared", ALONE,
    ),
    "FORK asks for no room": (
        Opcode.FORK, commands, 'f.room(Mux(rest, 1, 0), self.tenant, "FORK ROOM")',
        'f.room(0, self.tenant, "FORK ROOM")', WITHIN,
    ),
    "QUERY tells the quota for what is held": (
        Opcode.QUERY, commands, "Mux(query.what == Query.HELD, counts.held, counts.quota)",
        "counts.quota", TELLS,
    ),
    "QUOTA sets nothing": (
        Opcode.QUOTA, commands, "f.operate(Op.QUOTA,", "f.operate(Op.TENANT,", SETS
    ),
}  # fmt: skip
"""A command, one line of it changed, and what then does not hold."""


@pytest.mark.parametrize("twin", [pytest.param(t, marks=marks(TWINS[t][0], NEAR)) for t in TWINS])
def test_a_broken_command_is_found(twin):
    opcode, module, old, new, message = TWINS[twin]
    machine = PageMachine(opcode, page_manager(module, (old, new)), only=message)
    proof = prove(machine, depth=CYCLES[opcode], anything=START, only_last=True, timeout=TIMEOUT)
    assert message in proof.broken, proof


LONG_TWINS = {
    "COPY takes pages that nobody pins": (
        "COPY of blank pages", commands, '"COPY TAKEN", tenant=self.tenant, pin=1)',
        '"COPY TAKEN", tenant=self.tenant, pin=0)', REFERENCES,
    ),
    "COPY lists the pages that it takes elsewhere": (
        "COPY of blank pages", commands, 'f.entry(here, f.page, "COPY LISTED")',
        'f.entry(there, f.page, "COPY LISTED")', TAKEN,
    ),
    "COPY does not free the pages that it cannot list": (
        "COPY of blank pages", commands, 'm.next = "UNDO COLLECT"', 'm.next = "REPORT"', KEPT
    ),
    "COPY asks for no room": (
        "COPY of blank pages", commands, "f.room(Mux(c.inward, c.count, 0),", "f.room(0,", WITHIN
    ),
    "COPY gives pages up that it reads": (
        "COPY outward", commands, 'f.walk(c.list, c.count, Op.PINNED, self.tenant, "COPY PAGES")',
        'f.walk(c.list, c.count, Op.DROP, self.tenant, "COPY PAGES")', REFERENCES,
    ),
}  # fmt: skip
"""A part of what a command may do, one line of it changed, and what then does not hold."""


@pytest.mark.soak
@pytest.mark.parametrize("twin", LONG_TWINS)
def test_a_broken_long_command_is_found(twin):
    part, module, old, new, message = LONG_TWINS[twin]
    opcode, cycles, fields = LONG[part]
    unit = page_manager(module, (old, new))
    machine = PageMachine(opcode, unit, message, fields=fields)
    proof = prove(machine, depth=cycles, anything=START, only_last=True, timeout=TIMEOUT)
    assert message in proof.broken, proof
