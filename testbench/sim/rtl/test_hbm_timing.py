"""Each timing parameter of the HBM-like memory, alone: it alone decides when a command comes.

In `FREE` nothing takes longer than its turn on the command bus: a row command a clock, a column
command a clock, a column command the clock after its ACT, a PRE the clock after the row's last
column command. A test sets one parameter to a random value and gives the commands' very clocks.
"""

import numpy as np
import pytest

from m890.sim.rtl.hbm import HbmTiming, Refresh
from m890.sim.rtl.player import Access, Command, schedule

CLOCKS = (
    "read_latency", "write_latency", "rcd_read", "rcd_write", "rp", "ras", "rc", "ccd_s", "ccd_l",
    "rrd_s", "rrd_l", "faw", "rtp", "wr", "wtr_s", "wtr_l", "rtw", "rfc", "rfc_bank", "rrefd",
)  # fmt: skip
FREE = HbmTiming(
    pseudo_channels=1, per_channel=1, burst=1, refresh=Refresh.NONE, drain_from=8,
    **dict.fromkeys(CLOCKS, 0),
)  # fmt: skip
GROUP = FREE.banks
"""From a bank to the one beside it in the next group."""


@pytest.fixture
def value(rng: np.random.Generator) -> int:
    """Clocks of the parameter under test: more than anything else takes."""
    return int(rng.integers(12, 100))


def run(timing: HbmTiming, *accesses: Access, until: int = 1000) -> list[tuple[int, str, int]]:
    """(clock, command, bank) of all commands."""
    return [(c.clock, c.kind, c.bank) for c in schedule(timing, accesses, until)]


def test_nothing_else_takes_time() -> None:
    assert run(FREE, Access(3, 5, 7), Access(3, 5, 8), Access(3, 5, 8, write=True)) == [
        (3, "ACT", 5), (4, "RD", 5), (5, "PRE", 5), (6, "ACT", 5), (7, "RD", 5), (8, "WR", 5),
    ]  # fmt: skip


def test_rcd_read(value: int) -> None:
    assert run(FREE.with_(rcd_read=value), Access(0, 1, 0)) == [(0, "ACT", 1), (value, "RD", 1)]
    write = Access(0, 1, 0, write=True)
    assert run(FREE.with_(rcd_read=value), write) == [(0, "ACT", 1), (1, "WR", 1)]


def test_rcd_write(value: int) -> None:
    write = Access(0, 1, 0, write=True)
    assert run(FREE.with_(rcd_write=value), write) == [(0, "ACT", 1), (value, "WR", 1)]
    assert run(FREE.with_(rcd_write=value), Access(0, 1, 0)) == [(0, "ACT", 1), (1, "RD", 1)]


def test_rp(value: int) -> None:
    found = run(FREE.with_(rp=value), Access(0, 2, 0), Access(0, 2, 1))
    assert found == [
        (0, "ACT", 2), (1, "RD", 2), (2, "PRE", 2), (2 + value, "ACT", 2), (3 + value, "RD", 2),
    ]  # fmt: skip


def test_ras(value: int) -> None:
    found = run(FREE.with_(ras=value), Access(0, 2, 0), Access(0, 2, 1))
    assert found[2:4] == [(value, "PRE", 2), (1 + value, "ACT", 2)]


def test_rc(value: int) -> None:
    found = run(FREE.with_(rc=value), Access(0, 2, 0), Access(0, 2, 1))
    assert found[2:4] == [(2, "PRE", 2), (value, "ACT", 2)]


def test_rtp(value: int) -> None:
    found = run(FREE.with_(rtp=value), Access(0, 2, 0), Access(0, 2, 1))
    assert found[1:4] == [(1, "RD", 2), (1 + value, "PRE", 2), (2 + value, "ACT", 2)]


def test_wr_counts_from_the_end_of_the_data(value: int) -> None:
    timing = FREE.with_(wr=value, write_latency=5, burst=3)
    found = run(timing, Access(0, 2, 0, write=True), Access(0, 2, 1, write=True))
    assert found[1:3] == [(1, "WR", 2), (1 + 5 + 3 + value, "PRE", 2)]


@pytest.mark.parametrize("write", [False, True])
def test_ccd_s(value: int, write: bool) -> None:
    kind = "WR" if write else "RD"
    found = run(FREE.with_(ccd_s=value), Access(0, 0, 0, write), Access(0, GROUP, 0, write))
    assert [c for c in found if c[1] == kind] == [(1, kind, 0), (1 + value, kind, GROUP)]


@pytest.mark.parametrize("write", [False, True])
def test_ccd_l_holds_within_a_group(value: int, write: bool) -> None:
    kind = "WR" if write else "RD"
    timing, first = FREE.with_(ccd_l=value), Access(0, 0, 0, write)
    for bank, row in ((0, 0), (1, 0)):  # the same row; another bank of the group
        found = run(timing, first, Access(0, bank, row, write))
        assert [c for c in found if c[1] == kind] == [(1, kind, 0), (1 + value, kind, bank)]
    found = run(timing, first, Access(0, GROUP, 0, write))
    assert [c for c in found if c[1] == kind] == [(1, kind, 0), (2, kind, GROUP)]


def test_rrd_s(value: int) -> None:
    found = run(FREE.with_(rrd_s=value), Access(0, 0, 0), Access(0, GROUP, 0))
    assert [c for c in found if c[1] == "ACT"] == [(0, "ACT", 0), (value, "ACT", GROUP)]


def test_rrd_l_holds_within_a_group(value: int) -> None:
    timing = FREE.with_(rrd_l=value)
    found = run(timing, Access(0, 0, 0), Access(0, 1, 0))
    assert [c for c in found if c[1] == "ACT"] == [(0, "ACT", 0), (value, "ACT", 1)]
    found = run(timing, Access(0, 0, 0), Access(0, GROUP, 0))
    assert [c for c in found if c[1] == "ACT"] == [(0, "ACT", 0), (1, "ACT", GROUP)]


def test_faw(value: int) -> None:
    found = run(FREE.with_(faw=value), *(Access(0, bank, 0) for bank in range(9)))
    clocks = [clock for clock, kind, _ in found if kind == "ACT"]
    assert clocks == [0, 1, 2, 3, value, 1 + value, 2 + value, 3 + value, 2 * value]


def test_wtr_s_counts_from_the_end_of_the_data(value: int) -> None:
    timing = FREE.with_(wtr_s=value, write_latency=5, burst=3)
    found = run(timing, Access(0, 0, 0, write=True), Access(1, GROUP, 0))
    assert found[-1] == (1 + 5 + 3 + value, "RD", GROUP)


def test_wtr_l_holds_within_a_group(value: int) -> None:
    timing = FREE.with_(wtr_l=value, write_latency=5, burst=3)
    for bank, clock in ((0, 9 + value), (1, 9 + value), (GROUP, 9)):
        found = run(timing, Access(0, 0, 0, write=True), Access(1, bank, 0))
        assert found[-1] == (clock, "RD", bank)


def test_write_latency_and_burst_delay_a_read_behind_a_write(value: int) -> None:
    write, read = Access(0, 0, 0, write=True), Access(1, GROUP, 0)
    assert run(FREE.with_(write_latency=value), write, read)[-1] == (1 + value + 1, "RD", GROUP)
    assert run(FREE.with_(burst=value), write, read)[-1] == (1 + value, "RD", GROUP)


def test_rtw(value: int) -> None:
    found = run(FREE.with_(rtw=value), Access(0, 0, 0), Access(0, GROUP, 0, write=True))
    assert found[-1] == (1 + value, "WR", GROUP)


def test_refi_per_bank_takes_the_banks_in_turn(value: int) -> None:
    timing = FREE.with_(refresh=Refresh.PER_BANK, refi=16 * value)
    found = run(timing, until=20 * value + 1)
    assert found == [((n + 1) * value, "REFpb", n % 16) for n in range(20)]


def test_refi_all_banks(value: int) -> None:
    timing = FREE.with_(refresh=Refresh.ALL_BANKS, refi=value)
    assert run(timing, until=5 * value + 1) == [((n + 1) * value, "REFab", 0) for n in range(5)]


def test_pseudo_channels_refresh_in_turns() -> None:
    timing = FREE.with_(refresh=Refresh.PER_BANK, refi=16 * 60, pseudo_channels=3, per_channel=2)
    found = [(c.clock, c.channel, c.bank) for c in schedule(timing, [], 101)]
    assert found == [(20, 0, 0), (40, 1, 0), (80, 0, 1), (100, 1, 1)]


def test_rfc_bank_holds_in_its_bank(value: int) -> None:
    timing = FREE.with_(refresh=Refresh.PER_BANK, refi=16 * 200, rfc_bank=value)
    for bank, clock in ((0, 200 + value), (1, 201), (GROUP, 201)):
        found = run(timing, Access(200, bank, 0), until=400)
        assert found[:2] == [(200, "REFpb", 0), (clock, "ACT", bank)]


def test_rrefd(value: int) -> None:
    timing = FREE.with_(refresh=Refresh.PER_BANK, refi=16 * 200, rrefd=value)
    found = run(timing, Access(200, GROUP, 0), until=400)
    assert found[:2] == [(200, "REFpb", 0), (200 + value, "ACT", GROUP)]
    often = timing.with_(refi=16 * 5)  # due every 5 clocks, but rrefd apart
    assert [clock for clock, _, _ in run(often, until=200)] == list(range(5, 200, value))


def test_rfc_holds_in_all_banks(value: int) -> None:
    timing = FREE.with_(refresh=Refresh.ALL_BANKS, refi=200, rfc=value)
    for bank in (0, 1, GROUP):
        found = run(timing, Access(200, bank, 0), until=400)
        assert found[:2] == [(200, "REFab", 0), (200 + value, "ACT", bank)]


@pytest.mark.parametrize("refresh, close, renew", [
    (Refresh.PER_BANK, "PRE", "REFpb"), (Refresh.ALL_BANKS, "PREab", "REFab"),
])  # fmt: skip
def test_a_refresh_closes_the_row_first(
    value: int, refresh: Refresh, close: str, renew: str
) -> None:
    interval = 16 * 200 if refresh == Refresh.PER_BANK else 200
    timing = FREE.with_(refresh=refresh, refi=interval, rp=value, ras=150)
    found = run(timing, Access(100, 0, 0), Access(210, 0, 0), until=600)
    assert found[:4] == [(100, "ACT", 0), (101, "RD", 0), (250, close, 0), (250 + value, renew, 0)]
    assert found[4][1:] == ("ACT", 0), "what came after it was due waits for it"


def test_row_hits_go_first_but_not_for_ever(value: int) -> None:
    hits = [Access(clock, 0, 0) for clock in range(300)]
    accesses = sorted([*hits, Access(2, 0, 1)])
    found = run(FREE.with_(patience=value), *accesses)
    # It came in clock 2; more than `value` clocks later nothing younger is served before it.
    assert (2 + value + 1, "PRE", 0) in found
    assert [clock for clock, kind, _ in found if kind == "PRE"][0] == 2 + value + 1
    patient = run(FREE.with_(patience=1000), *accesses)
    assert [clock for clock, kind, _ in patient if kind == "PRE"] == [301]


def test_read_queue_is_what_it_chooses_among() -> None:
    accesses = [Access(0, 0, 0), Access(0, 0, 1), Access(0, GROUP, 0)]
    timing = FREE.with_(rp=20)  # bank 0 is busy for long
    free = [bank for _, kind, bank in run(timing, *accesses) if kind == "RD"]
    held = [b for _, kind, b in run(timing.with_(read_queue=1), *accesses) if kind == "RD"]
    assert free == [0, GROUP, 0] and held == [0, 0, GROUP]


def test_writes_wait_until_drain_from_while_reads_come() -> None:
    reads = [Access(clock, 0, 0) for clock in range(60)]
    writes = [Access(20 + n, GROUP, 0, write=True) for n in range(6)]
    # ACT as the last of them comes, or behind the reads, of which one is served per clock from 1.
    for drain_from, begin in ((6, 26), (4, 24), (7, 62)):
        timing = FREE.with_(drain_from=drain_from, turn=10)
        found = run(timing, *sorted([*reads, *writes]))
        clocks = [clock for clock, kind, _ in found if kind == "WR"]
        assert clocks == list(range(begin, begin + 6))


def test_turn_is_what_each_direction_serves_while_the_other_waits(value: int) -> None:
    accesses = [Access(0, 0, 0, write) for write in (False, True) for _ in range(3 * value)]
    timing = FREE.with_(drain_from=1, turn=value, read_queue=1000, write_queue=1000)
    found = [kind for _, kind, _ in run(timing, *accesses) if kind != "ACT"]
    assert found == ([*["RD"] * value, *["WR"] * value]) * 3


def test_write_queue_is_filled_while_reads_go() -> None:
    reads = [Access(clock, 0, 0) for clock in range(60)]
    writes = [Access(10, GROUP, 0, write=True) for _ in range(6)]
    timing = FREE.with_(write_queue=3, drain_from=3, turn=5)
    found = run(timing, *sorted([*reads, *writes]))
    # Each of the last three comes when one has left; the turn ends with five; 51 reads were left.
    clocks = [clock for clock, kind, _ in found if kind == "WR"]
    assert clocks == [11, 12, 13, 14, 15, 16 + 51]


def test_pseudo_channels_of_a_channel_share_the_command_buses() -> None:
    both = FREE.with_(pseudo_channels=2, per_channel=2)
    found = schedule(both, [Access(0, 0, 0, channel=0), Access(0, 0, 0, channel=1)], 10)
    assert found == [
        Command(0, "ACT", 0, 0, 0), Command(1, "ACT", 0, 0, 1), Command(1, "RD", 0, 0, 0),
        Command(2, "RD", 0, 0, 1),
    ]  # fmt: skip
    busy = [Access(0, 0, 0, channel=n % 2) for n in range(40)]
    clocks = [c.clock for c in schedule(both, busy, 100) if c.kind == "RD"]
    assert clocks == list(range(1, 41)), "one column command per clock for both"
