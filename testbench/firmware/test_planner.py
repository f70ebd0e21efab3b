"""Plans: every row sees exactly its context, once and in order, and shared pages pass once."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from m890.firmware import errors
from m890.firmware.planner import Plan, Request, plan
from m890.firmware.records import unpack
from m890.hdl.commands import ROW, SEGMENT, SegmentKind
from m890.hdl.config import CoreConfig, preset

TINY = preset("tiny")
PAGE = TINY.page_tokens


@st.composite
def steps(draw: st.DrawFn) -> tuple[CoreConfig, list[Request], int, bool]:
    """A core, new tokens of sequences that fork from each other, query heads per KV head."""
    rows = draw(st.sampled_from([1, 3, 4, 8]))
    segments = draw(st.sampled_from([2, 3, 8]))
    config = TINY.with_(rows=rows, max_segments=segments)
    group = draw(st.sampled_from([1, 2, 3, 5]))
    fresh = itertools.count()
    requests: list[Request] = []
    for number in range(draw(st.integers(1, 6))):
        start, count = draw(st.integers(0, 5 * PAGE)), draw(st.integers(1, 9))
        pages: list[int] = []
        if requests:
            parent = draw(st.sampled_from(requests))
            common = draw(st.integers(0, min(parent.start, start) // PAGE))
            pages = list(parent.pages[:common])
        while len(pages) * PAGE < start + count:
            pages.append(next(fresh))
        masks = places = None
        if draw(st.booleans()):
            masks = [draw(st.integers(0, (1 << i) - 1)) | 1 << i for i in range(count)]
            places = [start + mask.bit_count() - 1 for mask in masks]
        tenant = draw(st.sampled_from([0, 0, 2]))
        requests.append(Request(number, start, count, pages, masks, places, tenant))
    return config, requests, group, draw(st.booleans())


@hypothesis.given(steps())
@hypothesis.settings(max_examples=150)
def test_every_row_sees_its_context(step: tuple[CoreConfig, list[Request], int, bool]) -> None:
    config, requests, group, share = step
    made = plan(config, requests, group, share=share)
    owner = [r for r in requests for _ in range(r.count)]
    offset = [i for r in requests for i in range(r.count)]
    by_number = {r.sequence: r for r in requests}
    placed = sorted(zip(made.token.tolist(), made.head.tolist(), strict=True))
    assert placed == [(t, h) for t in range(len(owner)) for h in range(group)]
    for job in range(made.jobs):
        first, rows, segments = int(made.first[job]), int(made.rows[job]), made.segments[job]
        assert 1 <= rows <= config.rows and 1 <= len(segments) <= config.max_segments
        assert {by_number[s.sequence].tenant for s in segments} == {made.tenant[job]}
        if not share:
            assert len({owner[t].sequence for t in made.token[first : first + rows]}) == 1
        for row in range(rows):
            index = first + row
            token = int(made.token[index])
            request, at = owner[token], owner[token].start + offset[token]
            drafting = request.draft is not None
            seen: list[int] = []
            for s in segments:
                if not s.row_mask >> row & 1:
                    continue
                source = by_number[s.sequence]
                for t in range(s.start, s.end):
                    if s.kind == SegmentKind.DRAFT:
                        visible = int(made.draft[index]) >> (t - s.start) & 1
                    else:
                        visible = t <= int(made.position[index])
                    if visible:
                        assert source.pages[t // PAGE] == request.pages[t // PAGE]
                        seen.append(t)
            if drafting:
                assert request.draft is not None and request.positions is not None
                mask = request.draft[offset[token]]
                own = [request.start + i for i in range(request.count) if mask >> i & 1]
                assert made.position[index] == request.positions[offset[token]]
                assert seen == [*range(request.start), *own]
            else:
                assert seen == list(range(at + 1))
    passed = sum(r.passed for r in made.reads.values())
    assert passed == pytest.approx(_streamed(config, made))


def _streamed(config: CoreConfig, made: Plan) -> int:
    """Tokens of all chunks that pass."""
    lanes = config.lanes
    return sum(
        (-(-s.end // lanes) - s.start // lanes) * lanes for segs in made.segments for s in segs
    )


@pytest.mark.parametrize("agents,rows,jobs", [(8, 8, 2), (8, 64, 1), (3, 8, 1), (1, 8, 1)])
def test_shared_prompt_passes_once_per_job(agents: int, rows: int, jobs: int) -> None:
    """`agents` with 1,024 shared and 64 own tokens, two query heads per KV head."""
    config = preset("small").with_(rows=rows, max_segments=16)
    requests = []
    for agent in range(agents):
        own = 1000 + 10 * agent
        pages = [*range(64), *range(own, own + 4)]
        requests.append(Request(agent, 1024 + 63, 1, pages))
    made = plan(config, requests, 2)
    assert made.jobs == jobs
    assert _streamed(config, made) == jobs * 1024 + agents * 64
    alone = plan(config, requests, 2, share=False)
    assert alone.jobs == agents
    assert sum(r.alone for r in made.reads.values()) == agents * 1088 == _streamed(config, alone)


def test_groups_stay_together() -> None:
    """Six rows of one family and eight of another: cut between them, though rows stay empty."""
    config = preset("small").with_(rows=8)
    family = [list(range(100 * f, 100 * f + 20)) for f in range(2)]
    requests = [
        Request(n, 20 * 16 + 3, 1, [*family[f], 1000 + n]) for n, f in enumerate([0] * 3 + [1] * 4)
    ]
    made = plan(config, requests, 2)
    assert made.rows.tolist() == [6, 8]
    assert _streamed(config, made) == 2 * 320 + 7 * 16


@hypothesis.given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(2, 5))
def test_cut_is_the_best_there_is(own: list[int], rows: int) -> None:
    """Against all ways to cut the same order, by pages that pass plus one per job."""
    config = TINY.with_(rows=rows, max_segments=16)
    trunk = [0, 1, 2, 3]
    requests = []
    for n, pages in enumerate(own):
        common = trunk[: pages % 5]
        table = [*common, *range(100 * (n + 1), 100 * (n + 1) + pages)]
        requests.append(Request(n, len(table) * PAGE - 1, 1, table))
    made = plan(config, requests, 1)
    cost = _streamed(config, made) // PAGE + made.jobs
    order = sorted(requests, key=lambda r: tuple(r.pages))
    best = min(
        sum(_pages(order[a:b]) + 1 for a, b in itertools.pairwise((0, *inner, len(order))))
        for count in range(len(order))
        for inner in itertools.combinations(range(1, len(order)), count)
        if np.diff((0, *inner, len(order))).max() <= rows
    )
    assert cost == best


def _pages(requests: list[Request]) -> int:
    """Different pages of some requests."""
    return len({p for r in requests for p in r.pages})


def test_prefill_chunk_is_cut_by_rows() -> None:
    """Each job reads only as far as its last row sees."""
    made = plan(TINY, [Request(0, 8, 10, list(range(3)))], 2)
    assert made.rows.tolist() == [4] * 5
    assert [s.end for (s,) in made.segments] == [10, 12, 14, 16, 18]
    assert made.position[:4].tolist() == [8, 8, 9, 9]


def test_group_larger_than_the_core() -> None:
    """Seven query heads on four rows: two jobs per token at least."""
    made = plan(TINY, [Request(0, 3, 2, [0])], 7)
    assert made.rows.max() <= 4 and made.rows.sum() == 14


def test_tables_have_the_layout_of_commands(rng: np.random.Generator) -> None:
    requests = [Request(3, 8, 2, [5, 6]), Request(4, 10, 1, [5, 7])]
    made = plan(TINY, requests, 2)
    sink = rng.integers(0, 1 << 32, len(made.token), dtype=np.uint32)
    data, offsets = made.tables(TINY.port_bytes, sink)
    assert data.size % TINY.port_bytes == 0
    for job, at in enumerate(offsets.tolist()):
        assert at % TINY.port_bytes == 0
        first, count = int(made.first[job]), int(made.rows[job])
        rows = unpack(ROW, data[at : at + 16 * count].reshape(-1, 16))
        np.testing.assert_array_equal(rows["position"], made.position[first : first + count])
        np.testing.assert_array_equal(rows["sink"], sink[first : first + count])
        at += -(-16 * count // TINY.port_bytes) * TINY.port_bytes
        for n, s in enumerate(made.segments[job]):
            entry = SEGMENT.unpack(data[at + 32 * n : at + 32 * n + 32].tobytes())
            found = (entry["kind"], entry["sequence"], entry["start"], entry["end"])
            assert found == (s.kind, s.sequence, s.start, s.end)
            assert entry["row_mask"] == s.row_mask


def test_bad_requests() -> None:
    with pytest.raises(errors.ShapeError, match="two spans in one step"):
        plan(TINY, [Request(1, 0, 1, [0]), Request(1, 0, 1, [0])], 1)
    with pytest.raises(errors.ShapeError, match="give one mask per token"):
        plan(TINY, [Request(1, 0, 2, [0], [1], [0])], 1)
    with pytest.raises(errors.ShapeError, match="at most 32"):
        plan(TINY, [Request(1, 0, 33, list(range(5)), [1] * 33, [0] * 33)], 1)


def test_nothing_to_do() -> None:
    made = plan(TINY, [], 2)
    assert made.jobs == 0 and made.tables(16)[0].size == 0
