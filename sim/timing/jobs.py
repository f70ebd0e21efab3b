"""Reads ATTEND jobs from memory: row table, segments, and the chunks that the rows can see."""

import numpy as np
from numpy.typing import NDArray

from m890.firmware.records import unpack
from m890.hdl.commands import ROW, ROW_BYTES, SEGMENT, SEGMENT_BYTES, Error, SegmentKind
from m890.hdl.config import DRAFT_BITS
from m890.hdl.numerics.formats import OutputFormat
from m890.sim.timing.checks import Failure, Plane, Tables
from m890.sim.timing.execute import Attend, Part
from m890.sim.timing.model import Work


class JobReader:
    """Turns ATTEND commands into checked jobs, and tells what each makes the core do."""

    def __init__(self, tables: Tables) -> None:
        self.tables, self.config, self.memory = tables, tables.config, tables.memory

    def read(self, c: dict[str, int]) -> Attend | Failure:
        """The job of a command, or why it is refused."""
        failure = self.tables.check_attend(c)
        if failure is not None:
            return failure
        plane, port = self.tables.planes[c["plane"]], self.config.port_bytes
        row_bytes = c["rows"] * ROW_BYTES
        rows = unpack(ROW, self._table(c["tables"], c["rows"], ROW_BYTES))
        at = c["tables"] + -(-row_bytes // port) * port
        columns = unpack(SEGMENT, self._table(at, c["segments"], SEGMENT_BYTES))
        # row masks use all 64 bits, which unpack saturates
        masks = self._table(at, c["segments"], SEGMENT_BYTES)[:, 16:24].copy().view("<u8")[:, 0]
        failure = self.tables.check_rows(rows["position"])
        if failure is not None:
            return failure
        names = list(columns)
        segments = [
            dict(zip(names, values, strict=True))
            for values in zip(*(column.tolist() for column in columns.values()), strict=True)
        ]
        for index, (segment, mask) in enumerate(zip(segments, masks.tolist(), strict=True)):
            segment["row_mask"] = mask & ((1 << c["rows"]) - 1)
            failure = self.tables.check_segment(c, segment, index)
            if failure is not None:
                return failure
        parts: list[Part] = []
        for index, segment in enumerate(segments):
            part = self._part(c, plane, segment, rows["position"], rows["draft"])
            if part is None:
                return Failure(Error.BAD_PAGE, 0, index)
            parts.append(part)
        return Attend(
            c, plane, rows["position"], rows["draft"], rows["sink"].astype(np.uint32), parts
        )

    def work(self, job: Attend) -> Work:
        """What the job makes the core do."""
        c = job.command
        raw = [p for p in job.parts if p.kind == SegmentKind.RAW]
        return Work(
            job.plane.layout,
            c["rows"],
            c["segments"],
            sum(p.visible for p in job.parts),
            bool(c["bias"]),
            sum(p.rows.bit_count() for p in raw),
            OutputFormat(c["output_format"]),
        )

    def _table(self, at: int, count: int, size: int) -> NDArray[np.uint8]:
        return self.memory[at : at + count * size].reshape(count, size)

    def _part(
        self,
        c: dict[str, int],
        plane: Plane,
        s: dict[str, int],
        position: NDArray[np.int64],
        draft: NDArray[np.int64],
    ) -> Part | None:
        """A segment with its chunks; None when a visible chunk has no page of the pool."""
        lanes, size = self.config.lanes, self.config.page_tokens
        kind = SegmentKind(s["kind"])
        none = np.zeros(0, np.int64)
        if kind == SegmentKind.RAW:
            return Part(kind, 0, 0, 0, 0, s["row_mask"], none, s["address"], 0)
        chunk = np.arange(s["start"] // lanes, -(-s["end"] // lanes))
        seen = self._seen(c, s, chunk, position, draft)
        if not seen.any():
            first = s["start"] // lanes
            return Part(
                kind, s["start"], s["start"], first, first, s["row_mask"], none, s["address"], 0
            )
        here = np.flatnonzero(seen)
        low, high = int(here[0]), int(here[-1]) + 1
        token = chunk[low:high] * lanes
        table = self.tables.sequences[s["sequence"]][0]
        page = self.memory.view("<u4")[table // 4 + token // size].astype(np.int64)
        visible = seen[low:high]
        if (page[visible] >= self.config.pages).any():
            return None
        page = np.where(visible, page, page[0])  # the others are masked, whatever they hold
        layout = plane.layout
        addresses = plane.base + page * plane.stride + token % size // lanes * layout.chunk_bytes
        first = int(chunk[low])
        bias = s["address"] + low * c["rows"] * self.config.port_bytes
        start, end = s["start"], min(s["end"], int(chunk[high - 1] + 1) * lanes)
        return Part(
            kind, start, end, first, first + high - low, s["row_mask"], addresses, bias,
            int(visible.sum()),
        )  # fmt: skip

    def _seen(
        self,
        c: dict[str, int],
        s: dict[str, int],
        chunk: NDArray[np.int64],
        position: NDArray[np.int64],
        draft: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Chunks of which at least one row of the segment sees a token."""
        lanes = self.config.lanes
        rows = [r for r in range(c["rows"]) if s["row_mask"] >> r & 1]
        low = np.maximum(chunk * lanes, s["start"])[:, None]
        high = np.minimum(chunk * lanes + lanes, s["end"])[:, None] - 1
        if s["kind"] == SegmentKind.DRAFT:
            first = low - s["start"]
            last = np.minimum(high - s["start"], DRAFT_BITS - 1)
            wanted = (1 << (last + 1)) - (1 << np.minimum(first, DRAFT_BITS))
            hit = (draft[rows] & wanted) != 0
            return np.asarray(hit.any(-1) & (first[:, 0] < DRAFT_BITS))
        where = position[rows]
        upper = np.minimum(high, where) if c["causal"] else np.broadcast_to(high, low.shape)
        see = low <= upper
        if c["window"]:
            see = see & ((upper + c["window"] > where) | (low < c["sinks"]))
        return np.asarray(np.broadcast_to(see, (len(chunk), len(rows))).any(-1))
