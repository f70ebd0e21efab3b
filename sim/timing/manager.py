"""How long the page manager takes, command by command: its steps' cycles, as measured on the RTL.

A command is made of steps that follow each other (m890.hdl.pages.flow): walks over page numbers in
memory, single operations of the page store, moves of port beats. What a step takes beside its
memory accesses is a constant; the constants are those of the RTL alone, in a core that is idle.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from m890.hdl.commands import Opcode, Query
from m890.hdl.config import CoreConfig

WALK_ROOM, WALK_PIECE = 16, 4
"""Beats of a list that may be on their way, and beats of one request (m890.hdl.pages.walker)."""
MOVE_PIECE = 16
"""Beats of one request of the mover (m890.hdl.pages.mover)."""


@dataclass(frozen=True)
class PageWork:
    """What a command makes the page manager do.

    pages: that it walks over, or takes; freed: of them, those that are free afterwards. copies:
    pages that are copied in all planes. done: False if the command was refused.
    """

    pages: int = 0
    freed: int = 0
    copies: int = 0
    done: bool = True


@dataclass(frozen=True)
class Steps:
    """Cycles of the page manager's steps beside the memory.

    check: a command's fields, and its completion. target: FORK's and CREATE's besides, who open a
    sequence. listed: a list's address. tenant, page: one operation on a tenant's or a page's word.
    take: a new page and the write of its number. walk: the start and end of a walk; plain: less of
    one that only looks at numbers; again: of each request that memory holds up. collect, freed:
    more per page that is given up, and per page that nobody holds any more. nothing: a walk and a
    move of no pages. move: of a table. reach: of every read of a move. next: from a page of a COPY
    to the next. plane, other: a defined plane and another, when a page is copied. prepare: of an
    APPEND's pages.
    """

    check: int = 19
    target: int = 7
    listed: int = 4
    tenant: int = 8
    page: int = 6
    take: int = 13
    walk: int = 13
    plain: int = 3
    again: int = 5
    collect: int = 2
    freed: int = 2
    nothing: int = 7
    move: int = 6
    reach: int = 6
    next: int = 2
    plane: int = 4
    other: int = 2
    prepare: int = 19


class ManagerTime:
    """Cycles of the page manager's commands in a memory of a given latency."""

    def __init__(self, config: CoreConfig, memory: int, steps: Steps) -> None:
        self.config, self.memory, self.steps = config, memory, steps

    def command(
        self, opcode: Opcode, c: dict[str, int], work: PageWork, planes: Sequence[int]
    ) -> int:
        """From dispatch to completion. planes: port beats of a page, 0 where none is defined."""
        s, n = self.steps, work.pages
        if not work.done:
            return s.check
        if opcode == Opcode.QUERY:
            more = {Query.PAGE: s.page, Query.HELD: s.tenant, Query.QUOTA: s.tenant}
            return s.check - 2 + more.get(Query(c["what"]), 0)
        if opcode == Opcode.QUOTA:
            return s.check - 2 + s.tenant
        if opcode == Opcode.CREATE:
            return s.check + s.target + 2 + (2 * self.walk(n) + self.table(n) if n else 0)
        if opcode == Opcode.FORK:
            return s.check + s.target - 1 + self._fork(n - work.copies, work.copies, planes)
        if opcode in (Opcode.TRIM, Opcode.RELEASE):
            return s.check + (self.give_up(work) if n else 0)
        if opcode == Opcode.PIN:
            return s.check + 1 + (1 + c["public"]) * self.walk(n)
        if opcode == Opcode.UNPIN:
            return s.check + s.listed * c["listed"] + self.give_up(work)
        return s.check + self._copy(c, work, planes)

    def prepare(self, work: PageWork, planes: Sequence[int]) -> int:
        """Of an APPEND that copies or takes pages."""
        s = self.steps
        new = work.pages - work.copies
        cycles = s.prepare + (s.take + self.memory) * new
        if work.copies:
            each = self.walk(1) + s.take + self.memory + 3 * s.page + self.copy(planes)
            cycles += self.walk(work.copies) + work.copies * each
        return cycles

    # ---------------------------------------------------------------- steps

    def walk(self, count: int, cycles: int = 1) -> int:
        """Numbers in memory, one after the other: one or more `cycles` each.

        WALK_ROOM beats of them are on their way at most, asked for WALK_PIECE at a time.
        """
        words = self.config.port_bytes // 4
        turn = self.memory + self.steps.again + WALK_PIECE * words  # a request, and what it brings
        wait = max(0, turn - cycles * WALK_ROOM * words)
        turns = (count - 1) // (WALK_ROOM * words)
        return self.memory + self.steps.walk + cycles * count + turns * wait

    def give_up(self, work: PageWork) -> int:
        """A walk that takes references or pins away, and one that collects what is free then."""
        s, n = self.steps, work.pages
        return self.walk(n) + self.walk(n, 1 + s.collect) + s.freed * work.freed

    def table(self, count: int) -> int:
        """A block table's or list's numbers, from one place to another."""
        beats = -(-4 * count // self.config.port_bytes)
        return self.steps.move + self._moved((0,), (beats,))

    def copy(self, planes: Sequence[int]) -> int:
        """A page in all planes."""
        s, at = self.steps, 1
        begins, beats = [], []
        for beat in planes:
            if beat:
                begins.append(at + s.plane - 1)
                beats.append(beat)
            at += s.plane if beat else s.other
        moved = self._moved(tuple(begins), tuple(beats)) if beats else 0
        return max(at + s.other, moved)

    def _fork(self, whole: int, tail: int, planes: Sequence[int]) -> int:
        s, cycles = self.steps, self.steps.nothing
        if whole:
            cycles = self.walk(whole) + self.table(whole)
        if tail:  # its page is looked for, taken, copied and entered
            cycles += s.tenant + self.walk(1) + s.take + self.copy(planes) + self.memory
        return cycles

    def _copy(self, c: dict[str, int], work: PageWork, planes: Sequence[int]) -> int:
        s, n = self.steps, work.pages
        cycles = s.page + s.page + s.listed
        if c["inward"]:
            cycles += (s.take + self.memory) * n
        if c["blank"]:
            return cycles
        cycles += self.walk(n) + (0 if c["inward"] else self.walk(n))
        return cycles + work.copies * (2 * self.walk(1) - s.plain + self.copy(planes) + s.next)

    def _moved(self, begins: tuple[int, ...], beats: tuple[int, ...]) -> int:
        reach = self.memory + self.steps.reach
        return moved(self.config.fifo_beats, reach, self.memory, begins, beats)


@functools.lru_cache(4096)
def moved(
    room: int, read: int, write: int, begins: tuple[int, ...], beats: tuple[int, ...]
) -> int:
    """Cycles until all runs of beats are copied and acknowledged; each is asked for from `begins`.

    A run is read in pieces of up to MOVE_PIECE beats as far ahead as there is `room`, and a piece
    is written once it is there. read, write: cycles from a request to its first beat, and from the
    last beat to the acknowledgement.
    """
    asked = arrived = written = 0  # cycles: the last request, beat read, beat written
    ends: list[tuple[int, int]] = []  # when pieces had been written, and beats until then
    total = 0
    for begin, run in zip(begins, beats, strict=True):
        asked = max(asked, begin)
        written += 1
        for start in range(0, run, MOVE_PIECE):
            piece = min(MOVE_PIECE, run - start)
            over = total + MOVE_PIECE - room  # beats that have to be gone
            if over > 0:
                end, until = next((e, b) for e, b in ends if b >= over)
                asked = max(asked, end - (until - over))
            arrived = max(arrived, asked + read) + piece
            asked += 1
            written = max(written + 2, arrived) + piece  # a request between pieces
            total += piece
            ends.append((written, total))
    return written + write
