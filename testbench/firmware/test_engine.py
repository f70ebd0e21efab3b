"""The batching engine: with an oracle in place of the model, and with the committed weights."""

from collections.abc import Sequence

import numpy as np
import pytest

from m890.firmware.agents.engine import Engine, Event
from m890.firmware.agents.evaluate import (
    WEIGHTS,
    accuracy,
    agreement,
    held_out,
    load_agent,
    sessions_of,
    solve_tasks,
)
from m890.firmware.agents.protocol import REQUEST, TOKENIZER, Message
from m890.firmware.agents.session import State
from m890.firmware.agents.tasks import Task, batch
from m890.firmware.models.backend import CapacityError, ContextLimitError, Floats, Span
from m890.firmware.models.llama import Config, Decoder
from m890.firmware.models.reference import ReferenceBackend

CONFIG = Config(
    width=4, hidden=4, layers=1, heads=2, kv_heads=1, vocabulary=len(TOKENIZER), limit=1024
)


class TextBackend(ReferenceBackend):
    """Keeps each sequence's tokens and holds ``room`` sequences and ``space`` tokens at most."""

    def __init__(self, limit: int = 1024, room: int = 1000, space: int = 1 << 30) -> None:
        super().__init__(CONFIG, limit)
        self.texts: dict[int, list[int]] = {}
        self.room, self.space = room, space

    def create(self, *prefix, **options) -> int:  # noqa: ANN002, ANN003
        if len(self.texts) >= self.room:
            raise CapacityError("no room for a sequence")
        sequence = super().create(*prefix, **options)
        self.texts[sequence] = []
        return sequence

    def fork(self, sequence: int, tokens: int) -> int:
        child = super().fork(sequence, tokens)
        self.texts[child] = self.texts[sequence][:tokens]
        return child

    def release(self, sequence: int) -> None:
        super().release(sequence)
        del self.texts[sequence]


class Oracle(Decoder):
    """Continues every context as its task's solution does."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.config = CONFIG
        self.solutions = [
            task.world.prompt()
            + str(Message(REQUEST, task.request))
            + "".join(map(str, task.transcript))
            for task in tasks
        ]
        self.batches: list[int] = []

    def step(self, batch, tokens, backend, *, every: bool = False) -> Floats:  # noqa: ANN001
        assert isinstance(backend, TextBackend)
        if sum(map(len, backend.texts.values())) + len(tokens) > backend.space:
            raise CapacityError("no room for a step")
        self.batches.append(len(batch))
        out = np.zeros((len(batch), CONFIG.vocabulary), np.float32)
        fresh = iter(tokens)
        for row, span in zip(out, batch, strict=True):
            text = backend.texts[span.sequence]
            assert span.start == len(text) and span.count > 0
            text += [next(fresh) for _ in range(span.count)]
            known = TOKENIZER.decode(text)
            rest = next((s[len(known) :] for s in self.solutions if s.startswith(known)), "")
            row[TOKENIZER.encode(rest[:1] or "$")[0]] = 30.0
        backend.commit(batch)
        return out


def _run(tasks: list[Task], backend: TextBackend, **options) -> tuple:  # noqa: ANN003
    events: list[Event] = []
    oracle = Oracle(tasks)
    branches = options.pop("branches", 1)
    sessions = sessions_of(tasks, branches, temperature=0.5)
    engine = Engine(oracle, backend, on_event=events.append, **options)
    return sessions, engine.run(tasks[0].world.prompt(), sessions), events, oracle


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("seats", [None, 3])
def test_agents_interleave_and_solve(chunk: int, seats: int | None) -> None:
    tasks, backend = batch(21, 8), TextBackend()
    sessions, report, events, oracle = _run(tasks, backend, chunk=chunk, seats=seats)
    assert [session.answer for session in sessions] == [task.answer for task in tasks]
    assert not backend.texts, "every sequence is released"
    prompt = len(tasks[0].world.prompt())
    assert report.prompt == prompt
    # the answer's newline is sampled and never fed
    own = sum(len(session.text) for session in sessions) - len(sessions)
    assert report.fed == own == sum(e.tokens for e in events if e.agent != "prompt")
    assert report.generated == sum(session.generated for session in sessions)
    assert max(event.tokens for event in events) <= chunk
    assert max(oracle.batches) == (8 if seats is None else seats)
    for session in sessions:
        text = "".join(event.text for event in events if event.agent == session.name)
        assert text == session.text


def test_others_go_on_while_an_agent_waits() -> None:
    tasks = batch(22, 6)
    _, report, events, _ = _run(tasks, TextBackend())
    waiting: dict[str, int] = {}
    for event in events:
        if event.state is State.TOOL:
            waiting[event.agent] = event.step
        elif event.state is State.RESUME and event.agent in waiting:
            start = waiting.pop(event.agent)
            between = [e for e in events if start < e.step < event.step and e.tokens]
            assert all(e.agent != event.agent for e in between)
    assert report.idle < report.steps // 10


def test_branches_share_the_request_and_vote() -> None:
    tasks, backend = batch(23, 3), TextBackend()
    sessions, report, events, _ = _run(tasks, backend, branches=3)
    assert [session.answer for session in sessions] == [task.answer for task in tasks]
    assert report.agents == 9 and not backend.texts
    assert {event.agent for event in events if event.state is State.DONE} >= {"a0.0", "a0.2"}


def test_a_context_over_the_limit_ends_one_agent_only() -> None:
    tasks = batch(24, 8)
    lengths = sorted(len(text) for text in Oracle(tasks).solutions)
    backend = TextBackend(limit=(lengths[3] + lengths[4]) // 2)
    sessions, *_ = _run(tasks, backend)
    failed = [session for session in sessions if session.state is State.FAILED]
    assert len(failed) == 4 and not backend.texts
    for session, task in zip(sessions, tasks, strict=True):
        if session in failed:
            assert isinstance(session.error, ContextLimitError)
        else:
            assert session.answer == task.answer
    with pytest.raises(ContextLimitError):
        _run(tasks, TextBackend(limit=100))


def test_agents_queue_for_room_in_the_backend() -> None:
    tasks, backend = batch(25, 6), TextBackend(room=3)
    sessions, _, _, oracle = _run(tasks, backend)
    assert [session.answer for session in sessions] == [task.answer for task in tasks]
    assert max(oracle.batches) == 2
    sessions, *_ = _run(tasks, TextBackend(room=1))
    assert all(isinstance(session.error, CapacityError) for session in sessions)


def test_a_full_pool_ends_the_youngest() -> None:
    tasks = batch(26, 4)
    whole = sum(len(text) for text in Oracle(tasks).solutions) + len(tasks[0].world.prompt())
    backend = TextBackend(space=whole - 300)
    sessions, *_ = _run(tasks, backend)
    failed = [session for session in sessions if session.error]
    assert 1 <= len(failed) < 4 and not backend.texts
    assert all(isinstance(session.error, CapacityError) for session in failed)
    assert all(s.answer == t.answer for s, t in zip(sessions, tasks, strict=True) if not s.error)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="chunk and seats"):
        Engine(Oracle([]), TextBackend(), chunk=0)


def test_the_committed_agent_solves_held_out_tasks() -> None:
    decoder = load_agent()
    assert WEIGHTS.stat().st_size < 8 << 20
    groups = held_out(24, seed=2, per_prompt=12)
    outcomes = solve_tasks(decoder, lambda: ReferenceBackend(decoder.config), groups)
    solved, total = accuracy(outcomes)["all"]
    assert total == 24 and solved >= 23
    assert agreement(outcomes, outcomes) == 1.0


def test_the_agent_answers_alike_alone_and_in_a_batch() -> None:
    decoder = load_agent()
    tasks = held_out(6, seed=3, per_prompt=6)[0]
    together = solve_tasks(decoder, lambda: ReferenceBackend(decoder.config), [tasks], chunk=16)
    alone = solve_tasks(decoder, lambda: ReferenceBackend(decoder.config), [[t] for t in tasks[:2]])
    assert agreement(together[:2], alone) == 1.0


def test_spans_of_a_step_are_disjoint() -> None:
    tasks = batch(27, 5)
    seen: list[Span] = []

    class Watch(Oracle):
        def step(self, batch, tokens, backend, *, every: bool = False) -> Floats:  # noqa: ANN001
            assert len({span.sequence for span in batch}) == len(batch)
            seen.extend(batch)
            return super().step(batch, tokens, backend, every=every)

    backend = TextBackend()
    Engine(Watch(tasks), backend).run(tasks[0].world.prompt(), sessions_of(tasks))
    assert sum(span.count for span in seen) > 1000
