"""Heads divided on a cluster of model devices: the bits of one core, and one answer to errors."""

import numpy as np
import pytest

from m890.firmware.backend import DeviceBackend
from m890.firmware.cluster import Cluster, ClusterBackend, divide, drivers, shares
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.errors import ShapeError
from m890.firmware.models.backend import CapacityError, ContextLimitError, Draft, Span
from m890.hdl.config import ClusterConfig, preset
from m890.hdl.numerics.formats import Format
from m890.sim.timing.cluster import ModelCluster
from m890.sim.timing.device import ModelDevice

TINY = preset("tiny")
MEMORY = 16 << 20
LAYERS, HEADS, KV_HEADS, HEAD = 2, 8, 4, 12


def backends(
    device: Device, cluster: Cluster, *, kv_heads: int = KV_HEADS, group: int = 2, **options: object
) -> tuple[DeviceBackend, ClusterBackend]:
    """The same decoder's attention on one core and on the cluster; both with the same pool."""
    heads = group * kv_heads
    shape = {"layers": LAYERS, "heads": heads, "kv_heads": kv_heads, "head_size": HEAD}
    options = {"pages": 40, **options}
    made = drivers(cluster, scratch_bytes=1 << 20)
    return (
        DeviceBackend(Driver(device, scratch_bytes=1 << 20), **shape, **options),  # type: ignore[arg-type]
        ClusterBackend(made, **shape, **options),  # type: ignore[arg-type]
    )


def attend_on_both(
    one: DeviceBackend, many: ClusterBackend, rng: np.random.Generator, spans: list[Span],
    drafts: list[Draft | None] | None = None,
) -> None:  # fmt: skip
    """All layers of a step; every bit of the outputs is the same."""
    count = sum(span.count for span in spans)
    for layer in range(LAYERS):
        q = rng.normal(size=(count, one.heads, HEAD)).astype(np.float32)
        k, v = rng.normal(size=(2, count, one.kv_heads, HEAD)).astype(np.float32)
        wanted = one.attend(layer, spans, q, k, v, drafts=drafts)
        found = many.attend(layer, spans, q, k, v, drafts=drafts)
        np.testing.assert_array_equal(wanted.view(np.uint32), found.view(np.uint32))


def play(one: DeviceBackend, many: ClusterBackend, rng: np.random.Generator, steps: int) -> None:
    """Random steps of agents on both: prefill, decode, forks, drafts, rollbacks, releases."""
    both = (one, many)

    def on_both(act: str, *arguments: int) -> int:
        first, second = (getattr(backend, act)(*arguments) for backend in both)
        assert first == second
        return first

    live = [on_both("create")]
    for _ in range(steps):
        spans = [Span(s, one.length(s), int(rng.integers(1, 9))) for s in live]
        attend_on_both(one, many, rng, spans)
        tokens = rng.integers(0, 50, sum(span.count for span in spans)).tolist()
        for backend in both:
            backend.commit(spans, tokens)
        if len(live) < 4:
            parent = int(rng.choice(live))
            live.append(on_both("fork", parent, int(rng.integers(0, one.length(parent) + 1))))
        root = int(rng.choice(live))
        start = one.length(root)
        tree = Draft([0b001, 0b011, 0b101], [start, start + 1, start + 1])
        attend_on_both(one, many, rng, [Span(root, start, 3)], [tree])
        for backend in both:
            backend.trim(root, start)
        if len(live) > 2 and rng.random() < 0.5:
            on_both("release", live.pop(int(rng.integers(len(live)))))
    assert one.total.tokens == many.total.tokens
    if one.kv_heads < len(many.cores):  # whose KV several cores have, and jobs are packed otherwise
        return
    for sequence in live:
        assert one.usage(sequence).kv_bytes == many.usage(sequence).kv_bytes
    assert (one.total.kv_bytes, one.total.beats, one.total.jobs) == (
        many.total.kv_bytes, many.total.beats, many.total.jobs
    )  # fmt: skip


@pytest.mark.parametrize("cores", [2, 3, 4])
@pytest.mark.parametrize("format", [Format.FP16, Format.E4M3, Format.INT8], ids=lambda f: f.name)
def test_heads_on_several_cores_have_the_bits_of_one(
    rng: np.random.Generator, cores: int, format: Format
) -> None:
    cluster = ModelCluster(ClusterConfig(TINY, cores), cores * MEMORY)
    one, many = backends(ModelDevice(TINY, MEMORY), cluster, format=format)
    play(one, many, rng, 5)
    assert many.total.cycles < one.total.cycles


def test_what_one_core_refuses_all_refuse(rng: np.random.Generator) -> None:
    """After each error all cores go on, in step."""
    cluster = ModelCluster(ClusterConfig(TINY, 3), 3 * MEMORY)
    one, many = backends(ModelDevice(TINY, MEMORY), cluster, pages=6, limit=40)
    a, b = many.create(), many.create()
    assert (one.create(), one.create()) == (a, b)
    zeros = [np.zeros((33, n, HEAD), np.float32) for n in (HEADS, KV_HEADS, KV_HEADS)]
    with pytest.raises(ContextLimitError):
        many.attend(0, [Span(a, 0, 41)], *(np.zeros((41, *z.shape[1:]), z.dtype) for z in zeros))
    spans = [Span(a, 0, 32)]
    attend_on_both(one, many, rng, spans)
    for backend in (one, many):
        backend.commit(spans)
    with pytest.raises(CapacityError):  # two pages are left, five are wanted
        many.attend(0, [Span(b, 0, 33)], *zeros)
    spans = [Span(a, 32, 1), Span(b, 0, 8)]
    attend_on_both(one, many, rng, spans)
    for backend in (one, many):
        backend.commit(spans)
    assert (many.length(a), many.length(b)) == (33, 8)


@pytest.mark.parametrize("cores, kv_heads, group", [(2, 1, 4), (3, 2, 3), (4, 2, 2)])
def test_cores_that_share_a_kv_head_have_the_bits_of_one(
    rng: np.random.Generator, cores: int, kv_heads: int, group: int
) -> None:
    """Each has its KV, and a part of its query heads in the rows: jobs are packed differently."""
    cluster = ModelCluster(ClusterConfig(TINY, cores), cores * MEMORY)
    one, many = backends(ModelDevice(TINY, MEMORY), cluster, kv_heads=kv_heads, group=group)
    play(one, many, rng, 5)


def test_tenants_and_host_pools_are_in_step(rng: np.random.Generator) -> None:
    """A public prompt, a tenant that forks it, waits in the host pool and comes back."""
    cluster = ModelCluster(ClusterConfig(TINY, 3), 3 * MEMORY)
    one, many = backends(
        ModelDevice(TINY, MEMORY), cluster, pages=20, quotas={0: 4, 1: 16}, host_pages=20
    )
    both = (one, many)
    prompt = rng.integers(0, 50, 27).tolist()
    for tenant, held in ((0, 0), (1, 24)):
        made = {b.create(prompt, tenant, public=tenant == 0) for b in both}
        assert len(made) == 1
        (sequence,) = made
        assert {b.length(sequence) for b in both} == {held}
        spans = [Span(sequence, held, 27 - held)]
        attend_on_both(one, many, rng, spans)
        for b in both:
            b.commit(spans, prompt[held:])
    waits, goes_on = ({b.fork(sequence, 27) for b in both} for _ in range(2))
    (first,), (second,) = waits, goes_on
    for b in both:
        b.pause(first)
    for start in range(27, 27 + 112, 28):  # more than there is room for beside `first`
        spans, tokens = [Span(second, start, 28)], rng.integers(0, 50, 28).tolist()
        attend_on_both(one, many, rng, spans)
        for b in both:
            b.commit(spans, tokens)
    moved = {core.cache.host.moved for core in (one, *many.cores)}
    assert len(moved) == 1 and moved != {0}
    assert [b.park(second) for b in both] == [True, True]
    attend_on_both(one, many, rng, [Span(first, 27, 3)])


def test_every_core_has_heads() -> None:
    cluster = ModelCluster(ClusterConfig(TINY, 4), 4 * MEMORY)
    with pytest.raises(ShapeError, match="3 KV heads leave some of 4 cores without work"):
        backends(ModelDevice(TINY, MEMORY), cluster, kv_heads=3, group=1)
    with pytest.raises(ShapeError, match="7 heads cannot share 2 KV heads evenly"):
        divide(7, 2, 2)
    assert [s.stop - s.start for s in shares(11, 4)] == [3, 3, 3, 2]
    assert [(s.start, s.stop) for s in shares(4, 2)] == [(0, 2), (2, 4)]


@pytest.mark.parametrize("heads, kv_heads", [(8, 8), (12, 6), (12, 4), (12, 3), (8, 2), (7, 1)])
@pytest.mark.parametrize("cores", [1, 2, 3, 4])
def test_heads_are_divided_without_rest(heads: int, kv_heads: int, cores: int) -> None:
    """In order, each query head once, with the KV head that it reads, groups of one size a core."""
    parts = divide(heads, kv_heads, cores)
    assert len(parts) == cores
    every = np.arange(heads)
    assert np.concatenate([every[part.queries] for part in parts]).tolist() == every.tolist()
    for part in parts:
        read = every[part.queries] // (heads // kv_heads)
        assert sorted(set(read)) == [*range(part.kv.start, part.kv.stop)]
        assert len({*np.bincount(read)[part.kv]}) == 1


def test_pools_are_as_large_as_the_core_with_most_heads_can_have() -> None:
    size = (1 << 20) + (300 << 10)  # little beside the scratch
    cluster = ModelCluster(ClusterConfig(TINY, 2), 2 * size)
    _, many = backends(ModelDevice(TINY, MEMORY), cluster, kv_heads=7, pages=None)
    pages = {core.cache.pages for core in many.cores}
    assert len(pages) == 1 and pages < {*range(1, TINY.pages)}
    assert [core.kv_heads for core in many.cores] == [4, 3]
