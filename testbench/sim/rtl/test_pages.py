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
"""Errors that commands of the page manager can meet."""


class TestPages(PageSuite):
    checked = 10

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        with RtlDevice(TINY, memory_bytes=MEMORY, latency=20, seed=7) as device:
            yield device


def soak(config, seed, commands, *, tokens, longest, batches=(1, 2, 40), **device):
    at = places(config, tokens=tokens, longest=longest)
    with RtlDevice(config, memory_bytes=at.end, seed=seed, **device) as made:
        one = PageSoak(made, at, seed, longest=longest)
        done = 0
        while done < commands:
            count = min(one.rng.choice(batches), commands - done)
            one.batch(count)
            done += count
        one.same_state()
    return one.met


def test_random_commands_on_the_core(seed):
    met = soak(TINY, seed, 1500, tokens=20 * 8, longest=120, latency=20, stall=0.2)
    outcomes = {error for _, error in met}
    assert outcomes >= {e.name for e in (Error.OK, *ERRORS)} - {Error.TOO_SHARED.name}, met


@pytest.mark.soak
def test_a_million_random_commands(seed):
    """4,096 pages, 64 sequences; each error a thousand times. M890_SOAK: another number."""
    commands = int(os.environ.get("M890_SOAK", "1000000"))
    met = soak(LARGE, seed, commands, tokens=160 * 8, longest=240, batches=(1, 8, 200), latency=20)
    for (opcode, error), count in sorted(met.items()):
        print(f"{opcode:8} {error:14} {count:8}")
    for error in ERRORS:
        total = sum(count for (_, name), count in met.items() if name == error.name)
        assert total >= commands // 1000, error.name
