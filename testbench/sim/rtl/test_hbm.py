"""The HBM-like memory at its port: latency, rate, where addresses lie, nothing is lost."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from m890.hdl.config import preset
from m890.sim.rtl.hbm import AddressMap, HbmTiming, Refresh, share
from m890.sim.rtl.player import Request, bursts, place, play
from m890.testbench.sim.rtl.test_hbm_timing import FREE

MAPS = (
    HbmTiming().map,
    AddressMap(1, (("column", 5), ("group", 2), ("bank", 2)), False),
    AddressMap(32, (("group", 2), ("column", 2), ("bank", 1), ("column", 3), ("bank", 1)), True),
)


@pytest.mark.parametrize("name", ["path", "read_latency", "burst"])
def test_latency_of_a_beat_exactly(name: str, rng: np.random.Generator) -> None:
    value = int(rng.integers(1, 200))
    timing = FREE.with_(**{"core_mhz": 1000, "clock_mhz": 1000, "path": 1, name: value})
    total = timing.path + timing.read_latency + timing.burst
    played = play(timing, 32, np.zeros(4096, np.uint8), [Request(64, 1)])
    # Asked for in cycle 1, taken in cycle 2, which has the ACT; RD in cycle 3; seen in the next.
    assert played.cycles == 3 + total + 1


def test_latency_of_an_answer_exactly(rng: np.random.Generator) -> None:
    path = int(rng.integers(1, 200))
    write = [Request(64, 2, 5, True)]
    data = [np.zeros(64, np.uint8)]
    played = play(FREE.with_(path=path), 32, np.zeros(4096, np.uint8), write, written=data)
    # The address is taken in cycle 2, its beats in 3 and 4; the answer is seen in the next.
    assert played.cycles == 4 + path + 1


@pytest.mark.parametrize("core, clock", [(1000, 1000), (1200, 1600), (1150, 1600), (2000, 700)])
def test_the_rate_is_the_clocks_ratio(core: int, clock: int) -> None:
    """Row hits of one pseudo-channel: a burst every two clocks, in cycles of the core."""
    timing = FREE.with_(core_mhz=core, clock_mhz=clock, burst=2, ccd_s=2)
    memory = np.zeros(1 << 20, np.uint8)
    cycles = [
        play(timing, 32, memory, bursts(0, beats, 32, 128)).cycles for beats in (1000, 1000 + clock)
    ]
    assert timing.peak == pytest.approx(32 * clock / (2 * core))
    assert abs(cycles[1] - cycles[0] - 2 * core) <= 1


def test_shares_of_the_presets() -> None:
    assert {n: share(preset(n)).pseudo_channels for n in ("tiny", "small", "edge", "m890")} == {
        "tiny": 1, "small": 1, "edge": 2, "m890": 3,
    }  # fmt: skip
    assert share(preset("m890")).peak == 64
    # 64 cores and 6 stacks of 16 channels with two pseudo-channels each: nothing is left over.
    assert 64 * share(preset("m890")).pseudo_channels == 6 * 16 * 2
    for name in ("tiny", "small", "edge"):
        assert share(preset(name)).peak >= preset(name).lanes


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_every_address_lies_somewhere_else(map: AddressMap, channels: int) -> None:
    timing = HbmTiming(map=map, pseudo_channels=channels)
    size = channels * 16 * timing.row_bytes * 4  # four rows of every bank
    places = [place(timing, at) for at in range(0, size, 32)]
    assert len(set(places)) == len(places)
    assert {p.channel for p in places} == set(range(channels))
    assert {p.bank for p in places} == set(range(16))
    assert {p.row for p in places} == set(range(4))
    assert {p.column for p in places} == set(range(32))
    assert place(timing, 31) == places[0], "an access is 32 bytes"


def test_the_default_map_spreads_a_page() -> None:
    """256 bytes to a pseudo-channel; there two groups take turns, then fill whole rows."""
    timing = share(preset("m890"))
    places = [place(timing, at) for at in range(0, 3 * 2048, 32)]
    assert [p.channel for p in places[:24]] == [0] * 8 + [1] * 8 + [2] * 8
    for channel in range(3):
        mine = [p for p in places if p.channel == channel]
        groups = [p.bank // timing.banks for p in mine]
        assert all(a != b for a, b in zip(groups, groups[1:], strict=False))
        assert len({(p.bank, p.row) for p in mine}) == 2, "2 KiB are two whole rows"


def test_the_hash_keeps_rows_of_one_bank_apart() -> None:
    """What lies in all banks' rows once, and the same again: another bank, if there is a hash."""
    timing = HbmTiming(pseudo_channels=1)
    for hash, banks in ((False, 1), (True, 16)):
        mapped = timing.with_(map=replace(timing.map, hash=hash))
        places = [place(mapped, at * 16 * timing.row_bytes) for at in range(32)]
        assert [p.row for p in places] == list(range(32))
        assert len({p.bank for p in places}) == banks


def _requests(
    rng: np.random.Generator, port: int, size: int, count: int
) -> tuple[list[Request], list[np.ndarray]]:
    """Random reads of the lower half of a memory, writes of other places of the upper half."""
    requests, written = [], []
    free = iter(rng.permutation(size // 2 // 4096))
    for _ in range(count):
        beats = int(rng.integers(1, min(4096 // port, 64) + 1))
        offset = int(rng.integers(0, 4096 // port - beats + 1)) * port
        if rng.random() < 0.3:
            at = size // 2 + int(next(free)) * 4096 + offset
            requests.append(Request(at, beats, int(rng.integers(16)), True))
            written.append(rng.integers(0, 256, beats * port, dtype=np.uint8))
        else:
            at = int(rng.integers(0, size // 2 // 4096)) * 4096 + offset
            requests.append(Request(at, beats, int(rng.integers(16))))
    return requests, written


@pytest.mark.parametrize("port", [16, 32, 64, 128])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"refresh": Refresh.ALL_BANKS, "refi": 2000},
        {"map": MAPS[1], "pseudo_channels": 1, "read_queue": 3},
        {"map": MAPS[2], "pseudo_channels": 5, "write_queue": 8, "drain_from": 8, "turn": 2},
    ],
)
def test_random_traffic(
    port: int, changes: dict[str, Any], rng: np.random.Generator, seed: int
) -> None:
    """The player refuses a beat out of its id's order, a wrong last, a breach of AXI."""
    timing, size = HbmTiming(**changes), 1 << 21
    memory = rng.integers(0, 256, size, dtype=np.uint8)
    expected = memory.copy()
    requests, written = _requests(rng, port, size, 200)
    played = play(
        timing, port, memory, requests, written=written, stall=float(rng.choice([0, 0.3])),
        seed=seed, outstanding=int(rng.integers(1, 17)), limit=1_000_000,
    )  # fmt: skip
    assert (played.done > 0).all(), "every request is answered"
    contents, accesses = iter(written), {"reads": 0, "writes": 0}
    for request, data in zip(requests, played.data, strict=True):
        end = request.address + request.beats * port
        accesses["writes" if request.write else "reads"] += -(-end // 32) - request.address // 32
        if request.write:
            expected[request.address : end] = next(contents)
        else:
            np.testing.assert_array_equal(data, memory[request.address : end])
    np.testing.assert_array_equal(memory, expected)
    assert {name: played.counters[name] for name in accesses} == accesses
    for id in range(16):  # in order within an id
        done = [c for r, c in zip(requests, played.done, strict=True) if (r.id, r.write) == (id, 0)]
        assert done == sorted(done)


def test_writes_reach_the_memory_in_time(rng: np.random.Generator) -> None:
    """They are answered when queued, but no faster than the DRAM takes them."""
    timing = share(preset("m890"))
    memory, count = np.zeros(1 << 21, np.uint8), 400
    requests = [Request(at * 4096, 32, 0, True) for at in range(count)]
    data = [rng.integers(0, 256, 4096, dtype=np.uint8) for _ in range(count)]
    played = play(timing, 128, memory, requests, written=data)
    np.testing.assert_array_equal(memory[: count * 4096], np.concatenate(data))
    assert played.counters["writes"] == count * 4096 // 32
    assert 0.85 * timing.peak < 4096 * count / played.cycles < 1.1 * timing.peak


def test_reads_and_writes_turn_the_bus() -> None:
    timing = share(preset("m890"))
    memory = np.zeros(1 << 22, np.uint8)
    reads = bursts(0, 8192, 128, 32)
    writes = [Request((1 << 21) + at * 4096, 32, 9, True) for at in range(256)]
    data = [np.zeros(4096, np.uint8)] * len(writes)
    alone = play(timing, 128, memory, reads)
    both = play(timing, 128, memory, [*reads, *writes], written=data)
    assert alone.counters["turns"] == 0 and both.counters["turns"] > 20
    slow = timing.with_(rtw=200, wtr_s=200)
    dearer = play(slow, 128, memory, [*reads, *writes], written=data)
    # 3 pseudo-channels turn on their own, in 3 cycles for 4 clocks; nothing hides a turn of 200.
    assert dearer.cycles > dearer.counters["turns"] / 3 * 200 * 3 / 4


def test_a_read_behind_the_answer_sees_what_was_written(rng: np.random.Generator) -> None:
    timing, memory = share(preset("small")), np.zeros(1 << 14, np.uint8)
    data = rng.integers(0, 256, 4096, dtype=np.uint8)
    play(timing, 32, memory, [Request(0, 128, 3, True)], written=[data])
    np.testing.assert_array_equal(play(timing, 32, memory, [Request(0, 128)]).data[0], data)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rp": -1}, "rp must be 0 or more, not -1"),
        ({"path": 0}, "path must be 1 or more, not 0"),
        ({"banks": 8}, "banks must be 4, as the map has it, not 8"),
        ({"turn": 0}, "turn must be 1 or more, not 0"),
        ({"drain_from": 65}, r"drain_from must be up to write_queue \(64\), not 65"),
    ],
)
def test_wrong_parameters(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HbmTiming(**changes)  # type: ignore[arg-type]


def test_too_many_banks() -> None:
    map = AddressMap(8, (("group", 4), ("bank", 3)), False)
    with pytest.raises(ValueError, match="up to 64 banks, not 128"):
        HbmTiming(groups=16, banks=8, map=map)


def test_wrong_maps() -> None:
    with pytest.raises(ValueError, match="not 4 of 'rank'"):
        AddressMap(8, (("rank", 4),), False)
    with pytest.raises(ValueError, match="a stripe and up to 16 slices"):
        replace(HbmTiming().map, stripe=0)
