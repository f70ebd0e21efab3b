"""The model device's page manager: its commands by the reference model, with their cycles."""

from dataclasses import dataclass

from m890.hdl.commands import Error, Opcode
from m890.sim.golden.pages import PageManager, Result
from m890.sim.timing.checks import Failure
from m890.sim.timing.model import PageWork

SHARING = frozenset({Opcode.CREATE, Opcode.FORK, Opcode.PIN})
"""Commands that take a page per cycle, as they only count up."""
MANAGED = frozenset(Opcode) - {
    Opcode.NOP, Opcode.FENCE, Opcode.PLANE, Opcode.APPEND, Opcode.ATTEND
}  # fmt: skip
"""Commands that the page manager carries out."""


@dataclass(frozen=True)
class Managed:
    """Outcome of a command. index, value: of a QUERY, its tenant and its answer."""

    work: PageWork
    failure: Failure | None = None
    index: int = 0
    value: int = 0


class PageUnit:
    """Runs the page manager's commands, and says what they made it do."""

    def __init__(self, manager: PageManager) -> None:
        self.manager, self.config = manager, manager.config

    def run(self, opcode: Opcode, c: dict[str, int]) -> Managed:
        """One command, or of an APPEND what gives it its pages."""
        before, pages = self.manager.copied, self._pages(opcode, c)
        free = len(self.manager.free)
        result = self.manager.run(opcode, c)
        if result.error != Error.OK:
            return Managed(PageWork(), _failure(result))
        if opcode == Opcode.APPEND:
            pages = free - len(self.manager.free)
        work = PageWork(pages, opcode in SHARING, self.manager.copied - before)
        return Managed(work, None, result.index, result.value)

    def _pages(self, opcode: Opcode, c: dict[str, int]) -> int:
        """Pages whose counts the command changes, if it is carried out."""
        size = self.config.page_tokens
        one = self.manager.sequences.get(c.get("sequence", 0))
        held = one.pages if one is not None else 0
        if opcode in (Opcode.CREATE, Opcode.FORK):
            return -(-c["tokens"] // size)
        if opcode == Opcode.TRIM:
            return max(0, held - -(-c["tokens"] // size))
        if opcode == Opcode.RELEASE:
            return held
        if opcode == Opcode.COPY or opcode == Opcode.UNPIN and c["listed"]:
            return c["count"]
        if opcode in (Opcode.PIN, Opcode.UNPIN):
            return max(0, -(-c["end"] // size) - c["start"] // size)
        return 0


def _failure(result: Result) -> Failure:
    return Failure(result.error, result.field, result.index)
