"""The KV cache: sequences on the device's page manager, and what of them is kept for later."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
    UnknownTenant,
)
from m890.firmware.kv import prefix
from m890.firmware.kv.pages import PageCommands
from m890.firmware.kv.prefix import PrefixTree
from m890.firmware.kv.room import NO_ROOM, HostPool, Room
from m890.firmware.kv.sequence import KvSequence
from m890.firmware.memory_map import PlaneShape, pool_bytes
from m890.hdl.commands import Error, Query


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
    are pinned, and shared by all sequences of the tenant that begin with the same tokens, or of all
    tenants if the sequence is public; they stay for reuse after release until the tenant needs
    their room (least recently used first). Sequences that `pause` may go to the host pool before;
    `wake` brings them back. A call that raises has changed nothing.
    """

    def __init__(
        self, driver: Driver, shape: PlaneShape, *, limit: int | None = None,
        pages: int | None = None, quotas: Mapping[int, int] | None = None, host_pages: int = 0,
    ) -> None:  # fmt: skip
        """Lays out block tables and planes in what is left of device memory.

        `limit`: longest context in tokens; `pages`: size of the pool, at most the core's. Both are
        as large as core and memory allow unless given. `quotas`: pages by tenant, together at most
        the pool's; tenant 0 has them all unless given. `host_pages`: size of the host pool.
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
        self.commands = PageCommands(driver, most)
        self.stride = shape.stride(config)
        self.host = HostPool(self.commands, host_pages, shape.planes * self.stride)
        self.pages = driver.map.pages_that_fit(shape, pages)
        self.limit = min(most, self.pages * self.page_tokens)
        region = driver.map.allocate(
            "planes", pool_bytes(config, shape, self.pages), max(4096, self.stride)
        )
        self.plane_base = region.start + np.arange(shape.planes) * self.pages * self.stride
        self._bytes = driver.view(region.start, (shape.planes, self.pages, self.stride), np.uint8)
        self._sequences: dict[int, KvSequence] = {}  # by number
        self._numbers = list(range(config.sequences - 1, -1, -1))
        self.trees: dict[int, PrefixTree] = {}  # by tenant
        self.published: dict[int, PrefixTree] = {}
        self._define_planes()
        # The free list begins 0, 1, 2 ...: as no more pages are held than the quotas allow, page
        # numbers stay below the pool's size, also where that is smaller than the core's.
        self.quotas: dict[int, int] = {}
        self.room = Room(
            self.commands, self.host, self._sequences, self.trees, self.published, self.quotas
        )
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
        for trees in (self.trees, self.published):
            trees.setdefault(tenant, PrefixTree(self.page_tokens, tenant))

    def held(self, tenant: int) -> int:
        """Pages that a tenant's sequences and retained prefixes hold."""
        return self.commands.held(tenant)

    # ------------------------------------------------------------------ sequences

    def create(self, tokens: Sequence[int] = (), tenant: int = 0, *, public: bool = False) -> int:
        """A new sequence; it already holds the pages that `tokens` share with earlier ones.

        Its length is the number of tokens so found: whole pages, and at least one token less than
        given, as that one's logits have to be computed. Full pages of a `public` sequence, though
        not of its forks, are there for all tenants; they count for this one.
        """
        if tenant not in self.quotas:
            raise UnknownTenant(tenant)
        number, known = self._free_number(), [int(t) for t in tokens]
        if public:
            path = self.published[tenant].match(known[:-1])
        else:
            path = self.trees[tenant].match(known[:-1], self.published.values())
        found = len(path) * self.page_tokens
        self.commands.open(number, [node.page for node in path], found, tenant)
        prefix.use(path)
        new = KvSequence(tenant, found, found, path, known[:found], public=public)
        self._sequences[self._numbers.pop()] = new
        return number

    def fork(self, sequence: int, tokens: int) -> int:
        """A new sequence with the first `tokens` committed tokens of another.

        Whole pages are shared; the device copies the tokens past the last page border.
        """
        old = self._get(sequence)
        if not 0 <= tokens <= old.length:
            raise BadLength(sequence, tokens, old.length)
        self.wake([sequence])
        number = self._free_number()
        fields = {"sequence": sequence, "target": number, "tokens": tokens}
        while True:
            try:
                fork = self.driver.submit(
                    "FORK", **fields, **self.commands.table(number, old.tenant)
                )
                self.driver.wait(fork)
                break
            except NO_ROOM:
                self.room.make(old.tenant, 1)
        path = old.path[: tokens // self.page_tokens]
        known = None if old.tokens is None else old.tokens[:tokens]
        prefix.use(path)
        new = KvSequence(old.tenant, tokens, tokens, path, known, old.own)
        self._sequences[self._numbers.pop()] = new
        return number

    def trim(self, sequence: int, tokens: int) -> None:
        """Rolls a sequence back to its first `tokens` tokens; what was not committed goes too."""
        one = self._get(sequence)
        if not 0 <= tokens <= one.length:
            raise BadLength(sequence, tokens, one.length)
        if tokens == one.length == one.end:
            return
        self.wake([sequence])
        whole = tokens // self.page_tokens
        self.driver.submit("TRIM", sequence=sequence, tenant=one.tenant, tokens=tokens)
        if one.tokens is not None:
            del one.tokens[tokens:]
        prefix.leave(one.path[whole:])
        del one.path[whole:]
        one.length = one.end = tokens

    def release(self, sequence: int) -> None:
        """Forgets a sequence; its pages in the prefix tree stay until they are evicted."""
        old = self._get(sequence)
        if not old.slots:
            self.driver.submit("RELEASE", sequence=sequence, tenant=old.tenant)
        self.room.forget(sequence)
        prefix.leave(old.path)
        del self._sequences[sequence]
        self._numbers.append(sequence)

    def length(self, sequence: int) -> int:
        """Committed tokens."""
        return self._get(sequence).length

    def tenant(self, sequence: int) -> int:
        return self._get(sequence).tenant

    def block_table(self, sequence: int) -> list[int]:
        """The sequence's pages in order, once its commands have completed; none while parked."""
        one = self._get(sequence)
        return [] if one.slots else self.commands.tables[sequence, : self._pages(one.end)].tolist()

    @property
    def sequences(self) -> list[int]:
        return sorted(self._sequences)

    @property
    def use(self) -> CacheUse:
        """How the pool is used at the moment."""
        free = self.commands.ask(Query.FREE) - (self.config.pages - self.pages)
        held = Counter(page for s in self._sequences for page in self.block_table(s))
        trees = (*self.trees.values(), *self.published.values())
        kept = {page for tree in trees for page in tree.pages}
        shared = sum(count > 1 for count in held.values())
        return CacheUse(free, len(kept - held.keys()), len(held), shared)

    # ------------------------------------------------------------------ paused sequences

    def pause(self, sequence: int) -> None:
        """The sequence waits: it may go to the host pool when its tenant is short of pages."""
        self._get(sequence)
        self.room.pause(sequence)

    def park(self, sequence: int) -> bool:
        """Moves a sequence to the host pool at once; False where that gives no room."""
        self._get(sequence)
        return self.room.park(sequence)

    def wake(self, sequences: Sequence[int]) -> None:
        """The sequences go on, from the device's pool. PoolFull where they do not fit it."""
        self.room.wake(sequences)

    def parked(self, sequence: int) -> bool:
        """Whether the sequence is in the host pool."""
        return bool(self._get(sequence).slots)

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

    def perform(
        self,
        commands: NDArray[np.uint8],
        needs: Sequence[tuple[int, int]],
        tags: NDArray[np.int64] | None = None,
    ) -> NDArray:
        """Completions of commands, among them the APPENDs of tokens that were expected.

        `tags`: the commands have been submitted already, and these are their tags.
        All are given again while there is a page to evict for an APPEND that found none. PoolFull,
        and no page more than before, where there is not. Of a job that met a damaged token the
        completion says so (BAD_TAG); any other error is raised.
        """
        sequences = [sequence for sequence, _ in needs]
        while True:
            try:
                if tags is None:
                    tags = self.driver.submit_many(commands)
                return self.driver.wait(tags, but=Error.BAD_TAG)
            except NO_ROOM as error:
                tenant, tags = error.command["tenant"], None
            self.forget(sequences)
            more = self.expect(needs)
            try:
                self.room.make(tenant, more[tenant])
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

    def _retain(self, sequence: int, one: KvSequence, tokens: Sequence[int]) -> None:
        """Full pages go into the tree, until another sequence was first with the same tokens."""
        tree = (self.published if one.public else self.trees)[one.tenant]
        first, size = len(one.path), self.page_tokens
        while not one.own and len(tokens) >= (len(one.path) + 1) * size:
            at = len(one.path)
            parent = one.path[-1] if one.path else tree.root
            page = int(self.commands.tables[sequence, at])
            node = tree.insert(parent, tuple(tokens[at * size : (at + 1) * size]), page)
            if node is None:
                one.own = True
            else:
                one.path.append(node)
        if len(one.path) > first:
            self.driver.submit(
                "PIN", sequence=sequence, tenant=one.tenant, public=int(one.public),
                start=first * size, end=len(one.path) * size,
            )  # fmt: skip

    # ------------------------------------------------------------------ inside

    def _get(self, sequence: int) -> KvSequence:
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
