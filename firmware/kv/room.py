"""What a tenant that is short of pages gives up: paused sequences to the host pool, then prefixes.

A paused sequence comes back for certain, so nothing of it is dropped: its pages are copied into
slots of the host pool, which are device memory that no plane covers, and copied back before the
sequence goes on. Of its pages those stay that others use, too.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from m890.firmware.errors import CommandError, OutOfPages, PoolFull, QuotaExceeded
from m890.firmware.kv.pages import PageCommands
from m890.firmware.kv.prefix import PrefixTree
from m890.firmware.kv.sequence import KvSequence
from m890.hdl.commands import Opcode

NO_ROOM = (OutOfPages, QuotaExceeded)
"""Errors of a command that can be given again once there is room."""
EVICTED = 16
"""A tenant short of pages gives up this part of its quota at once, so that few commands fail."""


class HostPool:
    """Slots for a page of every plane each, and the COPY commands that use them.

    `moved` counts the pages that were copied there so far.
    """

    def __init__(self, commands: PageCommands, slots: int, stride: int) -> None:
        self.driver, self.slots, self.stride = commands.driver, slots, stride
        self._at = self.driver.map.allocate("host pool", slots * stride).start if slots else 0
        self.free = list(range(slots - 1, -1, -1))
        self.moved = 0

    def store(self, pages: list[int], tenant: int) -> list[int]:
        """Copies pinned pages out; their slots. They stay free if the COPY fails."""
        rest = len(self.free) - len(pages)
        slots = self.free[rest:]
        self._copy(pages, slots, tenant, inward=0)
        del self.free[rest:]
        self.moved += len(pages)
        return slots

    def load(self, slots: list[int], tenant: int) -> list[int]:
        """Copies slots into new pages with one pin each, whose numbers it returns."""
        pages = self._copy([0] * len(slots), slots, tenant, inward=1)
        self.free += slots
        return pages

    def _copy(self, pages: list[int], slots: list[int], tenant: int, inward: int) -> list[int]:
        at = [self.driver.place(np.array(numbers, "<u4")) for numbers in (pages, slots)]
        try:
            copy = self.driver.submit(
                Opcode.COPY, inward=inward, tenant=tenant, host=self._at, host_stride=self.stride,
                host_slots=self.slots, list=at[0], slots=at[1], count=len(slots),
            )  # fmt: skip
            self.driver.wait(copy)
            return self.driver.view(at[0], (len(slots),), "<u4").tolist()
        finally:
            self.driver.free(*at)


class Room:
    """Makes room in the device's pool; `sequences`, trees and quotas are the KV cache's."""

    def __init__(
        self,
        commands: PageCommands,
        host: HostPool,
        sequences: Mapping[int, KvSequence],
        trees: Mapping[int, PrefixTree],
        published: Mapping[int, PrefixTree],
        quotas: Mapping[int, int],
    ) -> None:
        self.commands, self.host, self.driver = commands, host, commands.driver
        self.sequences, self.quotas = sequences, quotas
        self.trees, self.published = trees, published
        self._paused: dict[int, None] = {}  # longest paused first

    def make(self, tenant: int, pages: int) -> None:
        """Gives up as many of a tenant's pages as a command for `pages` pages fell short of.

        Paused sequences go to the host pool first, then retained prefixes are evicted, some of them
        in advance. PoolFull, and nothing evicted, if that is too little.
        """
        quota, held = self.quotas[tenant], self.commands.held
        short = max(1, pages - quota + held(tenant))  # at least one: the command was refused
        for sequence in list(self._paused):
            if short > 0 and self.sequences[sequence].tenant == tenant:
                short -= self._park(sequence)
        if short <= 0:
            return
        trees = self.trees[tenant], self.published[tenant]
        evictable = sum(tree.evictable for tree in trees)
        if short > evictable:
            raise PoolFull(pages, max(0, quota - held(tenant)) + evictable, quota)
        gone: list[int] = []
        for tree in trees:  # its own first: they may stand under published ones
            gone += tree.evict(max(short, quota // EVICTED) - len(gone))
        self.commands.unpin(gone, tenant)

    # ------------------------------------------------------------------ paused sequences

    def pause(self, sequence: int) -> None:
        """The sequence waits for something: its pages may go to the host pool."""
        self._paused[sequence] = None

    def park(self, sequence: int) -> bool:
        """Moves a sequence to the host pool at once; whether that gave its tenant room."""
        return bool(self.sequences[sequence].slots) or self._park(sequence) > 0

    def wake(self, sequences: Sequence[int]) -> None:
        """The sequences go on: their pages come back. PoolFull where there is no room."""
        for sequence in sequences:
            if self.sequences[sequence].slots:
                self._bring(sequence)
            self._paused.pop(sequence, None)

    def forget(self, sequence: int) -> None:
        """The sequence ends."""
        self._paused.pop(sequence, None)
        self.host.free += self.sequences[sequence].slots

    def _park(self, sequence: int) -> int:
        """Moves a paused sequence to the host pool as far as its pages are its own.

        Returns how many pages its tenant got back; 0 where there are no slots, or nothing to move.
        """
        one, commands, size = self.sequences[sequence], self.commands, self.commands.page_tokens
        keep = self._kept(one)
        count = -(-one.length // size) - keep
        if one.slots or one.end != one.length or not 0 < count <= len(self.host.free):
            return 0
        before = commands.held(one.tenant)
        fields = {"sequence": sequence, "tenant": one.tenant}
        self.driver.wait(self.driver.submit("PIN", **fields, start=keep * size, end=one.length))
        pages = commands.tables[sequence, keep : keep + count].tolist()
        try:
            one.slots = self.host.store(pages, one.tenant)
        except CommandError:  # it stays where it is
            commands.unpin(pages, one.tenant)
            raise
        gone = one.path[keep:]
        del one.path[keep:]
        for node in reversed(gone):
            node.tree.remove(node)
        self.driver.wait(self.driver.submit("RELEASE", **fields))
        commands.unpin(pages + [node.page for node in gone], one.tenant)  # of copy and tree
        return before - commands.held(one.tenant)

    def _kept(self, one: KvSequence) -> int:
        """Pages of the sequence that stay: those that others use through the trees."""
        keep, children = len(one.path), 0
        while keep:
            node = one.path[keep - 1]
            private = node.tree is self.trees[one.tenant]
            if not private or node.users > 1 or len(node.children) > children:
                break
            keep, children = keep - 1, 1
        return keep

    def _bring(self, sequence: int) -> None:
        """Copies a parked sequence's pages back and opens it again."""
        one, commands = self.sequences[sequence], self.commands
        while True:
            try:
                pages = self.host.load(one.slots, one.tenant)
                break
            except NO_ROOM:
                self.make(one.tenant, len(one.slots))
        one.slots = []
        whole = [node.page for node in one.path] + pages
        commands.open(sequence, whole, one.length, one.tenant)
        commands.unpin(pages, one.tenant)
