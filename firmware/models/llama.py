"""A llama decoder in numpy float32: everything but attention and KV, which a backend does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m890.firmware.models.backend import AttentionBackend, Draft, Span

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Config:
    """Shape of a llama decoder.

    ``width``: features of a token. ``hidden``: features inside the feed-forward block. ``heads``
    query heads share ``kv_heads`` KV heads. ``limit``: the longest context in tokens.
    """

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    limit: int
    epsilon: float = 1e-5
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "layers", "heads", "kv_heads", "vocabulary", "limit"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.width % self.heads or self.head_dim % 2:
            raise ValueError(f"width {self.width} gives no even head size for {self.heads} heads")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} KV heads evenly")

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.width // self.heads

    def frequencies(self) -> Floats:
        """Radians per position of each rotated pair, [head_dim / 2]."""
        pair = np.arange(0, self.head_dim, 2, dtype=np.float32) / self.head_dim
        return (1.0 / self.rope_base**pair).astype(np.float32)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight; matrices are [outputs, inputs]."""
        w, h, kv = self.width, self.hidden, self.kv_heads * self.head_dim
        out: dict[str, tuple[int, ...]] = {"embedding": (self.vocabulary, w)}
        for layer in range(self.layers):
            for name, shape in (
                ("attention_norm", (w,)),
                ("wq", (w, w)),
                ("wk", (kv, w)),
                ("wv", (kv, w)),
                ("wo", (w, w)),
                ("ffn_norm", (w,)),
                ("w1", (h, w)),
                ("w2", (w, h)),
                ("w3", (h, w)),
            ):
                out[f"layers.{layer}.{name}"] = shape
        return out | {"norm": (w,), "head": (self.vocabulary, w)}


class Decoder:
    """A llama decoder that steps many sequences at once.

    A batch is ragged: each ``Span`` brings any number of new tokens of one sequence, so prefill
    chunks, decode steps and tool results mix freely in one step.
    """

    def __init__(self, config: Config, weights: Mapping[str, NDArray[np.floating]]) -> None:
        """Take the weights of ``Config.shapes``; without ``head`` the embedding serves as head."""
        self.config = config
        self._weights: dict[str, Floats] = {}
        for name, shape in config.shapes().items():
            array = weights.get(name)
            if array is None and name == "head":
                array = weights["embedding"]
            if array is None:
                raise ValueError(f"weight {name} is missing")
            if array.shape != shape:
                raise ValueError(f"weight {name} has shape {array.shape}, expected {shape}")
            # transposed once, so that x @ w reads rows in order
            value = np.asarray(array, dtype=np.float32)
            keep = value.ndim == 1 or name == "embedding"
            self._weights[name] = value if keep else np.ascontiguousarray(value.T)
        angle = np.arange(config.limit, dtype=np.float32)[:, None] * config.frequencies()
        self._cos, self._sin = np.cos(angle), np.sin(angle)  # [limit, dh / 2]

    def step(
        self,
        batch: Sequence[Span],
        tokens: Sequence[int] | NDArray[np.integer],
        backend: AttentionBackend,
        *,
        every: bool = False,
        drafts: Sequence[Draft | None] | None = None,
    ) -> Floats:
        """Feed new tokens and commit them.

        ``tokens`` [N] lists the new tokens span by span. Returns logits of each span's last token,
        [len(batch), vocabulary], or with ``every`` of all tokens, [N, vocabulary]. With ``drafts``,
        one per span, nothing is committed: the caller does so with what it accepts.
        """
        c = self.config
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.shape != (sum(span.count for span in batch),):
            raise ValueError(f"{ids.size} tokens do not fill the batch's spans")
        if ids.size and not 0 <= ids.min() <= ids.max() < c.vocabulary:
            raise ValueError(f"a token lies outside the vocabulary of {c.vocabulary}")
        position = np.concatenate(
            [
                np.arange(s.start, s.start + s.count) if draft is None else draft.positions
                for s, draft in zip(batch, drafts or [None] * len(batch), strict=True)
            ]
        )
        cos, sin = self._cos[position, None], self._sin[position, None]  # [N, 1, dh / 2]
        w = self._weights
        x = w["embedding"][ids]
        for layer in range(c.layers):
            at = f"layers.{layer}."
            h = self._norm(x, w[at + "attention_norm"])
            q = _rotate((h @ w[at + "wq"]).reshape(-1, c.heads, c.head_dim), cos, sin)
            k = _rotate((h @ w[at + "wk"]).reshape(-1, c.kv_heads, c.head_dim), cos, sin)
            v = (h @ w[at + "wv"]).reshape(-1, c.kv_heads, c.head_dim)
            o = backend.attend(layer, batch, q, k, v, drafts=drafts)
            x += o.reshape(-1, c.width) @ w[at + "wo"]
            h = self._norm(x, w[at + "ffn_norm"])
            gate = h @ w[at + "w1"]
            x += (gate / (1.0 + np.exp(-gate)) * (h @ w[at + "w3"])) @ w[at + "w2"]
        if drafts is None:
            backend.commit(batch)
        if not every:
            x = x[np.cumsum([span.count for span in batch]) - 1]
        return self._norm(x, w["norm"]) @ w["head"]

    def _norm(self, x: Floats, weight: Floats) -> Floats:
        """RMSNorm over the last axis."""
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + np.float32(self.config.epsilon)) * weight


def _rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotary embedding of neighbouring pairs (llama2.c's convention); x [N, heads, dh]."""
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = a * cos - b * sin
    out[..., 1::2] = a * sin + b * cos
    return out
