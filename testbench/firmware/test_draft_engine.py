"""The batching engine with drafts: the same agents, the same texts, fewer steps."""

import numpy as np
import pytest

from m890.firmware.agents.engine import Engine, Event, Report
from m890.firmware.agents.evaluate import sessions_of
from m890.firmware.agents.protocol import REQUEST, TOKENIZER, Message
from m890.firmware.agents.session import Session, State
from m890.firmware.agents.tasks import Task, batch
from m890.firmware.models.backend import CapacityError, ContextLimitError, Draft, Floats
from m890.firmware.models.llama import Config, Decoder
from m890.firmware.models.reference import ReferenceBackend
from m890.hdl.config import DRAFT_BITS

CONFIG = Config(
    width=4, hidden=4, layers=1, heads=2, kv_heads=1, vocabulary=len(TOKENIZER), limit=1024
)


class TextBackend(ReferenceBackend):
    """Keeps each sequence's tokens, and what is appended to it; ``room`` tokens in all."""

    def __init__(self, limit: int = 1024, room: int = 1 << 30) -> None:
        super().__init__(CONFIG, limit)
        self.texts: dict[int, list[int]] = {}
        self.appended: dict[int, list[int]] = {}
        self.room = room

    def create(self, *prefix, **options) -> int:  # noqa: ANN002, ANN003
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

    def commit(self, spans, tokens=None) -> None:  # noqa: ANN001
        super().commit(spans)
        named = []
        for span in spans:
            assert span.start == len(self.texts[span.sequence])
            kept = self.appended[span.sequence][: span.count]
            self.texts[span.sequence] += kept
            named += kept
        assert tokens is None or tokens == named

    def trim(self, sequence: int, tokens: int) -> None:
        super().trim(sequence, tokens)
        assert tokens == len(self.texts[sequence])


class Oracle(Decoder):
    """Continues every context, a draft's paths too, as its task's solution does."""

    def __init__(self, tasks: list[Task]) -> None:
        self.config = CONFIG
        self.solutions = [
            task.world.prompt()
            + str(Message(REQUEST, task.request))
            + "".join(map(str, task.transcript))
            for task in tasks
        ]

    def step(
        self, batch, tokens, backend, *, every: bool = False, drafts=None  # noqa: ANN001
    ) -> Floats:  # fmt: skip
        assert isinstance(backend, TextBackend)
        if sum(map(len, backend.texts.values())) + len(tokens) > backend.room:
            raise CapacityError("no room for a step")
        rows: list[Floats] = []
        first = 0
        for i, span in enumerate(batch):
            fresh = list(tokens[first : first + span.count])
            first += span.count
            backend.appended[span.sequence] = fresh
            draft: Draft | None = drafts[i] if drafts else None
            context = backend.texts[span.sequence]
            assert span.start == len(context) and span.start + span.count <= backend.limit
            for at in range(span.count):
                mask = draft.masks[at] if draft else (2 << at) - 1
                seen = [fresh[j] for j in range(span.count) if mask >> j & 1]
                if draft:
                    assert span.count <= DRAFT_BITS
                    assert draft.positions[at] == span.start + len(seen) - 1
                if every or at == span.count - 1:
                    rows.append(self._next(context + seen))
        if drafts is None:
            backend.commit(batch, list(tokens))
        return np.stack(rows)

    def _next(self, text: list[int]) -> Floats:
        known = TOKENIZER.decode(text)
        rest = next((s[len(known) :] for s in self.solutions if s.startswith(known)), "")
        row = np.zeros(CONFIG.vocabulary, np.float32)
        row[TOKENIZER.encode(rest[:1] or "$")[0]] = 30.0
        return row


def play(
    tasks: list[Task], backend: TextBackend, drafts: int, branches: int = 1
) -> tuple[list[Session], Report, list[Event]]:
    events: list[Event] = []
    sessions = sessions_of(tasks, branches, temperature=0.5)
    engine = Engine(Oracle(tasks), backend, chunk=64, drafts=drafts, on_event=events.append)
    return sessions, engine.run(tasks[0].world.prompt(), sessions), events


@pytest.mark.parametrize("drafts,branches", [(1, 1), (4, 1), (16, 1), (6, 2)])
def test_agents_write_the_same_in_fewer_steps(drafts: int, branches: int) -> None:
    tasks = batch(31, 5)
    plain, before, _ = play(tasks, TextBackend(), 0, branches)
    backend = TextBackend()
    sessions, report, events = play(tasks, backend, drafts, branches)
    assert [s.answer for s in sessions] == [t.answer for t in tasks]
    assert [s.text for s in sessions] == [s.text for s in plain]
    assert [s.generated for s in sessions] == [s.generated for s in plain]
    assert not backend.texts, "every sequence is released"
    assert before.tokens_per_step == 1.0 and before.drafted == 0
    assert report.generated == before.generated
    assert report.tokens_per_step > 1.2 and report.steps < before.steps
    # every token is fed once, but what follows the last one to be written need not be
    assert before.fed - 5 * branches * drafts <= report.fed <= before.fed
    assert report.fed == sum(e.tokens for e in events if e.agent != "prompt")
    assert report.drafted == sum(e.drafted for e in events) > 0
    for session in sessions if branches == 1 else ():
        assert "".join(e.text for e in events if e.agent == session.name) == session.text


def test_the_limit_holds_for_drafts_too() -> None:
    """The same agents fail at the same place, drafts or not."""
    tasks = batch(32, 6)
    lengths = sorted(len(text) for text in Oracle(tasks).solutions)
    limit = (lengths[2] + lengths[3]) // 2
    plain, *_ = play(tasks, TextBackend(limit), 0)
    sessions, *_ = play(tasks, TextBackend(limit), 16)
    assert [s.text for s in sessions] == [s.text for s in plain]
    failed = [s for s in sessions if s.state is State.FAILED]
    assert len(failed) == 3
    assert all(isinstance(s.error, ContextLimitError) for s in failed)


def test_no_agent_ends_for_the_room_of_a_draft() -> None:
    """Where a pool has no room for a draft, the step is done without."""
    tasks = batch(33, 1)
    plain, *_ = play(tasks, TextBackend(), 0)
    _, free, _ = play(tasks, TextBackend(), 16)
    room = len(tasks[0].world.prompt()) + len(Oracle(tasks).solutions[0])
    sessions, report, _ = play(tasks, TextBackend(room=room), 16)
    assert sessions[0].text == plain[0].text and sessions[0].answer == tasks[0].answer
    assert 0 < report.drafted < free.drafted
