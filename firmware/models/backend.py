"""The seam between a decoder on the host and what holds its KV cache and attends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class ContextLimitError(RuntimeError):
    """A sequence would grow past the longest context that a backend or decoder holds."""

    def __init__(self, sequence: int, tokens: int, limit: int) -> None:
        super().__init__(f"sequence {sequence} would hold {tokens} tokens, the limit is {limit}")
        self.sequence, self.tokens, self.limit = sequence, tokens, limit


class CapacityError(RuntimeError):
    """A backend has no room left for a fork or a step.

    Raised by ``create``, ``fork`` or the first layer's ``attend``, before anything has changed.
    """


@dataclass(frozen=True)
class Span:
    """Tokens ``[start, start + count)`` of ``sequence`` are new in this step."""

    sequence: int
    start: int
    count: int


class Draft(NamedTuple):
    """A draft tree in a span: per token, which of the span's tokens it sees, and its place.

    Bit i of ``masks[j]`` lets token j see token i (itself included, as a rule), beside all that is
    committed; ``positions[j]`` is token j's place in the text.
    """

    masks: Sequence[int]
    positions: Sequence[int]


class Recompute(Protocol):
    """A decoder that computes K and V of one token anew: see `Decoder.recompute`."""

    def __call__(
        self, token: int, position: int, layer: int, attend: Callable[[int, Floats], Floats]
    ) -> tuple[Floats, Floats]: ...


class AttentionBackend(Protocol):
    """KV cache and attention of many sequences; sequences are small integers."""

    @property
    def limit(self) -> int:
        """The longest context in tokens."""
        ...

    def create(self, tokens: Sequence[int] = (), tenant: int = 0, *, public: bool = False) -> int:
        """A new sequence, which may hold the first of ``tokens`` already: see ``length``.

        Whole pages of a ``public`` sequence are there for other tenants, too.
        """
        ...

    def fork(self, sequence: int, tokens: int) -> int:
        """A new sequence that shares the first ``tokens`` committed tokens of another."""
        ...

    def trim(self, sequence: int, tokens: int) -> None:
        """Roll a sequence back to its first ``tokens`` tokens; what is not committed goes."""
        ...

    def pause(self, sequence: int) -> None:
        """The sequence waits; until it goes on it need not be where it can be attended to."""
        ...

    def park(self, sequence: int) -> bool:
        """Move a sequence out of the way until it goes on; False if that gives no room."""
        ...

    def release(self, sequence: int) -> None:
        """Forget a sequence."""
        ...

    def length(self, sequence: int) -> int:
        """Committed tokens of a sequence."""
        ...

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
        """Append K and V at the spans' positions, then attend causally.

        q [N, H, dh], k and v [N, KVH, dh] of all spans' tokens in order (rotary embedding already
        applied) -> [N, H, dh]; the softmax scale is 1 / sqrt(dh). A span starts at its sequence's
        committed length. ``drafts``, one per span, names the spans whose tokens are a draft tree.
        """
        ...

    def commit(self, spans: Sequence[Span], tokens: Sequence[int] | None = None) -> None:
        """Make the spans part of their sequences, once every layer has been appended.

        Of an appended span the first tokens alone may be committed. ``tokens`` [N], where known,
        are the tokens of all spans in order.
        """
        ...
