"""Append unit: the latency and throughput that its docstring promises, with an ideal memory."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from m890.hdl.config import PRESETS, CoreConfig
from m890.hdl.kv.append import Append
from m890.hdl.numerics.formats import CODINGS, Format
from m890.hdl.numerics.rotate import RotateBeats
from m890.testbench.hdl.kv.support import Image, owners, run, sink, source
from m890.testbench.hdl.kv.test_append import SIZE, make

TINY = PRESETS["tiny"]
STEPS = TINY.code_steps
"""Cycles that a beat takes to be quantised, and to be rotated."""


def _reads(config: CoreConfig, port: Any, memory: bytearray, latency: int) -> Callable:
    """Takes every request at once; its first beat comes `latency` cycles later."""
    size = config.port_bytes

    async def serve(ctx: Any) -> None:
        beats: deque[tuple[int, bool, int]] = deque()
        cycle = 0
        ctx.set(port.request.ready, 1)
        while True:
            give = bool(beats) and beats[0][2] <= cycle
            ctx.set(port.data_valid, give)
            if give:
                at, last, _ = beats.popleft()
                ctx.set(port.data, int.from_bytes(memory[at : at + size], "little"))
                ctx.set(port.last, last)
            sample = port.request.valid, port.request.payload
            _, _, valid, request = await ctx.tick().sample(*sample)
            if valid:
                for n in range(request.beats):
                    at, last = request.address + n * size, n == request.beats - 1
                    beats.append((at, last, cycle + latency))
            cycle += 1

    return serve


def _writes(port: Any, latency: int) -> Callable:
    async def serve(ctx: Any) -> None:
        done: deque[int] = deque()
        cycle = 0
        ctx.set(port.request.ready, 1)
        ctx.set(port.beat.ready, 1)
        while True:
            answer = bool(done) and done[0] <= cycle
            ctx.set(port.done, answer)
            if answer:
                done.popleft()
            _, _, valid = await ctx.tick().sample(port.request.valid)
            if valid:
                done.append(cycle + latency)
            cycle += 1

    return serve


def _cycles(format: Format, tiles: int, tokens: int, read: int, write: int, *, rotate: bool) -> int:
    rng = np.random.default_rng(0)
    command = make(
        rng, TINY, format, tiles=tiles, tokens=tokens, start=0, source_format=Format.FP16,
        rotate=rotate,
    )  # fmt: skip
    dut = Append(TINY)
    memory = bytearray(SIZE)
    command.place_inputs(memory)
    done: list[int] = []

    async def commands(ctx: Any) -> None:
        await source(ctx, dut.command, [command.payload()])

    async def completions(ctx: Any) -> None:
        await sink(ctx, dut.done, done.append)

    return run(
        dut,
        commands,
        completions,
        _reads(TINY, dut.read, memory, read),
        _reads(TINY, dut.table, memory, read),
        _writes(dut.write, write),
        lambda ctx: owners(ctx, Image(TINY, 0), dut.owner),
        until=lambda: bool(done),
        limit=8000,
    )


@pytest.mark.parametrize("format", [Format.FP16, Format.INT8])
@pytest.mark.parametrize("tiles", [1, 4])
@pytest.mark.parametrize("rotate", [False, True])
def test_latency(format: Format, tiles: int, rotate: bool) -> None:
    """R + W + tiles + quantisation + header + a constant, which is the same for all; rotation adds
    its own latency, and its cycles for each of K's tiles behind the first one: V's is beside K's
    quantisation."""
    header = CODINGS[format].scaled
    for read, write in ((1, 1), (20, 7)):
        cycles = _cycles(format, tiles, 1, read, write, rotate=rotate)
        constant = cycles - read - write - tiles - 2 * tiles * STEPS - header
        rotation = RotateBeats.latency_of(TINY) + (tiles - 1) * (STEPS - 1)
        assert constant == 27 + rotate * rotation


@pytest.mark.parametrize(
    ("format", "tiles"), [(Format.FP16, 4), (Format.FP16, 1), (Format.E4M3, 1), (Format.INT8, 3)]
)
@pytest.mark.parametrize("rotate", [False, True])
def test_throughput(format: Format, tiles: int, rotate: bool) -> None:
    """One tile per STEPS cycles, an entry of the header in one, and 5 for each page of several.
    Rotation goes as fast: with as many tokens as these the pages' cycles no longer hide behind its
    latency."""
    header = CODINGS[format].scaled
    short, long = (_cycles(format, tiles, tokens, 3, 3, rotate=rotate) for tokens in (72, 96))
    assert (long - short) == 24 * (2 * tiles * STEPS + header) + 5 * 3
