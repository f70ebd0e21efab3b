"""Tasks: deterministic, solvable as written, within bounds, and apart from training."""

import re

import pytest

from m890.firmware.agents.protocol import CALL, RESULT, TOKENIZER
from m890.firmware.agents.tasks import (
    MAX_CALLS,
    MIN_CALLS,
    Task,
    batch,
    reserved_sequence,
    reserved_template,
)
from m890.firmware.agents.tools import Toolbox
from m890.firmware.agents.world import CLAUSES, HELD_WORDS, held_value


@pytest.fixture(scope="module")
def held() -> list[Task]:
    return [task for seed in range(40) for task in batch(seed, 20)]


@pytest.fixture(scope="module")
def trained() -> list[Task]:
    return [task for seed in range(60) for task in batch(seed, 20, held=False)]


def test_a_seed_gives_the_same_tasks() -> None:
    assert batch(3, 10) == batch(3, 10)
    assert batch(3, 10) != batch(4, 10)


def test_transcripts_replay_on_the_tools(held: list[Task]) -> None:
    for task in held:
        box = Toolbox(task.world)
        for call, result in zip(task.transcript, task.transcript[1:], strict=False):
            if call.tag == CALL:
                assert result.tag == RESULT and box.execute(call.text) == result.text


def test_sizes(held: list[Task]) -> None:
    for task in held:
        assert MIN_CALLS <= len(task.sequence) <= MAX_CALLS
        body = f"?{task.request}\n" + "".join(map(str, task.transcript))
        tokens = TOKENIZER.encode(task.world.prompt() + body)
        assert 300 <= len(tokens) <= 640


def test_tasks_of_a_batch_share_one_prompt() -> None:
    assert len({task.world.prompt() for task in batch(5, 30)}) == 1


def test_plans_follow_the_prompts_order(held: list[Task]) -> None:
    moved = 0
    for task in held:
        words = [part.split()[0] for part in task.transcript[0].text.split(",")]
        rules = [word for word in words if word in CLAUSES]
        assert rules == [clause for clause in task.world.order if clause in rules]
        asked = [w for w in re.findall(r"deal|tax|send|ship|card", task.request)]
        moved += [w.replace("send", "ship") for w in asked] != rules
    assert moved > len(held) // 4, "most requests should need reordering"


def test_held_out_tasks_are_apart_from_training(held: list[Task], trained: list[Task]) -> None:
    seen = {task.template for task in trained}
    sequences = {task.sequence for task in trained}
    for task in held:
        assert task.template not in seen or task.absent
        assert reserved_template(task.template) or task.absent
        assert not task.absent or task.sequence not in sequences
        assert set(task.world.prices) <= HELD_WORDS
        assert all(map(held_value, [*task.world.prices.values(), *task.world.towns.values()]))
    for task in trained:
        names = {*task.world.prices, *task.world.towns, *task.world.cards}
        assert not names & HELD_WORDS
        assert not any(map(held_value, [*task.world.prices.values(), task.world.tax]))


def test_absent_sequences_occur_in_every_family_with_several_tools(held: list[Task]) -> None:
    families = {task.family for task in held}
    assert len(families) == 8
    assert {task.family for task in held if task.absent} == families - {"quote"}
    assert not reserved_sequence(("calc", "calc", "calc"))
