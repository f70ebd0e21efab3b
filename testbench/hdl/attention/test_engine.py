"""The attention engine as a whole against golden, with stalls on its memory ports."""

import random
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Value

from m890.hdl.attention.engine import AttentionEngine
from m890.hdl.commands import SegmentKind
from m890.hdl.config import CoreConfig, preset
from m890.hdl.control.layouts import EVENT
from m890.hdl.kv.path import PORTS
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.testbench.hdl.attention.jobs import (
    Memory,
    TestJob,
    expected_bits,
    make_job,
    output_bits,
)
from m890.testbench.hdl.kv.bench import fields
from m890.testbench.hdl.kv.support import Image, owners, run, sink, source
from m890.testbench.hdl.kv.support import memory as serve


class EngineBench:
    """Plays job loader and memory; collects completions."""

    def __init__(self, config: CoreConfig, memory: Memory, jobs: list[TestJob]) -> None:
        self.config, self.memory, self.jobs = config, memory, jobs
        self.dut = AttentionEngine(config)
        self.events: list[dict[str, int]] = []
        self.beats = self.useful = 0
        self.causes: dict[int, int] = {}

    async def load(self, ctx: Any) -> None:
        """Rows and queries into a free slot, then the job and its segments."""
        dut, lanes = self.dut, self.config.lanes
        for job in self.jobs:
            slot, p = job.payload["slot"], job.payload
            while not ctx.get(dut.slot_free[slot]):
                await ctx.tick()
            for r, setup in enumerate(job.rows):
                ctx.set(dut.row, {"valid": 1, **setup})
                await ctx.tick()
                ctx.set(dut.row, {"valid": 0})
                for tile in range(p["tiles"]):
                    codes = job.query[r, tile * lanes : (tile + 1) * lanes]
                    word = int.from_bytes(codes.astype("<u2").tobytes(), "little")
                    ctx.set(
                        dut.query,
                        {"valid": 1, "slot": slot, "row": r, "tile": tile,
                         "fp16": p["query_format"], "data": word},
                    )  # fmt: skip
                    await ctx.tick()
                ctx.set(dut.query, {"valid": 0})
            await source(ctx, dut.job, [p])
            await source(ctx, dut.segment, job.segments)

    async def write(self, ctx: Any, seed: int, stall: float) -> None:
        """The memory's write side: takes beats, acknowledges requests after a while."""
        port, chance = self.dut.write, random.Random(seed)
        pending: list[list[int]] = []  # address, beats left
        acks: list[int] = []
        now = 0
        while True:
            ready = chance.random() >= stall
            ctx.set(port.request.ready, ready)
            take = bool(pending) and chance.random() >= stall
            ctx.set(port.beat.ready, take)
            done = bool(acks) and acks[0] <= now
            if done:
                acks.pop(0)
            ctx.set(port.done, done)
            _, _, valid, request, beat_valid, beat = await ctx.tick().sample(
                port.request.valid, Value.cast(port.request.payload),
                port.beat.valid, Value.cast(port.beat.payload),
            )  # fmt: skip
            now += 1
            if take and beat_valid:
                size = self.config.port_bytes
                word = (beat & ((1 << 8 * size) - 1)).to_bytes(size, "little")
                at = pending[0][0]
                self.memory.bytes[at : at + size] = np.frombuffer(word, np.uint8)
                pending[0][0] += size
                pending[0][1] -= 1
                if not pending[0][1]:
                    pending.pop(0)
                    acks.append(now + 5)
            if ready and valid:
                width = self.config.address_bits
                pending.append([request & ((1 << width) - 1), request >> width])

    async def watch(self, ctx: Any) -> None:
        while True:
            _, _, beat, useful, cause, busy = await ctx.tick().sample(
                self.dut.beat, self.dut.useful, Value.cast(self.dut.cause), self.dut.busy
            )
            self.beats += beat
            self.useful += useful
            if busy and not beat:
                self.causes[cause] = self.causes.get(cause, 0) + 1

    def run(self, seed: int, stall: float = 0.0, limit: int = 20000) -> int:
        dut = self.dut
        ports = {name: getattr(dut, name) for name in PORTS}
        take = lambda x: self.events.append(fields(EVENT, x))  # noqa: E731
        cycles = run(
            dut,
            self.load,
            self.watch,
            lambda ctx: serve(ctx, self.memory, ports, seed=seed, stall=stall),  # type: ignore
            lambda ctx: owners(ctx, Image(self.config, 0), dut.owner, seed=seed, stall=stall),
            lambda ctx: self.write(ctx, seed + 1, stall),
            lambda ctx: sink(ctx, dut.done, take, seed + 2, stall),
            until=lambda: len(self.events) == len(self.jobs),
            limit=limit,
            after=20,
        )
        for number, job in enumerate(self.jobs):
            event = next(e for e in self.events if e["ident"] == number)
            assert event["error"] == 0
            got, expected = output_bits(self.config, self.memory, job), expected_bits(job)
            assert np.array_equal(got, expected), (
                f"seed {seed}, job {number}: {np.argwhere(got != expected)[:5].tolist()}"
            )
            assert event["status"] == int(job.expected.status), f"seed {seed}, job {number}"
        return cycles


def test_one_decode_job() -> None:
    config = preset("tiny")
    memory = Memory(config, 1 << 16, 1)
    job = make_job(
        config, memory, 1, 0, format=Format.FP16, tiles=2, tokens=37, rows=4, segments=1,
        kinds=[SegmentKind.KV], causal=0, window=0, sinks=0, bias=0, sink=0, softcap=0.0,
        query_format=Format.FP16, output_format=OutputFormat.FP32,
    )  # fmt: skip
    EngineBench(config, memory, [job]).run(1)


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_outputs_of_rotated_planes(stall: float) -> None:
    """Every output format, plain jobs in between: rotated back or not, one behind the other."""
    config = preset("tiny")
    memory = Memory(config, 1 << 20, 5)
    jobs = [
        make_job(
            config, memory, 5, n, rotate=n % 3 != 2, output_format=list(OutputFormat)[n % 4],
            tokens=12, segments=1,
        )
        for n in range(12)
    ]  # fmt: skip
    EngineBench(config, memory, jobs).run(5, stall)


@pytest.mark.parametrize(("seed", "stall"), [(1, 0.0), (2, 0.4), (3, 0.2)])
def test_random_jobs(seed: int, stall: float) -> None:
    config = preset("tiny")
    memory = Memory(config, 1 << 17, seed)
    jobs = [make_job(config, memory, seed, n) for n in range(4)]
    EngineBench(config, memory, jobs).run(seed, stall)
