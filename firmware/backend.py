"""Attention and KV cache of a decoder on a device: the decoder's backend."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from m890.firmware.driver import Driver
from m890.firmware.errors import ContextLimit, PoolFull, SequencesFull, ShapeError
from m890.firmware.kvcache import KvCache
from m890.firmware.memory_map import PlaneShape, round_up
from m890.firmware.models.backend import CapacityError, ContextLimitError, Draft, Span
from m890.firmware.planner import Plan, Request, plan
from m890.hdl.numerics.formats import Format, OutputFormat

LOG2_E = math.log2(math.e)
Floats = NDArray[np.float32]


@dataclass
class Usage:
    """What attention cost, of one sequence or in total.

    `tokens` new tokens, each counted once; `kv_bytes` read from pages, `kv_bytes_alone` what would
    have been read had every sequence read its own context; `cycles` from the first command of a
    layer to its last completion, a sequence's share by its part of the reads; `beats` of the array
    and `jobs` in total only.
    """

    tokens: int = 0
    kv_bytes: float = 0.0
    kv_bytes_alone: float = 0.0
    cycles: float = 0.0
    beats: int = 0
    jobs: int = 0

    @property
    def saved(self) -> float:
        """KV bytes that sharing did not read."""
        return self.kv_bytes_alone - self.kv_bytes

    @property
    def utilisation(self) -> float:
        """Array beats per cycle."""
        return self.beats / self.cycles if self.cycles else 0.0

    @property
    def cycles_per_token(self) -> float:
        return self.cycles / self.tokens if self.tokens else 0.0

    def add(self, other: "Usage") -> None:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))


@dataclass
class _Step:
    """A plan with its tables in device memory, for all layers of one step."""

    spans: tuple[Span, ...]
    drafts: tuple[Draft | None, ...] | None
    plan: Plan
    tables: int  # scratch address
    offsets: NDArray[np.int64]


class DeviceBackend:
    """Holds a decoder's KV cache on a device and attends there.

    Every layer and KV head is a plane. `attend` appends the new tokens of all KV heads, runs their
    jobs and reads the outputs, under one doorbell as far as the rings reach. A failed call
    (CapacityError, ContextLimitError) has changed nothing.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        layers: int,
        heads: int,
        kv_heads: int,
        head_size: int,
        format: Format = Format.FP16,
        rotate: bool | None = None,
        limit: int | None = None,
        pages: int | None = None,
        quotas: Mapping[int, int] | None = None,
        share: bool = True,
        output_format: OutputFormat = OutputFormat.FP32,
        tags: bool = False,
    ) -> None:
        """Makes the KV cache; `share` lets sequences with common pages stand in one job.

        `rotate` None: as the format is better, see PlaneShape. With `tags` the device finds damage
        to K and V in memory: `attend` then raises BadTag.
        """
        if heads % kv_heads:
            raise ShapeError(f"{heads} heads cannot share {kv_heads} KV heads evenly")
        config = driver.config
        if head_size > config.max_head:
            raise ShapeError(
                f"head size {head_size} is beyond the core's {config.max_head}: use another preset"
            )
        self.driver, self.config = driver, config
        self.layers, self.heads, self.kv_heads, self.head_size = layers, heads, kv_heads, head_size
        self.group = heads // kv_heads
        self.head = round_up(head_size, config.lanes)  # as stored: padded with zeros
        self.format, self.share, self.output_format = format, share, output_format
        # a BF16 cache gets BF16 sources and queries, every other one FP16
        self.source_format = Format.BF16 if format == Format.BF16 else Format.FP16
        self._source = np.dtype(ml_dtypes.bfloat16 if format == Format.BF16 else np.float16)
        shape = PlaneShape(layers * kv_heads, format, self.head, rotate, tags)
        self.cache = KvCache(driver, shape, limit=limit, pages=pages, quotas=quotas)
        layout = shape.layout(config)
        self._token_bytes = layout.chunk_bytes / config.lanes
        self.total = Usage()
        self.now = 0  # cycle of the latest completion
        self._usage: dict[int, Usage] = {}
        self._step: _Step | None = None

    # ------------------------------------------------------------------ sequences

    @property
    def limit(self) -> int:
        """The longest context in tokens."""
        return self.cache.limit

    def create(self, tokens: Sequence[int] = (), tenant: int = 0) -> int:
        """A new sequence; with `tokens` it starts with the pages that earlier ones share with it.

        `length` tells how many tokens it then holds already.
        """
        try:
            number = self.cache.create(tokens, tenant)
        except SequencesFull as error:
            raise CapacityError(str(error)) from error
        self._usage[number] = Usage()
        return number

    def fork(self, sequence: int, tokens: int) -> int:
        """A new sequence that shares the first `tokens` committed tokens of another."""
        try:
            number = self.cache.fork(sequence, tokens)
        except (SequencesFull, PoolFull) as error:
            raise CapacityError(str(error)) from error
        self._usage[number] = Usage()
        return number

    def release(self, sequence: int) -> None:
        """Forgets a sequence; its known prefix pages stay for reuse."""
        self.forget_step()
        self.cache.release(sequence)

    def trim(self, sequence: int, tokens: int) -> None:
        """Rolls a sequence back to its first `tokens` tokens."""
        self.forget_step()
        self.cache.trim(sequence, tokens)

    def length(self, sequence: int) -> int:
        """Committed tokens of a sequence."""
        return self.cache.length(sequence)

    def usage(self, sequence: int) -> Usage:
        """Cost of a sequence since it was made; kept after release until its number is reused."""
        return self._usage[sequence]

    # ------------------------------------------------------------------ attention

    def attend(
        self,
        layer: int,
        spans: Sequence[Span],
        q: Floats,
        k: Floats,
        v: Floats,
        *,
        drafts: Sequence[Draft | None] | None = None,
    ) -> Floats:
        """Appends K and V at the spans' positions, then attends causally.

        q [N, H, dh], k and v [N, KVH, dh] of all spans' tokens in order -> [N, H, dh]. `drafts`
        names the spans whose tokens are a draft tree; the softmax scale is 1 / sqrt(dh).
        """
        step = self._prepare(tuple(spans), None if drafts is None else tuple(drafts))
        driver, count, planes = (
            self.driver,
            len(q),
            layer * self.kv_heads + np.arange(self.kv_heads),
        )
        source_bytes = 2 * self.head
        kv = np.zeros((2, self.kv_heads, count, self.head), self._source)
        kv[0, ..., : self.head_size] = k.transpose(1, 0, 2)
        kv[1, ..., : self.head_size] = v.transpose(1, 0, 2)
        queries = self._queries(step.plan, q)
        rows = len(step.plan.token)
        element = 4 if self.output_format == OutputFormat.FP32 else 2
        buffers: list[int] = []
        try:
            buffers.append(kv_at := driver.place(kv))
            buffers.append(query_at := driver.place(queries))
            buffers.append(output_at := driver.buffer(self.kv_heads * rows * self.head * element))
            appends = self._appends(spans, planes, kv_at, count * source_bytes)
            attends = self._attends(step, planes, query_at, output_at, element)
            order = self._order(spans, step.plan)
            done = self._perform(spans, np.concatenate([appends, attends])[order])
            out = self._outputs(step.plan, output_at, count)
        finally:
            driver.free(*buffers)
        self._account(step, done[order >= len(appends)], done)
        return out

    def commit(self, spans: Sequence[Span], tokens: Sequence[int] | None = None) -> None:
        """Makes the spans part of their sequences, once every layer has been appended.

        `tokens` [N], where known, lets later sequences share their pages (see `create`).
        """
        at = 0
        for span in spans:
            known = None if tokens is None else tokens[at : at + span.count]
            self.cache.commit(span.sequence, span.count, known)
            self._usage[span.sequence].tokens += span.count
            self.total.tokens += span.count
            at += span.count
        self.forget_step()

    # ------------------------------------------------------------------ inside

    def _perform(self, spans: Sequence[Span], commands: NDArray[np.uint8]) -> NDArray:
        """Completions of a layer's commands."""
        needs = [(s.sequence, s.start + s.count) for s in spans]
        try:
            return self.cache.perform(commands, needs)
        except PoolFull as error:
            self.forget_step()
            raise CapacityError(str(error)) from error

    def _prepare(
        self, spans: tuple[Span, ...], drafts: tuple[Draft | None, ...] | None
    ) -> _Step:
        """Reserves pages and plans, on the first layer of a step; the others find it done."""
        step = self._step
        if step is not None and (step.spans, step.drafts) == (spans, drafts):
            return step
        self.forget_step()
        for span in spans:
            if span.start != self.cache.length(span.sequence) or span.count < 1:
                raise ShapeError(
                    f"span of {span.count} tokens at {span.start} of sequence {span.sequence},"
                    f" which holds {self.cache.length(span.sequence)}: start a span there"
                )
        try:
            self.cache.expect((s.sequence, s.start + s.count) for s in spans)
        except ContextLimit as error:
            raise ContextLimitError(error.sequence, error.tokens, error.limit) from error
        requests = []
        for i, s in enumerate(spans):
            draft = drafts[i] if drafts is not None else None
            requests.append(
                Request(
                    s.sequence,
                    s.start,
                    s.count,
                    self.cache.block_table(s.sequence)[: s.start // self.config.page_tokens],
                    draft.masks if draft else None,
                    draft.positions if draft else None,
                    self.cache.tenant(s.sequence),
                )
            )
        made = plan(self.config, requests, self.group, share=self.share)
        tables, offsets = made.tables(self.config.port_bytes)
        self._step = _Step(spans, drafts, made, self.driver.place(tables), offsets)
        return self._step

    def forget_step(self) -> None:
        """The spans of an unfinished step were never appended; the next `attend` plans anew."""
        if self._step is not None:
            self.driver.free(self._step.tables)
            self._step = None

    def _queries(self, made: Plan, q: Floats) -> NDArray:
        """Queries [kv_heads, rows, head] in the plan's order, scaled for a base-2 softmax."""
        scaled = q * np.float32(LOG2_E / math.sqrt(self.head_size))
        grouped = scaled.reshape(len(q), self.kv_heads, self.group, self.head_size)
        out = np.zeros((self.kv_heads, len(made.token), self.head), self._source)
        out[..., : self.head_size] = grouped[made.token, :, made.head].transpose(1, 0, 2)
        return out

    def _appends(
        self, spans: Sequence[Span], planes: NDArray, kv_at: int, plane_bytes: int
    ) -> NDArray[np.uint8]:
        """An APPEND per KV head and span; those of the last plane commit."""
        source_bytes = 2 * self.head
        counts = np.array([s.count for s in spans])
        first = np.cumsum(counts) - counts
        k = kv_at + np.arange(self.kv_heads)[:, None] * plane_bytes + first * source_bytes
        n = self.kv_heads
        values = {
            "plane": np.repeat(planes, len(spans)),
            "sequence": np.tile([s.sequence for s in spans], n),
            "start": np.tile([s.start for s in spans], n),
            "tokens": np.tile(counts, n),
            "source_format": int(self.source_format),
            "k": k.reshape(-1),
            "v": (k + n * plane_bytes).reshape(-1),
            "source_stride": source_bytes,
            "tenant": np.tile([self.cache.tenant(s.sequence) for s in spans], n),
            "commit": np.repeat(planes == self.layers * self.kv_heads - 1, len(spans)),
        }
        return self.driver.pack("APPEND", n * len(spans), values)

    def _attends(
        self, step: _Step, planes: NDArray, query_at: int, output_at: int, element: int
    ) -> NDArray[np.uint8]:
        """An ATTEND per KV head and job."""
        made, n = step.plan, self.kv_heads
        row = np.arange(n)[:, None] * len(made.token) + made.first
        query_bytes, output_bytes = 2 * self.head, element * self.head
        values = {
            "causal": 1,
            "query_format": int(self.source_format == Format.FP16),
            "output_format": int(self.output_format),
            "plane": np.repeat(planes, made.jobs),
            "rows": np.tile(made.rows, n),
            "segments": np.tile([len(s) for s in made.segments], n),
            "tables": np.tile(step.tables + step.offsets, n),
            "query": (query_at + row * query_bytes).reshape(-1),
            "output": (output_at + row * output_bytes).reshape(-1),
            "query_stride": query_bytes,
            "output_stride": output_bytes,
            "tenant": np.tile(made.tenant, n),
        }
        return self.driver.pack("ATTEND", n * made.jobs, values)

    def _order(self, spans: Sequence[Span], made: Plan) -> NDArray[np.int64]:
        """Order of the APPENDs and ATTENDs, which are numbered one after the other.

        A job follows the appends that it needs at once, so that all but the first ones hide behind
        jobs: the core starts commands in order, and an ATTEND as soon as its own tokens are there.
        """
        span_of = np.repeat(np.arange(len(spans)), [s.count for s in spans])
        job_of = np.repeat(np.arange(made.jobs), made.rows)
        needed = np.full(len(spans), made.jobs)
        np.minimum.at(needed, span_of[made.token], job_of)
        job = np.concatenate(
            [np.tile(needed, self.kv_heads), np.tile(np.arange(made.jobs), self.kv_heads)]
        )
        head = np.concatenate(
            [np.repeat(np.arange(self.kv_heads), n) for n in (len(spans), made.jobs)]
        )
        kind = np.repeat([0, 1], [self.kv_heads * n for n in (len(spans), made.jobs)])
        return np.lexsort((kind, job, head))

    def _outputs(self, made: Plan, output_at: int, count: int) -> Floats:
        """Outputs in the order of the tokens, [N, H, dh]."""
        kind = {
            OutputFormat.FP32: np.dtype(np.float32),
            OutputFormat.FP16: np.dtype(np.float16),
            OutputFormat.BF16: np.dtype(ml_dtypes.bfloat16),
        }[self.output_format]
        raw = self.driver.view(output_at, (self.kv_heads, len(made.token), self.head), kind)
        out = np.empty((count, self.kv_heads, self.group, self.head_size), np.float32)
        out[made.token, :, made.head] = raw[..., : self.head_size].transpose(1, 0, 2)
        return out.reshape(count, self.heads, self.head_size)

    def _account(self, step: _Step, jobs: NDArray, done: NDArray) -> None:
        """Adds one layer's cost."""
        self.now = int(done["end"].max())
        cycles = self.now - int(done["start"].min())
        per_token = self._token_bytes * self.kv_heads
        reads = step.plan.reads
        passed = sum(r.passed for r in reads.values()) or 1.0
        total = Usage(beats=int(jobs["beats"].sum()), jobs=len(jobs), cycles=cycles)
        for sequence, read in reads.items():
            part = Usage(
                kv_bytes=read.passed * per_token,
                kv_bytes_alone=read.alone * per_token,
                cycles=cycles * read.passed / passed,
            )
            self._usage[sequence].add(part)
            total.kv_bytes += part.kv_bytes
            total.kv_bytes_alone += part.kv_bytes_alone
        self.total.add(total)
