"""The model device's page manager: its commands by the reference model, with their cycles."""

from dataclasses import dataclass

from m890.hdl.commands import Error, Opcode
from m890.sim.golden.pages import PageManager, Result
from m890.sim.timing.checks import Failure
from m890.sim.timing.manager import PageWork

MANAGED = frozenset(Opcode) - {
    Opcode.NOP, Opcode.FENCE, Opcode.PLANE, Opcode.APPEND, Opcode.ATTEND
}  # fmt: skip
"""Commands that the page manager carries out."""


@dataclass(frozen=True)
class Managed:
    """Outcome of a command. copied: bytes. index, value: of a QUERY, its tenant and its answer."""

    work: PageWork
    copied: int = 0
    failure: Failure | None = None
    index: int = 0
    value: int = 0


class PageUnit:
    """Runs the page manager's commands, and says what they made it do."""

    def __init__(self, manager: PageManager) -> None:
        self.manager, self.config = manager, manager.config

    @property
    def planes(self) -> tuple[int, ...]:
        """Port beats of a page in each plane, 0 where none is defined."""
        size, defined = self.config.port_bytes, self.manager.planes
        return tuple(
            defined[n][2] // size if n in defined else 0 for n in range(self.config.planes)
        )

    def run(self, opcode: Opcode, c: dict[str, int]) -> Managed:
        """One command, or of an APPEND what gives it its pages."""
        manager = self.manager
        before, pages, free = manager.copied, self._pages(opcode, c), len(manager.free)
        result = manager.run(opcode, c)
        if result.error != Error.OK:
            return Managed(PageWork(done=False), 0, _failure(result))
        gained = len(manager.free) - free
        if opcode == Opcode.APPEND:
            pages = -gained
        copied = manager.copied - before
        each = sum(plane[2] for plane in manager.planes.values())
        work = PageWork(pages, max(0, gained), copied // each if each else 0)
        return Managed(work, copied, None, result.index, result.value)

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
