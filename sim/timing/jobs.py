"""Reads ATTEND jobs from memory: row table, segments, and the chunks that the rows can see."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m890.firmware.records import unpack
from m890.hdl.commands import ROW, ROW_BYTES, SEGMENT, SEGMENT_BYTES, Error, SegmentKind
from m890.hdl.config import DRAFT_BITS
from m890.hdl.numerics.formats import OutputFormat
from m890.sim.timing.checks import Failure, Plane, Tables
from m890.sim.timing.execute import Attend, Part, Streamed, Template, strands_of
from m890.sim.timing.model import Work

_KIND = (
    "causal", "sink", "bias", "query_format", "output_format", "window", "sinks", "softcap",
    "softcap_inverse",
)  # fmt: skip
"""Fields of an ATTEND on which jobs of one golden call have to agree."""
KEPT = 256
"""Templates that are remembered: the jobs of one step of a decoder, over its layers and heads."""


@dataclass(frozen=True)
class _Pages:
    """Block table entries that a template was made from."""

    entries: NDArray[np.int64]  # indices into the memory's 32-bit words
    pages: NDArray[np.uint32]


class JobReader:
    """Turns ATTEND commands into checked jobs.

    A decoder's step asks for the same rows and segments once per layer and KV head, so what follows
    from the tables alone is kept, as long as the sequences and the block tables stay as they were.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables, self.config, self.memory = tables, tables.config, tables.memory
        self._kept: dict[tuple, tuple[Template, list[_Pages]]] = {}

    def forget(self) -> None:
        """Sequences, owners of pages that were held, or the plane table have changed."""
        self._kept.clear()

    def read(self, c: dict[str, int]) -> Attend | Failure:
        """The job of a command, or why it is refused."""
        failure = self.tables.check_attend(c)
        if failure is not None:
            return failure
        plane, port = self.tables.planes[c["plane"]], self.config.port_bytes
        rows = self._table(c["tables"], c["rows"], ROW_BYTES)
        at = c["tables"] + -(-rows.size // port) * port
        segments = self._table(at, c["segments"], SEGMENT_BYTES)
        kind = (plane.layout, plane.rotate, *(c[name] for name in _KIND))
        key = (kind, c["tenant"], plane.stride, rows.tobytes(), segments.tobytes())
        kept = self._kept.get(key)
        if kept is not None and all(self._same(pages) for pages in kept[1]):
            return Attend(c, plane, kept[0])
        pages: list[_Pages] = []
        made = self._template(c, plane, kind, rows, segments, pages)
        if isinstance(made, Failure):
            return made
        if len(self._kept) >= KEPT:
            self._kept.clear()
        self._kept[key] = (made, pages)
        return Attend(c, plane, made)

    def _same(self, kept: _Pages) -> bool:
        return np.array_equal(self.memory.view("<u4")[kept.entries], kept.pages)

    def _table(self, at: int, count: int, size: int) -> NDArray[np.uint8]:
        return self.memory[at : at + count * size].reshape(count, size)

    def _template(
        self,
        c: dict[str, int],
        plane: Plane,
        kind: tuple,
        row_table: NDArray[np.uint8],
        segment_table: NDArray[np.uint8],
        pages: list[_Pages],
    ) -> Template | Failure:
        """Checks the tables and finds the visible chunks."""
        rows, columns = unpack(ROW, row_table), unpack(SEGMENT, segment_table)
        failure = self.tables.check_rows(rows["position"])
        if failure is not None:
            return failure
        # row masks use all 64 bits, more than unpack keeps
        masks = segment_table[:, 16:24].copy().view("<u8")[:, 0].tolist()
        names = list(columns)
        segments = [
            dict(zip(names, values, strict=True))
            for values in zip(*(column.tolist() for column in columns.values()), strict=True)
        ]
        for index, (segment, mask) in enumerate(zip(segments, masks, strict=True)):
            segment["row_mask"] = mask & ((1 << c["rows"]) - 1)
            failure = self.tables.check_segment(c, segment, index)
            if failure is not None:
                return failure
        parts: list[Part] = []
        streamed: list[Streamed] = []
        for index, segment in enumerate(segments):
            part = self._part(c, plane, segment, rows["position"], rows["draft"], pages, streamed)
            if isinstance(part, Error):
                return Failure(part, 0, index)
            parts.append(part)
        strands = strands_of(
            parts, rows["position"], rows["draft"], rows["sink"].astype(np.uint32),
            bias=bool(c["bias"]), lanes=self.config.lanes,
        )  # fmt: skip
        work = Work(
            plane.layout,
            c["rows"],
            c["segments"],
            sum(p.visible for p in parts),
            bool(c["bias"]),
            sum(p.rows.bit_count() for p in parts if p.kind == SegmentKind.RAW),
            OutputFormat(c["output_format"]),
        )
        return Template(strands, tuple(streamed), work, kind)

    def _part(
        self,
        c: dict[str, int],
        plane: Plane,
        s: dict[str, int],
        position: NDArray[np.int64],
        draft: NDArray[np.int64],
        pages: list[_Pages],
        streamed: list[Streamed],
    ) -> Part | Error:
        """A segment with its chunks, or why the first that cannot be reached is not."""
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
        table = self.tables.sequences[s["sequence"]].table
        entries = table // 4 + token // size
        found = self.memory.view("<u4")[entries]
        pages.append(_Pages(entries, found))
        page = found.astype(np.int64)
        visible = seen[low:high]
        for number in dict.fromkeys(page[visible].tolist()):
            error = self.tables.pages.reach(number, c["tenant"])
            if error != Error.OK:
                return error
        page = np.where(visible, page, page[0])  # the others are masked, whatever they hold
        layout = plane.layout
        addresses = page * plane.stride + token % size // lanes * layout.chunk_bytes
        streamed.append(
            Streamed(s["sequence"], s["start"], s["end"], token[visible], addresses[visible])
        )
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
