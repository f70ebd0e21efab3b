"""Continuous batching: many agents over one decoder and one backend.

Each step feeds every runnable agent at once: a decode token here, a prefill chunk there, a tool's
result elsewhere. While an agent waits for a tool, the others go on, and its KV may be moved away.
The shared system prompt is prefilled once, in tenant 0, and public; every agent forks from it, or
from what its tenant has made of it. With drafts, an agent whose text is fed up to its end
feeds a tree of guesses besides, and goes on by as many tokens as the model confirms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from m890.firmware.agents.protocol import TOKENIZER
from m890.firmware.agents.session import Session, State
from m890.firmware.models.backend import (
    AttentionBackend,
    CapacityError,
    ContextLimitError,
    Floats,
    Span,
)
from m890.firmware.models.draft import Drafter, Tree, accept, keep
from m890.firmware.models.llama import Decoder
from m890.hdl.config import DRAFT_BITS


@dataclass(frozen=True)
class Event:
    """One agent in one step: the tokens fed, its state afterwards and the text it just gained.

    ``sequence`` is the backend's, -1 where the agent holds none. ``drafted`` nodes were fed besides
    ``tokens``, which counts those of them that were accepted in place.
    """

    step: int
    agent: str
    state: State
    start: int
    tokens: int
    text: str
    sequence: int = -1
    drafted: int = 0


@dataclass
class Report:
    """What a run did, in steps and tokens.

    ``prompt`` tokens were prefilled once for ``agents`` agents (branches included); ``fed`` counts
    all others, ``generated`` those of them that the model wrote, in ``turns``: an agent that writes
    in a step has a turn. ``drafted`` nodes were verified. ``idle`` steps fed nothing.
    """

    sessions: Sequence[Session]
    prompt: int = 0
    agents: int = 0
    steps: int = 0
    idle: int = 0
    fed: int = 0
    generated: int = 0
    turns: int = 0
    drafted: int = 0

    @property
    def tokens_per_step(self) -> float:
        """Tokens that an agent writes in a step in which it writes: 1 without drafts."""
        return self.generated / self.turns if self.turns else 0.0


@dataclass
class _Seat:
    """A session with its sequence (``held`` until released) and how much text events showed."""

    session: Session
    sequence: int
    shown: int = 0
    held: bool = True


class Engine:
    """Runs sessions to their end.

    ``chunk``: most tokens of one agent in one step. ``seats``: most agents at once, all where None;
    the rest queue. ``drafts``: most nodes of a draft, none where 0. ``on_event`` is called for
    every agent in every step that changed it.
    """

    def __init__(
        self,
        decoder: Decoder,
        backend: AttentionBackend,
        *,
        chunk: int = 64,
        seats: int | None = None,
        drafts: int = 0,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        if chunk < 1 or (seats is not None and seats < 1):
            raise ValueError(f"chunk and seats must be at least 1, got {chunk} and {seats}")
        self._decoder, self._backend = decoder, backend
        self._chunk, self._seats = chunk, seats
        self._drafts, self._drafter = drafts, Drafter()
        self._prompt: list[int] = []
        self._roots: dict[int, int] = {}  # by tenant
        self._on_event = on_event
        self._limit = min(backend.limit, decoder.config.limit)

    def run(self, prompt: str, sessions: Sequence[Session]) -> Report:
        """Prefill ``prompt``, fork every session from it and run all to their end."""
        report = Report(sessions)
        self._prompt = TOKENIZER.encode(prompt)
        report.prompt = len(self._prompt)
        try:
            self._root(0, report)
            self._loop(list(sessions), report)
        finally:
            for root in self._roots.values():
                self._backend.release(root)
            self._roots.clear()
        return report

    def _root(self, tenant: int, report: Report) -> int:
        """A tenant's sequence of the prompt, with whole pages of tenant 0's, the rest prefilled."""
        if tenant in self._roots:
            return self._roots[tenant]
        tokens = self._prompt
        root = self._backend.create(tokens, tenant, public=tenant == 0)
        try:
            if len(tokens) > self._limit:
                raise ContextLimitError(root, len(tokens), self._limit)
            while (start := self._backend.length(root)) < len(tokens):
                part = tokens[start : start + self._chunk]
                self._decoder.step([Span(root, start, len(part))], part, self._backend)
                self._emit(Event(report.steps, "prompt", State.PREFILL, start, len(part), "", root))
                report.steps += 1
        except Exception:
            self._backend.release(root)
            raise
        self._roots[tenant] = root
        return root

    def _loop(self, queue: list[Session], report: Report) -> None:
        seats: list[_Seat] = []
        try:
            while queue or seats:
                self._admit(queue, seats, report)
                for seat in list(seats):
                    self._advance(seat, seats, report)
                batch = [seat for seat in seats if seat.session.pending]
                if batch:
                    self._step(batch, report)
                elif seats:
                    report.idle += 1
                report.steps += 1
                self._leave(seats)
        finally:
            for seat in seats:
                self._release(seat)

    def _admit(self, queue: list[Session], seats: list[_Seat], report: Report) -> None:
        """Seat queued sessions while there is room in the engine and in the backend."""
        while queue and (self._seats is None or len(seats) < self._seats):
            try:
                root = self._root(queue[0].tenant, report)
                sequence = self._backend.fork(root, len(self._prompt))
            except CapacityError as error:
                if seats:
                    return  # an agent that ends makes room
                queue.pop(0).fail(error)
                continue
            seats.append(_Seat(queue.pop(0), sequence))
            report.agents += 1

    def _advance(self, seat: _Seat, seats: list[_Seat], report: Report) -> None:
        """Wake, fork or join one agent where its time has come."""
        session = seat.session
        if session.wake(report.steps) or session.join():
            self._show(seat, report.steps, 0, 0)
        elif session.forks_now:
            length = self._backend.length(seat.sequence)
            forked: list[int] = []
            try:
                for _ in range(session.branches):
                    forked.append(self._backend.fork(seat.sequence, length))
            except CapacityError as error:
                for sequence in forked:
                    self._backend.release(sequence)
                session.fail(error)
                return
            self._release(seat)
            for child, sequence in zip(session.fork(), forked, strict=True):
                seats.append(_Seat(child, sequence))
            report.agents += session.branches - 1
            self._show(seat, report.steps, length, 0)

    def _step(self, batch: list[_Seat], report: Report, *, draft: bool = True) -> None:
        """Feed one span of every runnable agent and hand out the sampled tokens."""
        spans: list[Span] = []
        trees: list[Tree] = []
        tokens: list[int] = []
        fed: list[_Seat] = []
        for seat in batch:
            start = self._backend.length(seat.sequence)
            pending = seat.session.pending
            # a branching agent keeps its last request token for the branches
            room = len(pending) - (seat.session.branches > 1)
            count = min(self._chunk, room)
            if start + len(pending) > self._limit:
                error = ContextLimitError(seat.sequence, start + len(pending), self._limit)
                seat.session.fail(error)
                self._show(seat, report.steps, start, 0)
                continue
            ends = draft and count == len(pending)
            tree = self._propose(seat.session, start, count) if ends else Tree()
            spans.append(Span(seat.sequence, start, count))
            trees.append(tree)
            tokens += [*pending[:count], *tree.tokens]
            fed.append(seat)
        if not spans:
            return
        try:
            logits = self._feed(spans, trees, tokens)
        except CapacityError as error:
            if any(map(len, trees)):  # there may be room without drafts
                self._step(fed, report, draft=False)
                return
            # the youngest makes room for the others, which repeat the step; it is put aside if that
            # can be done, else it ends
            if len(fed) == 1 or not self._backend.park(fed[-1].sequence):
                fed[-1].session.fail(error)
                self._show(fed[-1], report.steps, spans[-1].start, 0)
                self._release(fed[-1])
            self._step(fed[:-1], report)
            return
        kept: list[Span] = []
        known: list[int] = []
        first = 0
        for seat, span, tree, rows in zip(fed, spans, trees, logits, strict=True):
            count = span.count
            if seat.session.fed(count):
                count += self._write(seat.session, tree, rows, report)
            report.fed += count
            report.drafted += len(tree)
            kept.append(Span(span.sequence, span.start, count))
            known += tokens[first : first + count]
            first += span.count + len(tree)
            self._show(seat, report.steps, span.start, count, len(tree))
        if any(map(len, trees)):
            keep(self._backend, kept, known)
        for seat in fed:
            if seat.session.state is State.TOOL:
                self._backend.pause(seat.sequence)

    def _propose(self, session: Session, start: int, count: int) -> Tree:
        """A draft behind the agent's text, whose last ``count`` tokens begin at ``start``."""
        room = min(self._drafts, DRAFT_BITS - count, self._limit - start - count)
        if room < 1:
            return Tree()
        return self._drafter.propose(self._prompt + TOKENIZER.encode(session.text), room)

    def _feed(
        self, spans: Sequence[Span], trees: Sequence[Tree], tokens: list[int]
    ) -> list[Floats]:
        """One step; each span's logits [1 + nodes, vocabulary], from its last known token on.

        Nothing is committed if there is a draft among the trees.
        """
        if not any(map(len, trees)):
            return list(self._decoder.step(spans, tokens, self._backend)[:, None])
        wide = [
            Span(s.sequence, s.start, s.count + len(t)) for s, t in zip(spans, trees, strict=True)
        ]
        drafts = [
            t.span(s.start, s.count) if len(t) else None for s, t in zip(spans, trees, strict=True)
        ]
        rows = self._decoder.step(wide, tokens, self._backend, every=True, drafts=drafts)
        ends = np.cumsum([s.count for s in wide])
        return [rows[e - 1 - len(t) : e] for e, t in zip(ends, trees, strict=True)]

    def _write(self, session: Session, tree: Tree, rows: Floats, report: Report) -> int:
        """Let the model write as far as the draft foretold it; tokens already in place."""

        def choose(node: int) -> int:
            token = session.sample(rows[node + 1])
            session.accept(token, report.steps)
            report.generated += 1
            return token

        report.turns += 1
        _, kept = accept(tree, choose, lambda: session.state is State.THINK)
        if session.finished:
            return 0
        session.fed(kept)
        return kept

    def _leave(self, seats: list[_Seat]) -> None:
        """Free the places of agents that have ended."""
        for seat in list(seats):
            if seat.session.finished:
                self._release(seat)
                seats.remove(seat)

    def _release(self, seat: _Seat) -> None:
        if seat.held:
            self._backend.release(seat.sequence)
            seat.held = False

    def _show(self, seat: _Seat, step: int, start: int, tokens: int, drafted: int = 0) -> None:
        text = seat.session.text[seat.shown :]
        seat.shown = len(seat.session.text)
        sequence = seat.sequence if seat.held else -1
        state = seat.session.state
        name = seat.session.name
        self._emit(Event(step, name, state, start, tokens, text, sequence, drafted))

    def _emit(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
