"""A llama decoder in numpy float32: everything but attention and KV, which a backend does."""

from collections.abc import Callable, Mapping, Sequence
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

    @classmethod
    def random(cls, config: Config, rng: np.random.Generator) -> "Decoder":
        """One of random weights, for tests and benches."""
        weights = {
            name: rng.standard_normal(shape) * (0.2 if len(shape) > 1 else 1.0)
            for name, shape in config.shapes().items()
        }
        return cls(config, weights)

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
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.shape != (sum(span.count for span in batch),):
            raise ValueError(f"{ids.size} tokens do not fill the batch's spans")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.config.vocabulary:
            raise ValueError(f"a token lies outside the vocabulary of {self.config.vocabulary}")
        position = np.concatenate(
            [
                np.arange(s.start, s.start + s.count) if draft is None else draft.positions
                for s, draft in zip(batch, drafts or [None] * len(batch), strict=True)
            ]
        )
        x = self._weights["embedding"][ids]
        for layer in range(self.config.layers):
            q, k, v = self._before(layer, x, position)
            x = self._behind(layer, x, backend.attend(layer, batch, q, k, v, drafts=drafts))
        if drafts is None:
            backend.commit(batch, ids.tolist())
        if not every:
            x = x[np.cumsum([span.count for span in batch]) - 1]
        return _times(self._norm(x, self._weights["norm"]), self._weights["head"])

    def recompute(
        self, token: int, position: int, layer: int, attend: Callable[[int, Floats], Floats]
    ) -> tuple[Floats, Floats]:
        """K and V [1, KVH, dh] of one token in a layer, bit for bit as ``step`` computed them.

        ``attend(layer, q)`` gives the token's attention [1, H, dh] in an earlier layer, over the
        tokens up to its own, which are there already.
        """
        x, at = self._weights["embedding"][[token]], np.array([position])
        for before in range(layer):
            q, _, _ = self._before(before, x, at)
            x = self._behind(before, x, attend(before, q))
        _, k, v = self._before(layer, x, at)
        return k, v

    def _before(
        self, layer: int, x: Floats, position: NDArray[np.int64]
    ) -> tuple[Floats, Floats, Floats]:
        """Of a layer all before attention: q [N, H, dh], k and v [N, KVH, dh]."""
        c, w, at = self.config, self._weights, f"layers.{layer}."
        cos, sin = self._cos[position, None], self._sin[position, None]  # [N, 1, dh / 2]
        h = self._norm(x, w[at + "attention_norm"])
        q = _rotate(_times(h, w[at + "wq"]).reshape(-1, c.heads, c.head_dim), cos, sin)
        k = _rotate(_times(h, w[at + "wk"]).reshape(-1, c.kv_heads, c.head_dim), cos, sin)
        return q, k, _times(h, w[at + "wv"]).reshape(-1, c.kv_heads, c.head_dim)

    def _behind(self, layer: int, x: Floats, o: Floats) -> Floats:
        """Of a layer all behind attention: the next layer's x."""
        w, at = self._weights, f"layers.{layer}."
        x = x + _times(o.reshape(-1, self.config.width), w[at + "wo"])
        h = self._norm(x, w[at + "ffn_norm"])
        gate = _times(h, w[at + "w1"])
        return x + _times(
            gate / (np.float32(1) + np.exp(-gate)) * _times(h, w[at + "w3"]), w[at + "w2"]
        )

    def _norm(self, x: Floats, weight: Floats) -> Floats:
        """RMSNorm over the last axis."""
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + np.float32(self.config.epsilon)) * weight


def _times(x: Floats, w: Floats) -> Floats:
    """x [N, K] times w [K, M], row by row.

    A product of matrices sums in an order that depends on how many rows there are. With a product
    per row, a token's numbers are the same in whatever batch it is computed: a damaged one can be
    computed anew, to the bit.
    """
    return (x[:, None] @ w)[:, 0]


def _rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotary embedding of neighbouring pairs (llama2.c's convention); x [N, heads, dh]."""
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = a * cos - b * sin
    out[..., 1::2] = a * sin + b * cos
    return out
