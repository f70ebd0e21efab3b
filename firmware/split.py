"""A long context divided between the cores of a cluster: each streams its own part of the tokens.

As nothing in the sums is ever rescaled, parts merge by adding: every core leaves the raw states
(E, l, O) of the rows over its tokens in memory, and one of them adds them up as RAW segments.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m890.firmware.cluster import shares
from m890.firmware.driver import Driver
from m890.firmware.errors import ShapeError
from m890.firmware.kvcache import KvCache
from m890.firmware.memory_map import PlaneShape
from m890.firmware.records import pack
from m890.hdl.commands import ROW, SEGMENT, SegmentKind
from m890.hdl.layout import raw_stride
from m890.hdl.numerics.formats import Format, OutputFormat

Bits = NDArray[np.uint16]


class SplitContext:
    """One sequence of up to `tokens` tokens, in runs of whole pages on the cores of a cluster.

    Core n holds tokens [starts[n], starts[n + 1]) as a sequence of its own, of every plane.
    """

    def __init__(self, drivers: Sequence[Driver], shape: PlaneShape, tokens: int) -> None:
        config = drivers[0].config
        size = config.page_tokens
        pages = -(-tokens // size)
        if pages < len(drivers):
            raise ShapeError(
                f"{tokens} tokens are {pages} pages, too few for {len(drivers)} cores: use fewer"
            )
        self.drivers, self.config, self.shape = list(drivers), config, shape
        parts = shares(pages, len(drivers))
        self.starts = [part.start * size for part in parts] + [pages * size]
        self.caches = [
            KvCache(driver, shape, limit=(part.stop - part.start) * size,
                    pages=part.stop - part.start)
            for driver, part in zip(drivers, parts, strict=True)
        ]  # fmt: skip
        self.sequences = [cache.create() for cache in self.caches]
        self.length = 0

    def append(self, k: Bits, v: Bits, source: Format) -> None:
        """The next tokens' K and V [planes, N, head] of all planes, BF16 or FP16 bits."""
        planes, count, head = k.shape
        if self.length + count > self.starts[-1]:
            raise ShapeError(
                f"{self.length + count} tokens are beyond the {self.starts[-1]} of this context"
            )
        waits = []
        for n, driver in enumerate(self.drivers):
            first = max(self.length, self.starts[n])
            last = min(self.length + count, self.starts[n + 1])
            if last <= first:
                continue
            here = slice(first - self.length, last - self.length)
            cache, sequence = self.caches[n], self.sequences[n]
            cache.expect([(sequence, last - self.starts[n])])
            at = [driver.place(np.ascontiguousarray(x[:, here])) for x in (k, v)]
            skip = np.arange(planes) * (last - first) * 2 * head
            values = {
                "plane": np.arange(planes), "sequence": sequence, "start": first - self.starts[n],
                "tokens": last - first, "source_format": int(source), "k": at[0] + skip,
                "v": at[1] + skip, "source_stride": 2 * head,
                "commit": np.arange(planes) == planes - 1,
            }  # fmt: skip
            tags = driver.submit_many(driver.pack("APPEND", planes, values))
            waits.append((n, last - first, at, tags))
        for n, tokens, at, tags in waits:
            self.drivers[n].wait(tags)
            self.drivers[n].free(*at)
            self.caches[n].commit(self.sequences[n], tokens)
        self.length += count

    def attend(
        self, query: Bits, position: NDArray[np.int64], query_format: Format, *, causal: bool = True
    ) -> NDArray[np.float32]:
        """Attention of rows [planes, R, head] at places [R] of the context, FP32.

        `query` holds what a job's does: scale and log2 e are folded in. Cores work on their parts
        at the same time; then the planes' merges are divided between them.
        """
        planes, rows, head = query.shape
        size = self.config.rows
        groups = [slice(at, min(at + size, rows)) for at in range(0, rows, size)]
        work = [(plane, group) for plane in range(planes) for group in groups]
        jobs = _Jobs(self.config.port_bytes, query, query_format)
        states: list[list[int]] = [[] for _ in work]
        for n, driver in enumerate(self.drivers):
            end = self.caches[n].length(self.sequences[n])
            for number, (plane, group) in enumerate(work):
                seen = position[group] >= self.starts[n] if causal else np.ones(rows, bool)[group]
                if not end or not seen.any():
                    continue
                segment = {
                    "sequence": self.sequences[n], "end": end,
                    "row_mask": int((1 << np.flatnonzero(seen)).sum()),
                }  # fmt: skip
                place = np.maximum(position[group] - self.starts[n], 0)
                row = raw_stride(self.config, head // self.config.lanes)
                states[number].append(
                    jobs.add(driver, plane, group, place, [segment], OutputFormat.RAW, row, causal)
                )
        jobs.run()
        outputs = []
        for number, (plane, group) in enumerate(work):
            every = (1 << group.stop - group.start) - 1
            segments = [
                {"kind": int(SegmentKind.RAW), "row_mask": every, "address": state}
                for state in states[number]
            ]
            driver, place = self.drivers[plane % len(self.drivers)], position[group]
            outputs.append(
                jobs.add(driver, plane, group, place, segments, OutputFormat.FP32, 4 * head, False)
            )
        jobs.run()
        out = np.empty(query.shape, np.float32)
        for (plane, group), at in zip(work, outputs, strict=True):
            shape = out[plane, group].shape
            out[plane, group] = self.drivers[0].view(at, shape, np.float32)
        jobs.free()
        return out


class _Jobs:
    """ATTENDs for several cores: added one by one, run all at once; their buffers."""

    def __init__(self, port_bytes: int, query: Bits, query_format: Format) -> None:
        self._port, self._query, self._format = port_bytes, query, query_format
        self._commands: dict[int, tuple[Driver, list[NDArray[np.uint8]]]] = {}
        self._buffers: list[tuple[Driver, int]] = []

    def add(
        self,
        driver: Driver,
        plane: int,
        group: slice,
        position: NDArray[np.int64],
        segments: list[dict[str, int]],
        output_format: OutputFormat,
        row_bytes: int,
        causal: bool,
    ) -> int:
        """A job of some rows of a plane; returns where its output will be."""
        count, head = group.stop - group.start, self._query.shape[2]
        rows = pack(ROW, count, {"position": position}).reshape(-1)
        gap = np.zeros(-rows.size % self._port, np.uint8)
        entries = [pack(SEGMENT, 1, dict(segment)).reshape(-1) for segment in segments]
        tables = driver.place(np.concatenate([rows, gap, *entries]))
        query, output = driver.place(self._query[plane, group]), driver.buffer(count * row_bytes)
        self._buffers += [(driver, at) for at in (tables, query, output)]
        values = {
            "plane": plane, "rows": count, "segments": len(segments), "causal": int(causal),
            "query_format": int(self._format == Format.FP16), "output_format": int(output_format),
            "tables": tables, "query": query, "query_stride": 2 * head, "output": output,
            "output_stride": row_bytes,
        }  # fmt: skip
        _, commands = self._commands.setdefault(id(driver), (driver, []))
        commands.append(driver.pack("ATTEND", 1, values))
        return output

    def run(self) -> None:
        """Every core has its jobs before the first is waited for."""
        waits = [(d, d.submit_many(np.concatenate(c))) for d, c in self._commands.values()]
        self._commands.clear()
        for driver, tags in waits:
            driver.wait(tags)

    def free(self) -> None:
        for driver, at in self._buffers:
            driver.free(at)
