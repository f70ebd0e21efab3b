"""The KV cache: sequences of pages in device memory, shared where their tokens are the same."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from m890.firmware import stored
from m890.firmware.driver import Driver
from m890.firmware.errors import (
    BadLength,
    ContextLimit,
    PoolFull,
    SequencesFull,
    ShapeError,
    UnknownSequence,
)
from m890.firmware.kv.pool import PagePool
from m890.firmware.kv.prefix import Node, PrefixTree
from m890.firmware.memory_map import PlaneShape, pool_bytes, round_up

NO_PAGE = 0xFFFFFFFF
"""Block table entry without a page: a job that reaches it fails with BAD_PAGE."""


@dataclass
class _Sequence:
    """A sequence's pages; `path` are the tree nodes of its first len(path) pages."""

    salt: Hashable
    length: int = 0
    pages: list[int] = field(default_factory=list)
    path: list[Node] = field(default_factory=list)
    known: bool = True  # every committed token is known, so full pages go into the tree
    tail: list[int] = field(default_factory=list)  # tokens since the last page in the tree


@dataclass(frozen=True)
class CacheUse:
    """Pages by state; they add up to the pool's."""

    free: int
    cached: int  # held by the prefix tree only
    used: int  # held by sequences
    shared: int  # of the used, by more than one sequence


class KvCache:
    """Sequences, block tables, reference counts, prefix sharing and eviction.

    New tokens are written in three steps: `reserve` makes room, APPEND commands fill every plane,
    `commit` makes them part of the sequence. Committed full pages whose tokens are known are
    shared by all sequences that begin with the same tokens under the same salt, and stay for reuse
    after release until the pool needs them (least recently used first). Pages that may still be
    written belong to one sequence alone. A call that raises has changed nothing.
    """

    def __init__(
        self, driver: Driver, shape: PlaneShape, *, limit: int | None = None,
        pages: int | None = None,
    ) -> None:  # fmt: skip
        """Lays out block tables and planes in what is left of device memory.

        `limit`: longest context in tokens; `pages`: size of the pool, at most the core's. Both are
        as large as core and memory allow unless given.
        """
        config = driver.config
        if not 1 <= shape.planes <= config.planes:
            raise ShapeError(f"{shape.planes} planes do not fit the core's {config.planes}")
        if shape.head % config.lanes or not config.lanes <= shape.head <= config.max_head:
            raise ShapeError(
                f"head size {shape.head} is not a multiple of {config.lanes} lanes up to"
                f" {config.max_head}"
            )
        self.driver, self.config, self.shape = driver, config, shape
        self.page_tokens = config.page_tokens
        most = limit or config.pages * config.page_tokens
        self._blocks = -(-most // self.page_tokens)
        table_bytes = round_up(4 * self._blocks, config.port_bytes)
        tables = driver.map.allocate("block tables", table_bytes * config.sequences)
        self._tables_at, self._table_bytes = tables.start, table_bytes
        self._tables = driver.view(tables.start, (config.sequences, table_bytes // 4), "<u4")
        self._tables[:] = NO_PAGE
        self.pages = driver.map.pages_that_fit(shape, pages)
        self.limit = min(most, self.pages * self.page_tokens)
        self.stride = shape.stride(config)
        region = driver.map.allocate(
            "planes", pool_bytes(config, shape, self.pages), max(4096, self.stride)
        )
        self.plane_base = region.start + np.arange(shape.planes) * self.pages * self.stride
        self._bytes = driver.view(region.start, (shape.planes, self.pages, self.stride), np.uint8)
        self.pool = PagePool(self.pages)
        self.tree = PrefixTree(self.page_tokens)
        self._sequences: dict[int, _Sequence] = {}
        self._numbers = list(range(config.sequences - 1, -1, -1))
        self._define_planes()

    def _define_planes(self) -> None:
        count = self.shape.planes
        values = {
            "plane": np.arange(count),
            "format": int(self.shape.format),
            "head": self.shape.head // self.config.lanes,
            "base": self.plane_base,
            "stride": self.stride,
            "rotate": int(self.shape.rotated(self.config)),
        }
        self.driver.wait(self.driver.submit_many(self.driver.pack("PLANE", count, values)))

    # ------------------------------------------------------------------ sequences

    def create(self, tokens: Sequence[int] = (), salt: Hashable = None) -> int:
        """A new sequence; it already holds the pages that `tokens` share with earlier ones.

        Its length is the number of tokens so found: whole pages, and at least one token less than
        given, as that one's logits have to be computed.
        """
        path: list[Node] = []
        if len(tokens):
            path = self.tree.match(salt, [int(t) for t in tokens[: len(tokens) - 1]])
        new = _Sequence(salt, len(path) * self.page_tokens, [n.page for n in path], path)
        return self._open(new)

    def fork(self, sequence: int, tokens: int) -> int:
        """A new sequence with the first `tokens` committed tokens of another.

        Whole pages are shared; the tokens past the last page border are copied to a new page.
        """
        old = self._get(sequence)
        if not 0 <= tokens <= old.length:
            raise BadLength(sequence, tokens, old.length)
        whole, rest = divmod(tokens, self.page_tokens)
        path = old.path[:whole]
        known = old.known and len(path) == whole
        new = _Sequence(old.salt, tokens, old.pages[:whole], path, known)
        if known and rest:
            if len(old.path) > whole:
                new.tail = list(old.path[whole].key[:rest])  # type: ignore[index]
            else:
                new.tail = old.tail[:rest]
        self._room_for_sequence()
        page = self._allocate(1) if rest else []
        if page:
            self._copy_page(old.pages[whole], page[0])
        number = self._open(new)
        if page:
            new.pages.append(page[0])
            self._bind({number: whole})
        return number

    def release(self, sequence: int) -> None:
        """Forgets a sequence; its pages in the prefix tree stay until they are evicted."""
        old = self._get(sequence)
        self.driver.settle()
        self.tree.leave(old.path)
        self.pool.drop(old.pages)
        self._tables[sequence] = NO_PAGE
        del self._sequences[sequence]
        self._numbers.append(sequence)
        at = self._tables_at + sequence * self._table_bytes
        self.driver.submit("SEQUENCE", sequence=sequence, table=at, capacity=0)

    def length(self, sequence: int) -> int:
        """Committed tokens."""
        return self._get(sequence).length

    def block_table(self, sequence: int) -> list[int]:
        """The sequence's pages in order, reserved ones included."""
        return self._get(sequence).pages

    @property
    def sequences(self) -> list[int]:
        return sorted(self._sequences)

    @property
    def use(self) -> CacheUse:
        """How the pool is used at the moment."""
        held = np.zeros(self.pages, np.int32)
        for one in self._sequences.values():
            held[one.pages] += 1
        used, shared = int((held > 0).sum()), int((held > 1).sum())
        return CacheUse(self.pool.free, self.tree.evictable, used, shared)

    # ------------------------------------------------------------------ tokens

    def reserve(self, needs: Iterable[tuple[int, int]]) -> None:
        """Makes room: (sequence, tokens) pairs, tokens counted from the sequence's start.

        PoolFull or ContextLimit, and nothing changed, unless there is room for all of them.
        """
        missing: dict[int, int] = {}
        for number, tokens in needs:
            one = self._get(number)
            if tokens > self.limit:
                raise ContextLimit(number, tokens, self.limit)
            more = -(-tokens // self.page_tokens) - len(one.pages)
            if more > missing.get(number, 0):
                missing[number] = more
        if not missing:
            return
        pages = self._allocate(sum(missing.values()))
        changed = {}
        for number, count in missing.items():
            one = self._sequences[number]
            changed[number] = len(one.pages)
            one.pages.extend(pages[:count])
            del pages[:count]
        self._bind(changed)

    def commit(self, sequence: int, count: int, tokens: Sequence[int] | None = None) -> None:
        """`count` appended tokens become part of the sequence.

        With their token numbers, full pages become shareable; without them the sequence's pages
        are shared by fork only, from here on.
        """
        one = self._get(sequence)
        end = one.length + count
        if count < 0 or end > len(one.pages) * self.page_tokens:
            raise BadLength(sequence, end, one.length)
        if tokens is not None and len(tokens) != count:
            raise ShapeError(f"{len(tokens)} token numbers do not name {count} appended tokens")
        one.length = end
        if tokens is None and count:
            one.known, one.tail = False, []
        if not one.known:
            return
        one.tail.extend(int(t) for t in tokens or ())
        while len(one.tail) >= self.page_tokens:
            parent = one.path[-1] if one.path else self.tree.root(one.salt)
            key = tuple(one.tail[: self.page_tokens])
            page = one.pages[len(one.path)]
            node = self.tree.insert(parent, key, page)
            if node is None:  # another sequence was first: this one keeps its own pages
                one.known, one.tail = False, []
                return
            self.pool.share([page])
            one.path.append(node)
            del one.tail[: self.page_tokens]

    def trim(self, sequence: int, tokens: int) -> None:
        """Rolls a sequence back to its first `tokens` tokens; reserved pages go too.

        If the new end lies inside a page that others use, the sequence gets a copy of that page.
        """
        one = self._get(sequence)
        if not 0 <= tokens <= one.length:
            raise BadLength(sequence, tokens, one.length)
        whole, rest = divmod(tokens, self.page_tokens)
        keep = whole + (rest > 0)
        inside = one.path[whole] if len(one.path) > whole and rest else None
        if tokens == one.length and len(one.pages) == keep:
            return
        copy: list[int] = []
        if rest and self.pool.references[one.pages[whole]] > 1 + (
            inside is not None and inside.users == 1
        ):
            copy = self._allocate(1)
        self.driver.settle()
        if one.known:
            kept = list(inside.key[:rest]) if inside else one.tail[:rest]  # type: ignore[index]
            one.tail = kept if rest else []
        gone = one.path[whole:]
        if inside is not None and not copy:
            # the tree forgets the page, so that it may be written again
            self.tree.leave(gone[1:])
            self.tree.detach(inside, lambda page: self.pool.drop([page]))
        else:
            self.tree.leave(gone)
        del one.path[whole:]
        self.pool.drop(one.pages[keep:])
        del one.pages[keep:]
        if copy:
            self._copy_page(one.pages[whole], copy[0])
            self.pool.drop([one.pages[whole]])
            one.pages[whole] = copy[0]
        one.length = tokens
        self._tables[sequence, keep:] = NO_PAGE
        self._bind({sequence: whole})

    # ------------------------------------------------------------------ inside

    def _get(self, sequence: int) -> _Sequence:
        try:
            return self._sequences[sequence]
        except KeyError:
            raise UnknownSequence(sequence) from None

    def _room_for_sequence(self) -> None:
        if not self._numbers:
            raise SequencesFull(self.config.sequences)

    def _open(self, new: _Sequence) -> int:
        """Takes the references that a new sequence needs, and binds its block table."""
        self._room_for_sequence()
        number = self._numbers.pop()
        self.pool.share(new.pages)
        self.tree.use(new.path)
        self._sequences[number] = new
        self._bind({number: 0})
        return number

    def _allocate(self, count: int) -> list[int]:
        """Free pages, evicted from the prefix tree if need be; PoolFull changes nothing."""
        short = count - self.pool.free
        if short > self.tree.evictable:
            raise PoolFull(count, self.pool.free + self.tree.evictable, self.pages)
        if short > 0:
            self.tree.evict(short, lambda page: self.pool.drop([page]))
        return self.pool.take(count)

    def _copy_page(self, source: int, target: int) -> None:
        """Copies a page in all planes, by the host through device memory."""
        self.driver.settle()
        self._bytes[:, target] = self._bytes[:, source]

    def _bind(self, changed: dict[int, int]) -> None:
        """Writes block tables from the given page on, and tells the core of them.

        One SEQUENCE command per table, also where it only grew: the core may hold entries of the
        old table.
        """
        numbers = np.array(list(changed), np.int64)
        capacity = np.zeros(len(numbers), np.int64)
        for i, (number, first) in enumerate(changed.items()):
            pages = self._sequences[number].pages
            self._tables[number, first : len(pages)] = pages[first:]
            capacity[i] = len(pages) * self.page_tokens
        values = {
            "sequence": numbers,
            "table": self._tables_at + numbers * self._table_bytes,
            "capacity": capacity,
        }
        self.driver.submit_many(self.driver.pack("SEQUENCE", len(numbers), values))

    def read_tokens(self, plane: int, sequence: int, *, value: bool) -> NDArray:
        """Stored codes [length, head] of a sequence's K (or V), for tests and dumps."""
        one, layout = self._get(sequence), self.shape.layout(self.config)
        raw = self._bytes[plane][one.pages][:, : layout.page_bytes]
        rows = stored.read_rows(layout, raw.reshape(-1, layout.chunk_bytes), value=value)
        return stored.unpack(layout, rows).reshape(-1, self.shape.head)[: one.length]
