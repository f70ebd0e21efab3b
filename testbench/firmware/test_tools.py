"""The agent's tools: exact arithmetic, search, look-up, receipts, and errors as text."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m890.firmware.agents.tools import Toolbox, ToolError, calculate
from m890.firmware.agents.world import FEE, World, make_world

NUMBER = st.integers(0, 9999)


@pytest.fixture
def world(seed: int) -> World:
    return make_world(random.Random(seed), held=True)


@given(NUMBER, NUMBER, NUMBER)
def test_arithmetic(a: int, b: int, c: int) -> None:
    assert calculate(f"{a}+{b}*{c}") == str(a + b * c)
    assert calculate(f"{a}-{b}") == str(a - b)
    assert calculate(f"{a}>{b}") == ("yes" if a > b else "no")


@given(NUMBER, st.integers(0, 100))
def test_per_cents_round_down(a: int, b: int) -> None:
    assert calculate(f"{a}+{b}%") == str(a + a * b // 100)
    assert calculate(f"{a}-{b}%") == str(a - a * b // 100)


@pytest.mark.parametrize("text", ["", "x", "1+", "1++2", "2*", "%", "1>", "9*9999999999"])
def test_bad_expressions_are_refused(text: str) -> None:
    with pytest.raises(ToolError):
        calculate(text)


@given(st.text())
def test_any_call_gets_a_text(call: str) -> None:
    box = Toolbox(make_world(random.Random(1), held=True))
    assert isinstance(box.execute(call), str)


def test_search_finds_the_note(world: World) -> None:
    box = Toolbox(world)
    for town, fee in world.towns.items():
        words = box.find(town).split()
        assert town in words and f"{FEE}{fee}" in words
    for client, card in world.cards.items():
        assert {client, card} <= set(box.find(client).split())
    assert box.find("nowhere") == "none"


def test_look_up_knows_cards_only(world: World) -> None:
    box = Toolbox(world)
    for card in world.cards.values():
        assert box.look(card) == str(world.credits.get(card, "none"))
    assert box.look("pear") == "none"


def test_receipts_count_up_and_branches_are_apart(world: World) -> None:
    box = Toolbox(world)
    first = box.save("12")
    branch = box.fork()
    assert branch.save("13") == box.save("14") == f"r{int(first[1:]) + 1}"


def test_tools_answer_to_the_prompts_names_only(world: World) -> None:
    box = Toolbox(world)
    assert box.execute(f"{world.names['calc']} 6*7") == "42"
    assert box.execute("oven 6*7") == "err no tool oven"
    assert box.execute(f"{world.names['save']} ten") == "err save needs a number"
    assert box.execute(f"{world.names['calc']} 6**7").startswith("err bad term")
