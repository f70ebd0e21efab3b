"""ONNX's Attention operator on the core: a case becomes one request per batch entry and KV head.

The operator's order is the core's: scale, soft cap, mask, softmax. Masks become biases (base-2
domain, FP16; -Inf masks), ragged lengths the segment's end, causal masks the rows' positions.
Whoever executes requests (golden model, RTL through the firmware) is an `Executor`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim.golden import Job, KvSegment, append, attend
from m890.sim.golden.attention import bits16
from m890.sim.golden.elements import decode_float
from m890.sim.onnx.cases import Case

RELATIVE = ABSOLUTE = 2e-3
"""A result passes within ABSOLUTE + RELATIVE * |reference|."""
MASKED = 0xFC00
"""-Inf in FP16: a bias that masks its token."""


@dataclass(frozen=True)
class Request:
    """Attention of some rows to one sequence's tokens in one plane; FP16 everywhere.

    Rows are the query heads of a KV head times the query tokens. Head sizes and the number of
    tokens are as the user gave them: whoever executes pads them to the core's lanes.
    """

    query: np.ndarray  # uint16 [rows, d]: scale and log2 e folded in
    k: np.ndarray  # uint16 [tokens, d]
    v: np.ndarray  # uint16 [tokens, width]
    length: int  # tokens that count; the others are padding
    position: np.ndarray  # int64 [rows]; negative: under a causal mask the row sees nothing
    causal: bool
    softcap: float  # base-2 domain; 0: off
    bias: np.ndarray | None  # uint16 [rows, tokens]


Executor = Callable[[Request], np.ndarray]
"""Runs a request: FP32 output [rows, width]."""


@dataclass(frozen=True)
class Verdict:
    """How a case went.

    missing: the feature that it lacks, or nothing. error: its largest
    |error| / (ABSOLUTE + RELATIVE * |reference|), of the outputs that the core gives.
    """

    name: str
    missing: str
    error: float

    @property
    def passed(self) -> bool:
        return not self.missing and self.error <= 1

    @property
    def text(self) -> str:
        if self.missing:
            return f"lacks {self.missing}"
        return "passes" if self.passed else "fails"


def judge(case: Case, execute: Executor) -> Verdict:
    """Runs a case, compares Y (and the present keys and values, as the cache holds them)."""
    if not case.inputs:
        return Verdict(case.name, "its tensors, which are not in the archive", 0.0)
    got = run(case, execute)
    errors, missing = [], ""
    for name, reference in case.outputs.items():
        if name not in got:
            missing = "output of scores, which never leave the array"
            continue
        exact = reference.astype(np.float64)
        bound = ABSOLUTE + RELATIVE * np.abs(exact)
        ratio = np.abs(got[name] - exact) / bound
        errors.append(float(np.where(np.isnan(ratio), np.inf, ratio).max(initial=0)))
    return Verdict(case.name, missing, max(errors))


def run(case: Case, execute: Executor) -> dict[str, np.ndarray]:
    """The outputs that the core can give."""
    x = _heads(case)
    q, k, v = x["Q"], x["K"], x["V"]
    past = x["past_key"].shape[2] if "past_key" in x else 0
    if past:
        k = np.concatenate([x["past_key"], k], axis=2)
        v = np.concatenate([x["past_value"], v], axis=2)
    batch, heads, tokens, head = q.shape
    groups, context, width = k.shape[1], k.shape[2], v.shape[3]
    scale = case.attributes.get("scale", head**-0.5)
    query = bits16(q.astype(np.float64) * scale * math.log2(math.e), Format.FP16)
    keys, values = bits16(k, Format.FP16), bits16(v, Format.FP16)
    bias = _bias(x.get("attn_mask"), (batch, heads, tokens, context))
    lengths = x.get("nonpad_kv_seqlen")
    share = heads // groups
    y = np.empty((batch, heads, tokens, width), np.float32)
    for b in range(batch):
        length = context if lengths is None else int(lengths[b])
        first = past if lengths is None else length - tokens
        for g in range(groups):
            of = slice(g * share, (g + 1) * share)
            request = Request(
                query=query[b, of].reshape(share * tokens, head),
                k=keys[b, g],
                v=values[b, g],
                length=length,
                position=np.tile(np.arange(first, first + tokens), share),
                causal=bool(case.attributes.get("is_causal", 0)),
                softcap=case.attributes.get("softcap", 0.0) * math.log2(math.e),
                bias=None if bias is None else bias[b, of].reshape(share * tokens, context),
            )
            y[b, of] = execute(request).reshape(share, tokens, width)
    result = {
        "Y": _joined(y) if case.inputs["Q"].ndim == 3 else y,
        "present_key": decode_float(keys, Format.FP16),
        "present_value": decode_float(values, Format.FP16),
    }
    return {name: value for name, value in result.items() if name in case.outputs}


def golden(config: CoreConfig) -> Executor:
    """The executor that runs requests on the golden model, in jobs of the core's rows."""

    def execute(request: Request) -> np.ndarray:
        lanes, width = config.lanes, request.v.shape[1]
        head = -(-max(request.query.shape[1], width) // lanes) * lanes
        tokens = -(-len(request.k) // lanes) * lanes
        k, _, _ = append(Format.FP16, padded(request.k, tokens, head), Format.FP16)
        v, _, _ = append(Format.FP16, padded(request.v, tokens, head), Format.FP16)
        out = []
        for at in range(0, len(request.query), config.rows):
            rows = slice(at, at + config.rows)
            position = request.position[rows]
            bias = None
            if request.bias is not None:
                part = request.bias[rows]
                bias = padded(part, len(part), tokens)
            seeing = (position >= 0) | (not request.causal)
            segment = KvSegment(k, v, end=request.length, row_mask=seeing, bias=bias)
            job = Job(
                config,
                Format.FP16,
                padded(request.query[rows], len(position), head),
                [segment],
                position=position,
                causal=request.causal,
                softcap=request.softcap,
                output_format=OutputFormat.FP32,
            )
            out.append(attend(job).values()[:, :width])
        return np.concatenate(out)

    return execute


def padded(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Zeros below and to the right."""
    return np.pad(x, ((0, rows - x.shape[0]), (0, columns - x.shape[1])))


def _heads(case: Case) -> dict[str, np.ndarray]:
    """The inputs, with [batch, tokens, heads * d] taken apart to [batch, heads, tokens, d]."""
    x = dict(case.inputs)
    if x["Q"].ndim == 3:
        for name, count in (("Q", "q_num_heads"), ("K", "kv_num_heads"), ("V", "kv_num_heads")):
            batch, tokens, wide = x[name].shape
            heads = case.attributes[count]
            parts = x[name].reshape(batch, tokens, heads, wide // heads)
            x[name] = parts.transpose(0, 2, 1, 3)
    return x


def _joined(y: np.ndarray) -> np.ndarray:
    batch, heads, tokens, width = y.shape
    return y.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * width)


def _bias(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """A mask as FP16 biases of every head; tokens beyond a short mask are masked."""
    if mask is None:
        return None
    if mask.dtype == np.bool_:
        bias = np.where(mask, 0, MASKED).astype(np.uint16)
    else:
        bias = bits16(mask.astype(np.float64) * math.log2(math.e), Format.FP16)
    short = shape[-1] - bias.shape[-1]
    beside = [(0, 0)] * (bias.ndim - 1) + [(0, short)]
    return np.broadcast_to(np.pad(bias, beside, constant_values=MASKED), shape)
