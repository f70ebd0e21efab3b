"""The session's state machine, driven by hand: no model, no backend."""

import random

import numpy as np
import pytest

from m890.firmware.agents.protocol import CALL, TOKENIZER
from m890.firmware.agents.session import (
    NoAnswerError,
    ProtocolError,
    RunawayError,
    Session,
    State,
)
from m890.firmware.agents.tasks import batch
from m890.firmware.agents.tools import LATENCY, Toolbox
from m890.firmware.agents.world import make_world

WORLD = make_world(random.Random(5), held=True)
CALC = WORLD.names["calc"]


def _session(**options: int | float) -> Session:
    session = Session("a0", "buy 2 pear", Toolbox(WORLD))
    for name, value in options.items():
        setattr(session, name, value)
    return session


def _write(session: Session, text: str, now: int = 0) -> None:
    """Feed all that is pending and let the model write ``text``."""
    for token in TOKENIZER.encode(text):
        assert session.fed(len(session.pending))
        session.accept(token, now)


def test_a_tool_call_waits_and_resumes() -> None:
    session = _session()
    assert session.state is State.PREFILL
    assert TOKENIZER.decode(session.pending) == "?buy 2 pear\n"
    assert not session.fed(5)
    assert TOKENIZER.decode(session.pending) == "2 pear\n"
    _write(session, f"~2 pear\n!{CALC} 2*31\n", now=10)
    assert (session.state, session.ready) == (State.TOOL, 10 + LATENCY["calc"])
    assert not session.pending
    assert not session.wake(10)
    assert session.wake(10 + LATENCY["calc"])
    assert session.state is State.RESUME
    # the call's own newline was sampled but not fed before the wait
    assert TOKENIZER.decode(session.pending) == "\n=62\n"
    _write(session, "$62\n")
    assert (session.state, session.answer, session.calls) == (State.DONE, "62", ["calc"])
    assert session.text == f"?buy 2 pear\n~2 pear\n!{CALC} 2*31\n=62\n$62\n"
    assert session.finished and not session.pending


@pytest.mark.parametrize("task", batch(11, 6), ids=lambda task: task.family)
def test_right_tokens_solve_tasks(task) -> None:  # noqa: ANN001
    session = Session("a0", task.request, Toolbox(task.world))
    for message in task.transcript:
        if message.own:
            _write(session, str(message))
        if message.tag == CALL:
            assert session.wake(100)
    assert session.answer == task.answer
    assert tuple(session.calls) == task.sequence


def test_wrong_calls_reach_the_model_as_text() -> None:
    session = _session()
    _write(session, "!oven 3\n")
    assert session.wake(100)
    assert TOKENIZER.decode(session.pending) == "\n=err no tool oven\n"
    assert session.calls == ["unknown"]


def test_the_model_may_not_write_results() -> None:
    session = _session()
    _write(session, "=")
    assert session.state is State.FAILED
    assert isinstance(session.error, ProtocolError)


def test_endless_text_ends() -> None:
    session = _session(max_tokens=20)
    _write(session, "~" * 20)
    assert isinstance(session.error, RunawayError)
    assert not session.pending


def _forked(branches: int = 3) -> tuple[Session, list[Session]]:
    session = Session("a0", "buy 2 pear", Toolbox(WORLD), branches=branches, temperature=0.5)
    session.fed(len(session.pending) - 1)
    assert session.forks_now
    return session, session.fork()


def test_branches_vote() -> None:
    session, children = _forked()
    assert [child.name for child in children] == ["a0.0", "a0.1", "a0.2"]
    assert session.state is State.JOIN and not session.pending
    assert all(TOKENIZER.decode(child.pending) == "\n" for child in children)
    _write(children[0], "$1\n")
    assert not session.join()
    _write(children[1], "$7\n")
    _write(children[2], "$7\n")
    assert session.join()
    assert (session.state, session.answer) == (State.DONE, "7")


def test_a_tie_goes_to_the_greedy_branch_and_failures_do_not_vote() -> None:
    session, children = _forked()
    _write(children[0], "$4\n")
    _write(children[1], "=")
    _write(children[2], "$5\n")
    assert session.join() and session.answer == "4"
    session, children = _forked(2)
    for child in children:
        _write(child, "=")
    assert session.join()
    assert isinstance(session.error, NoAnswerError)


def test_sampling(rng: np.random.Generator) -> None:
    logits = rng.standard_normal(len(TOKENIZER)).astype(np.float32)
    greedy = _session()
    assert greedy.sample(logits) == int(logits.argmax())
    first, second = np.sort(logits)[[-1, -2]]
    assert greedy.margin == pytest.approx(float(first - second))
    _, children = _forked()
    warm = [children[1].sample(logits) for _ in range(200)]
    assert len(set(warm)) > 1 and max(warm, key=warm.count) == int(logits.argmax())
    _, again = _forked()
    assert [again[1].sample(logits) for _ in range(200)] == warm


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="at least one branch"):
        Session("a0", "buy 2 pear", Toolbox(WORLD), branches=0)
    with pytest.raises(ValueError, match="not at its fork"):
        _session().fork()
