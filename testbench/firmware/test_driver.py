"""Driver, records, scratch memory and log, on the model device."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from m890.firmware import errors
from m890.firmware.driver import Driver
from m890.firmware.memory_map import MemoryMap, PlaneShape, Region, Scratch, memory_bytes
from m890.firmware.records import pack, unpack
from m890.hdl.commands import RECORDS, Error, Opcode, Record
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.hdl.registers import ADDRESS, IDENT
from m890.sim.timing.device import ModelDevice

TINY = preset("tiny")
MEMORY = 1 << 20


def make(**options: Any) -> Driver:
    options.setdefault("scratch_bytes", 1 << 16)
    return Driver(ModelDevice(TINY, MEMORY, seed=3), **options)


# ---------------------------------------------------------------------- records


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)
def test_records_match_the_scalar_packer(record: Record, rng: np.random.Generator) -> None:
    """Arrays of records have the bytes that `Record.pack` gives one by one."""
    count, values = 5, {}
    for f in record.fields:
        width = min(f.width, 62)
        values[f.name] = rng.integers(0, 1 << width, count)
    packed = pack(record, count, values)
    for i in range(count):
        assert packed[i].tobytes() == record.pack(**{n: int(v[i]) for n, v in values.items()})
    for name, column in unpack(record, packed).items():
        np.testing.assert_array_equal(column, values[name])


def test_record_field_too_large() -> None:
    with pytest.raises(ValueError, match="ATTEND.rows = 256 does not fit 8 bits"):
        pack(next(r for r in RECORDS if r.name == "ATTEND"), 2, {"rows": [1, 256]})


# ---------------------------------------------------------------------- rings


class Watched(ModelDevice):
    """A device that runs one command at a time and checks the rings at every doorbell."""

    ring = 0

    def write(self, address: int, value: int) -> None:
        if address == ADDRESS["RING_TAIL"] and self.ring:
            head = self.read(ADDRESS["RING_HEAD"])
            assert (value - head) % 65536 <= self.ring
            unread = (value - self.read(ADDRESS["COMPLETION_HEAD"])) % 65536
            assert unread <= self.read(ADDRESS["COMPLETION_SIZE"])
        super().write(address, value)


@hypothesis.given(
    ring=st.sampled_from([1, 2, 8]),
    completions=st.sampled_from([1, 4, 16]),
    bursts=st.lists(st.integers(0, 20), max_size=8),
    waits=st.lists(st.booleans(), min_size=8, max_size=8),
)
@hypothesis.settings(max_examples=30)
def test_rings_never_overrun(
    ring: int, completions: int, bursts: list[int], waits: list[bool]
) -> None:
    device = Watched(TINY, MEMORY)
    driver = Driver(device, ring=ring, completions=completions, scratch_bytes=1 << 12)
    device.ring = ring
    for burst, wait in zip(bursts, waits, strict=False):
        tags = driver.submit_many(driver.pack("NOP", burst, {}))
        if wait and burst:
            assert (driver.wait(tags)["opcode"] == Opcode.NOP).all()
    driver.wait_all()
    assert driver.completed == sum(bursts)


def test_tags_wrap() -> None:
    """More commands than tags exist; an old tag's outcome does not leak into its successor."""
    driver = make(ring=4096)
    nops = driver.pack("NOP", 4096, {})
    driver.submit_many(np.full((1, 64), 99, np.uint8))
    for _ in range(17):
        tags = driver.submit_many(nops)
    done = driver.wait(tags)
    assert (done["error"] == 0).all()
    assert driver.submitted > 65536
    driver.wait_all()


def test_submit_returns_the_tag_and_counts_cycles() -> None:
    driver = make()
    first, second = driver.submit("NOP"), driver.submit(Opcode.FENCE)
    assert (first, second) == (0, 1)
    done = driver.wait([second, first])
    assert done["tag"].tolist() == [1, 0]
    assert driver.counters()["CYCLES"] >= int(done["end"].max()) > 0


def test_errors_are_kept_for_those_who_wait() -> None:
    """wait raises the error of its own command; wait_all that of commands nobody waited for."""
    driver = make()
    bad = driver.submit("RELEASE", sequence=TINY.sequences)
    good = driver.submit("NOP")
    driver.wait(good)
    with pytest.raises(errors.BadSequence, match="RELEASE refused for sequence = 16"):
        driver.wait_all()
    driver.wait_all()
    bad = driver.submit("PLANE", plane=1, format=int(Format.FP16), head=99)
    with pytest.raises(errors.BadHeadSize) as caught:
        driver.wait(bad)
    assert (caught.value.opcode, caught.value.field, caught.value.value) == ("PLANE", "head", 99)
    driver.wait_all()


def test_every_error_code_has_a_name() -> None:
    named = set(errors.COMMAND_ERRORS) | set(errors.RING_ERRORS)
    assert named == set(Error) - {Error.OK}
    messages = {kind.advice for kind in errors.COMMAND_ERRORS.values()}
    assert len(messages) == len(errors.COMMAND_ERRORS)


def test_foreign_device_is_refused() -> None:
    class Stranger(ModelDevice):
        def read(self, address: int) -> int:
            return 0x1234 if address == ADDRESS["IDENT"] else super().read(address)

    with pytest.raises(errors.FirmwareError, match=f"not {IDENT:#x}".replace("0x", "0x0*")):
        Driver(Stranger(TINY, MEMORY))


def test_ring_sizes_are_checked() -> None:
    with pytest.raises(errors.ShapeError, match="completions must be a power of two"):
        make(completions=3)


def test_recover_forgets_commands_in_flight() -> None:
    driver = make()
    held, released = driver.buffer(64), driver.buffer(64)
    driver.submit("NOP")
    driver.free(released)
    driver.recover()
    assert (driver.submitted, driver.completed) == (0, 0)
    driver.wait(driver.submit("NOP"))
    driver.free(held)


def test_foreign_write_into_the_completion_ring_is_noticed() -> None:
    driver = make()
    driver.wait(driver.submit("NOP"))
    region = next(r for r in driver.map.regions if r.name == "completion ring")

    class Vandal:
        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

        def run(self, cycles: int | None = None) -> int:
            passed = inner.run(cycles)
            driver.memory[region.start + 32 : region.start + 64] = 0
            return passed

    inner, driver.device = driver.device, Vandal()  # type: ignore[assignment]
    with pytest.raises(errors.FirmwareError, match="something else wrote"):
        driver.wait(driver.submit("NOP"))


# ---------------------------------------------------------------------- scratch and map


def test_buffers_wait_for_their_commands() -> None:
    """A released buffer is reused only once the commands before its release have completed."""
    driver = make(scratch_bytes=4096)
    first = driver.place(np.arange(2048, dtype=np.uint8))
    driver.submit("NOP")
    driver.free(first)
    second = driver.buffer(2048)
    assert second != first and driver.completed == 0
    third = driver.buffer(1024)  # waits for the NOP
    assert third == first and driver.completed == 1
    with pytest.raises(errors.ScratchFull, match="no room for"):
        driver.buffer(4096)
    driver.free(second, third)
    assert driver.buffer(4096) == first


@hypothesis.given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), max_size=60))
def test_scratch_never_overlaps(steps: list[tuple[int, int]]) -> None:
    """Against a plain model: buffers in use are disjoint, aligned and inside the region."""
    scratch = Scratch(Region("scratch", 4096, 4096 + 1024), 64)
    live: dict[int, tuple[int, int]] = {}  # start -> (end, newest), newest -1 while held
    done = number = 0
    for size, action in steps:
        if action == 0 and live:
            start = next(iter(live))
            if live[start][1] < 0:
                scratch.release(start, number)
                live[start] = (live[start][0], number)
                number += 1
        elif action == 1:
            done = number
            scratch.reclaim(done)
            live = {s: (e, n) for s, (e, n) in live.items() if n < 0 or n >= done}
        else:
            try:
                start = scratch.allocate(size)
            except errors.ScratchFull:
                continue
            end = start + size
            assert start % 64 == 0 and 4096 <= start and end <= 5120
            assert all(end <= s or start >= e for s, (e, _) in live.items())
            live[start] = (end, -1)


def test_memory_map() -> None:
    layout = MemoryMap(TINY, 1 << 16)
    first = layout.allocate("first", 100)
    second = layout.allocate("second", 5000, align=64)
    assert first.end <= second.start and second.start % 64 == 0 and second.size == 5000
    with pytest.raises(errors.MemoryFull, match="third needs 65,536 bytes"):
        layout.allocate("third", 1 << 16)


@pytest.mark.parametrize("planes", [1, 4, 16])
def test_pool_fills_the_memory(planes: int) -> None:
    """As many pages as fit; the core finds room for all of its pages behind every plane."""
    shape = PlaneShape(planes, Format.FP16, 32)
    stride, whole = shape.stride(TINY), TINY.pages
    for size in (1 << 17, 1 << 18, 1 << 20):
        try:
            pages = MemoryMap(TINY, size).pages_that_fit(shape)
        except errors.MemoryFull:
            assert (planes - 1 + whole) * stride > size
            continue
        assert 1 <= pages <= whole
        assert ((planes - 1) * pages + whole) * stride <= size
        assert pages == whole or ((planes - 1) * (pages + 1) + whole) * stride > size
    need = memory_bytes(TINY, shape, scratch=1 << 16)
    assert MemoryMap(TINY, need).pages_that_fit(shape) == whole


# ---------------------------------------------------------------------- log


def test_log_carries_labels() -> None:
    driver = make(log=6)
    driver.submit("NOP")
    with driver.log.label("agent 1"):
        driver.submit("FENCE")
        with driver.log.label("agent 2"):
            driver.submit("NOP")
        driver.submit("NOP")
    driver.wait_all()
    entries = list(driver.log)
    assert [e.label for e in entries] == ["", "agent 1", "agent 2", "agent 1"]
    assert [e.name for e in entries] == ["NOP", "FENCE", "NOP", "NOP"]
    assert all(e.error == Error.OK and e.end >= e.start for e in entries)
    driver.submit_many(driver.pack("NOP", 5, {}))
    driver.wait_all()
    assert len(driver.log) == 5  # the oldest batch made room
    driver.log.clear()
    assert not list(driver.log)


def test_log_is_off_by_default() -> None:
    driver = make()
    driver.submit("NOP")
    driver.wait_all()
    assert not list(driver.log)
