"""Continuous batching: many agents over one decoder and one backend.

Each step feeds every runnable agent at once: a decode token here, a prefill chunk there, a tool's
result elsewhere. While an agent waits for a tool, the others go on. The shared system prompt is
prefilled once; every agent forks from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from m890.firmware.agents.protocol import TOKENIZER
from m890.firmware.agents.session import Session, State
from m890.firmware.models.backend import AttentionBackend, CapacityError, ContextLimitError, Span
from m890.firmware.models.llama import Decoder


@dataclass(frozen=True)
class Event:
    """One agent in one step: the tokens fed, its state afterwards and the text it just gained.

    ``sequence`` is the backend's, -1 where the agent holds none.
    """

    step: int
    agent: str
    state: State
    start: int
    tokens: int
    text: str
    sequence: int = -1


@dataclass
class Report:
    """What a run did, in steps and tokens.

    ``prompt`` tokens were prefilled once for ``agents`` agents (branches included); ``fed`` counts
    all others, ``generated`` those of them that the model wrote. ``idle`` steps fed nothing.
    """

    sessions: Sequence[Session]
    prompt: int = 0
    agents: int = 0
    steps: int = 0
    idle: int = 0
    fed: int = 0
    generated: int = 0


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
    the rest queue. ``on_event`` is called for every agent in every step that changed it.
    """

    def __init__(
        self,
        decoder: Decoder,
        backend: AttentionBackend,
        *,
        chunk: int = 64,
        seats: int | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        if chunk < 1 or (seats is not None and seats < 1):
            raise ValueError(f"chunk and seats must be at least 1, got {chunk} and {seats}")
        self._decoder, self._backend = decoder, backend
        self._chunk, self._seats = chunk, seats
        self._on_event = on_event
        self._limit = min(backend.limit, decoder.config.limit)

    def run(self, prompt: str, sessions: Sequence[Session]) -> Report:
        """Prefill ``prompt``, fork every session from it and run all to their end."""
        report = Report(sessions)
        root = self._backend.create()
        try:
            tokens = TOKENIZER.encode(prompt)
            self._prefill(root, tokens, report)
            self._loop(root, len(tokens), list(sessions), report)
        finally:
            self._backend.release(root)
        return report

    def _prefill(self, root: int, tokens: list[int], report: Report) -> None:
        if len(tokens) > self._limit:
            raise ContextLimitError(root, len(tokens), self._limit)
        for start in range(0, len(tokens), self._chunk):
            part = tokens[start : start + self._chunk]
            self._decoder.step([Span(root, start, len(part))], part, self._backend)
            self._emit(Event(report.steps, "prompt", State.PREFILL, start, len(part), "", root))
            report.steps += 1
        report.prompt = len(tokens)

    def _loop(self, root: int, shared: int, queue: list[Session], report: Report) -> None:
        seats: list[_Seat] = []
        try:
            while queue or seats:
                self._admit(root, shared, queue, seats, report)
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

    def _admit(
        self, root: int, shared: int, queue: list[Session], seats: list[_Seat], report: Report
    ) -> None:
        """Seat queued sessions while there is room in the engine and in the backend."""
        while queue and (self._seats is None or len(seats) < self._seats):
            try:
                sequence = self._backend.fork(root, shared)
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

    def _step(self, batch: list[_Seat], report: Report) -> None:
        """Feed one span of every runnable agent and hand out the sampled tokens."""
        spans: list[Span] = []
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
            spans.append(Span(seat.sequence, start, count))
            tokens += pending[:count]
            fed.append(seat)
        if not spans:
            return
        try:
            logits = self._decoder.step(spans, tokens, self._backend)
        except CapacityError as error:
            # the youngest makes room for the others, which repeat the step
            fed[-1].session.fail(error)
            self._show(fed[-1], report.steps, spans[-1].start, 0)
            self._release(fed[-1])
            self._step(fed[:-1], report)
            return
        for seat, span, row in zip(fed, spans, logits, strict=True):
            session = seat.session
            report.fed += span.count
            if session.fed(span.count):
                session.accept(session.sample(row), report.steps)
                report.generated += 1
            self._show(seat, report.steps, span.start, span.count)

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

    def _show(self, seat: _Seat, step: int, start: int, tokens: int) -> None:
        text = seat.session.text[seat.shown :]
        seat.shown = len(seat.session.text)
        sequence = seat.sequence if seat.held else -1
        state = seat.session.state
        self._emit(Event(step, seat.session.name, state, start, tokens, text, sequence))

    def _emit(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
