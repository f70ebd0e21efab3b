"""The page manager in the core: random commands that overlap, as the reference model has them."""

import os
from collections.abc import Iterator

import pytest

from m890.firmware.device import Device
from m890.hdl.commands import Error
from m890.hdl.config import preset
from m890.sim.rtl.device import RtlDevice
from m890.testbench.firmware.device_suite import MEMORY
from m890.testbench.firmware.page_suite import PageSuite
from m890.testbench.sim.rtl.page_soak import PageSoak, places

pytestmark = pytest.mark.rtl
TINY = preset("tiny")
LARGE = TINY.with_(name="tiny_pages", pages=4096, sequences=64)
ERRORS = (
    Error.BAD_ADDRESS, Error.BAD_ALIGNMENT, Error.BAD_SEQUENCE, Error.BAD_RANGE, Error.BAD_PAGE,
    Error.BAD_TENANT, Error.OUT_OF_PAGES, Error.QUOTA, Error.SEQUENCE_OPEN, Error.NOT_PINNED,
    Error.TOO_SHARED,
)  # fmt: skip
"""Errors that commands of the page manager can meet while memory answers and holds."""
WHOLE = 20_000
"""Commands after which all of the state is compared, not only what was touched."""


class TestPages(PageSuite):
    checked = 10

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        with RtlDevice(TINY, memory_bytes=MEMORY, latency=20, seed=7) as device:
            yield device


def soak(config, seed, commands, *, tokens, longest, batches=(1, 2, 40), **device):
    at = places(config, tokens=tokens, longest=longest, batch=max(batches))
    with RtlDevice(config, memory_bytes=at.end, seed=seed, **device) as made:
        one = PageSoak(made, at, seed, longest=longest)
        done = 0
        while done < commands:
            count = min(one.rng.choice(batches), commands - done)
            one.batch(count)
            done += count
            if done // WHOLE > (done - count) // WHOLE:
                one.same_state()
                print(f"{done} commands, {one.queries} queries, {made.cycle} cycles", flush=True)
        one.same_state()
        one.no_page_is_lost()
        print(f"seed {seed}: {done} commands, {one.queries} queries, {made.cycle} cycles")
    return one.met


def test_random_commands_on_the_core(seed):
    met = soak(TINY, seed, 1500, tokens=20 * 8, longest=120, latency=20, stall=0.2)
    outcomes = {error for _, error in met}
    assert outcomes >= {e.name for e in (Error.OK, *ERRORS)} - {Error.TOO_SHARED.name}, met


@pytest.mark.soak
def test_a_million_random_commands(seed):
    """4,096 pages, 64 sequences; each error a thousand times. M890_SOAK: another number."""
    commands = int(os.environ.get("M890_SOAK", "1000000"))
    met = soak(LARGE, seed, commands, tokens=160 * 8, longest=64, batches=(1, 8, 200), latency=4)
    for (opcode, error), count in sorted(met.items()):
        print(f"{opcode:8} {error:14} {count:8}")
    for error in ERRORS:
        total = sum(count for (_, name), count in met.items() if name == error.name)
        print(f"all      {error.name:14} {total:8}")
        assert total >= commands // 1000, error.name
