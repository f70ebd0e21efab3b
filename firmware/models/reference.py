"""The float32 reference backend: KV in numpy arrays, attention over a whole batch at once."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m890.firmware.models.backend import ContextLimitError, Draft, Floats, Span
from m890.firmware.models.llama import Config


class ReferenceBackend:
    """Plain softmax attention in float32, against which every device is compared.

    Storage: one slot of ``limit`` tokens per sequence; a fork copies its prefix. The array is
    reserved lazily by the operating system, so unused tokens cost no memory.
    """

    def __init__(self, config: Config, limit: int | None = None) -> None:
        """``limit`` tokens per context, the model's own limit where None."""
        self._limit = config.limit if limit is None else min(limit, config.limit)
        self._config = config
        self._kv = self._allocate(16)  # [layers, K or V, slots, KVH, limit, dh]
        self._lengths: dict[int, int] = {}
        self._slots: dict[int, int] = {}
        self._free = list(range(15, -1, -1))
        self._next = 0

    def _allocate(self, slots: int) -> Floats:
        c = self._config
        return np.zeros((c.layers, 2, slots, c.kv_heads, self._limit, c.head_dim), np.float32)

    @property
    def limit(self) -> int:
        """The longest context in tokens."""
        return self._limit

    def create(self, tokens: Sequence[int] = (), tenant: int = 0, *, public: bool = False) -> int:
        """A new empty sequence: nothing is shared."""
        if not self._free:
            slots = self._kv.shape[2]
            grown = self._allocate(2 * slots)
            used = max(self._lengths.values(), default=0)
            grown[:, :, :slots, :, :used] = self._kv[..., :used, :]
            self._kv = grown
            self._free = list(range(2 * slots - 1, slots - 1, -1))
        sequence = self._next
        self._next += 1
        self._slots[sequence] = self._free.pop()
        self._lengths[sequence] = 0
        return sequence

    def fork(self, sequence: int, tokens: int) -> int:
        """A new sequence with the first ``tokens`` tokens of another."""
        if not 0 <= tokens <= self.length(sequence):
            raise ValueError(
                f"sequence {sequence} has {self.length(sequence)} tokens, not {tokens}"
            )
        child = self.create()
        source, target = self._slots[sequence], self._slots[child]
        self._kv[:, :, target, :, :tokens] = self._kv[:, :, source, :, :tokens]
        self._lengths[child] = tokens
        return child

    def trim(self, sequence: int, tokens: int) -> None:
        """Drop what follows the first ``tokens`` tokens."""
        if not 0 <= tokens <= self.length(sequence):
            raise ValueError(
                f"sequence {sequence} has {self.length(sequence)} tokens, not {tokens}"
            )
        self._lengths[sequence] = tokens

    def pause(self, sequence: int) -> None:
        """Nothing moves."""

    def park(self, sequence: int) -> bool:
        """There is nowhere else."""
        return False

    def release(self, sequence: int) -> None:
        """Forget a sequence."""
        self.length(sequence)
        self._free.append(self._slots.pop(sequence))
        del self._lengths[sequence]

    def length(self, sequence: int) -> int:
        """Committed tokens of a sequence."""
        try:
            return self._lengths[sequence]
        except KeyError:
            raise ValueError(f"there is no sequence {sequence}") from None

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
        """Append and attend; spans of equal count are computed together."""
        for span in spans:
            if span.start != self.length(span.sequence):
                raise ValueError(
                    f"sequence {span.sequence} has {self.length(span.sequence)} tokens,"
                    f" a span starts at {span.start}"
                )
            if span.start + span.count > self._limit:
                raise ContextLimitError(span.sequence, span.start + span.count, self._limit)
        first = np.cumsum([0, *(span.count for span in spans)])
        groups: dict[int, list[int]] = defaultdict(list)
        for index, span in enumerate(spans):
            groups[span.count].append(index)
        out = np.empty_like(q)
        for count, members in groups.items():
            slots = np.array([self._slots[spans[i].sequence] for i in members])
            starts = np.array([spans[i].start for i in members])
            tokens = first[members][:, None] + np.arange(count)  # [B, c]
            seen = None if drafts is None else [drafts[i] for i in members]
            out[tokens] = self._attend(layer, slots, starts, q[tokens], k[tokens], v[tokens], seen)
        return out

    def _attend(
        self,
        layer: int,
        slots: NDArray[np.int64],
        starts: NDArray[np.int64],
        q: Floats,
        k: Floats,
        v: Floats,
        drafts: Sequence[Draft | None] | None,
    ) -> Floats:
        """One group: q [B, c, H, dh], k and v [B, c, KVH, dh] -> [B, c, H, dh]."""
        b, count, heads, size = q.shape
        kv_heads = k.shape[2]
        position = starts[:, None] + np.arange(count)  # [B, c]
        length = int(starts.max()) + count
        keys, values = self._kv[layer, 0], self._kv[layer, 1]  # [slots, KVH, limit, dh]
        keys[slots[:, None], :, position] = k
        values[slots[:, None], :, position] = v
        # [B, c, KVH, G, dh] -> [B, KVH, G * c, dh]: the heads of a group share K and V
        rows = q.reshape(b, count, kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
        rows = rows.reshape(b, kv_heads, -1, size)
        scores = rows @ keys[slots, :, :length].swapaxes(2, 3) * np.float32(size**-0.5)
        scores = scores.reshape(b, kv_heads, -1, count, length)
        hidden = np.arange(length) > position[..., None]  # [B, c, L]
        for start, row, draft in zip(starts, hidden, drafts or [], strict=drafts is not None):
            if draft is not None:
                masks = np.array(draft.masks, np.int64)[:, None]
                row[:, start : start + count] = masks >> np.arange(count) & 1 == 0
        np.copyto(scores, -np.inf, where=hidden[:, None, None])
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        out = scores.reshape(b, kv_heads, -1, length) @ values[slots, :, :length]
        out = out.reshape(b, kv_heads, heads // kv_heads, count, size)
        return out.transpose(0, 3, 1, 2, 4).reshape(b, count, heads, size)

    def commit(self, spans: Sequence[Span], tokens: Sequence[int] | None = None) -> None:
        """Make the spans part of their sequences."""
        for span in spans:
            self._lengths[span.sequence] = span.start + span.count
