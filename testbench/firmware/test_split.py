"""A context divided between cores: to the bit what golden makes of the same parts."""

import ml_dtypes
import numpy as np
import pytest

from m890.firmware.cluster import Cluster, drivers
from m890.firmware.errors import ShapeError
from m890.firmware.memory_map import PlaneShape
from m890.firmware.split import SplitContext
from m890.hdl.config import ClusterConfig, CoreConfig, preset
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim import golden
from m890.sim.timing.cluster import ModelCluster

TINY = preset("tiny")
MEMORY = 16 << 20
PLANES, HEAD = 2, 16


def merged(
    config: CoreConfig, format: Format, rotate: bool, kv: np.ndarray, query: np.ndarray,
    position: np.ndarray, starts: list[int], causal: bool,
) -> np.ndarray:  # fmt: skip
    """The golden model of one plane: a raw state per part, then their sum."""
    rows, lanes = len(query), config.lanes
    if rotate:
        kv = np.stack([golden.rotate_kv(x, Format.FP16, lanes) for x in kv])
    raws = []
    for first, last in zip(starts, [*starts[1:-1], len(kv[0])], strict=False):
        part = np.zeros((2, -(-(last - first) // lanes) * lanes, kv.shape[2]), np.uint16)
        part[:, : last - first] = kv[:, first:last]
        (k, k_scale, _), (v, v_scale, _) = (golden.append(format, x, Format.FP16) for x in part)
        seen = position >= first if causal else np.ones(rows, bool)
        if not seen.any():
            continue
        segment = golden.KvSegment(
            k, v, last - first, k_scale=k_scale, v_scale=v_scale, row_mask=seen
        )
        job = golden.Job(
            config, format, query, [segment], position=np.maximum(position - first, 0),
            causal=causal, output_format=OutputFormat.RAW, rotate=rotate,
        )  # fmt: skip
        raw = golden.attend(job).raw
        assert raw is not None
        raws.append(golden.RawSegment(*raw))
    whole = golden.Job(config, format, query, raws, output_format=OutputFormat.FP32, rotate=rotate)
    return golden.attend(whole).values()


def check(
    cluster: Cluster, format: Format, rng: np.random.Generator, *, rotate: bool = False
) -> None:
    """A context appended in uneven pieces, and rows that see all, some and none of the parts."""
    shape = PlaneShape(PLANES, format, HEAD, rotate)
    config, tokens = cluster.config.core, 75
    context = SplitContext(drivers(cluster, scratch_bytes=1 << 20), shape, 80)
    kv = rng.normal(size=(2, PLANES, tokens, HEAD)).astype(np.float16)
    at = 0
    for piece in (1, 30, 9, tokens - 40):
        k, v = kv[:, :, at : at + piece].view(np.uint16)
        context.append(k, v, Format.FP16)
        at += piece
    rows = config.rows + 3
    query = (rng.normal(size=(PLANES, rows, HEAD)) / 3).astype(np.float16)
    position = rng.integers(0, tokens, rows)
    position[0], position[-1] = 0, tokens - 1
    for causal in (True, False):
        found = context.attend(query.view(np.uint16), position, Format.FP16, causal=causal)
        for plane in range(PLANES):
            for group in (slice(0, config.rows), slice(config.rows, rows)):
                wanted = merged(
                    config, format, rotate, kv[:, plane].view(np.uint16),
                    query[plane, group].view(np.uint16), position[group], context.starts, causal,
                )  # fmt: skip
                here = found[plane, group]
                np.testing.assert_array_equal(wanted.view(np.uint32), here.view(np.uint32))
            if format == Format.FP16:  # and it is attention: plain float64 agrees
                k, v = kv[:, plane].astype(np.float64)
                score = np.exp2(query[plane].astype(np.float64) @ k.T)
                if causal:
                    score = score * (np.arange(tokens) <= position[:, None])
                plain = score @ v / score.sum(1, keepdims=True)
                assert np.abs(found[plane] - plain).max() < 2e-3


@pytest.mark.parametrize("cores", [2, 3, 4])
@pytest.mark.parametrize("format", [Format.FP16, Format.E4M3, Format.INT4], ids=lambda f: f.name)
def test_parts_merge_to_the_golden_models_sum(
    rng: np.random.Generator, cores: int, format: Format
) -> None:
    rotate = format == Format.INT4
    check(ModelCluster(ClusterConfig(TINY, cores), cores * MEMORY), format, rng, rotate=rotate)


def test_wrong_lengths_are_refused() -> None:
    shape = PlaneShape(1, Format.BF16, HEAD)
    made = drivers(ModelCluster(ClusterConfig(TINY, 4), 4 * MEMORY), scratch_bytes=1 << 16)
    with pytest.raises(ShapeError, match="24 tokens are 3 pages, too few for 4 cores"):
        SplitContext(made, shape, 24)
    context = SplitContext(made, shape, 32)
    one = np.zeros((1, 33, HEAD), ml_dtypes.bfloat16).view(np.uint16)
    with pytest.raises(ShapeError, match="33 tokens are beyond the 32 of this context"):
        context.append(one, one, Format.BF16)
