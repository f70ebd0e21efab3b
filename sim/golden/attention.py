"""Attention on plain arrays through the golden model: what the firmware does around a core."""

import math

import ml_dtypes
import numpy as np

from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim.golden.append import append
from m890.sim.golden.attend import Job, KvSegment, attend
from m890.sim.golden.rotate import rotate_kv

_TYPES = {Format.FP16: np.float16, Format.BF16: ml_dtypes.bfloat16}


def attention(
    config: CoreConfig,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    format: Format = Format.FP16,
    query_format: Format = Format.FP16,
    output_format: OutputFormat = OutputFormat.FP32,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    sinks: int = 0,
    softcap: float = 0.0,
    position: np.ndarray | None = None,
    rotate: bool = False,
) -> np.ndarray:
    """Attention of q [heads, tokens, d] over k and v [KV heads, length, d]: float32 like q.

    Keys and values are appended in `format` (from BF16 if that is the format, else from FP16);
    the softmax scale (None: 1 / sqrt(d)) is folded into the queries. `position` [tokens] is each
    query's place in the context (None: the last ones); `softcap` is in the natural domain;
    `rotate`: K and V lie in a rotated plane.
    """
    heads, tokens, head = q.shape
    groups, length, width = k.shape[0], k.shape[1], v.shape[-1]
    if heads % groups:
        raise ValueError(f"{heads} query heads do not share {groups} KV heads evenly")
    factor = (head**-0.5 if scale is None else scale) * math.log2(math.e)
    lanes = config.lanes
    padded = -(-max(head, width) // lanes) * lanes
    source = Format.BF16 if format is Format.BF16 else Format.FP16
    context = -(-length // lanes) * lanes
    sources = [bits16(_pad(x, context, padded), source) for x in (k, v)]
    if rotate:
        sources = [rotate_kv(x, source, lanes) for x in sources]
    codes = [append(format, x, source) for x in sources]
    (k_codes, k_scale, _), (v_codes, v_scale, _) = codes
    place = np.arange(length - tokens, length) if position is None else np.asarray(position)
    rows = heads // groups * tokens
    query = bits16(_pad(q * factor, tokens, padded), query_format).reshape(groups, rows, padded)
    places = np.tile(place, heads // groups)
    out = np.empty((groups, rows, width), np.float32)
    for at in range(0, rows, config.rows):
        part = slice(at, at + config.rows)
        job = Job(
            config,
            format,
            query[:, part],
            [KvSegment(k_codes, v_codes, end=length, k_scale=k_scale, v_scale=v_scale)],
            query_format=query_format,
            position=places[part],
            causal=causal,
            window=window,
            sinks=sinks,
            softcap=softcap * math.log2(math.e),
            output_format=output_format,
            rotate=rotate,
        )
        out[:, part] = attend(job).values()[..., :width]
    return out.reshape(heads, tokens, width)


def bits16(x: np.ndarray, format: Format) -> np.ndarray:
    """Numbers rounded to FP16 or BF16, as uint16 bits; what is too large becomes Inf."""
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float32).astype(_TYPES[format]).view(np.uint16)


def _pad(x: np.ndarray, tokens: int, head: int) -> np.ndarray:
    """Zeros behind the last token and the last feature."""
    return np.pad(x, ((0, 0), (0, tokens - x.shape[1]), (0, head - x.shape[2])))
