"""Plays traffic into the HBM-like memory model without a core: its tests and its bench.

The model is the one that the native simulator has (harness/hbm.h), compiled on its own in a second
or two and kept by content hash.
"""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m890.sim import toolchain
from m890.sim.rtl.build import HARNESS, BuildError
from m890.sim.rtl.hbm import COUNTERS, HbmParameters, HbmTiming

SOURCE = Path(__file__).resolve().parent / "player.cpp"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
COMMANDS = ("ACT", "PRE", "RD", "WR", "REFpb", "REFab", "PREab")
"""As DramCommand::Kind in harness/dram.h."""
BOUNDARY = 4096
"""Bursts end here, as AXI wants it."""
IDS = 16


class Access(NamedTuple):
    """An access of 32 bytes that comes to a pseudo-channel in a clock."""

    clock: int
    bank: int
    row: int
    write: bool = False
    channel: int = 0


class Command(NamedTuple):
    """A command that a pseudo-channel was given in a clock."""

    clock: int
    kind: str
    bank: int
    row: int = 0
    channel: int = 0


class Place(NamedTuple):
    """Where an address lies; `bank` counts over all groups."""

    channel: int
    bank: int
    row: int
    column: int


class Request(NamedTuple):
    """A read or a write of whole port beats, at most a burst."""

    address: int
    beats: int
    id: int = 0
    write: bool = False


@dataclass(frozen=True)
class Played:
    """What came of requests: cycles of the core, in which cycle each was answered, data read."""

    cycles: int
    done: NDArray[np.uint64]
    data: list[NDArray[np.uint8]]
    counters: dict[str, int]


class PlayError(RuntimeError):
    """The memory broke a rule of its port, or never answered."""


def schedule(timing: HbmTiming, accesses: Sequence[Access], until: int) -> list[Command]:
    """The commands of one channel up to clock `until`; accesses in the order of their clocks."""
    rows = [(a.clock, a.channel, a.bank, a.row, int(a.write)) for a in accesses]
    given = np.array(rows, np.uint64).reshape(-1, 5)
    room = 4 * until + 4
    found = np.zeros((room, 5), np.uint64)
    count = _library().player_schedule(
        ctypes.byref(timing.parameters()), given.ctypes.data, len(given), until,
        found.ctypes.data, room,
    )  # fmt: skip
    return [
        Command(clock, COMMANDS[kind], bank, row, channel)
        for clock, channel, kind, bank, row in found[:count].tolist()
    ]


def place(timing: HbmTiming, address: int) -> Place:
    """Where an address lies."""
    found = np.zeros(4, np.uint64)
    parameters = timing.parameters()
    _library().player_place(ctypes.byref(parameters), address, found.ctypes.data)
    return Place(*found.tolist())


def bursts(address: int, beats: int, port: int, piece: int, id: int = 0) -> list[Request]:
    """A stretch of memory as the core asks for it: pieces of up to `piece` beats, cut at 4 KiB."""
    made = []
    while beats:
        count = left = min(piece, beats)
        while left:
            part = min(left, (BOUNDARY - address % BOUNDARY) // port)
            made.append(Request(address, part, id))
            address, left = address + part * port, left - part
        beats -= count
    return made


def play(
    timing: HbmTiming,
    port: int,
    memory: NDArray[np.uint8],
    requests: Sequence[Request],
    *,
    written: Sequence[NDArray[np.uint8]] = (),
    window: int = 256,
    outstanding: int = 16,
    stall: float = 0.0,
    seed: int = 0,
    limit: int = 100_000_000,
) -> Played:
    """Plays requests until all are answered.

    Reads of one id are asked for in order, ids take turns; at most `window` beats and `outstanding`
    bursts of an id are under way. Writes are asked for in order; `written` are their bytes. The
    counters are those after the queued writes have left, too.
    `stall`: probability that an address or a beat of a write waits a cycle.
    """
    sizes = np.array([r.beats * port for r in requests], np.uint64)
    offsets = np.cumsum(sizes) - sizes
    data = np.zeros(int(sizes.sum()), np.uint8)
    spans = [slice(int(o), int(o + s)) for o, s in zip(offsets, sizes, strict=True)]
    contents = iter(written)
    for request, span in zip(requests, spans, strict=True):
        if request.write:
            data[span] = next(contents)
    rows = [
        (r.address, r.beats, r.id, int(r.write), int(o))
        for r, o in zip(requests, offsets, strict=True)
    ]
    given = np.array(rows, np.uint64).reshape(-1, 5)
    done = np.zeros(len(requests), np.uint64)
    counters = np.zeros(len(COUNTERS), np.uint64)
    library, parameters = _library(), timing.parameters()
    player = library.player_create(memory.ctypes.data, memory.size, port, ctypes.byref(parameters))
    try:
        cycles = library.player_play(
            player, given.ctypes.data, len(given), window, outstanding,
            round(stall * (1 << 32)), seed, limit, data.ctypes.data, done.ctypes.data,
        )  # fmt: skip
        breach = library.player_breach(player).decode()
        library.player_counters(player, counters.ctypes.data)
    finally:
        library.player_destroy(player)
    if breach or not cycles:
        raise PlayError(breach or f"the memory answered wrongly or not within {limit} cycles")
    counted = dict(zip(COUNTERS, counters.tolist(), strict=True))
    return Played(cycles, done, [data[span] for span in spans], counted)


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = toolchain.find_cxx()
    program = str(compiler.require())
    parts = [p.read_text() for p in (SOURCE, *sorted(HARNESS.glob("*.h")))]
    key = hashlib.sha256("\0".join([*parts, str(compiler.version), *FLAGS]).encode())
    library = toolchain.cache_folder() / "player" / f"{key.hexdigest()[:20]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / "player.so"
            done = subprocess.run(
                [program, *FLAGS, f"-I{HARNESS.parent}", str(SOURCE), "-o", str(made)],
                capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                raise BuildError(f"{Path(program).name} failed: {done.stderr[:500]}")
            os.replace(made, library)
    return _declare(ctypes.CDLL(str(library)))


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    handle, long, text = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p
    parameters = ctypes.POINTER(HbmParameters)
    for name, result, *arguments in (
        ("create", handle, handle, long, long, parameters),
        ("destroy", None, handle),
        ("play", long, handle, handle, *[long] * 6, handle, handle),
        ("counters", None, handle, handle),
        ("breach", text, handle),
        ("place", None, parameters, long, handle),
        ("schedule", long, parameters, handle, long, long, handle, long),
    ):
        function = getattr(library, f"player_{name}")
        function.restype, function.argtypes = result, arguments
    return library
