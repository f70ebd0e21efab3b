"""Speculative decoding: a drafter that looks into the context, and the walk down its tree.

A draft is a tree of guesses of what follows. One step feeds the known tokens and the whole tree;
each node attends to the context, its ancestors and itself only, so its logits are what they would
be had its path been fed alone. The walk takes the model's own choice after the last known token,
and goes on from the node that foretold it.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from m890.firmware.models.backend import AttentionBackend, Draft, Span
from m890.firmware.models.llama import Decoder
from m890.hdl.config import DRAFT_BITS

MOST_NODES = 16
"""Nodes of a draft, unless asked otherwise."""
ROOT = -1
"""The last known token, from which a tree grows."""


@dataclass(frozen=True)
class Tree:
    """Guesses of what follows: the token of each node, and the node before it (ROOT: none).

    Parents come before their children, siblings differ in their tokens, and the likeliest path
    stands at the front: if it is right, what is accepted lies where plain decoding would put it.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    _children: dict[tuple[int, int], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents):
            raise ValueError(f"{len(self.tokens)} tokens do not fit {len(self.parents)} parents")
        children: dict[tuple[int, int], int] = {}
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            if not ROOT <= parent < node:
                raise ValueError(f"node {node} cannot follow node {parent}: parents come first")
            if (parent, token) in children:
                raise ValueError(f"node {parent} has two children of token {token}")
            children[parent, token] = node
        object.__setattr__(self, "_children", children)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depths(self) -> list[int]:
        """Places behind the last known token, from 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return depths

    @property
    def masks(self) -> list[int]:
        """Bit i of node j's mask: j sees node i, which is j itself or one of its ancestors."""
        masks: list[int] = []
        for node, parent in enumerate(self.parents):
            masks.append(1 << node | (0 if parent == ROOT else masks[parent]))
        return masks

    def child(self, node: int, token: int) -> int | None:
        """The node after `node` (or after ROOT) that holds `token`."""
        return self._children.get((node, token))

    def span(self, start: int, known: int) -> Draft:
        """Masks and positions of a span: `known` tokens from `start` on, then the tree."""
        context = (1 << known) - 1
        return Draft(
            [(2 << i) - 1 for i in range(known)] + [context | m << known for m in self.masks],
            [start + i for i in range(known)] + [start + known - 1 + d for d in self.depths],
        )


@dataclass(frozen=True)
class Drafter:
    """Prompt look-up: what followed the latest tokens where they occurred before.

    An earlier place that agrees in n tokens (at most `order`) counts `base`^n; the `places` that
    count most, the latest of equals, are merged into a tree, `depth` tokens deep. A node's
    likelihood is its share of what its parent counts, times the parent's; the likeliest nodes make
    the draft, none below `least`.
    """

    order: int = 6
    base: float = 4.0
    places: int = 32
    depth: int = 16
    least: float = 0.0

    def propose(self, context: Sequence[int], nodes: int = MOST_NODES) -> Tree:
        """A tree of at most `nodes` nodes behind the last token of the context."""
        text = np.asarray(context, np.int64)
        if nodes < 1 or len(text) < 2:
            return Tree()
        children, counts = self._merge(text, nodes)
        chosen = self._choose(children, counts, nodes)
        return _ordered(children, chosen)

    def _merge(self, text: NDArray[np.int64], nodes: int) -> tuple[list[dict[int, int]], list]:
        """Continuations as a tree: children by token, and counts; node 0 is the root."""
        children: list[dict[int, int]] = [{}]
        counts = [0.0]
        for place, matched in self._places(text):
            weight, node = self.base**matched, 0
            for token in text[place : place + min(self.depth, nodes)].tolist():
                if token not in children[node]:
                    children[node][token] = len(counts)
                    children.append({})
                    counts.append(0.0)
                node = children[node][token]
                counts[node] += weight
        return children, counts

    def _places(self, text: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Where the latest tokens were followed by something, and in how many tokens they agree."""
        end = len(text)
        places = np.flatnonzero(text[: end - 1] == text[-1]) + 1
        matched = np.ones(len(places), np.int64)
        alive = np.arange(len(places))
        for n in range(2, min(self.order, end - 1) + 1):
            alive = alive[places[alive] >= n]
            alive = alive[text[places[alive] - n] == text[end - n]]
            matched[alive] = n
        best = np.lexsort((places, matched))[::-1][: self.places]
        return list(zip(places[best].tolist(), matched[best].tolist(), strict=True))

    def _choose(
        self, children: list[dict[int, int]], counts: list[float], nodes: int
    ) -> dict[int, float]:
        """The likeliest nodes with their likelihood; a parent is always likelier than a child."""
        chosen: dict[int, float] = {}
        open_: list[tuple[float, int]] = [(-1.0, 0)]
        while open_ and len(chosen) <= nodes:
            likely, node = heapq.heappop(open_)
            chosen[node] = -likely
            total = sum(counts[child] for child in children[node].values())
            for child in children[node].values():
                share = likely * counts[child] / total
                if -share >= self.least:
                    heapq.heappush(open_, (share, child))
        return chosen


def _ordered(children: list[dict[int, int]], chosen: dict[int, float]) -> Tree:
    """The chosen nodes as a tree, the likeliest child at once behind its parent."""
    tokens: list[int] = []
    parents: list[int] = []
    stack = [(0, 0, ROOT)]
    while stack:
        node, token, parent = stack.pop()
        at = ROOT
        if node:
            at = len(tokens)
            tokens.append(token)
            parents.append(parent)
        kept = [(chosen[c], -c, t) for t, c in children[node].items() if c in chosen]
        stack += [(-child, token, at) for _, child, token in sorted(kept)]
    return Tree(tuple(tokens), tuple(parents))


def accept(
    tree: Tree, choose: Callable[[int], int], goes_on: Callable[[], bool] = lambda: True
) -> tuple[list[int], int]:
    """Walks down a verified tree: the tokens chosen, and how many of them are in place.

    `choose(node)` gives the token after a node (ROOT at first), of its logits; the walk ends where
    no node foretold it, or where `goes_on` says so. The first tokens are in place, and stay, as far
    as their nodes are the first ones of the tree; what follows has to be fed again.
    """
    tokens: list[int] = []
    node: int | None = ROOT
    kept = 0
    while node is not None:
        tokens.append(choose(node))
        node = tree.child(node, tokens[-1])
        if node is not None and node == kept == len(tokens) - 1:
            kept += 1
        if not goes_on():
            break
    return tokens, kept


def keep(
    backend: AttentionBackend, spans: Sequence[Span], tokens: Sequence[int] | None = None
) -> None:
    """Commits what was accepted of a step with drafts, and gives back the room of the rest.

    `tokens` [N], where known: those of all spans in order.
    """
    backend.commit(spans, tokens)
    for span in spans:
        backend.trim(span.sequence, span.start + span.count)


def generate(
    decoder: Decoder,
    backend: AttentionBackend,
    prompt: Sequence[int],
    limit: int,
    *,
    nodes: int = MOST_NODES,
    drafter: Drafter | None = None,
) -> Iterator[list[int]]:
    """Greedy text after `prompt`: yields the tokens that each step adds, up to `limit` in all.

    `nodes` 0 is plain decoding: a token per step.
    """
    drafter = drafter or Drafter()
    limit = min(limit, decoder.config.limit, backend.limit)
    context, pending = list(prompt), list(prompt)
    sequence = backend.create()
    try:
        while len(context) < limit:
            start, known = len(context) - len(pending), len(pending)
            room = min(nodes, DRAFT_BITS - known, limit - len(context) - 1)
            tree = drafter.propose(context, room)
            span = Span(sequence, start, known + len(tree))
            drafts = [tree.span(start, known)] if len(tree) else None
            fed = [*pending, *tree.tokens]
            logits = decoder.step([span], fed, backend, every=bool(drafts), drafts=drafts)
            after = logits[known - 1 :] if drafts else logits
            tokens, kept = accept(tree, lambda node, rows=after: int(np.argmax(rows[node + 1])))
            if drafts is not None:
                keep(backend, [Span(sequence, start, known + kept)], fed[: known + kept])
            context += tokens
            pending = tokens[kept:]
            yield tokens
    finally:
        backend.release(sequence)
