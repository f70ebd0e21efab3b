"""The decoder's backend on the model device, against plain float64 attention."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from m890.firmware import errors
from m890.firmware.backend import DeviceBackend, Draft
from m890.firmware.driver import Driver
from m890.firmware.log import CommandLog
from m890.firmware.models.backend import CapacityError, ContextLimitError, Span
from m890.hdl.config import CoreConfig, preset
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim import golden
from m890.sim.timing.device import ModelDevice

TINY = preset("tiny")


@dataclass
class World:
    """A backend, and all K and V that it was given, by sequence and layer."""

    backend: DeviceBackend
    rng: np.random.Generator
    kept: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def history(self, sequence: int, layer: int) -> tuple[np.ndarray, np.ndarray]:
        b = self.backend
        empty = np.zeros((0, b.kv_heads, b.head_size), np.float32)
        return self.kept.get((sequence, layer), (empty, empty))

    def fork(self, sequence: int, tokens: int) -> int:
        new = self.backend.fork(sequence, tokens)
        for layer in range(self.backend.layers):
            k, v = self.history(sequence, layer)
            self.kept[new, layer] = (k[:tokens], v[:tokens])
        return new

    def spans(self, **counts: int) -> list[Span]:
        """Keyword s<number>: how many new tokens of that sequence."""
        numbers = {int(name[1:]): count for name, count in counts.items()}
        return [Span(s, self.backend.length(s), count) for s, count in numbers.items()]

    def step(
        self, spans: list[Span], drafts: list[Draft | None] | None = None,
        tokens: list[int] | None = None,
    ) -> float:  # fmt: skip
        """One step through all layers; the largest error against float64."""
        b, rng, worst = self.backend, self.rng, 0.0
        count = sum(s.count for s in spans)
        for layer in range(b.layers):
            q = rng.normal(size=(count, b.heads, b.head_size)).astype(np.float32)
            k, v = rng.normal(size=(2, count, b.kv_heads, b.head_size)).astype(np.float32)
            found = b.attend(layer, spans, q, k, v, drafts=drafts)
            assert found.shape == q.shape and found.dtype == np.float32
            at = 0
            for i, span in enumerate(spans):
                old = self.history(span.sequence, layer)
                here = slice(at, at + span.count)
                keys = np.concatenate([old[0], k[here]]).astype(np.float64)
                values = np.concatenate([old[1], v[here]]).astype(np.float64)
                draft = drafts[i] if drafts else None
                for t in range(span.count):
                    seen = np.arange(span.start + span.count) <= span.start + t
                    if draft is not None:
                        tree = [draft.masks[t] >> j & 1 for j in range(span.count)]
                        seen[span.start :] = np.array(tree, bool)
                    want = plain(q[at + t], keys[seen], values[seen], b.commands.group)
                    worst = max(worst, float(np.abs(found[at + t] - want).max()))
                if draft is None:
                    self.kept[span.sequence, layer] = (
                        keys.astype(np.float32), values.astype(np.float32),
                    )  # fmt: skip
                at += span.count
        if not drafts:
            b.commit(spans, tokens)
        return worst


def plain(q: np.ndarray, k: np.ndarray, v: np.ndarray, group: int) -> np.ndarray:
    """q [H, d], k and v [T, KVH, d] -> [H, d]."""
    out = np.empty(q.shape)
    for h in range(len(q)):
        s = k[:, h // group] @ q[h] / np.sqrt(q.shape[1])
        p = np.exp(s - s.max())
        out[h] = p @ v[:, h // group] / p.sum()
    return out


def make(
    rng: np.random.Generator,
    config: CoreConfig = TINY,
    *,
    memory: int = 1 << 20,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int = 8,
    format: Format = Format.FP16,
    **options: object,
) -> World:
    driver = Driver(ModelDevice(config, memory, seed=7), ring=16, scratch_bytes=1 << 16)
    backend = DeviceBackend(
        driver, layers=layers, heads=heads, kv_heads=kv_heads, head_size=head_size,
        format=format, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return World(backend, rng)


TOLERANCE = {
    Format.FP16: 4e-3, Format.BF16: 3e-2, Format.INT8: 5e-2, Format.E4M3: 2.5e-1,
    Format.E5M2: 5e-1, Format.INT4: 1.0, Format.MXFP4: 1.0,
}  # fmt: skip
"""Largest errors of normal variables: a few of the format's steps."""


@pytest.mark.parametrize("format", list(Format), ids=lambda f: f.name)
def test_prefill_decode_and_forks(rng: np.random.Generator, format: Format) -> None:
    world = make(rng, format=format)
    root = world.backend.create()
    errors_seen = [world.step(world.spans(s0=21))]
    inside, border = world.fork(root, 19), world.fork(root, 16)
    assert (inside, border) == (1, 2)
    for _ in range(3):
        errors_seen.append(world.step(world.spans(s0=1, s1=2, s2=1)))
    errors_seen.append(world.step(world.spans(s2=9, s0=1)))
    assert max(errors_seen) < TOLERANCE[format]
    assert [world.backend.length(s) for s in range(3)] == [25, 25, 28]


def test_planes_are_rotated_where_their_format_is_better(rng: np.random.Generator) -> None:
    """INT8 unless told otherwise; stored codes are those of rotated rows, or of plain ones."""
    for format, rotate, wanted in (
        (Format.INT8, None, True), (Format.INT8, False, False), (Format.E4M3, None, False),
        (Format.E4M3, True, True),
    ):  # fmt: skip
        world = make(rng, format=format, rotate=rotate, layers=1)
        world.backend.create()
        spans = world.spans(s0=5)
        q, k, v = (rng.normal(size=(5, n, 8)).astype(np.float32) for n in (4, 2, 2))
        world.backend.attend(0, spans, q, k, v)
        world.backend.commit(spans)
        for value, rows in ((False, k), (True, v)):
            source = np.ascontiguousarray(rows[:, 1]).astype(np.float16).view(np.uint16)
            if wanted:
                source = golden.rotate_kv(source, Format.FP16, TINY.lanes)
            codes, _, _ = golden.append(format, source, Format.FP16)
            stored = world.backend.cache.read_tokens(1, 0, value=value)
            np.testing.assert_array_equal(stored, codes)


@pytest.mark.parametrize(
    "heads,kv_heads,head_size", [(1, 1, 8), (3, 1, 12), (6, 6, 5), (7, 1, 32), (12, 2, 17)]
)
def test_shapes(rng: np.random.Generator, heads: int, kv_heads: int, head_size: int) -> None:
    """Padded heads, a group larger than the core's rows, heads without sharing."""
    world = make(rng, layers=1, heads=heads, kv_heads=kv_heads, head_size=head_size)
    world.backend.create()
    assert world.step(world.spans(s0=11)) < TOLERANCE[Format.FP16]
    assert world.step(world.spans(s0=1)) < TOLERANCE[Format.FP16]


@pytest.mark.parametrize("output", [OutputFormat.FP16, OutputFormat.BF16])
def test_output_formats(rng: np.random.Generator, output: OutputFormat) -> None:
    world = make(rng, output_format=output)
    world.backend.create()
    assert world.step(world.spans(s0=9)) < (1e-2 if output == OutputFormat.FP16 else 5e-2)


def test_draft_tree(rng: np.random.Generator) -> None:
    """Tokens of a tree see the context and their ancestors; a rejected draft leaves no trace."""
    world = make(rng)
    s = world.backend.create()
    world.step(world.spans(s0=13))
    masks = [0b00001, 0b00011, 0b00101, 0b01011, 0b10101]
    draft = Draft(masks, [13 + m.bit_count() - 1 for m in masks])
    other = world.fork(s, 8)
    spans = world.spans(s0=5, s1=2)
    chain = Draft([1, 3], [8, 9])
    assert world.step(spans, [draft, chain]) < TOLERANCE[Format.FP16]
    world.backend.trim(s, 13)
    world.backend.trim(other, 8)
    assert world.step(world.spans(s0=2, s1=1)) < TOLERANCE[Format.FP16]


def test_sharing_changes_bytes_not_numbers(seed: int) -> None:
    """The same agents with and without common segments: equal bits, fewer bytes."""
    outputs, totals = [], []
    for share in (True, False):
        rng = np.random.default_rng(seed)
        world = make(rng, TINY.with_(rows=8, max_segments=16), share=share, layers=1)
        root = world.backend.create()
        world.step(world.spans(s0=32))
        for _ in range(3):
            world.fork(root, 32)
        before = world.backend.driver.counters()["KV_BYTES"]
        found = []
        for _ in range(2):
            spans = world.spans(s0=1, s1=1, s2=1, s3=1)
            q = rng.normal(size=(4, 4, 8)).astype(np.float32)
            k, v = rng.normal(size=(2, 4, 2, 8)).astype(np.float32)
            found.append(world.backend.attend(0, spans, q, k, v))
            world.backend.commit(spans)
        outputs.append(found)
        totals.append(world.backend.driver.counters()["KV_BYTES"] - before)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    chunk = 2 * 8 * 8 * 2  # K and V of eight tokens of eight FP16 features
    assert totals[1] == 2 * 2 * 4 * 5 * chunk  # steps, KV heads, agents, chunks
    assert totals[0] == 2 * 2 * (4 + 4) * chunk


def test_usage_is_what_the_device_counted(rng: np.random.Generator) -> None:
    world = make(rng, TINY.with_(rows=8), format=Format.INT8)
    root = world.backend.create()
    world.step(world.spans(s0=20))
    world.fork(root, 16)
    world.step(world.spans(s0=1, s1=2))
    total, counters = world.backend.total, world.backend.driver.counters()
    assert total.kv_bytes == counters["KV_BYTES"]
    assert total.beats == counters["BEATS"] and total.jobs == counters["JOBS"]
    assert total.tokens == 23 and world.backend.usage(1).tokens == 2
    parts = [world.backend.usage(s) for s in (0, 1)]
    assert sum(p.kv_bytes for p in parts) == pytest.approx(total.kv_bytes)
    assert sum(p.cycles for p in parts) == pytest.approx(total.cycles)
    assert total.saved > 0 and 0 < total.utilisation <= 1 and total.cycles_per_token > 0


def test_same_prompt_is_found_again(rng: np.random.Generator) -> None:
    """With token numbers, a second sequence starts where the first one's whole pages end."""
    world = make(rng, quotas={0: 20, 1: 5})
    prompt = list(range(20))
    first = world.backend.create(prompt)
    for layer in range(2):
        q = rng.normal(size=(20, 4, 8)).astype(np.float32)
        k, v = rng.normal(size=(2, 20, 2, 8)).astype(np.float32)
        world.backend.attend(layer, [Span(first, 0, 20)], q, k, v)
    world.backend.commit([Span(first, 0, 20)], prompt)
    second = world.backend.create(prompt)
    assert world.backend.length(second) == 16
    assert world.backend.length(world.backend.create(prompt, tenant=1)) == 0


def test_full_pool_leaves_the_others_alone(rng: np.random.Generator) -> None:
    """CapacityError before anything has changed; after a release the same step works."""
    world = make(rng, pages=5)
    world.backend.create()
    world.step(world.spans(s0=16))
    big = world.backend.create()
    world.step(world.spans(s1=16))
    with pytest.raises(CapacityError, match="2 pages are needed but 1 of the tenant's 5"):
        world.step(world.spans(s0=1, s1=1))
    assert world.backend.length(0) == 16
    assert world.step(world.spans(s0=1)) < TOLERANCE[Format.FP16]
    with pytest.raises(CapacityError):
        world.backend.fork(big, 9)
    world.backend.release(big)
    assert world.step(world.spans(s0=9)) < TOLERANCE[Format.FP16]


def test_retained_pages_make_room(rng: np.random.Generator) -> None:
    """A step that finds no page is given again without the oldest retained ones."""
    world = make(rng, pages=5)
    tokens = list(range(24))
    first = world.backend.create(tokens)
    world.step(world.spans(s0=24), tokens=tokens)
    world.backend.release(first)
    second = world.backend.create()
    world.kept.clear()
    assert second == first
    assert world.step(world.spans(s0=17)) < TOLERANCE[Format.FP16]
    assert world.backend.length(world.backend.create(tokens)) == 16


def test_branches_share_what_they_have_in_common(rng: np.random.Generator) -> None:
    """As the device counts: forks cost their open page, branches the tokens that they add."""
    world = make(rng)
    backend, held = world.backend, lambda: world.backend.cache.held(0)
    root = backend.create()
    world.step(world.spans(s0=27))
    assert held() == 4
    for _ in range(3):
        world.fork(root, 27)
    assert held() == 4 + 3
    world.step(world.spans(s1=5, s2=6, s3=1))
    assert held() == 4 + 3 + 1
    for branch in (1, 2):
        backend.release(branch)
    assert held() == 4 + 1
    assert world.step(world.spans(s0=1, s3=1)) < TOLERANCE[Format.FP16]


def test_tenants_side_by_side(rng: np.random.Generator) -> None:
    """Jobs of their own for each, in the same step; one's lack of pages is not the other's."""
    world = make(rng, TINY.with_(rows=8), quotas={0: 4, 3: 2})
    mine, other = world.backend.create(), world.backend.create(tenant=3)
    assert world.step(world.spans(s0=11, s1=9)) < TOLERANCE[Format.FP16]
    jobs = world.backend.total.jobs
    assert world.step(world.spans(s0=1, s1=1)) < TOLERANCE[Format.FP16]
    assert world.backend.total.jobs - jobs == 2 * 2 * 2  # layers, KV heads, tenants
    world.step(world.spans(s1=6))
    with pytest.raises(CapacityError, match="1 pages are needed but 0 of the tenant's 2"):
        world.step(world.spans(s0=1, s1=1))
    assert world.step(world.spans(s0=20)) < TOLERANCE[Format.FP16]
    assert [world.backend.length(s) for s in (mine, other)] == [32, 16]


def test_context_limit(rng: np.random.Generator) -> None:
    world = make(rng, limit=12)
    world.backend.create()
    world.step(world.spans(s0=12))
    with pytest.raises(ContextLimitError, match="13 tokens, the limit is 12"):
        world.step(world.spans(s0=1))
    assert world.backend.limit == 12


def test_sequences_run_out(rng: np.random.Generator) -> None:
    world = make(rng)
    for _ in range(TINY.sequences):
        world.backend.create()
    with pytest.raises(CapacityError, match="all 16 sequences"):
        world.backend.create()
    with pytest.raises(CapacityError):
        world.backend.fork(0, 0)


def test_wrong_shapes(rng: np.random.Generator) -> None:
    with pytest.raises(errors.ShapeError, match="5 heads cannot share 2"):
        make(rng, heads=5)
    with pytest.raises(errors.ShapeError, match="head size 64 is beyond the core's 32"):
        make(rng, head_size=64)
    with pytest.raises(errors.ShapeError, match="18 planes do not fit the core's 16"):
        make(rng, layers=9)
    with pytest.raises(errors.MemoryFull, match="a pool of 4 planes needs"):
        make(rng, memory=80 << 10)
    world = make(rng)
    world.backend.create()
    with pytest.raises(errors.ShapeError, match="start a span there"):
        world.step([Span(0, 3, 1)])


def test_step_larger_than_scratch(rng: np.random.Generator) -> None:
    """Refused with advice; nothing stays behind, and a smaller step works."""
    world = make(rng, memory=1 << 21, layers=1, heads=16, pages=60)
    world.backend.create()
    for _ in range(3):
        with pytest.raises(errors.ScratchFull, match="split the batch"):
            world.step(world.spans(s0=200))
    assert world.step(world.spans(s0=9)) < TOLERANCE[Format.FP16]


def test_scratch_is_recycled(rng: np.random.Generator) -> None:
    """Far more traffic than scratch memory holds at once."""
    world = make(rng, layers=1)
    world.backend.create()
    for _ in range(60):
        world.step(world.spans(s0=1))
    world.backend.driver.wait_all()
    world.backend.driver.buffer(60 << 10)


def test_a_job_follows_the_appends_that_it_needs(rng: np.random.Generator) -> None:
    """Appends of later jobs hide behind earlier ones, so they do not all come first."""
    world = make(rng, layers=1, heads=8, kv_heads=2)  # four query heads a token: a job each
    a, b = world.backend.create(), world.backend.create()
    log = world.backend.driver.log = CommandLog(64)
    assert world.step(world.spans(**{f"s{a}": 3, f"s{b}": 1})) < TOLERANCE[Format.FP16]
    names = [entry.name for entry in sorted(log, key=lambda e: e.tag)]
    head = ["APPEND", *["ATTEND"] * 3, "APPEND", "ATTEND"]
    other = ["APPEND", "ATTEND", "APPEND", *["ATTEND"] * 3]  # the planner's order of sequences
    assert names in (head * 2, other * 2)
