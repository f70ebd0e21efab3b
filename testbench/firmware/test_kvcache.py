"""KV cache against a plain model: what each sequence holds, who shares what, what is free."""

import zlib
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from m890.firmware import errors
from m890.firmware.driver import Driver
from m890.firmware.kvcache import KvCache
from m890.firmware.memory_map import PlaneShape
from m890.hdl.commands import Query
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.sim.timing.device import ModelDevice
from m890.testbench.firmware.cache import append, look

CONFIG = preset("tiny").with_(pages=16, sequences=5)
PAGE = CONFIG.page_tokens
SHAPE = PlaneShape(2, Format.FP16, 8)


def make(
    pages: int = 12, limit: int | None = None, quotas: dict[int, int] | None = None, host: int = 0
) -> KvCache:
    """A pool that is smaller than the core's."""
    device = ModelDevice(CONFIG, 1 << 18, seed=5)
    driver = Driver(device, ring=8, scratch_bytes=1 << 14)
    return KvCache(driver, SHAPE, pages=pages, limit=limit, quotas=quotas, host_pages=host)


def content(tokens: list[int]) -> int:
    """K and V of a token follow from all tokens up to it."""
    return zlib.crc32(repr(tokens).encode())


def live(cache: KvCache, tenant: int) -> set[int]:
    """Pages that a tenant holds and cannot give up: those of sequences, and what others retain."""
    manager = cache.driver.device._tables.pages  # type: ignore[attr-defined]
    pages = {page for s in cache.sequences for page in cache.block_table(s)}
    pages |= {node.page for s in cache.sequences for node in cache._sequences[s].path}
    for other, tree in cache.trees.items():
        if other != tenant:
            pages |= {node.page for child in tree._order for node in child.lent}
    return {page for page in pages if manager.pages[page].tenant == tenant}


def check(cache: KvCache) -> None:
    """The device's counts are what the sequences and the trees of prefixes say."""
    cache.driver.wait_all()
    manager = cache.driver.device._tables.pages  # type: ignore[attr-defined]
    assert sorted(manager.sequences) == [s for s in cache.sequences if not cache.parked(s)]
    references = Counter(p for s in cache.sequences for p in cache.block_table(s))
    trees = [*cache.trees.values(), *cache.published.values()]
    pins = Counter(p for tree in trees for p in tree.pages)
    assert not pins or max(pins.values()) == 1
    for number, page in enumerate(manager.pages):
        assert references[number] == (page.references if page else 0)
        assert pins[number] == (page.pins if page else 0)
        assert page is None or number < cache.pages
    slots = [slot for s in cache.sequences for slot in cache._sequences[s].slots]
    assert sorted(slots + cache.host.free) == list(range(cache.host.slots))
    for s in manager.sequences:
        one, pages = manager.sequences[s], cache.block_table(s)
        assert all(manager.pages[p].tenant == one.tenant or manager.pages[p].public for p in pages)
        assert (one.tenant, one.pages) == (cache.tenant(s), len(pages))
        assert cache.length(s) <= one.length <= cache._sequences[s].end
        assert len(set(pages)) == len(pages) >= -(-cache.length(s) // PAGE)
    for tenant, quota in cache.quotas.items():
        assert cache.held(tenant) <= quota
    users = Counter(n for s in cache.sequences for n in cache._sequences[s].path)
    users.update(n for tree in cache.trees.values() for child in tree._order for n in child.lent)
    for tree in trees:
        assert all(node.users == users[node] for node in tree._order)
        assert tree.evictable == sum(not node.users for node in tree._order)
    use = cache.use
    assert use.free + use.cached + use.used == cache.pages


class CacheMachine(RuleBasedStateMachine):
    """Random sequences of two tenants; `model` holds each one's contents, tokens, tenant."""

    quotas = {0: 8, 1: 4}

    def __init__(self) -> None:
        super().__init__()
        self.cache = make(quotas=self.quotas, host=6)
        self.model: dict[int, tuple[list[int], list[int] | None, int]] = {}
        self.fresh = 1 << 40
        self.refused = False

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.model)), "sequence")

    def left(self, tenant: int) -> int:
        """Pages that a tenant can get if nothing is retained, and nothing goes to the host pool."""
        return self.quotas[tenant] - len(live(self.cache, tenant))

    @precondition(lambda self: len(self.model) < CONFIG.sequences or not self.refused)
    @rule(
        tenant=st.sampled_from([0, 0, 1]),
        length=st.integers(0, 4 * PAGE),
        turn=st.integers(0, 4 * PAGE),
        public=st.booleans(),
    )
    def create(self, tenant: int, length: int, turn: int, public: bool) -> None:
        """A prompt of zeros, with ones from `turn` on, as far as the pool has room for it."""
        tokens = [int(i >= turn) for i in range(length)]
        if len(self.model) == CONFIG.sequences:
            self.refused = True
            with pytest.raises(errors.SequencesFull, match="all 5 sequences"):
                self.cache.create(tokens, tenant)
            return
        s = self.cache.create(tokens, tenant, public=public)
        found = self.cache.length(s)
        assert found % PAGE == 0 and (found < len(tokens) or not tokens)
        known = tokens[:found]
        values = [content(known[: i + 1]) for i in range(found)]
        self.model[s] = (values, known, tenant)
        self.extend(s, tokens[found:], known=True)

    def extend(self, s: int, more: list[int], known: bool) -> None:
        """Appends tokens, or is refused where there is no room."""
        values, tokens, tenant = self.model[s]
        if not known:
            tokens = None
        if tokens is None:
            new = list(range(self.fresh, self.fresh + len(more)))
            self.fresh += len(more)
        else:
            new = [content(tokens + more[: i + 1]) for i in range(len(more))]
        length, own = len(values), len(self.cache.block_table(s))
        if self.cache.parked(s):
            own = len(self.cache._sequences[s].path)
        others = [o for o in self.cache.room._paused if o != s and self.model[o][2] == tenant]
        need = -(-(length + len(more)) // PAGE) - own
        room = self.left(tenant)
        try:
            append(self.cache, s, new, None if tokens is None else more)
        except errors.ContextLimit:
            assert length + len(more) > self.cache.limit
            return
        except errors.PoolFull:
            # an open page that others hold, too, has to be copied
            assert need + (length < own * PAGE) > room
            return
        assert need <= room or others  # which may have made room
        if more:
            self.model[s] = (values + new, None if tokens is None else tokens + more, tenant)

    @precondition(lambda self: self.model)
    @rule(
        data=st.data(), count=st.integers(1, 30), known=st.integers(0, 9), token=st.integers(0, 3)
    )
    def append(self, data: st.DataObject, count: int, known: int, token: int) -> None:
        self.extend(self.pick(data), [token & 1] * (count - 1) + [token >> 1], known > 0)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        s = self.pick(data)
        values, tokens, tenant = self.model[s]
        at = data.draw(st.integers(0, len(values)), "tokens")
        room = self.left(tenant)
        try:
            new = self.cache.fork(s, at)
        except errors.SequencesFull:
            assert len(self.model) == CONFIG.sequences
            return
        except errors.PoolFull:
            assert self.cache.parked(s) or at % PAGE and not room
            return
        shared = at // PAGE
        assert self.cache.block_table(new)[:shared] == self.cache.block_table(s)[:shared]
        self.model[new] = (values[:at], None if tokens is None else tokens[:at], tenant)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        s = self.pick(data)
        values, tokens, tenant = self.model[s]
        at = data.draw(st.integers(0, len(values)), "tokens")
        try:
            self.cache.trim(s, at)
        except errors.PoolFull:
            assert self.cache.parked(s)
            return
        self.model[s] = (values[:at], None if tokens is None else tokens[:at], tenant)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), more=st.integers(1, 12), kept=st.integers(0, 12))
    def draft(self, data: st.DataObject, more: int, kept: int) -> None:
        """Appends tokens of which the first `kept` are committed."""
        s = self.pick(data)
        values, _, tenant = self.model[s]
        new = list(range(self.fresh, self.fresh + more))
        self.fresh += more
        try:
            append(self.cache, s, new, None, commit=False)
        except (errors.PoolFull, errors.ContextLimit):
            return
        kept = min(kept, more)
        self.cache.commit(s, kept)
        if kept:
            self.model[s] = (values + new[:kept], None, tenant)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        s = self.pick(data)
        self.cache.release(s)
        del self.model[s]
        with pytest.raises(errors.UnknownSequence):
            self.cache.length(s)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), now=st.booleans())
    def pause(self, data: st.DataObject, now: bool) -> None:
        s = self.pick(data)
        (self.cache.park if now else self.cache.pause)(s)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        s = self.pick(data)
        try:
            self.cache.wake([s])
        except errors.PoolFull:
            assert self.cache.parked(s)
            return
        assert not self.cache.parked(s)

    @invariant()
    def contents(self) -> None:
        assert self.cache.sequences == sorted(self.model)
        for s, (values, _, _) in self.model.items():
            assert self.cache.length(s) == len(values)
            assert self.cache.parked(s) or look(self.cache, s) == values

    @invariant()
    def accounts(self) -> None:
        check(self.cache)


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCacheMachine = CacheMachine.TestCase


def test_same_prompt_shares_pages() -> None:
    """Also after the first agent has gone; the last token is always computed again."""
    cache = make(quotas={0: 8, 1: 4})
    prompt = list(range(3 * PAGE))
    first = cache.create(prompt)
    assert cache.length(first) == 0
    append(cache, first, prompt, prompt)
    second = cache.create(prompt)
    assert cache.length(second) == 2 * PAGE
    assert cache.block_table(second) == cache.block_table(first)[:2]
    longer = cache.create([*prompt, 1])
    assert cache.length(longer) == 3 * PAGE
    other = cache.create(prompt, tenant=1)
    assert cache.length(other) == 0
    for s in (first, second, longer, other):
        cache.release(s)
    assert cache.use.cached == 3 and cache.use.used == 0
    again = cache.create([*prompt, 1])
    assert cache.length(again) == 3 * PAGE


def test_least_recently_used_is_evicted_first() -> None:
    cache = make(pages=4)
    for name in (1, 2, 3):
        s = cache.create()
        append(cache, s, [name] * PAGE, [name] * PAGE)
        cache.release(s)
    cache.release(cache.create([1] * PAGE + [0]))  # 1 is used again, so 2 is the oldest
    s = cache.create()
    append(cache, s, [9] * 2 * PAGE, None)
    found = {name: cache.length(cache.create([name] * PAGE + [0])) for name in (1, 2, 3)}
    assert found == {1: PAGE, 2: 0, 3: PAGE}


def test_eviction_takes_leaves_before_their_parents() -> None:
    cache = make(pages=4)
    s = cache.create()
    append(cache, s, list(range(3 * PAGE)), list(range(3 * PAGE)))
    cache.release(s)
    s = cache.create()
    append(cache, s, [9] * 2 * PAGE, None)
    assert cache.length(cache.create(list(range(4 * PAGE)))) == 2 * PAGE


def test_a_tenant_cannot_flush_another() -> None:
    """What one retains stays, however much the other asks for; the other evicts its own."""
    cache = make(quotas={0: 5, 1: 4})
    kept = list(range(3 * PAGE))
    s = cache.create(kept)
    append(cache, s, kept, kept)
    cache.release(s)
    for name in range(7):
        greedy = cache.create((), tenant=1)
        append(cache, greedy, [name] * 3 * PAGE, [name] * 3 * PAGE)
        cache.release(greedy)
    greedy = cache.create((), tenant=1)
    with pytest.raises(errors.PoolFull, match="5 pages are needed but 4 of the tenant's 4"):
        append(cache, greedy, [0] * 5 * PAGE, None)
    assert cache.held(0) == 3 and cache.length(cache.create([*kept, 0])) == 3 * PAGE
    check(cache)


def test_quotas() -> None:
    cache = make(quotas={0: 8, 2: 2})
    with pytest.raises(errors.UnknownTenant, match="tenant 1 has no pages"):
        cache.create((), tenant=1)
    with pytest.raises(errors.UnknownTenant):
        cache.set_quota(CONFIG.tenants, 1)
    with pytest.raises(errors.ShapeError, match="a quota of 3 pages for tenant 1 does not fit"):
        cache.set_quota(1, 3)
    cache.set_quota(1, 2)
    append(cache, cache.create((), tenant=1), [1] * 2 * PAGE, None)
    cache.set_quota(0, 7)
    cache.set_quota(1, 3)
    assert cache.held(1) == 2


def test_branches_grow_by_their_own_tokens() -> None:
    """As the device counts: a fork costs its open page, and each branch what it appends."""
    cache = make()
    root = cache.create()
    append(cache, root, list(range(3 * PAGE + 2)), None)

    def held() -> int:
        asked = cache.driver.submit("QUERY", what=int(Query.HELD), tenant=0)
        return int(cache.driver.wait(asked)["beats"][0])

    assert held() == 4
    branches = [cache.fork(root, 3 * PAGE + 2) for _ in range(3)]
    assert held() == 4 + 3  # the open page of each
    for n, branch in enumerate(branches):
        append(cache, branch, [n] * (PAGE - 2), None)
    assert held() == 7
    append(cache, branches[0], [7], None)
    assert held() == 8
    for branch in branches[1:]:
        cache.release(branch)
    assert held() == 6
    assert look(cache, root) == list(range(3 * PAGE + 2))


def test_pool_full_changes_nothing() -> None:
    cache = make(pages=3)
    one, two = cache.create(), cache.create()
    append(cache, one, list(range(PAGE + 1)), None)
    append(cache, two, [5], None)
    tables = [cache.block_table(s) for s in (one, two)]
    with pytest.raises(errors.PoolFull, match="1 pages are needed but 0 of the tenant's 3"):
        append(cache, two, [0] * PAGE, None)
    with pytest.raises(errors.PoolFull):
        cache.fork(one, PAGE + 1)
    check(cache)
    assert [cache.block_table(s) for s in (one, two)] == tables
    assert look(cache, two) == [5]
    assert cache.length(cache.fork(one, PAGE)) == PAGE  # needs no page of its own
    cache.release(two)
    append(cache, one, [0] * PAGE, None)
    check(cache)


def test_context_limit() -> None:
    cache = make(limit=20)
    s = cache.create()
    cache.expect([(s, 20)])
    with pytest.raises(errors.ContextLimit, match="would hold 21 tokens but the limit is 20"):
        cache.expect([(s, 21)])
    assert cache.limit == 20


def test_lengths_out_of_place() -> None:
    cache = make()
    s = cache.create()
    append(cache, s, [1, 2, 3], None)
    for call in (cache.fork, cache.trim):
        with pytest.raises(errors.BadLength, match="name a token count from 0 to 3"):
            call(s, 4)
    with pytest.raises(errors.BadLength):
        cache.commit(s, 6)  # more than was appended
    cache.expect([(s, 5)])
    with pytest.raises(errors.ShapeError, match="1 token numbers do not name 2"):
        cache.commit(s, 2, [1])
    with pytest.raises(errors.UnknownSequence, match="sequence 4 does not exist"):
        cache.release(4)


@pytest.mark.parametrize(
    "shape,message",
    [
        (PlaneShape(17, Format.FP16, 8), "17 planes do not fit"),
        (PlaneShape(1, Format.FP16, 12), "head size 12 is not a multiple of 8"),
        (PlaneShape(1, Format.FP16, 64), "up to 32"),
    ],
)
def test_shapes_are_checked(shape: PlaneShape, message: str) -> None:
    driver = Driver(ModelDevice(CONFIG, 1 << 18), scratch_bytes=1 << 12)
    with pytest.raises(errors.ShapeError, match=message):
        KvCache(driver, shape)
