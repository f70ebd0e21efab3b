"""KV cache against a plain model: what each sequence holds, who shares what, what is free."""

import zlib
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from m890.firmware import errors
from m890.firmware.driver import Driver
from m890.firmware.kvcache import NO_PAGE, KvCache
from m890.firmware.memory_map import PlaneShape
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.sim.timing.device import ModelDevice

CONFIG = preset("tiny").with_(pages=12, sequences=5)
PAGE = CONFIG.page_tokens
SHAPE = PlaneShape(2, Format.FP16, 8)


def make(pages: int = 12, limit: int | None = None) -> KvCache:
    device = ModelDevice(CONFIG, 1 << 18, seed=5)
    driver = Driver(device, ring=8, scratch_bytes=1 << 12)
    return KvCache(driver, SHAPE, pages=pages, limit=limit)


def put(cache: KvCache, sequence: int, token: int, value: int) -> None:
    """Stands for an APPEND: leaves `value` in the token's place of the last plane."""
    page = cache.block_table(sequence)[token // PAGE]
    at = int(cache.plane_base[-1]) + page * cache.stride + 4 * (token % PAGE)
    cache.driver.view(at, (1,), "<u4")[0] = value


def look(cache: KvCache, sequence: int, token: int) -> int:
    page = cache.block_table(sequence)[token // PAGE]
    at = int(cache.plane_base[-1]) + page * cache.stride + 4 * (token % PAGE)
    return int(cache.driver.view(at, (1,), "<u4")[0])


def append(cache: KvCache, sequence: int, values: list[int], tokens: list[int] | None) -> None:
    start = cache.length(sequence)
    cache.reserve([(sequence, start + len(values))])
    for i, value in enumerate(values):
        put(cache, sequence, start + i, value)
    cache.commit(sequence, len(values), tokens)


def content(salt: object, tokens: list[int]) -> int:
    """K and V of a token follow from all tokens up to it."""
    return zlib.crc32(repr((salt, tokens)).encode())


def check(cache: KvCache) -> None:
    """Every page is accounted for, and none that may be written is shared."""
    pool, tree = cache.pool, cache.tree
    held = Counter(p for s in cache.sequences for p in cache.block_table(s))
    nodes = list(tree._order)
    in_tree = Counter(node.page for node in nodes)
    assert not in_tree or max(in_tree.values()) == 1
    for page in range(cache.pages):
        assert pool.references[page] == held[page] + in_tree[page]
    assert sorted(pool._free) == [p for p in range(cache.pages) if not pool.references[p]]
    users = Counter(id(n) for s in cache.sequences for n in cache._sequences[s].path)
    assert all(node.users == users[id(node)] for node in nodes)
    assert tree.evictable == sum(not node.users for node in nodes)
    for node in nodes:
        assert node.parent is not None
        assert node.parent.page < 0 or node.users <= node.parent.users
    for s in cache.sequences:
        pages, length = cache.block_table(s), cache.length(s)
        assert len(set(pages)) == len(pages) >= -(-length // PAGE)
        for page in pages[length // PAGE :]:
            assert pool.references[page] == 1, "an open page is shared"
    use = cache.use
    assert use.free + use.cached + use.used == cache.pages


def check_device(cache: KvCache) -> None:
    """Block tables in memory, and the core's sequence table, are the firmware's."""
    cache.driver.wait_all()
    bound = cache.driver.device._tables.sequences  # type: ignore[attr-defined]
    # a table without pages covers no token: the core holds the sequence for closed
    assert sorted(bound) == [s for s in cache.sequences if cache.block_table(s)]
    for s in bound:
        table, capacity = bound[s].table, bound[s].limit
        pages = cache.block_table(s)
        entries = cache.driver.view(table, (cache.pages,), "<u4").tolist()
        assert entries[: len(pages)] == pages
        assert set(entries[len(pages) :]) <= {NO_PAGE}
        assert capacity == len(pages) * PAGE


class CacheMachine(RuleBasedStateMachine):
    """Random sequences; `model` holds each one's contents, token numbers (None: unknown), salt."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = make()
        self.model: dict[int, tuple[list[int], list[int] | None, object]] = {}
        self.fresh = 1 << 20
        self.refused = False

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.model)), "sequence")

    @precondition(lambda self: len(self.model) < CONFIG.sequences or not self.refused)
    @rule(
        salt=st.sampled_from([None, None, "tenant"]),
        length=st.integers(0, 4 * PAGE),
        turn=st.integers(0, 4 * PAGE),
    )
    def create(self, salt: object, length: int, turn: int) -> None:
        """A prompt of zeros, with ones from `turn` on, as far as the pool has room for it."""
        tokens = [int(i >= turn) for i in range(length)]
        if len(self.model) == CONFIG.sequences:
            self.refused = True
            with pytest.raises(errors.SequencesFull, match="all 5 sequences"):
                self.cache.create(tokens, salt)
            return
        s = self.cache.create(tokens, salt)
        found = self.cache.length(s)
        assert found % PAGE == 0 and (found < len(tokens) or not tokens)
        known = tokens[:found]
        self.model[s] = ([content(salt, known[: i + 1]) for i in range(found)], known, salt)
        self.extend(s, tokens[found:], known=True)

    def extend(self, s: int, more: list[int], known: bool) -> None:
        """Appends tokens, or is refused where there is no room."""
        values, tokens, salt = self.model[s]
        if not known:
            tokens = None
        if tokens is None:
            new = list(range(self.fresh, self.fresh + len(more)))
            self.fresh += len(more)
        else:
            new = [content(salt, tokens + more[: i + 1]) for i in range(len(more))]
        need = -(-(len(values) + len(more)) // PAGE) - len(self.cache.block_table(s))
        room = self.cache.pool.free + self.cache.tree.evictable
        if len(values) + len(more) > self.cache.limit or need > room:
            with pytest.raises((errors.PoolFull, errors.ContextLimit)):
                append(self.cache, s, new, more)
            return
        append(self.cache, s, new, None if tokens is None else more)
        if more:
            self.model[s] = (values + new, None if tokens is None else tokens + more, salt)

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
        values, tokens, salt = self.model[s]
        at = data.draw(st.integers(0, len(values)), "tokens")
        try:
            new = self.cache.fork(s, at)
        except errors.SequencesFull:
            assert len(self.model) == CONFIG.sequences
            return
        except errors.PoolFull:
            assert at % PAGE and not self.cache.pool.free + self.cache.tree.evictable
            return
        shared = at // PAGE
        assert self.cache.block_table(new)[:shared] == self.cache.block_table(s)[:shared]
        self.model[new] = (values[:at], None if tokens is None else tokens[:at], salt)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        s = self.pick(data)
        values, tokens, salt = self.model[s]
        at = data.draw(st.integers(0, len(values)), "tokens")
        try:
            self.cache.trim(s, at)
        except errors.PoolFull:
            assert at % PAGE and not self.cache.pool.free + self.cache.tree.evictable
            return
        self.model[s] = (values[:at], None if tokens is None else tokens[:at], salt)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), more=st.integers(1, 12))
    def reserve_only(self, data: st.DataObject, more: int) -> None:
        """Reserved tokens that are never committed, as rejected drafts are not."""
        s = self.pick(data)
        try:
            self.cache.reserve([(s, self.cache.length(s) + more)])
        except (errors.PoolFull, errors.ContextLimit):
            return
        for i in range(more):
            put(self.cache, s, self.cache.length(s) + i, 7)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        s = self.pick(data)
        self.cache.release(s)
        del self.model[s]
        with pytest.raises(errors.UnknownSequence):
            self.cache.length(s)

    @invariant()
    def contents(self) -> None:
        assert self.cache.sequences == sorted(self.model)
        for s, (values, _, _) in self.model.items():
            assert self.cache.length(s) == len(values)
            assert [look(self.cache, s, i) for i in range(len(values))] == values

    @invariant()
    def accounts(self) -> None:
        check(self.cache)
        check_device(self.cache)


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCacheMachine = CacheMachine.TestCase


def test_same_prompt_shares_pages() -> None:
    """Also after the first agent has gone; the last token is always computed again."""
    cache = make()
    prompt = list(range(3 * PAGE))
    first = cache.create(prompt)
    assert cache.length(first) == 0
    append(cache, first, prompt, prompt)
    second = cache.create(prompt)
    assert cache.length(second) == 2 * PAGE
    assert cache.block_table(second) == cache.block_table(first)[:2]
    longer = cache.create([*prompt, 1])
    assert cache.length(longer) == 3 * PAGE
    other = cache.create(prompt, salt="other tenant")
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


def test_pool_full_changes_nothing() -> None:
    cache = make(pages=3)
    one, two = cache.create(), cache.create()
    append(cache, one, list(range(PAGE + 1)), None)
    append(cache, two, [5], None)
    before = cache.driver.memory[cache.driver.scratch.region.end :].copy()
    with pytest.raises(errors.PoolFull, match="1 pages are needed but 0 of the pool's 3"):
        cache.reserve([(one, PAGE + 2), (two, PAGE + 1)])
    with pytest.raises(errors.PoolFull):
        cache.fork(one, PAGE + 1)
    cache.driver.wait_all()
    assert np.array_equal(before, cache.driver.memory[cache.driver.scratch.region.end :])
    assert cache.length(cache.fork(one, PAGE)) == PAGE  # needs no page of its own
    cache.release(two)
    cache.reserve([(one, 2 * PAGE + 1)])
    check(cache)


def test_context_limit() -> None:
    cache = make(limit=20)
    s = cache.create()
    cache.reserve([(s, 20)])
    with pytest.raises(errors.ContextLimit, match="would hold 21 tokens but the limit is 20"):
        cache.reserve([(s, 21)])
    assert cache.limit == 20


def test_lengths_out_of_place() -> None:
    cache = make()
    s = cache.create()
    append(cache, s, [1, 2, 3], None)
    for call in (cache.fork, cache.trim):
        with pytest.raises(errors.BadLength, match="name a token count from 0 to 3"):
            call(s, 4)
    with pytest.raises(errors.BadLength):
        cache.commit(s, 6)  # more than was reserved
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


def test_read_tokens(rng: np.random.Generator) -> None:
    """Codes that an APPEND wrote come back in order, across pages."""
    cache = make()
    s, count = cache.create(), 2 * PAGE + 3
    cache.reserve([(s, count)])
    source = rng.normal(size=(2, count, 8)).astype(np.float16)
    at = cache.driver.place(source)
    cache.driver.submit("APPEND", plane=1, sequence=s, start=0, tokens=count, source_format=1,
                        k=at, v=at + source[0].nbytes, source_stride=16)  # fmt: skip
    cache.driver.wait_all()
    cache.commit(s, count)
    for value in (False, True):
        found = cache.read_tokens(1, s, value=value)
        np.testing.assert_array_equal(found.view(np.float16), source[int(value)])
