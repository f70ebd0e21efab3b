"""Where the firmware's rings, tables, planes and scratch lie in device memory."""

from collections import deque
from dataclasses import dataclass

from m890.firmware.errors import MemoryFull, ScratchFull
from m890.hdl.config import CoreConfig
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import CODINGS, Format

HELD = 1 << 62
"""Command number of a scratch buffer that nobody has released yet."""


@dataclass(frozen=True)
class Region:
    """Bytes [start, end) of device memory."""

    name: str
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


ROTATED = frozenset(c.format for c in CODINGS.values() if not c.exp_bits or c.bits == 4)
"""Formats whose planes are rotated unless told otherwise, as they err less by it: integers, and
whatever has four bits."""


@dataclass(frozen=True)
class PlaneShape:
    """What the planes of a KV cache hold: all of one format and head size.

    `head` is the head size in features as stored: a multiple of the core's lanes. `rotate` None:
    as the format is better (ROTATED), where the core can. `tags`: with an integrity tag per row.
    """

    planes: int
    format: Format
    head: int
    rotate: bool | None = None
    tags: bool = False

    def rotated(self, config: CoreConfig) -> bool:
        """Whether the planes are rotated. A core without the units refuses it (BAD_FORMAT)."""
        if self.rotate is None:
            return config.rotation and self.format in ROTATED
        return self.rotate

    def layout(self, config: CoreConfig) -> PageLayout:
        return PageLayout(config, self.format, self.head // config.lanes, self.tags)

    def stride(self, config: CoreConfig) -> int:
        """Bytes from a page to the next: what the page holds, a multiple of the port's beat."""
        return self.layout(config).page_bytes


class MemoryMap:
    """Hands out regions of device memory from the bottom up; regions are never given back."""

    def __init__(self, config: CoreConfig, size: int, start: int = 0) -> None:
        """Of the bytes [start, size): a core of a cluster has a part of the memory."""
        self.config, self.size = config, size
        self.regions: list[Region] = []
        self._next = start

    @property
    def left(self) -> int:
        return self.size - self._next

    def allocate(self, name: str, size: int, align: int = 4096) -> Region:
        """A region of at least `size` bytes; MemoryFull when it does not fit."""
        start = round_up(self._next, align)
        if start + size > self.size:
            raise MemoryFull(name, size, max(0, self.size - start))
        region = Region(name, start, start + size)
        self._next = region.end
        self.regions.append(region)
        return region

    def pages_that_fit(self, shape: PlaneShape, limit: int | None = None) -> int:
        """Pages of a pool in what is left, at most the core's (or `limit`) pages.

        Planes lie one behind the other, each with room for the pool's pages; as the core checks
        every plane for room for all of *its* pages, the last plane has that much behind it.
        MemoryFull when that leaves no page.
        """
        stride, most = shape.stride(self.config), self.config.pages
        left = self.size - round_up(self._next, max(4096, stride))
        pages = min(limit or most, most)
        if shape.planes > 1:
            pages = min(pages, (left // stride - most) // (shape.planes - 1))
        if pages < 1 or pool_bytes(self.config, shape, pages) > left:
            raise MemoryFull(
                f"a pool of {shape.planes} planes", pool_bytes(self.config, shape, 1), max(0, left)
            )
        return pages


def pool_bytes(config: CoreConfig, shape: PlaneShape, pages: int) -> int:
    """Bytes of a pool of `pages` pages, and of what the core wants to find behind it."""
    return ((shape.planes - 1) * pages + config.pages) * shape.stride(config)


def memory_bytes(
    config: CoreConfig, shape: PlaneShape, *, pages: int | None = None, scratch: int = 64 << 20
) -> int:
    """Memory that a device needs for a pool of `pages` pages (all of the core's unless given).

    A few MiB are added for rings and block tables; a multiple of 1 MiB.
    """
    tables = 4 * config.pages * config.sequences
    pool = pool_bytes(config, shape, pages or config.pages) + shape.stride(config)
    return round_up(pool + tables + scratch + (8 << 20), 1 << 20)


class Scratch:
    """Ring of buffers for queries, outputs and job tables, recycled in the order of allocation.

    A buffer is reused only once the commands that were submitted before its release have
    completed: `release` notes the newest of them, `reclaim` is told how far completions have come.
    """

    def __init__(self, region: Region, align: int) -> None:
        self.region, self.align = region, align
        # [start, end, newest command that may use it: HELD until released]
        self._blocks: deque[list[int]] = deque()
        self._by_start: dict[int, list[int]] = {}

    def allocate(self, size: int) -> int:
        """Address of a buffer of `size` bytes; ScratchFull when the ring has no room for it."""
        size = round_up(max(size, 1), self.align)
        low, high = self.region.start, self.region.end
        if not self._blocks:
            start = low
        else:
            head, tail = self._blocks[-1][1], self._blocks[0][0]
            # free are [head, high) and [low, tail), or [head, tail) once the ring has wrapped
            if head <= tail:
                start = head if head + size <= tail else -1
            elif head + size <= high:
                start = head
            else:
                start = low if low + size <= tail else -1
        if start < 0 or start + size > high:
            raise ScratchFull(size, self.region.size)
        block = [start, start + size, HELD]
        self._blocks.append(block)
        self._by_start[start] = block
        return start

    def release(self, address: int, newest: int) -> None:
        """The buffer is free once command number `newest` and all before it have completed."""
        self._by_start.pop(address)[2] = newest

    def reclaim(self, completed: int) -> None:
        """Commands with numbers below `completed` are done."""
        while self._blocks and self._blocks[0][2] < completed:
            self._blocks.popleft()

    def restart(self) -> None:
        """Commands were forgotten: what has been released is free."""
        for block in self._blocks:
            if block[2] != HELD:
                block[2] = -1
        self.reclaim(0)

    @property
    def waiting(self) -> bool:
        """The oldest buffer is released, and only its commands are missing."""
        return bool(self._blocks) and self._blocks[0][2] != HELD


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
