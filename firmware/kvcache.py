"""The KV cache: sequences on the device's page manager, and what of them is kept for later."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from m890.firmware import stored
from m890.firmware.driver import Driver
from m890.firmware.errors import (
    BadLength,
    ContextLimit,
    OutOfPages,
    PoolFull,
    QuotaExceeded,
    SequencesFull,
    ShapeError,
    UnknownSequence,
    UnknownTenant,
)
from m890.firmware.kv.prefix import Node, PrefixTree
from m890.firmware.memory_map import PlaneShape, pool_bytes, round_up
from m890.hdl.commands import Error, Query

NO_ROOM = (OutOfPages, QuotaExceeded)
"""Errors of a command that can be given again once pages have been evicted."""
EVICTED = 16
"""A tenant short of pages gives up this part of its quota at once, so that few commands fail."""


@dataclass
class _Sequence:
    """What firmware knows of a sequence; `path` are the tree nodes of its first pages."""

    tenant: int
    length: int = 0
    end: int = 0  # of the tokens that were appended or are expected
    path: list[Node] = field(default_factory=list)
    tokens: list[int] | None = field(default_factory=list)  # committed ones, None: not known
    own: bool = False  # the tree has other pages of the same tokens: its own stay outside


@dataclass(frozen=True)
class CacheUse:
    """Pages by state; they add up to the pool's."""

    free: int
    cached: int  # held by the prefix trees only
    used: int  # held by sequences
    shared: int  # of the used, by more than one sequence


class KvCache:
    """Sequences, prefix sharing, tenants' quotas and eviction.

    Who holds which page is the page manager's business (docs/pages.md); what to keep, and for how
    long, is decided here. New tokens: `expect` them, `perform` their APPENDs to every plane (the
    last plane's carry `commit`), `commit` them here. Committed full pages whose tokens are known
    are pinned, and shared by all sequences of the tenant that begin with the same tokens; they stay
    for reuse after release until the tenant needs their room (least recently used first). A call
    that raises has changed nothing.
    """

    def __init__(
        self, driver: Driver, shape: PlaneShape, *, limit: int | None = None,
        pages: int | None = None, quotas: Mapping[int, int] | None = None,
    ) -> None:  # fmt: skip
        """Lays out block tables and planes in what is left of device memory.

        `limit`: longest context in tokens; `pages`: size of the pool, at most the core's. Both are
        as large as core and memory allow unless given. `quotas`: pages by tenant, together at most
        the pool's; tenant 0 has them all unless given.
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
        self._table_bytes = round_up(4 * -(-most // self.page_tokens), config.port_bytes)
        tables = driver.map.allocate("block tables", self._table_bytes * config.sequences)
        self._tables_at = tables.start
        self._tables = driver.view(tables.start, (config.sequences, self._table_bytes // 4), "<u4")
        self.pages = driver.map.pages_that_fit(shape, pages)
        self.limit = min(most, self.pages * self.page_tokens)
        self.stride = shape.stride(config)
        region = driver.map.allocate(
            "planes", pool_bytes(config, shape, self.pages), max(4096, self.stride)
        )
        self.plane_base = region.start + np.arange(shape.planes) * self.pages * self.stride
        self._bytes = driver.view(region.start, (shape.planes, self.pages, self.stride), np.uint8)
        self._sequences: dict[int, _Sequence] = {}
        self._numbers = list(range(config.sequences - 1, -1, -1))
        self.trees: dict[int, PrefixTree] = {}
        self._define_planes()
        # The free list begins 0, 1, 2 ...: as no more pages are held than the quotas allow, page
        # numbers stay below the pool's size, also where that is smaller than the core's.
        self.quotas: dict[int, int] = {}
        for tenant, count in (quotas or {0: self.pages}).items():
            self.set_quota(tenant, count)

    def _define_planes(self) -> None:
        count = self.shape.planes
        values = {
            "plane": np.arange(count),
            "format": int(self.shape.format),
            "head": self.shape.head // self.config.lanes,
            "base": self.plane_base,
            "stride": self.stride,
            "rotate": int(self.shape.rotated(self.config)),
            "tags": int(self.shape.tags),
        }
        self.driver.wait(self.driver.submit_many(self.driver.pack("PLANE", count, values)))

    # ------------------------------------------------------------------ tenants

    def set_quota(self, tenant: int, pages: int) -> None:
        """Pages that a tenant may hold; what it holds beyond them stays until it is given up."""
        if not 0 <= tenant < self.config.tenants:
            raise UnknownTenant(tenant)
        others = sum(self.quotas.values()) - self.quotas.get(tenant, 0)
        if not 0 <= pages <= self.pages - others:
            raise ShapeError(
                f"a quota of {pages} pages for tenant {tenant} does not fit: the pool has"
                f" {self.pages}, of which other tenants have {others}"
            )
        self.driver.wait(self.driver.submit("QUOTA", tenant=tenant, pages=pages))
        self.quotas[tenant] = pages
        self.trees.setdefault(tenant, PrefixTree(self.page_tokens))

    def held(self, tenant: int) -> int:
        """Pages that a tenant's sequences and retained prefixes hold."""
        return self._ask(Query.HELD, tenant=tenant)

    def make_room(self, tenant: int, pages: int) -> None:
        """Evicts retained pages of a tenant that fell short of `pages` pages, and some in advance.

        PoolFull, and nothing evicted, if it has too few.
        """
        quota, tree = self.quotas[tenant], self.trees[tenant]
        left = quota - self.held(tenant)
        short = max(1, pages - left)  # at least one: the command was refused
        if short > tree.evictable:
            raise PoolFull(pages, max(0, left) + tree.evictable, quota)
        gone = tree.evict(max(short, quota // EVICTED))
        self._listed("UNPIN", gone, listed=1, count=len(gone), tenant=tenant)

    # ------------------------------------------------------------------ sequences

    def create(self, tokens: Sequence[int] = (), tenant: int = 0) -> int:
        """A new sequence; it already holds the pages that `tokens` share with earlier ones.

        Its length is the number of tokens so found: whole pages, and at least one token less than
        given, as that one's logits have to be computed.
        """
        if tenant not in self.quotas:
            raise UnknownTenant(tenant)
        number, tree = self._free_number(), self.trees[tenant]
        known = [int(t) for t in tokens]
        path = tree.match(known[:-1])
        found = len(path) * self.page_tokens
        pages = [node.page for node in path]
        self._listed("CREATE", pages, sequence=number, tokens=found, **self._table(number, tenant))
        tree.use(path)
        self._sequences[self._numbers.pop()] = _Sequence(tenant, found, found, path, known[:found])
        return number

    def fork(self, sequence: int, tokens: int) -> int:
        """A new sequence with the first `tokens` committed tokens of another.

        Whole pages are shared; the device copies the tokens past the last page border.
        """
        old = self._get(sequence)
        if not 0 <= tokens <= old.length:
            raise BadLength(sequence, tokens, old.length)
        number = self._free_number()
        fields = {"sequence": sequence, "target": number, "tokens": tokens}
        while True:
            try:
                fork = self.driver.submit("FORK", **fields, **self._table(number, old.tenant))
                self.driver.wait(fork)
                break
            except NO_ROOM:
                self.make_room(old.tenant, 1)
        path = old.path[: tokens // self.page_tokens]
        known = None if old.tokens is None else old.tokens[:tokens]
        self.trees[old.tenant].use(path)
        new = _Sequence(old.tenant, tokens, tokens, path, known, old.own)
        self._sequences[self._numbers.pop()] = new
        return number

    def trim(self, sequence: int, tokens: int) -> None:
        """Rolls a sequence back to its first `tokens` tokens; what was not committed goes too."""
        one = self._get(sequence)
        if not 0 <= tokens <= one.length:
            raise BadLength(sequence, tokens, one.length)
        if tokens == one.length == one.end:
            return
        whole = tokens // self.page_tokens
        self.driver.submit("TRIM", sequence=sequence, tenant=one.tenant, tokens=tokens)
        if one.tokens is not None:
            del one.tokens[tokens:]
        self.trees[one.tenant].leave(one.path[whole:])
        del one.path[whole:]
        one.length = one.end = tokens

    def release(self, sequence: int) -> None:
        """Forgets a sequence; its pages in the prefix tree stay until they are evicted."""
        old = self._get(sequence)
        self.driver.submit("RELEASE", sequence=sequence, tenant=old.tenant)
        self.trees[old.tenant].leave(old.path)
        del self._sequences[sequence]
        self._numbers.append(sequence)

    def length(self, sequence: int) -> int:
        """Committed tokens."""
        return self._get(sequence).length

    def tenant(self, sequence: int) -> int:
        return self._get(sequence).tenant

    def block_table(self, sequence: int) -> list[int]:
        """The sequence's pages in order, once its commands have completed."""
        return self._tables[sequence, : self._pages(self._get(sequence).end)].tolist()

    @property
    def sequences(self) -> list[int]:
        return sorted(self._sequences)

    @property
    def use(self) -> CacheUse:
        """How the pool is used at the moment."""
        free = self._ask(Query.FREE) - (self.config.pages - self.pages)
        held = Counter(page for s in self._sequences for page in self.block_table(s))
        kept = {page for tree in self.trees.values() for page in tree.pages}
        shared = sum(count > 1 for count in held.values())
        return CacheUse(free, len(kept - held.keys()), len(held), shared)

    # ------------------------------------------------------------------ tokens

    def expect(self, needs: Iterable[tuple[int, int]]) -> dict[int, int]:
        """Tokens that are about to be appended: (sequence, tokens counted from its start).

        Returns how many more pages each tenant's sequences will have; the APPENDs get them, see
        `perform`. ContextLimit, and nothing changed, where there are too many tokens.
        """
        wanted = list(needs)
        for number, tokens in wanted:
            self._get(number)
            if tokens > self.limit:
                raise ContextLimit(number, tokens, self.limit)
        more: dict[int, int] = {}
        for number, tokens in wanted:
            one = self._sequences[number]
            end = max(one.end, tokens)
            pages = self._pages(end) - self._pages(one.end)
            more[one.tenant] = more.get(one.tenant, 0) + pages
            one.end = end
        return more

    def perform(self, commands: NDArray[np.uint8], needs: Sequence[tuple[int, int]]) -> NDArray:
        """Completions of commands, among them the APPENDs of tokens that were expected.

        All are given again while there is a page to evict for an APPEND that found none. PoolFull,
        and no page more than before, where there is not. Of a job that met a damaged token the
        completion says so (BAD_TAG); any other error is raised.
        """
        sequences = [sequence for sequence, _ in needs]
        while True:
            try:
                return self.driver.wait(self.driver.submit_many(commands), but=Error.BAD_TAG)
            except NO_ROOM as error:
                tenant = error.command["tenant"]
            self.forget(sequences)
            more = self.expect(needs)
            try:
                self.make_room(tenant, more[tenant])
            except PoolFull:
                self.forget(sequences)
                raise

    def forget(self, sequences: Iterable[int]) -> None:
        """Gives back the pages of tokens that were expected, and are not committed."""
        for sequence in sequences:
            one = self._get(sequence)
            self.driver.submit("TRIM", sequence=sequence, tenant=one.tenant, tokens=one.length)
            one.end = one.length

    def commit(self, sequence: int, count: int, tokens: Sequence[int] | None = None) -> None:
        """`count` appended tokens are part of the sequence; their APPENDs have completed.

        With their token numbers, full pages become shareable; without them the sequence's pages
        are shared by fork only, from here on. Where more was appended, `trim` is to follow.
        """
        one = self._get(sequence)
        end = one.length + count
        if count < 0 or end > one.end:
            raise BadLength(sequence, end, one.length)
        if tokens is not None and len(tokens) != count:
            raise ShapeError(f"{len(tokens)} token numbers do not name {count} appended tokens")
        one.length = end
        if tokens is None and count:
            one.tokens = None
        if one.tokens is not None:
            one.tokens.extend(int(t) for t in tokens or ())
            self._retain(sequence, one, one.tokens)

    def tokens(self, sequence: int) -> Sequence[int] | None:
        """Committed tokens, None if a `commit` did not name them."""
        return self._get(sequence).tokens

    def _retain(self, sequence: int, one: _Sequence, tokens: Sequence[int]) -> None:
        """Full pages go into the tree, until another sequence was first with the same tokens."""
        tree, first, size = self.trees[one.tenant], len(one.path), self.page_tokens
        while not one.own and len(tokens) >= (len(one.path) + 1) * size:
            at = len(one.path)
            parent = one.path[-1] if one.path else tree.root
            page = int(self._tables[sequence, at])
            node = tree.insert(parent, tuple(tokens[at * size : (at + 1) * size]), page)
            if node is None:
                one.own = True
            else:
                one.path.append(node)
        if len(one.path) > first:
            start, end = first * size, len(one.path) * size
            self.driver.submit("PIN", sequence=sequence, tenant=one.tenant, start=start, end=end)

    # ------------------------------------------------------------------ inside

    def _get(self, sequence: int) -> _Sequence:
        try:
            return self._sequences[sequence]
        except KeyError:
            raise UnknownSequence(sequence) from None

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    def _free_number(self) -> int:
        if not self._numbers:
            raise SequencesFull(self.config.sequences)
        return self._numbers[-1]

    def _table(self, number: int, tenant: int) -> dict[str, int]:
        """Fields of a command that opens a sequence."""
        at = self._tables_at + number * self._table_bytes
        return {"table": at, "limit": self._table_bytes // 4 * self.page_tokens, "tenant": tenant}

    def _listed(self, opcode: str, pages: list[int], **fields: int) -> None:
        """A command with a list of pages."""
        at = self.driver.place(np.array(pages or [0], "<u4"))
        try:
            self.driver.wait(self.driver.submit(opcode, list=at, **fields))
        finally:
            self.driver.free(at)

    def _ask(self, what: Query, **fields: int) -> int:
        done = self.driver.wait(self.driver.submit("QUERY", what=int(what), **fields))
        return int(done["beats"][0])

    def read_tokens(self, plane: int, sequence: int, *, value: bool) -> NDArray:
        """Stored codes [length, head] of a sequence's K (or V), for tests and dumps."""
        one, layout = self._get(sequence), self.shape.layout(self.config)
        raw = self._bytes[plane][self.block_table(sequence)][:, : layout.page_bytes]
        rows = stored.read_rows(layout, raw.reshape(-1, layout.chunk_bytes), value=value)
        return stored.unpack(layout, rows).reshape(-1, self.shape.head)[: one.length]

    def token_addresses(self, plane: int, sequence: int, token: int) -> NDArray[np.int64]:
        """Of all bytes that hold a token's K and V in a plane, for tests and injected faults."""
        index, inside = divmod(token, self.page_tokens)
        at = self.plane_base[plane] + self.block_table(sequence)[index] * self.stride
        return at + stored.token_bytes(self.shape.layout(self.config), inside)
