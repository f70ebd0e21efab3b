"""Runs checked commands on device memory with the golden model, many at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m890.firmware import stored
from m890.hdl.commands import SegmentKind
from m890.hdl.layout import TAG_BYTES, PageLayout, raw_stride
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim import golden
from m890.sim.timing.checks import Plane, Tables
from m890.sim.timing.model import Work

WASTE = 1.25
"""Jobs share a golden call while the longest has at most this many times the shortest's tokens."""


@dataclass
class Append:
    """A checked APPEND. status is set by the run."""

    command: dict[str, int]
    plane: Plane
    table: int
    status: int = 0


@dataclass(frozen=True)
class Part:
    """A segment of a job: [start, end), the chunks `first` ... `last` - 1 that are looked at.

    addresses: of these chunks' bytes, from the plane's base. rows: the row mask.
    """

    kind: SegmentKind
    start: int
    end: int
    first: int
    last: int
    rows: int
    addresses: NDArray[np.int64]
    address: int  # of the bias of chunk `first`, or of the stored states
    visible: int  # chunks that at least one row sees


@dataclass(frozen=True)
class Strand:
    """Rows of a job that see the same segments: computed apart from the job's other rows."""

    rows: tuple[int, ...]
    parts: tuple[Part, ...]
    position: NDArray[np.int64]
    draft: NDArray[np.int64]
    sink: NDArray[np.uint32]
    size: int  # chunks
    shape: tuple  # strands of equal shape, of jobs of equal kind, fit one golden call


@dataclass(frozen=True)
class Streamed:
    """The chunks of a segment that stream past the rows, addresses from the plane's base.

    token: the first of each chunk. Those of [start, end) have their tags checked.
    """

    sequence: int
    start: int
    end: int
    token: NDArray[np.int64]
    addresses: NDArray[np.int64]


@dataclass(frozen=True)
class Template:
    """What jobs with the same tables have in common, whatever their plane and addresses."""

    strands: tuple[Strand, ...]
    streamed: tuple[Streamed, ...]
    work: Work
    kind: tuple  # the command's fields that a golden call needs, and the layout


@dataclass
class Attend:
    """A checked ATTEND. status is set by the run."""

    command: dict[str, int]
    plane: Plane
    template: Template
    status: int = 0


def strands_of(
    parts: list[Part], position: NDArray, draft: NDArray, sink: NDArray, *, bias: bool, lanes: int
) -> tuple[Strand, ...]:
    """Rows by the segments that they see; neighbouring runs of whole chunks become one."""
    passing = [p for p in parts if p.visible or p.kind == SegmentKind.RAW]
    members: dict[int, list[int]] = {}
    for row in range(len(position)):
        pattern = 0
        for i, part in enumerate(passing):
            pattern |= (part.rows >> row & 1) << i
        members.setdefault(pattern, []).append(row)
    out = []
    for pattern, rows in members.items():
        own: list[Part] = []
        for i, part in enumerate(passing):
            if not pattern >> i & 1:
                continue
            if own and not bias and _joins(own[-1], part, lanes):
                own[-1] = _join(own[-1], part)
            else:
                own.append(part)
        shape = (len(rows), *(p.kind for p in own))
        size = sum(p.last - p.first for p in own)
        out.append(
            Strand(tuple(rows), tuple(own), position[rows], draft[rows], sink[rows], size, shape)
        )
    return tuple(out)


def _joins(one: Part, two: Part, lanes: int) -> bool:
    return (
        one.kind == two.kind == SegmentKind.KV
        and one.end == two.start == one.last * lanes
        and one.last == two.first
    )


def _join(one: Part, two: Part) -> Part:
    return Part(
        one.kind, one.start, two.end, one.first, two.last, one.rows,
        np.concatenate([one.addresses, two.addresses]), one.address, one.visible + two.visible,
    )  # fmt: skip


class Executor:
    """Reads and writes device memory for the golden model; `tables` are the core's."""

    def __init__(self, tables: Tables) -> None:
        self.tables, self.config, self.memory = tables, tables.config, tables.memory

    # ---------------------------------------------------------------- append

    def append(self, jobs: Sequence[Append]) -> None:
        """Runs APPENDs in order; later ones win where they write the same token."""
        groups: dict[tuple[PageLayout, bool, int], list[Append]] = {}
        for job in jobs:
            key = (job.plane.layout, job.plane.rotate, job.command["source_format"])
            groups.setdefault(key, []).append(job)
        for (layout, rotate, source), members in groups.items():
            self._append_group(layout, rotate, Format(source), members)

    def _append_group(
        self, layout: PageLayout, rotate: bool, source: Format, jobs: list[Append]
    ) -> None:
        config, lanes, tiles = self.config, self.config.lanes, layout.tiles
        counts = np.array([j.command["tokens"] for j in jobs])
        job = np.repeat(np.arange(len(jobs)), counts)
        offset = np.arange(len(job)) - (np.cumsum(counts) - counts)[job]

        def column(name: str) -> NDArray[np.int64]:
            return np.array([j.command[name] for j in jobs])[job]

        token = column("start") + offset
        table = np.array([j.table for j in jobs])[job]
        entry = table + 4 * (token // config.page_tokens)
        page = self._words("<u4")[entry // 4].astype(np.int64)
        base = np.array([j.plane.base for j in jobs])[job]
        stride = np.array([j.plane.stride for j in jobs])[job]
        chunk = base + page * stride + token % config.page_tokens // lanes * layout.chunk_bytes
        lane, half = token % lanes, layout.half_bytes
        flags = np.zeros(len(token), bool)
        entries = np.zeros((len(token), 2, half), np.uint8)
        for value, start in ((0, layout.k_offset), (1, layout.v_offset)):
            at = column("kv"[value]) + offset * column("source_stride")
            rows = self._gather(at, tiles * config.port_bytes).view("<u2")
            if rotate:
                rows = golden.rotate_kv(rows, source, lanes)
            codes, scale, quantised = golden.append(layout.format, rows, source)
            flags |= quantised
            packed, byte = stored.pack(layout, codes), 0
            for group in layout.groups:
                target = (chunk + start + group.start) // group.row + lane
                self.memory.reshape(-1, group.row)[target] = packed[:, byte : byte + group.row]
                byte += group.row
            if scale is not None:
                raw = scale if layout.coding.grouped else scale[:, None].astype("<u2")
                entries[:, value, : layout.scale_bytes] = raw.view(np.uint8)
            if layout.tags:
                tags = golden.tag(packed, entries[:, value, :-TAG_BYTES]).astype("<u2")
                entries[:, value, -TAG_BYTES:] = tags[:, None].view(np.uint8)
        if half:
            target = chunk // (2 * half) + lane
            self.memory.reshape(-1, 2 * half)[target] = entries.reshape(-1, 2 * half)
        quantised_jobs = np.zeros(len(jobs), bool)
        np.logical_or.at(quantised_jobs, job, flags)
        for j, hit in zip(jobs, quantised_jobs.tolist(), strict=True):
            j.status = int(hit) << 3  # Status.QUANTISE

    # ---------------------------------------------------------------- attend

    def bad_tag(self, job: Attend) -> tuple[int, int] | None:
        """(sequence, token) of the first row of K, else of V, whose tag is not its own."""
        layout = job.plane.layout
        for value in (False, True) if layout.tags else ():
            for part in job.template.streamed:
                chunks = self._gather(job.plane.base + part.addresses, layout.chunk_bytes)
                half = stored.header(layout, chunks, value=value)
                rows = stored.read_rows(layout, chunks, value=value)
                token = part.token[:, None] + np.arange(self.config.lanes)
                bad = golden.tag(rows, half[..., :-TAG_BYTES]) != stored.read_tags(
                    layout, chunks, value=value
                )
                bad &= (part.start <= token) & (token < part.end)
                if bad.any():
                    return part.sequence, int(token[bad][0])
        return None

    def attend(self, jobs: Sequence[Attend]) -> None:
        """Runs ATTENDs that do not depend on each other."""
        groups: dict[tuple, list[tuple[Attend, Strand]]] = {}
        for job in jobs:
            for strand in job.template.strands:
                groups.setdefault((job.template.kind, strand.shape), []).append((job, strand))
        for strands in groups.values():
            strands.sort(key=lambda pair: pair[1].size)
            at = 0
            while at < len(strands):
                end, most = at + 1, max(8, int(strands[at][1].size * WASTE))
                while end < len(strands) and strands[end][1].size <= most:
                    end += 1
                self._attend_group(strands[at:end])
                at = end

    def _attend_group(self, members: list[tuple[Attend, Strand]]) -> None:
        """One golden call for strands of one shape."""
        jobs, strands = [job for job, _ in members], [strand for _, strand in members]
        first = strands[0]
        c, layout, rows = jobs[0].command, jobs[0].plane.layout, len(first.rows)
        row = np.array([s.rows for s in strands])  # [B, R]
        base = np.array([job.plane.base for job in jobs])[:, None]
        job_rows = np.array([job.command["rows"] for job in jobs]) if c["bias"] else None

        def column(name: str) -> NDArray[np.int64]:
            return np.array([job.command[name] for job in jobs])[:, None]

        def per_row(name: str) -> NDArray:
            return np.stack([getattr(s, name) for s in strands])

        query_at = column("query") + row * column("query_stride")
        query = self._gather(query_at, layout.tiles * self.config.port_bytes).view("<u2")
        segments = [
            self._segment(layout, [s.parts[i] for s in strands], base, row, job_rows)
            for i in range(len(first.parts))
        ]
        output_format = OutputFormat(c["output_format"])
        result = golden.attend(
            golden.Job(
                self.config,
                layout.format,
                query,
                segments,
                query_format=Format(c["query_format"]),
                position=per_row("position"),
                draft=per_row("draft"),
                sink=per_row("sink").view(np.float32) if c["sink"] else None,
                causal=bool(c["causal"]),
                window=c["window"],
                sinks=c["sinks"],
                softcap=_float(c["softcap"]),
                softcap_inverse=_float(c["softcap_inverse"]),
                output_format=output_format,
                rotate=jobs[0].plane.rotate,
            )
        )
        statuses = np.broadcast_to(result.status, len(strands)).tolist()
        for job, status in zip(jobs, statuses, strict=True):
            job.status |= status
        at = column("output") + row * column("output_stride")
        if output_format == OutputFormat.RAW:
            assert result.raw is not None
            raw = self._raw_bytes(layout, *result.raw)
        else:
            assert result.output is not None
            raw = np.ascontiguousarray(result.output).view(np.uint8).reshape(len(strands), rows, -1)
        self._scatter(at, raw)

    def _segment(
        self,
        layout: PageLayout,
        parts: list[Part],
        base: NDArray[np.int64],
        row: NDArray[np.int64],
        job_rows: NDArray[np.int64] | None,
    ) -> golden.KvSegment | golden.RawSegment:
        """One segment of all strands, padded to the longest. job_rows: with biases."""
        config, lanes, count = self.config, self.config.lanes, len(parts)
        if parts[0].kind == SegmentKind.RAW:
            return self._raw_segment(layout, parts, row)
        chunks = max(p.last - p.first for p in parts)
        address = np.zeros((count, chunks), np.int64)
        for i, p in enumerate(parts):
            address[i, : len(p.addresses)] = p.addresses
        raw = self._gather(base + address, layout.chunk_bytes)  # [B, chunks, bytes]

        def codes(value: bool) -> NDArray[np.uint16]:
            rows = stored.read_rows(layout, raw, value=value)
            return stored.unpack(layout, rows).reshape(count, chunks * lanes, layout.tiles * lanes)

        def scales(value: bool) -> NDArray | None:
            part = stored.read_scales(layout, raw, value=value)
            return None if part is None else part.reshape(count, chunks * lanes, *part.shape[3:])

        bias = None
        if job_rows is not None:
            rows, port = job_rows[:, None, None], config.port_bytes
            start = np.array([p.address for p in parts])[:, None, None]
            # past a strand's own chunks the last bias repeats: it is never looked at
            own = np.array([max(len(p.addresses) - 1, 0) for p in parts])[:, None, None]
            chunk = np.minimum(np.arange(chunks), own)
            at = start + (chunk * rows + row[:, :, None]) * port
            bias = self._gather(at, port).view("<u2").reshape(count, row.shape[1], -1)
        return golden.KvSegment(
            codes(False),
            codes(True),
            end=np.array([p.end for p in parts]),
            start=np.array([p.start for p in parts]),
            base=np.array([p.first * lanes for p in parts]),
            k_scale=scales(False),
            v_scale=scales(True),
            draft=parts[0].kind == SegmentKind.DRAFT,
            bias=bias,
        )

    def _raw_segment(
        self, layout: PageLayout, parts: list[Part], row: NDArray[np.int64]
    ) -> golden.RawSegment:
        stride = raw_stride(self.config, layout.tiles)
        at = np.array([p.address for p in parts])[:, None] + row * stride
        words = self._gather(at, stride).view("<u4")  # [B, R, words]
        head = self.config.port_bytes // 4
        return golden.RawSegment(
            words[..., 0].view(np.int32), words[..., 1].view(np.float32),
            words[..., head:].view(np.float32),
        )  # fmt: skip

    def _raw_bytes(
        self, layout: PageLayout, exponent: NDArray, l_value: NDArray, o: NDArray
    ) -> NDArray[np.uint8]:
        words = raw_stride(self.config, layout.tiles) // 4
        out = np.zeros((*exponent.shape, words), np.uint32)
        out[..., 0] = exponent.astype(np.int32).view(np.uint32)
        out[..., 1] = np.ascontiguousarray(l_value, np.float32).view(np.uint32)
        out[..., self.config.port_bytes // 4 :] = np.ascontiguousarray(o, np.float32).view(
            np.uint32
        )
        return out.view(np.uint8)

    # ---------------------------------------------------------------- memory

    def _words(self, kind: str) -> NDArray:
        return self.memory.view(kind)

    def _gather(self, address: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """`size` bytes at each port-aligned address: [..., size]."""
        port = self.config.port_bytes
        beats = address[..., None] // port + np.arange(size // port)
        return self.memory.reshape(-1, port)[beats].reshape(*address.shape, size)

    def _scatter(self, address: NDArray[np.int64], data: NDArray[np.uint8]) -> None:
        port = self.config.port_bytes
        beats = address[..., None] // port + np.arange(data.shape[-1] // port)
        self.memory.reshape(-1, port)[beats] = data.reshape(*beats.shape, port)


def _float(bits: int) -> float:
    """A positive normal FP32 of these bits; anything else counts as 0, as in the core."""
    return float(np.array(bits, np.uint32).view(np.float32))
