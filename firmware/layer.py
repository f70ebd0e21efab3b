"""What one layer of a decoder asks of the device, for all of its KV heads: APPENDs and ATTENDs."""

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from m890.firmware.driver import Driver
from m890.firmware.errors import ShapeError
from m890.firmware.memory_map import round_up
from m890.firmware.models.backend import Span
from m890.firmware.planner import Plan
from m890.hdl.numerics.formats import Format, OutputFormat

LOG2_E = math.log2(math.e)
Floats = NDArray[np.float32]
OUTPUTS: dict[OutputFormat, np.dtype] = {
    OutputFormat.FP32: np.dtype(np.float32),
    OutputFormat.FP16: np.dtype(np.float16),
    OutputFormat.BF16: np.dtype(ml_dtypes.bfloat16),
}


class LayerCommands:
    """Packs commands, and what they read and write, for a decoder's shape.

    Every layer and KV head is a plane. Heads are padded with zeros to whole tiles (`head`). A BF16
    cache gets BF16 sources and queries, every other one FP16.
    """

    def __init__(
        self,
        driver: Driver,
        layers: int,
        heads: int,
        kv_heads: int,
        head_size: int,
        format: Format,
        output_format: OutputFormat,
    ) -> None:
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
        self.head = round_up(head_size, config.lanes)
        self.output_format = output_format
        bfloat = format == Format.BF16
        self.source_format = Format.BF16 if bfloat else Format.FP16
        self._source = np.dtype(ml_dtypes.bfloat16 if bfloat else np.float16)

    @property
    def source_bytes(self) -> int:
        """Bytes of a row of K, V or a query."""
        return self.head * self._source.itemsize

    def planes(self, layer: int) -> NDArray[np.int64]:
        """A layer's planes, by KV head."""
        return layer * self.kv_heads + np.arange(self.kv_heads)

    # ------------------------------------------------------------------ what lies in memory

    def sources(self, k: Floats, v: Floats) -> NDArray:
        """K and V [N, KVH, dh] as APPEND reads them, [2, KVH, N, head]."""
        out = np.zeros((2, self.kv_heads, len(k), self.head), self._source)
        out[0, ..., : self.head_size] = k.transpose(1, 0, 2)
        out[1, ..., : self.head_size] = v.transpose(1, 0, 2)
        return out

    def queries(self, made: Plan, q: Floats) -> NDArray:
        """Queries [KVH, rows, head] in the plan's order, scaled for a base-2 softmax."""
        scaled = q * np.float32(LOG2_E / math.sqrt(self.head_size))
        grouped = scaled.reshape(len(q), self.kv_heads, self.group, self.head_size)
        out = np.zeros((self.kv_heads, len(made.token), self.head), self._source)
        out[..., : self.head_size] = grouped[made.token, :, made.head].transpose(1, 0, 2)
        return out

    def output_bytes(self, made: Plan) -> int:
        """Bytes of the outputs of all KV heads."""
        return self.kv_heads * len(made.token) * self._output_row

    @property
    def _output_row(self) -> int:
        return self.head * OUTPUTS[self.output_format].itemsize

    def outputs(self, made: Plan, output_at: int, count: int) -> Floats:
        """Outputs in the order of the tokens, [N, H, dh]."""
        shape = (self.kv_heads, len(made.token), self.head)
        raw = self.driver.view(output_at, shape, OUTPUTS[self.output_format])
        out = np.empty((count, self.kv_heads, self.group, self.head_size), np.float32)
        out[made.token, :, made.head] = raw[..., : self.head_size].transpose(1, 0, 2)
        return out.reshape(count, self.heads, self.head_size)

    # ------------------------------------------------------------------ commands

    def appends(
        self, spans: Sequence[Span], tenants: Sequence[int], planes: NDArray, kv_at: int
    ) -> NDArray[np.uint8]:
        """An APPEND per KV head and span; those of the last plane commit."""
        counts = np.array([s.count for s in spans])
        first, plane_bytes = np.cumsum(counts) - counts, int(counts.sum()) * self.source_bytes
        k = kv_at + np.arange(self.kv_heads)[:, None] * plane_bytes + first * self.source_bytes
        n = self.kv_heads
        values = {
            "plane": np.repeat(planes, len(spans)),
            "sequence": np.tile([s.sequence for s in spans], n),
            "start": np.tile([s.start for s in spans], n),
            "tokens": np.tile(counts, n),
            "source_format": int(self.source_format),
            "k": k.reshape(-1),
            "v": (k + n * plane_bytes).reshape(-1),
            "source_stride": self.source_bytes,
            "tenant": np.tile(tenants, n),
            "commit": np.repeat(planes == self.layers * self.kv_heads - 1, len(spans)),
        }
        return self.driver.pack("APPEND", n * len(spans), values)

    def attends(
        self, made: Plan, tables: NDArray[np.int64], planes: NDArray, query_at: int, output_at: int
    ) -> NDArray[np.uint8]:
        """An ATTEND per KV head and job; `tables` says where each job's begin."""
        n = self.kv_heads
        row = np.arange(n)[:, None] * len(made.token) + made.first
        values = {
            "causal": 1,
            "query_format": int(self.source_format == Format.FP16),
            "output_format": int(self.output_format),
            "plane": np.repeat(planes, made.jobs),
            "rows": np.tile(made.rows, n),
            "segments": np.tile([len(s) for s in made.segments], n),
            "tables": np.tile(tables, n),
            "query": (query_at + row * self.source_bytes).reshape(-1),
            "output": (output_at + row * self._output_row).reshape(-1),
            "query_stride": self.source_bytes,
            "output_stride": self._output_row,
            "tenant": np.tile(made.tenant, n),
        }
        return self.driver.pack("ATTEND", n * made.jobs, values)

    def order(self, spans: Sequence[Span], made: Plan) -> NDArray[np.int64]:
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
