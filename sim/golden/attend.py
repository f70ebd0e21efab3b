"""ATTEND jobs: rows of queries, segments that stream past them, output (the specification in code).

All arrays may have leading batch dimensions `...` (they broadcast), so that many jobs of one shape
run at once. Masked tokens have no effect whatever, so jobs of different lengths share a call: each
gets its own `start` and `end`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from m890.hdl.commands import Status
from m890.hdl.config import DRAFT_BITS, CoreConfig
from m890.hdl.numerics.formats import CODINGS, L_SLOTS, Format, OutputFormat
from m890.sim.golden import output, score
from m890.sim.golden.dot import beats
from m890.sim.golden.elements import INACTIVE, Elements, decode, ungroup
from m890.sim.golden.rotate import rotate_back, rotate_query
from m890.sim.golden.wide import Wide, add, fold, power64, round24

_SCORES = 1 << 16  # scores at once
_PRODUCTS = 1 << 18  # products at once: a working set that stays in the cache


@dataclass(frozen=True)
class KvSegment:
    """Tokens that stream past the rows; element i of the arrays is token `base` + i.

    `base` and the number of tokens are multiples of the core's lanes. What lies outside
    [start, end) is never looked at. 8-bit and 4-bit codes lie in the low bits.
    """

    k: np.ndarray  # uint16 [..., N, d]
    v: np.ndarray  # uint16 [..., N, d]
    end: np.ndarray | int  # [...] one past the last visible token
    start: np.ndarray | int = 0  # [...]
    base: np.ndarray | int = 0  # [...] token index of element 0
    k_scale: np.ndarray | None = None  # uint16 [..., N] BF16 bits, or uint8 [..., N, groups] E8M0
    v_scale: np.ndarray | None = None  # likewise
    row_mask: np.ndarray | None = None  # bool [..., R]; None: all rows
    draft: bool = False  # each row's draft mask replaces causal and window
    bias: np.ndarray | None = None  # uint16 [..., R, N] in the queries' format


@dataclass(frozen=True)
class RawSegment:
    """A stored raw state per row, added to the rows' own."""

    exponent: np.ndarray  # int32 [..., R]
    l: np.ndarray  # float32 [..., R]  # noqa: E741
    o: np.ndarray  # float32 [..., R, d]
    row_mask: np.ndarray | None = None  # bool [..., R]


@dataclass(frozen=True)
class Job:
    """One ATTEND job (or a batch of them): the fields of the command and its tables."""

    config: CoreConfig
    format: Format
    query: np.ndarray  # uint16 [..., R, d]
    segments: Sequence[KvSegment | RawSegment]
    query_format: Format = Format.FP16
    position: np.ndarray | int = 0  # [..., R]
    draft: np.ndarray | int = 0  # uint32 [..., R]
    sink: np.ndarray | None = None  # float32 [..., R]
    causal: bool = False
    window: int = 0  # 0: no window
    sinks: int = 0
    softcap: float = 0.0  # base-2 domain, FP32; 0: off
    softcap_inverse: float | None = None  # None: FP32 division
    output_format: OutputFormat = OutputFormat.FP32
    rotate: bool = False  # of the plane: K and V are rotated


@dataclass(frozen=True)
class Result:
    """What a job leaves. For raw output: (E int32 [..., R], l float32 [..., R], O [..., R, d])."""

    status: np.ndarray  # [...] bits of Status
    output: np.ndarray | None = None  # [..., R, d] bits: uint16, or uint32 for FP32
    format: OutputFormat = OutputFormat.RAW
    raw: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def values(self) -> np.ndarray:
        """Output as float32."""
        if self.output is None:
            raise ValueError("a raw result has no output values")
        kinds = {OutputFormat.BF16: ml_dtypes.bfloat16, OutputFormat.FP16: np.float16}
        return self.output.view(kinds.get(self.format, np.float32)).astype(np.float32)


def attend(job: Job) -> Result:
    """Runs a job (or a batch); equal to the RTL bit for bit."""
    batch, job = _flat(job)
    grouped = CODINGS[job.format].grouped
    state = _State.start(replace(job, format=Format.BF16) if grouped else job)
    for segment in job.segments:
        if isinstance(segment, RawSegment):
            state.add_raw(segment)
        else:
            for part in _spans(job, segment):
                state.stream(_ungrouped(job, part) if grouped else part)
    return state.finish(batch)


@dataclass
class _State:
    """Accumulators of the rows: partial sums of l [B, R, slots], O [B, R, d], sticky status [B]."""

    job: Job
    query: Elements  # [tiles, lanes, B, R, 1]
    l: Wide  # noqa: E741
    o: Wide
    status: np.ndarray

    @staticmethod
    def start(job: Job) -> "_State":
        count, rows, head = job.query.shape
        lanes = job.config.lanes
        codes = job.query
        if job.rotate:
            codes = rotate_query(codes, job.query_format, lanes)
        query = decode(codes, job.query_format).reshaped((count, rows, head // lanes, lanes, 1))
        state = _State(
            job,
            query.rearranged((2, 3, 0, 1, 4)),
            Wide.zeros((count, rows, L_SLOTS)),
            Wide.zeros((count, rows, head)),
            np.zeros(count, np.int64),
        )
        if job.sink is not None:
            sink = np.asarray(job.sink, np.float32)
            wide, _, _ = output.read_raw(np.zeros(sink.shape, np.int32), sink)
            power = score.exp2(wide.to_float64())
            state._note(power, np.ones(sink.shape, bool))
            state._add_l(power.p.reshaped((*sink.shape, 1)))
        return state

    def stream(self, part: KvSegment) -> None:
        """A run of whole chunks: K tiles to scores, scores to p, p with V tiles into O."""
        visible = _visible(self.job, part)
        s = self._scores(part)
        if part.k_scale is not None:
            s = score.scale(s, part.k_scale[:, None, :])
        if self.job.softcap:
            cap = np.float32(self.job.softcap)
            inverse = self.job.softcap_inverse
            s = score.soft_cap(s, float(cap), float(1 / cap) if inverse is None else inverse)
        if part.bias is not None:
            s, masked = score.add_bias(s, part.bias, self.job.query_format)
            visible = visible & ~masked
        power = score.exp2(s)
        p = score.mask(power.p, visible)
        self._note(power, visible)
        self._add_l(p)
        if part.v_scale is not None:
            p = score.scale_p(p, part.v_scale[:, None, :])
        self._add_o(p, part.v)

    def add_raw(self, segment: RawSegment) -> None:
        """Adds stored sums to slot 0 of l and to O."""
        count, rows, _ = self.job.query.shape
        on = np.broadcast_to(True if segment.row_mask is None else segment.row_mask, (count, rows))
        l_part, l_over, l_under = output.read_raw(segment.exponent, segment.l)
        o_part, o_over, o_under = output.read_raw(segment.exponent[..., None], segment.o)
        over = (on & (l_over | o_over.any(-1))).any(-1)
        under = (on & (l_under | o_under.any(-1))).any(-1)
        self.status |= over << Status.OVERFLOW | under << Status.UNDERFLOW
        l_part = Wide(np.where(on, l_part.sig, np.float32(0)), np.where(on, l_part.exp, 0))
        o_on = on[..., None]
        o_part = Wide(np.where(o_on, o_part.sig, np.float32(0)), np.where(o_on, o_part.exp, 0))
        first = add(self.l[..., 0], l_part)
        self.l.sig[..., 0], self.l.exp[..., 0] = first.sig, first.exp
        self.o = add(self.o, o_part)

    def finish(self, batch: tuple[int, ...]) -> Result:
        """Folds l, divides, and gives the result its batch dimensions back."""
        total = output.sum_slots(self.l)
        rows, head = self.o.shape[-2:]
        lost = np.isnan(total.sig) | ((total.sig != 0) & np.isnan(self.o.sig).any(-1))
        self.status |= lost.any(-1).astype(np.int64) << Status.INVALID
        status = self.status.reshape(batch)
        if self.job.output_format is OutputFormat.RAW:
            e, l_value, o = output.raw(total, self.o)
            small = (*batch, rows)
            return Result(
                status, raw=(e.reshape(small), l_value.reshape(small), o.reshape(*small, head))
            )
        o = rotate_back(self.o, self.job.config.lanes) if self.job.rotate else self.o
        bits = output.normalise(total, o, self.job.output_format)
        return Result(status, bits.reshape(*batch, rows, head), self.job.output_format)

    def _scores(self, part: KvSegment) -> np.ndarray:
        """Sums over the tiles of the dot products of queries and keys: float64 [B, R, T]."""
        tiles, lanes, count, rows, _ = self.query.shape
        tokens = part.k.shape[1]
        s = np.empty((count, rows, tokens))
        step = max(16, _PRODUCTS // (lanes * count * rows))
        for at in range(0, tokens, step):
            k = part.k[:, at : at + step]
            k = k.reshape(k.shape[0], 1, k.shape[1], tiles, lanes).transpose(3, 4, 0, 1, 2)
            k = decode(np.ascontiguousarray(k), self.job.format)
            here = s[:, :, at : at + step]
            for tile in range(tiles):
                sums = beats(self.query[tile], k[tile], 0)
                x = sums.sig().astype(np.float64) * power64(sums.exp)
                here[...] = x if tile == 0 else round24(here + x)
        return s

    def _note(self, power: score.Power, visible: np.ndarray) -> None:
        events = (
            (Status.OVERFLOW, power.overflow),
            (Status.UNDERFLOW, power.underflow),
        )
        for bit, where in events:
            if where.any():
                hit = (where & visible).reshape(len(self.status), -1).any(-1)
                self.status |= hit.astype(np.int64) << bit

    def _add_l(self, p: Elements) -> None:
        """Adds p [B, R, T] to the slots of its tokens, in order (T = 1: the sink, slot 0)."""
        sig = p.sig if p.nan is None else np.where(p.nan, np.float32(np.nan), p.sig)
        count, rows, tokens = sig.shape
        slots = min(tokens, L_SLOTS)
        shape = (count, rows, tokens // slots, slots)
        total = fold(
            self.l[..., :slots],
            sig.reshape(shape).transpose(2, 0, 1, 3),
            p.exp.astype(np.int32).reshape(shape).transpose(2, 0, 1, 3),
        )
        self.l.sig[..., :slots], self.l.exp[..., :slots] = total.sig, total.exp

    def _add_o(self, p: Elements, v: np.ndarray) -> None:
        """Adds the dot products of each chunk's p with V, chunk after chunk."""
        lanes = self.job.config.lanes
        count, rows, tokens = p.shape
        chunks, head = tokens // lanes, v.shape[-1]
        p = p.reshaped((count, rows, chunks, lanes, 1)).rearranged((3, 2, 0, 1, 4))
        live = p.sig != 0
        top = np.where(live, p.exp, INACTIVE).max(0, keepdims=True)  # [1, chunks, B, R, 1]
        top = np.where(top == INACTIVE, np.int16(0), top)
        p = Elements(p.sig, np.where(live, p.exp - top, INACTIVE).astype(np.int16), p.nan)
        step = max(1, _PRODUCTS // (lanes * count * rows * head))
        sigs, exps = [], []
        for at in range(0, chunks, step):
            part = v[:, at * lanes : (at + step) * lanes]
            part = part.reshape(len(part), -1, lanes, 1, head).transpose(2, 1, 0, 3, 4)
            element = decode(np.ascontiguousarray(part), self.job.format)
            sums = beats(p[:, at : at + step], element, 0)
            sigs.append(sums.sig())
            exps.append(sums.exp + top[0, at : at + step])
        self.o = fold(self.o, np.concatenate(sigs), np.concatenate(exps))


def _visible(job: Job, part: KvSegment) -> np.ndarray:
    """Which tokens of a span each row sees, before biases: bool [B, R, T]."""
    t = (np.asarray(part.base)[:, None] + np.arange(part.k.shape[1]))[:, None, :]  # [b, 1, T]
    start, end = np.asarray(part.start)[:, None, None], np.asarray(part.end)[:, None, None]
    visible = (start <= t) & (t < end)
    if part.draft:
        index = t - start
        bits = np.asarray(job.draft, np.int64)[:, :, None] >> np.clip(index, 0, DRAFT_BITS - 1)
        visible = visible & (index < DRAFT_BITS) & (bits & 1 != 0)
    else:
        position = np.asarray(job.position)[:, :, None]
        if job.causal:
            visible = visible & (t <= position)
        if job.window:
            visible = visible & ((t + job.window > position) | (t < job.sinks))
    if part.row_mask is not None:
        visible = visible & part.row_mask[:, :, None]
    return np.broadcast_to(visible, (*job.query.shape[:2], t.shape[-1]))


def _ungrouped(job: Job, part: KvSegment) -> KvSegment:
    """Tokens of a format with E8M0 scales, as the array gets them: BF16."""
    if part.k_scale is None or part.v_scale is None:
        raise ValueError(f"{job.format.name} tokens need scales")
    k = ungroup(part.k, part.k_scale, job.format)
    v = ungroup(part.v, part.v_scale, job.format)
    return replace(part, k=k, v=v, k_scale=None, v_scale=None)


def _spans(job: Job, segment: KvSegment) -> Iterator[KvSegment]:
    """Runs of whole chunks with visible tokens, of a size that stays in the cache."""
    lanes, tokens = job.config.lanes, segment.k.shape[1]
    count, rows, _ = job.query.shape
    base = np.asarray(segment.base)
    first = max(int((np.asarray(segment.start) - base).min()), 0) // lanes * lanes
    last = min(int((np.asarray(segment.end) - base).max()), tokens)
    step = max(_SCORES // (count * rows) // lanes, 1) * lanes

    def cut(array: np.ndarray | None, where: slice, axis: int) -> np.ndarray | None:
        return None if array is None else array[(slice(None),) * axis + (where,)]

    for at in range(first, last, step):
        where = slice(at, min(at + step, -(-last // lanes) * lanes))
        part = replace(
            segment,
            k=segment.k[:, where],
            v=segment.v[:, where],
            k_scale=cut(segment.k_scale, where, 1),
            v_scale=cut(segment.v_scale, where, 1),
            bias=cut(segment.bias, where, 2),
            base=base + at,
        )
        if _visible(job, part).any():
            yield part


def _flat(job: Job) -> tuple[tuple[int, ...], Job]:
    """The batch shape, and the job with exactly one batch dimension on every array (1 or all)."""
    own = {"query": 2, "position": 1, "draft": 1, "sink": 1}
    scale = 2 if CODINGS[job.format].grouped else 1
    kv = {
        "k": 2, "v": 2, "start": 0, "end": 0, "base": 0, "k_scale": scale, "v_scale": scale,
        "row_mask": 1, "bias": 2,
    }  # fmt: skip
    raw = {"exponent": 1, "l": 1, "o": 2, "row_mask": 1}
    parts = [(job, own)] + [(s, raw if isinstance(s, RawSegment) else kv) for s in job.segments]
    shapes = [
        np.shape(value)[: max(np.ndim(value) - rank, 0)]
        for part, ranks in parts
        for name, rank in ranks.items()
        if (value := getattr(part, name)) is not None
    ]
    batch = np.broadcast_shapes(*shapes)

    def flat(part: object, ranks: dict[str, int], full: tuple[str, ...] = ()) -> dict[str, object]:
        changed: dict[str, object] = {}
        for name, rank in ranks.items():
            value = getattr(part, name)
            if value is None:
                continue
            array = np.asarray(value)
            lead, tail = array.shape[: max(array.ndim - rank, 0)], array.shape[array.ndim - rank :]
            if array.ndim < rank:  # a scalar for all rows
                tail = (1,) * (rank - array.ndim) + array.shape
            if all(n == 1 for n in lead) and name not in full:
                changed[name] = array.reshape(1, *tail)
            else:
                changed[name] = np.broadcast_to(array, (*batch, *tail)).reshape(-1, *tail)
        return changed

    segments = []
    for s in job.segments:
        segments.append(replace(s, **flat(s, raw if isinstance(s, RawSegment) else kv)))
    return batch, replace(job, **flat(job, own, ("query",)), segments=tuple(segments))
