"""Attention and KV cache of a decoder on a device: the decoder's backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from m890.firmware.driver import Driver
from m890.firmware.errors import ContextLimit, PoolFull, SequencesFull, ShapeError
from m890.firmware.kvcache import KvCache
from m890.firmware.layer import Floats, LayerCommands
from m890.firmware.memory_map import PlaneShape
from m890.firmware.models.backend import CapacityError, ContextLimitError, Draft, Recompute, Span
from m890.firmware.planner import Plan, Request, plan
from m890.firmware.repair import Repairer, Whole
from m890.hdl.numerics.formats import Format, OutputFormat


@dataclass
class Usage:
    """What attention cost, of one sequence or in total.

    `tokens` new tokens, each counted once; `kv_bytes` read from pages, `kv_bytes_alone` what would
    have been read had every sequence read its own context; `cycles` from the first command of a
    layer to its last completion, a sequence's share by its part of the reads; in total only:
    `beats` of the array, `jobs`, and tokens that were damaged and have been `repaired`, each in one
    plane. The jobs of repairs take cycles, and are not counted otherwise.
    """

    tokens: int = 0
    kv_bytes: float = 0.0
    kv_bytes_alone: float = 0.0
    cycles: float = 0.0
    beats: int = 0
    jobs: int = 0
    repaired: int = 0

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

    def since(self, before: "Usage") -> "Usage":
        """What came after an earlier reading."""
        return Usage(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))


@dataclass
class _Step:
    """A plan with its tables in device memory, for all layers of one step."""

    spans: tuple[Span, ...]
    drafts: tuple[Draft | None, ...] | None
    plan: Plan
    tables: int  # scratch address
    offsets: NDArray[np.int64]


@dataclass
class Pending:
    """A layer whose commands are on their way; `tags` name them, `jobs` tells which are ATTENDs."""

    spans: tuple[Span, ...]
    step: _Step
    count: int
    buffers: list[int]
    output: int
    commands: NDArray[np.uint8]
    jobs: NDArray[np.bool_]
    tags: NDArray[np.int64]


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
        host_pages: int = 0,
        share: bool = True,
        output_format: OutputFormat = OutputFormat.FP32,
        tags: bool = False,
        recompute: Recompute | None = None,
        whole: Whole | None = None,
    ) -> None:
        """Makes the KV cache; `share` lets sequences with common pages stand in one job.

        `rotate` None: as the format is better, see PlaneShape. With `tags` the device finds damage
        to K and V in memory. A token is then computed anew by `recompute`, that of the decoder, if
        `commit` has named the sequence's tokens; else `attend` raises BadTag. `whole`: the decoder,
        where these heads are a core's part of it.
        """
        self.driver, self.config, self.share = driver, driver.config, share
        self.commands = LayerCommands(
            driver, layers, heads, kv_heads, head_size, format, output_format
        )
        self.layers, self.heads, self.kv_heads, self.head_size = layers, heads, kv_heads, head_size
        shape = PlaneShape(layers * kv_heads, format, self.commands.head, rotate, tags)
        self.cache = KvCache(
            driver, shape, limit=limit, pages=pages, quotas=quotas, host_pages=host_pages
        )
        self.repairer = Repairer(self.cache, self.commands, recompute, whole)
        layout = shape.layout(driver.config)
        self._token_bytes = layout.chunk_bytes / driver.config.lanes
        self.total = Usage()
        self.latest: tuple[Usage, dict[int, Usage]] = Usage(), {}  # of one layer, by sequence
        self.now = 0  # cycle of the latest completion
        self._usage: dict[int, Usage] = {}
        self._step: _Step | None = None

    @property
    def cores(self) -> "list[DeviceBackend]":
        """Itself: a cluster of one."""
        return [self]

    # ------------------------------------------------------------------ sequences

    @property
    def limit(self) -> int:
        """The longest context in tokens."""
        return self.cache.limit

    def create(self, tokens: Sequence[int] = (), tenant: int = 0, *, public: bool = False) -> int:
        """A new sequence; with `tokens` it starts with the pages that earlier ones share with it.

        `length` tells how many tokens it then holds already. Full pages of a `public` sequence are
        there for all tenants.
        """
        try:
            number = self.cache.create(tokens, tenant, public=public)
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

    def pause(self, sequence: int) -> None:
        """The sequence waits: it may go to the host pool. `attend` brings it back."""
        self.forget_step()
        self.cache.pause(sequence)

    def park(self, sequence: int) -> bool:
        """Moves a sequence to the host pool at once; False where that gives no room."""
        self.forget_step()
        return self.cache.park(sequence)

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
        return self.finish(self.begin(layer, spans, q, k, v, drafts=drafts))

    def begin(
        self,
        layer: int,
        spans: Sequence[Span],
        q: Floats,
        k: Floats,
        v: Floats,
        *,
        drafts: Sequence[Draft | None] | None = None,
    ) -> Pending:
        """The first half of `attend`: submits the commands. `finish` has to follow, whatever comes.

        So several cores work at once.
        """
        step = self._prepare(tuple(spans), None if drafts is None else tuple(drafts))
        driver, commands, made, count = self.driver, self.commands, step.plan, len(q)
        planes = commands.planes(layer)
        tenants = [self.cache.tenant(span.sequence) for span in spans]
        buffers: list[int] = []
        try:
            buffers.append(kv_at := driver.place(commands.sources(k, v)))
            buffers.append(query_at := driver.place(commands.queries(made, q)))
            buffers.append(output_at := driver.buffer(commands.output_bytes(made)))
            appends = commands.appends(spans, tenants, planes, kv_at)
            attends = commands.attends(
                made, step.tables + step.offsets, planes, query_at, output_at
            )
            order = commands.order(spans, made)
            packed = np.concatenate([appends, attends])[order]
            tags = driver.submit_many(packed)
        except BaseException:
            driver.free(*buffers)
            raise
        return Pending(
            tuple(spans), step, count, buffers, output_at, packed, order >= len(appends), tags
        )

    def finish(self, pending: Pending) -> Floats:
        """The second half of `attend`: waits for the commands and reads the outputs."""
        try:
            done = self._perform(pending)
            out = self.commands.outputs(pending.step.plan, pending.output, pending.count)
        finally:
            self.driver.free(*pending.buffers)
        self._account(pending.step, done[pending.jobs], done)
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

    def _perform(self, pending: Pending) -> NDArray:
        """Completions of a layer's commands, the jobs that met damaged tokens run again."""
        commands = pending.commands
        needs = [(s.sequence, s.start + s.count) for s in pending.spans]
        try:
            done = self.cache.perform(commands, needs, pending.tags)
        except PoolFull as error:
            self.forget_step()
            raise CapacityError(str(error)) from error
        before = len(self.repairer.repairs)
        done = self.repairer.finish(commands, done)
        self.total.repaired += len(self.repairer.repairs) - before
        return done

    def _prepare(self, spans: tuple[Span, ...], drafts: tuple[Draft | None, ...] | None) -> _Step:
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
            self.cache.wake([s.sequence for s in spans])
            self.cache.expect((s.sequence, s.start + s.count) for s in spans)
        except ContextLimit as error:
            raise ContextLimitError(error.sequence, error.tokens, error.limit) from error
        except PoolFull as error:
            raise CapacityError(str(error)) from error
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
        made = plan(self.config, requests, self.commands.group, share=self.share)
        tables, offsets = made.tables(self.config.port_bytes)
        self._step = _Step(spans, drafts, made, self.driver.place(tables), offsets)
        return self._step

    def forget_step(self) -> None:
        """The spans of an unfinished step were never appended; the next `attend` plans anew."""
        if self._step is not None:
            self.driver.free(self._step.tables)
            self._step = None

    def _account(self, step: _Step, jobs: NDArray, done: NDArray) -> None:
        """Adds one layer's cost."""
        self.now = int(done["end"].max())
        cycles = self.now - int(done["start"].min())
        per_token = self._token_bytes * self.kv_heads
        reads = step.plan.reads
        passed = sum(r.passed for r in reads.values()) or 1.0
        total = Usage(beats=int(jobs["beats"].sum()), jobs=len(jobs), cycles=cycles)
        parts: dict[int, Usage] = {}
        for sequence, read in reads.items():
            part = Usage(
                kv_bytes=read.passed * per_token,
                kv_bytes_alone=read.alone * per_token,
                cycles=cycles * read.passed / passed,
            )
            parts[sequence] = part
            self._usage[sequence].add(part)
            total.kv_bytes += part.kv_bytes
            total.kv_bytes_alone += part.kv_bytes_alone
        self.total.add(total)
        self.latest = total, parts
