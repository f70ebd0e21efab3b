"""Attention of plain arrays: as rows and planes, by the golden model, and in double precision.

The host folds scale and log2 e into the queries and pads head sizes; every KV head is a plane, and
its query heads and tokens are rows.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from m890.firmware.cluster import Heads
from m890.firmware.errors import ShapeError
from m890.firmware.memory_map import PlaneShape, round_up
from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim import golden
from m890.sim.golden.attention import bits16

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Problem:
    """Attention of q over k and v; the last query stands at the last key.

    scale None: 1 / sqrt(d). window 0: all tokens. softcap 0: off, in the natural domain. mask:
    added to the scores, broadcast to [heads, tokens, length]. rotate None: as the format is better.
    """

    q: NDArray[np.floating]  # [heads, tokens, d]
    k: NDArray[np.floating]  # [KV heads, length, d]
    v: NDArray[np.floating]  # [KV heads, length, width]
    format: Format = Format.FP16
    causal: bool = False
    window: int = 0
    sinks: int = 0
    softcap: float = 0.0
    scale: float | None = None
    mask: NDArray[np.floating] | None = None
    rotate: bool | None = None

    def __post_init__(self) -> None:
        q, k, v = self.q.shape, self.k.shape, self.v.shape
        if not (len(q) == len(k) == len(v) == 3):
            raise ShapeError(f"Q, K and V are [heads, tokens, d], not {q}, {k} and {v}")
        if 0 in q + k + v:
            raise ShapeError(f"Q, K and V hold at least one number each, not {q}, {k} and {v}")
        if q[2] != k[2]:
            raise ShapeError(f"the head sizes of Q and K differ: {q[2]} and {k[2]}")
        if k[:2] != v[:2]:
            raise ShapeError(f"K and V have the same heads and tokens, not {k[:2]} and {v[:2]}")
        if q[0] % k[0]:
            raise ShapeError(f"{q[0]} query heads do not share {k[0]} KV heads evenly")
        if self.causal and q[1] > k[1]:
            raise ShapeError(f"causal attention of {q[1]} queries needs as many keys, not {k[1]}")
        if self.mask is not None:
            try:
                np.broadcast_to(self.mask, (q[0], q[1], k[1]))
            except ValueError:
                shape = self.mask.shape
                raise ShapeError(
                    f"a mask of shape {shape} does not fit {q[0]} heads x {q[1]} x {k[1]} tokens"
                ) from None

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.q.shape[0] // self.k.shape[0]

    @property
    def factor(self) -> float:
        return self.q.shape[2] ** -0.5 if self.scale is None else self.scale

    @property
    def source(self) -> Format:
        """Format of queries, and of keys and values before they are appended."""
        return Format.BF16 if self.format is Format.BF16 else Format.FP16

    @property
    def position(self) -> NDArray[np.int64]:
        """Place of each query token in the context."""
        tokens, length = self.q.shape[1], self.k.shape[1]
        return np.arange(length - tokens, length)

    def head(self, config: CoreConfig) -> int:
        """Head size as the core stores it."""
        size = max(self.q.shape[2], self.v.shape[2])
        head = round_up(size, config.lanes)
        if head > config.max_head:
            raise ShapeError(
                f"a head size of {size} is beyond the {config.max_head} of the preset {config.name}"
            )
        return head

    def shape(self, config: CoreConfig) -> PlaneShape:
        """The planes that K and V need."""
        return PlaneShape(len(self.k), self.format, self.head(config), self.rotate)

    def part(self, heads: Heads) -> "Problem":
        """Some of the heads: what one core of a cluster does."""
        mask = self.mask
        if mask is not None:
            mask = np.broadcast_to(mask, (*self.q.shape[:2], self.k.shape[1]))[heads.queries]
        return replace(
            self, q=self.q[heads.queries], k=self.k[heads.kv], v=self.v[heads.kv], mask=mask
        )

    def rows(self, config: CoreConfig) -> tuple[NDArray, NDArray, NDArray | None]:
        """Queries [KV heads, rows, head], positions [rows] and biases, token after token."""
        groups, tokens, group = len(self.k), self.q.shape[1], self.group

        def ordered(array: NDArray) -> NDArray:
            """[heads, tokens, n] -> [KV heads, tokens x group, n]."""
            split = array.reshape(groups, group, tokens, -1).transpose(0, 2, 1, 3)
            return split.reshape(groups, tokens * group, -1)

        folded = self.q.astype(np.float64) * (self.factor * LOG2_E)
        query = padded(bits16(ordered(folded), self.source), -1, self.head(config))
        bias = None
        if self.mask is not None:
            full = np.broadcast_to(self.mask, (*self.q.shape[:2], self.k.shape[1]))
            bias = bits16(ordered(full.astype(np.float64) * LOG2_E), self.source)
        return query, np.repeat(self.position, group), bias

    def sources(self, config: CoreConfig) -> tuple[NDArray, NDArray]:
        """Keys and values [KV heads, length, head] as they are appended, uint16."""
        head = self.head(config)
        k, v = (padded(bits16(x, self.source), -1, head) for x in (self.k, self.v))
        return k, v

    def heads(self, rows: NDArray) -> NDArray[np.float32]:
        """[KV heads, rows, head] -> [heads, tokens, width]: the inverse of `rows`."""
        groups, tokens = len(self.k), self.q.shape[1]
        split = rows.reshape(groups, tokens, self.group, -1).transpose(0, 2, 1, 3)
        return split.reshape(groups * self.group, tokens, -1)[..., : self.v.shape[2]]


def by_golden(config: CoreConfig, problem: Problem) -> NDArray[np.float32]:
    """The golden model's output: every device gives these bits."""
    lanes, length = config.lanes, problem.k.shape[1]
    context = round_up(length, lanes)
    rotate = problem.shape(config).rotated(config)
    codes = []
    for rows in problem.sources(config):
        if rotate:
            rows = golden.rotate_kv(rows, problem.source, lanes)
        codes.append(golden.append(problem.format, padded(rows, -2, context), problem.source))
    query, position, bias = problem.rows(config)
    if bias is not None:
        bias = padded(bias, -1, context)
    out = np.empty(query.shape, np.float32)
    for at in range(0, query.shape[1], config.rows):
        part = slice(at, at + config.rows)
        segment = golden.KvSegment(
            codes[0][0], codes[1][0], end=length, k_scale=codes[0][1], v_scale=codes[1][1],
            bias=None if bias is None else bias[:, part],
        )  # fmt: skip
        job = golden.Job(
            config, problem.format, query[:, part], [segment], query_format=problem.source,
            position=position[part], causal=problem.causal, window=problem.window,
            sinks=problem.sinks, softcap=problem.softcap * LOG2_E,
            output_format=OutputFormat.FP32, rotate=rotate,
        )  # fmt: skip
        out[:, part] = golden.attend(job).values()
    return problem.heads(out)


def by_float64(problem: Problem) -> NDArray[np.float64]:
    """The same attention in double precision, of the arrays as given."""
    q, k, v = (x.astype(np.float64) for x in (problem.q, problem.k, problem.v))
    out = np.zeros((*q.shape[:2], v.shape[2]))
    token, here = np.arange(k.shape[1]), problem.position[:, None]
    visible = np.ones((q.shape[1], k.shape[1]), bool)
    if problem.causal:
        visible &= token <= here
    if problem.window:
        visible &= (token + problem.window > here) | (token < problem.sinks)
    for head in range(len(q)):
        s = q[head] @ k[head // problem.group].T * problem.factor
        if problem.softcap:
            s = problem.softcap * np.tanh(s / problem.softcap)
        if problem.mask is not None:
            s = s + np.broadcast_to(problem.mask, (len(q), *s.shape))[head]
        s = np.where(visible, s, -np.inf)
        top = s.max(-1, keepdims=True)
        p = np.exp(s - np.where(np.isinf(top), 0, top))
        total = p.sum(-1, keepdims=True)
        out[head] = p @ v[head // problem.group] / np.where(total == 0, 1, total)
    return out


def padded(array: NDArray, axis: int, size: int) -> NDArray:
    """Zeros behind the array's end."""
    width = [(0, 0)] * array.ndim
    width[axis] = (0, size - array.shape[axis])
    return np.pad(array, width)
