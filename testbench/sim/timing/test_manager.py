"""Cycles of the page manager's steps: what can be said of them without the RTL."""

import pytest

from m890.hdl.config import preset
from m890.hdl.pages import mover, walker
from m890.sim.timing import manager
from m890.sim.timing.manager import ManagerTime, PageWork, Steps, moved

TINY = preset("tiny")
WORDS = TINY.port_bytes // 4


def test_pieces_are_the_rtls() -> None:
    assert (manager.WALK_ROOM, manager.WALK_PIECE) == (walker.ROOM, walker.PIECE)
    assert manager.MOVE_PIECE == mover.PIECE


def test_a_walk_takes_a_cycle_per_page_until_memory_is_the_limit() -> None:
    near, far = (ManagerTime(TINY, latency, Steps()) for latency in (10, 500))
    room = walker.ROOM * WORDS
    assert near.walk(4 * room) - near.walk(1) == 4 * room - 1
    assert far.walk(room) - far.walk(1) == room - 1
    # Then memory is waited for, once for each time that all of the room was asked for.
    assert far.walk(room + 1) - far.walk(room) == far.walk(2 * room + 1) - far.walk(2 * room) > 400
    assert far.walk(2 * room) - far.walk(room + 1) == room - 1


@pytest.mark.parametrize("memory", [0, 7, 100])
def test_a_move_reads_ahead(memory: int) -> None:
    """One piece: read, then written, then acknowledged. More: two cycles apart, three for a run."""
    assert moved(64, memory, memory, (0,), (5,)) == 2 * memory + 2 * 5
    assert moved(256, memory, memory, (0,), (16,)) == 2 * memory + 2 * 16
    assert moved(256, memory, memory, (0,), (160,)) == 2 * memory + 16 + 160 + 2 * 9
    assert moved(256, memory, memory, (0, 0), (16, 16)) == 2 * memory + 16 + 32 + 3
    assert moved(256, memory, memory, (0, 1000), (16, 16)) == 1000 + 2 * memory + 2 * 16


def test_room_for_one_piece_makes_every_piece_wait_for_memory() -> None:
    """It is read when the one before has been written."""
    one, ten = (moved(manager.MOVE_PIECE, 300, 9, (0,), (16 * n,)) for n in (1, 10))
    assert ten - one == 9 * (300 + 2 * 16)


def test_a_page_is_copied_in_all_planes_and_others_are_passed_over() -> None:
    time = ManagerTime(TINY, 20, Steps())
    planes = (18, 0, 0, 18, *[0] * 12)
    assert time.copy((0,) * 16) < time.copy((18, *[0] * 15)) < time.copy(planes)
    # Where little is copied, looking through the plane table is what takes time.
    assert time.copy((1, *[0] * 400)) - time.copy((1, *[0] * 300)) == 100 * Steps().other


def test_what_is_freed_costs_more_than_what_stays() -> None:
    time = ManagerTime(TINY, 20, Steps())
    stays, freed = (time.give_up(PageWork(9, freed)) for freed in (0, 9))
    assert freed - stays == 9 * Steps().freed
