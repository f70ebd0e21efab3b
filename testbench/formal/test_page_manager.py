"""The page manager's commands, by induction over commands in a small instance."""

import pytest

from m890.hdl.commands import Opcode
from m890.hdl.pages import commands
from m890.testbench.formal.page_machine import (
    ALONE,
    KEPT,
    PIN_BITS,
    REFERENCE_BITS,
    REFERENCES,
    REFUSED,
    START,
    PageMachine,
    page_manager,
)
from m890.testbench.formal.small import few_bits
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
CYCLES = {
    Opcode.RELEASE: 18,
    Opcode.TRIM: 18,
    Opcode.CREATE: 24,
    Opcode.PIN: 18,
    Opcode.UNPIN: 20,
    Opcode.APPEND: 40,
    Opcode.FORK: 48,
}
"""Cycles until the longest run of a command is over, where memory answers at once."""


@pytest.fixture(autouse=True)
def few(monkeypatch):
    few_bits(monkeypatch, REFERENCE_BITS, PIN_BITS)


@pytest.mark.parametrize(
    "opcode",
    [
        pytest.param(o, id=o.name, marks=() if o == Opcode.RELEASE else pytest.mark.soak)
        for o in CYCLES
    ],
)
def test_a_command_keeps_what_holds_between_commands(opcode):
    proof = prove(PageMachine(opcode), depth=CYCLES[opcode], anything=START, only_last=True)
    assert proof, proof


TWINS = {
    "RELEASE forgets a reference": (
        Opcode.RELEASE, commands, 'self._again(Op.DROP, "GIVEN UP")',
        'self._again(Op.LOOK, "GIVEN UP")', REFERENCES,
    ),
    "pages given up are not freed": (
        Opcode.RELEASE, commands, 'self._again(Op.COLLECT, "COLLECTED")',
        'self._again(Op.LOOK, "COLLECTED")', KEPT,
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
}  # fmt: skip
"""A command, one line of it changed, and what then does not hold."""


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_command_is_found(twin):
    opcode, module, old, new, message = TWINS[twin]
    machine = PageMachine(opcode, page_manager(module, (old, new)), only=message)
    proof = prove(machine, depth=CYCLES[opcode], anything=START, only_last=True)
    assert message in proof.broken, proof
