"""Packs the new tokens of a step into ATTEND jobs: which row holds what, which segments pass.

A plan is the same for every layer and KV head, so it is made once per step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m890.firmware.errors import ShapeError
from m890.firmware.records import pack
from m890.hdl.commands import ROW, ROW_BYTES, SEGMENT, SEGMENT_BYTES, SegmentKind
from m890.hdl.config import DRAFT_BITS, CoreConfig


@dataclass(frozen=True)
class Request:
    """New tokens [start, start + count) of a sequence; start is its committed length.

    pages: the sequence's block table, at least as far as its pages are full. draft: with it the new
    tokens are a draft tree, at most 32; bit i of draft[j] lets token j see token i (itself
    included, as a rule), and positions[j] is token j's place in the text (start + depth).

    A draft's segment begins where the chunk of its first token does, as far as the 32 bits of a
    mask reach: the committed tokens of that chunk then pass with the draft, as they would without
    one, and sums are grouped alike.
    """

    sequence: int
    start: int
    count: int
    pages: Sequence[int]
    draft: Sequence[int] | None = None
    positions: Sequence[int] | None = None
    tenant: int = 0


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of a sequence that pass the rows of `row_mask`."""

    kind: SegmentKind
    sequence: int
    start: int
    end: int
    row_mask: int


@dataclass
class Reads:
    """KV tokens read for a sequence, in whole chunks, per plane.

    passed: its share of what passes (a common segment counts by rows); alone: what would pass if
    it had the core for itself.
    """

    passed: float = 0.0
    alone: int = 0


@dataclass(frozen=True)
class Plan:
    """Jobs of one step, rows of all jobs one after another.

    token, head [rows]: which new token and which query head of the KV head's group a row holds.
    first, rows, segments, tenant [jobs]: a job's first row, its rows, segments and tenant.
    """

    token: NDArray[np.int64]
    head: NDArray[np.int64]
    position: NDArray[np.int64]
    draft: NDArray[np.int64]
    first: NDArray[np.int64]
    rows: NDArray[np.int64]
    segments: tuple[tuple[Segment, ...], ...]
    tenant: NDArray[np.int64]
    reads: dict[int, "Reads"]  # by sequence

    @property
    def jobs(self) -> int:
        return len(self.first)

    def tables(
        self, port_bytes: int, sink: NDArray[np.uint32] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Row and segment tables of all jobs as bytes, and where each job's begin.

        sink [rows]: FP32 bits of the learned sink logit of each row.
        """
        values: dict[str, NDArray] = {"position": self.position, "draft": self.draft}
        if sink is not None:
            values["sink"] = sink
        row_bytes = pack(ROW, len(self.token), values)
        flat = [s for segments in self.segments for s in segments]
        segment_bytes = pack(
            SEGMENT,
            len(flat),
            {
                "kind": [int(s.kind) for s in flat],
                "sequence": [s.sequence for s in flat],
                "start": [s.start for s in flat],
                "end": [s.end for s in flat],
                "row_mask": np.array([s.row_mask for s in flat], np.uint64),
            },
        )
        parts, offsets, at, segment = [], np.zeros(self.jobs, np.int64), 0, 0
        for job, (first, rows, segments) in enumerate(
            zip(self.first.tolist(), self.rows.tolist(), self.segments, strict=True)
        ):
            offsets[job] = at
            for chunk in (
                row_bytes[first : first + rows],
                segment_bytes[segment : segment + len(segments)],
            ):
                size = -(-chunk.size // port_bytes) * port_bytes
                part = np.zeros(size, np.uint8)
                part[: chunk.size] = chunk.reshape(-1)
                parts.append(part)
                at += size
            segment += len(segments)
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8), offsets


def table_bytes(config: CoreConfig, rows: int, segments: int) -> int:
    """Bytes of one job's row and segment tables."""

    def up(size: int) -> int:
        return -(-size // config.port_bytes) * config.port_bytes

    return up(rows * ROW_BYTES) + up(segments * SEGMENT_BYTES)


@dataclass(frozen=True)
class _Unit:
    """Rows that stay together: some query heads of one new token."""

    request: int
    token: int  # among all new tokens of the step
    offset: int  # among the request's
    first_head: int
    heads: int


def plan(
    config: CoreConfig, requests: Sequence[Request], group: int, *, share: bool = True
) -> Plan:
    """Jobs that attend from every new token of a step; `group` query heads share a KV head.

    Sequences with the same first pages stand side by side in a job, and those pages pass once for
    all of them; without `share` each sequence has jobs of its own. A job is of one tenant. Jobs are
    cut so that the fewest KV pages pass, given the order of the block tables.
    """
    _check(requests)
    units = _units(config, requests, group)
    order = sorted(range(len(requests)), key=lambda i: (requests[i].tenant, *requests[i].pages))
    ordered = [u for i in order for u in units[i]]
    jobs = _cut(config, requests, ordered, share)
    rows_of: list[int] = []
    segments: list[tuple[Segment, ...]] = []
    token, head, position, draft = [], [], [], []
    reads = {r.sequence: Reads(0.0, _alone(config, r, group)) for r in requests}
    for job in jobs:
        masks: dict[int, int] = {}
        ends: dict[int, int] = {}
        row = 0
        for unit in job:
            request = requests[unit.request]
            at = request.start + unit.offset
            masks[unit.request] = masks.get(unit.request, 0) | ((1 << unit.heads) - 1) << row
            ends[unit.request] = max(ends.get(unit.request, 0), at + 1)
            row += unit.heads
            token += [unit.token] * unit.heads
            head += range(unit.first_head, unit.first_head + unit.heads)
            where = request.positions[unit.offset] if request.positions is not None else at
            position += [where] * unit.heads
            seen = 0
            if request.draft is not None:
                before = _before_draft(config, request)
                seen = request.draft[unit.offset] << before | (1 << before) - 1
            draft += [seen] * unit.heads
        rows_of.append(row)
        passing = _segments(config, requests, masks, ends)
        segments.append(tuple(passing))
        for segment in passing:
            tokens = _chunked(config, segment.start, segment.end) / segment.row_mask.bit_count()
            for number, mask in masks.items():
                share_of = (mask & segment.row_mask).bit_count()
                reads[requests[number].sequence].passed += tokens * share_of
    rows = np.array(rows_of, np.int64)
    return Plan(
        np.array(token, np.int64),
        np.array(head, np.int64),
        np.array(position, np.int64),
        np.array(draft, np.int64),
        np.cumsum(rows) - rows,
        rows,
        tuple(segments),
        np.array([requests[job[0].request].tenant for job in jobs], np.int64),
        reads,
    )


def _check(requests: Sequence[Request]) -> None:
    if len({r.sequence for r in requests}) != len(requests):
        raise ShapeError("a sequence has two spans in one step: join them")
    for r in requests:
        if r.draft is not None and (len(r.draft) != r.count or r.count > DRAFT_BITS):
            raise ShapeError(
                f"a draft of {r.count} tokens with {len(r.draft)} masks: give one mask per token,"
                f" for at most {DRAFT_BITS} tokens"
            )


def _units(config: CoreConfig, requests: Sequence[Request], group: int) -> list[list[_Unit]]:
    """Units of each request; a group larger than the core's rows is cut into parts."""
    units, token = [], 0
    for i, request in enumerate(requests):
        units.append(
            [
                _Unit(i, token + t, t, first, min(config.rows, group - first))
                for t in range(request.count)
                for first in range(0, group, config.rows)
            ]
        )
        token += request.count
    return units


def _cut(
    config: CoreConfig, requests: Sequence[Request], units: list[_Unit], share: bool
) -> list[list[_Unit]]:
    """Cuts the ordered units into jobs of at most `rows` rows and `max_segments` segments.

    Dynamic programme over the places to cut: the pages that pass in a job are those of its first
    sequence, and for each further one those behind the prefix common with its neighbour. One page
    is added per job, for what a job costs whatever its length.
    """
    count = len(units)
    ends = np.array([requests[u.request].start + u.offset + 1 for u in units], np.int64)
    pages = -(-ends // config.page_tokens)
    added = np.zeros(count, np.int64)  # pages that a unit adds to a job that holds its neighbour
    fresh = np.ones(count, bool)  # first unit of its sequence
    common = _memo_common(config, requests)
    for i in range(1, count):
        a, b = units[i - 1].request, units[i].request
        fresh[i] = a != b
        added[i] = max(0, pages[i] - (common(a, b) if a != b else pages[i - 1]))
    best: list[tuple[int, int]] = [(0, 0)]  # pages, start of the last job
    cost = pages.tolist()
    tenants = [requests[u.request].tenant for u in units]
    same_tenant = [a == b for a, b in zip(tenants, tenants[:1] + tenants, strict=False)]
    heads, extra, new = [u.heads for u in units], added.tolist(), fresh.tolist()
    segments_of = [2 if requests[u.request].draft is None else 3 for u in units]
    for end in range(1, count + 1):
        rows, tail, segments = 0, 0, 0
        choice = (1 << 62, 0)
        for start in range(end - 1, -1, -1):
            rows += heads[start]
            # at most one shared and one own segment per sequence; a lone sequence has one fewer
            first_here = start == 0 or new[start]
            alone = segments + segments_of[start] - 1
            if rows > config.rows or (alone > config.max_segments and start < end - 1):
                break
            total = best[start][0] + cost[start] + tail + 1
            if total <= choice[0]:
                choice = (total, start)
            if first_here:
                if not share or not same_tenant[start]:
                    break
                segments += segments_of[start]
            tail += extra[start]
        best.append(choice)
    jobs, end = [], count
    while end:
        start = best[end][1]
        jobs.append(units[start:end])
        end = start
    return jobs[::-1]


def _memo_common(config: CoreConfig, requests: Sequence[Request]) -> Callable[[int, int], int]:
    """Pages that two requests share from the start, all of them committed in both."""
    known: dict[tuple[int, int], int] = {}

    def common(a: int, b: int) -> int:
        if (a, b) not in known:
            one, two = requests[a], requests[b]
            most = min(one.start, two.start) // config.page_tokens
            known[a, b] = _same(one.pages, two.pages, 0, most)
        return known[a, b]

    return common


def _same(one: Sequence[int], two: Sequence[int], start: int, end: int) -> int:
    """The first index in [start, end) at which two block tables differ, else `end`."""
    if start >= end:
        return start
    differs = np.asarray(one[start:end]) != np.asarray(two[start:end])
    return start + int(differs.argmax()) if differs.any() else end


def _before_draft(config: CoreConfig, request: Request) -> int:
    """Committed tokens that pass as part of the draft's segment."""
    before = request.start % config.lanes
    return before if before + request.count <= DRAFT_BITS else 0


def _segments(
    config: CoreConfig, requests: Sequence[Request], masks: dict[int, int], ends: dict[int, int]
) -> list[Segment]:
    """Segments of a job: common pages first, then what is each sequence's own."""
    size = config.page_tokens
    out: list[Segment] = []

    def descend(members: list[int], page: int) -> None:
        """Members agree on all pages before `page`."""
        if len(members) == 1:
            own(members[0], page * size)
            return
        first = requests[members[0]]
        border = min(requests[m].start for m in members) // size
        upto = border
        for m in members[1:]:
            upto = _same(first.pages, requests[m].pages, page, upto)
        if upto > page:
            mask = 0
            for m in members:
                mask |= masks[m]
            out.append(Segment(SegmentKind.KV, first.sequence, page * size, upto * size, mask))
        branches: dict[int, list[int]] = {}
        for m in members:
            # a sequence whose committed pages end here goes on alone
            ends_here = requests[m].start // size <= upto
            branches.setdefault(-1 - m if ends_here else requests[m].pages[upto], []).append(m)
        for branch in branches.values():
            descend(branch, upto)

    def own(member: int, start: int) -> None:
        request, mask = requests[member], masks[member]
        end = ends[member]
        if request.draft is not None:
            end = request.start - _before_draft(config, request)
        if end > start:
            out.append(Segment(SegmentKind.KV, request.sequence, start, end, mask))
        if request.draft is not None:
            new = request.start + request.count
            out.append(Segment(SegmentKind.DRAFT, request.sequence, end, new, mask))

    descend(list(masks), 0)
    return out


def _chunked(config: CoreConfig, start: int, end: int) -> int:
    """Tokens of the chunks that hold [start, end)."""
    lanes = config.lanes
    return (-(-end // lanes) - start // lanes) * lanes


def _alone(config: CoreConfig, request: Request, group: int) -> int:
    """Tokens read if the request is alone on the core, its rows in as few jobs as there can be."""
    per_job = max(1, config.rows // group)
    parts = -(-group // config.rows)
    end = request.start + request.count
    if request.draft is not None:
        passes, border = parts * -(-request.count // per_job), request.start
        border -= _before_draft(config, request)
        return passes * (_chunked(config, 0, border) + _chunked(config, border, end))
    return parts * sum(
        _chunked(config, 0, min(first + per_job, end))
        for first in range(request.start, end, per_job)
    )
