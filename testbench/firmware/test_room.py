"""Room for a tenant: paused sequences in the host pool, published prefixes, who gives up what."""

import pytest

from m890.firmware import errors
from m890.firmware.kvcache import KvCache
from m890.testbench.firmware.cache import append, look
from m890.testbench.firmware.test_kvcache import PAGE, check, make


def filled(cache: KvCache, count: int, first: int, tenant: int = 0, **options: bool) -> int:
    """A sequence of `count` known tokens, numbered from `first` on."""
    tokens = list(range(first, first + count))
    s = cache.create((), tenant, **options)
    append(cache, s, tokens, tokens)
    return s


def test_a_paused_sequence_goes_before_retained_prefixes() -> None:
    """Its pages come back with what was in them; nothing retained was dropped."""
    cache = make(pages=8, host=8)
    cache.release(filled(cache, 2 * PAGE, 1000))
    waiting = filled(cache, 3 * PAGE + 5, 0)
    cache.pause(waiting)
    other = filled(cache, 4 * PAGE, 500)
    assert cache.parked(waiting) and cache.host.moved == 4
    assert cache.use.cached == 2 and cache.length(waiting) == 3 * PAGE + 5
    check(cache)
    cache.release(other)
    cache.wake([waiting])
    assert look(cache, waiting) == list(range(3 * PAGE + 5))
    append(cache, waiting, [7], [7])
    check(cache)
    assert len(cache.host.free) == 8


def test_nothing_moves_while_there_is_room() -> None:
    cache = make(pages=8, host=8)
    waiting = filled(cache, 2 * PAGE, 0)
    cache.pause(waiting)
    filled(cache, 5 * PAGE, 500)
    assert not cache.parked(waiting) and cache.host.moved == 0
    cache.wake([waiting])
    with pytest.raises(errors.PoolFull):  # it goes on: it is not moved any more
        filled(cache, 2 * PAGE, 900)


def test_pages_that_others_use_stay() -> None:
    """Of a fork only what is its own is copied, and the other goes on with the rest."""
    cache = make(pages=8, host=8)
    root = filled(cache, 2 * PAGE, 0)
    child = cache.fork(root, 2 * PAGE)
    append(cache, child, [100 + n for n in range(PAGE + 1)], [100 + n for n in range(PAGE + 1)])
    assert cache.park(child) and cache.host.moved == 2
    check(cache)
    assert cache.park(child), "it is out of the way already"
    cache.release(root)
    check(cache)
    grown = cache.fork(child, 2 * PAGE)
    assert not cache.parked(child)
    assert look(cache, grown) == list(range(2 * PAGE))
    assert look(cache, child) == [*range(2 * PAGE), *range(100, 101 + PAGE)]


def test_a_full_host_pool_leaves_prefixes_to_be_evicted() -> None:
    cache = make(pages=6, host=1)
    cache.release(filled(cache, 2 * PAGE, 1000))
    waiting = filled(cache, 2 * PAGE, 0)
    cache.pause(waiting)
    assert not cache.park(waiting)
    filled(cache, 4 * PAGE, 500)
    assert not cache.parked(waiting) and cache.use.cached == 0
    check(cache)


def test_a_parked_sequence_can_end() -> None:
    cache = make(pages=6, host=4)
    s = filled(cache, 2 * PAGE + 1, 0)
    assert cache.park(s) and len(cache.host.free) == 1
    cache.release(s)
    assert len(cache.host.free) == 4 and cache.held(0) == 0
    check(cache)


def test_no_room_to_come_back() -> None:
    """PoolFull, the sequence stays parked, and comes back once there is room."""
    cache = make(pages=4, host=4)
    s = filled(cache, 2 * PAGE, 0)
    assert cache.park(s)
    other = filled(cache, 3 * PAGE, 500)
    for call in (lambda: cache.wake([s]), lambda: cache.trim(s, 3), lambda: cache.fork(s, 3)):
        with pytest.raises(errors.PoolFull):
            call()
        assert cache.parked(s)
    check(cache)
    cache.release(other)
    cache.wake([s])
    assert look(cache, s) == list(range(2 * PAGE))


def test_a_tenant_moves_its_own_sequences_only() -> None:
    cache = make(pages=8, quotas={0: 4, 1: 4}, host=8)
    mine, other = filled(cache, 3 * PAGE, 0), filled(cache, 3 * PAGE, 0, tenant=1)
    cache.pause(mine)
    cache.pause(other)
    filled(cache, 2 * PAGE, 500, tenant=1)
    assert cache.parked(other) and not cache.parked(mine)


def test_public_pages_are_there_for_all_tenants() -> None:
    """They count for who published them; another tenant goes on behind them with its own."""
    cache = make(quotas={0: 6, 1: 4})
    prompt = list(range(2 * PAGE + 3))
    root = cache.create(prompt, public=True)
    append(cache, root, prompt, prompt)
    theirs = cache.create(prompt, 1)
    assert cache.length(theirs) == 2 * PAGE and cache.held(1) == 0
    assert cache.block_table(theirs) == cache.block_table(root)[:2]
    rest = [*prompt[2 * PAGE :], *range(50, 50 + PAGE)]
    append(cache, theirs, rest, rest)
    assert (cache.held(0), cache.held(1)) == (3, 2)
    mine = cache.fork(root, len(prompt))
    append(cache, mine, list(range(70, 70 + PAGE)), list(range(70, 70 + PAGE)))
    check(cache)
    for s in (root, theirs, mine):
        cache.release(s)
    again = cache.create([*prompt, *range(50, 99)], 1)
    assert cache.length(again) == 3 * PAGE, "what it retains stands under the public pages"
    assert cache.length(cache.create([*prompt, *range(70, 99)], 1)) == 2 * PAGE
    assert cache.length(cache.create([*prompt, *range(70, 99)], 0)) == 3 * PAGE
    check(cache)


def test_public_pages_stay_while_others_build_on_them() -> None:
    """The tenant that published them gives up all else first, and then has too little."""
    cache = make(quotas={0: 4, 1: 4})
    prompt = list(range(2 * PAGE))
    root = cache.create((), public=True)
    append(cache, root, prompt, prompt)
    theirs = cache.create([*prompt, 0], 1)
    append(cache, theirs, list(range(PAGE)), list(range(PAGE)))
    cache.release(root)
    cache.release(theirs)
    with pytest.raises(errors.PoolFull, match="3 pages are needed but 2 of the tenant's 4"):
        filled(cache, 3 * PAGE, 500)
    greedy = filled(cache, 4 * PAGE, 900, tenant=1)  # tenant 1 drops what it retained
    check(cache)
    filled(cache, 3 * PAGE, 500)
    check(cache)
    assert cache.length(cache.create([*prompt, 0], 1)) == PAGE
    assert look(cache, greedy) == list(range(900, 900 + 4 * PAGE))


def test_a_copy_that_fails_leaves_the_sequence_where_it_is() -> None:
    """No slot and no pin is lost: it can be moved once the cause is gone."""
    cache = make(pages=6, host=4)
    s = filled(cache, 2 * PAGE + 1, 0)
    right, cache.host.stride = cache.host.stride, 8
    with pytest.raises(errors.CommandError, match="host_stride"):
        cache.park(s)
    assert not cache.parked(s) and len(cache.host.free) == 4 and cache.host.moved == 0
    assert look(cache, s) == list(range(2 * PAGE + 1))
    cache.host.stride = right
    check(cache)
    assert cache.park(s) and len(cache.host.free) == 1
    check(cache)
    cache.release(s)
    assert len(cache.host.free) == 4 and cache.held(0) == 0
    check(cache)
