"""The attention engine in Verilog against golden, with stalls on its streams and memory ports."""

from collections.abc import Generator
from typing import Any

import cocotb
import numpy as np
from amaranth.lib import wiring

from m890.hdl.attention.engine import AttentionEngine
from m890.hdl.config import CoreConfig, preset
from m890.hdl.control.layouts import (
    EVENT,
    job_layout,
    query_layout,
    row_layout,
    segment_layout,
)
from m890.hdl.kv.path import PORTS
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.hdl.pages.guard import owner_layout
from m890.testbench.cocotb.ports import OwnerServer, ReadServer, Script, WriteServer
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.cocotb.streams import Clocked, fields, pack
from m890.testbench.hdl.attention.jobs import (
    Memory,
    TestJob,
    expected_bits,
    make_job,
    output_bits,
)
from m890.testbench.hdl.kv.support import MINE


class Engine(AttentionEngine):
    """The engine with row and score unit as modules of their own, as the core has it."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__(config, external_rows=True)

    def external_modules(self) -> list[tuple[str, wiring.Component]]:
        return self.array.external_modules()


class EngineBench:
    """Plays job loader and memory; collects completions."""

    def __init__(self, dut: Any, memory: Memory, jobs: list[TestJob], stall: float) -> None:
        self.dut, self.memory, self.jobs, c = dut, memory, jobs, memory.config
        self.events: list[dict[str, int]] = []
        self.beats = self.useful = 0
        self.clocked = clocked = Clocked(dut)
        options = {"stall": stall, "seed": seed()}
        self._job = clocked.source("job", layout=job_layout(c), **options)
        self._segment = clocked.source("segment", layout=segment_layout(c), **options)
        take = lambda x: self.events.append(fields(EVENT, x))  # noqa: E731
        clocked.sink("done", taken=take, **options)
        ports = {"port_bytes": c.port_bytes, "address_bits": c.address_bits, **options}
        ReadServer(clocked, PORTS, memory, **ports)
        OwnerServer(clocked, "owner", lambda page: MINE, owner_layout(c), **options)
        WriteServer(clocked, "write", memory.bytes, **ports)
        clocked.add(Script(self._load()))
        clocked.add(Script(self._watch()))

    def _load(self) -> Generator[None, None, None]:
        """Rows and queries into a free slot, then the job and its segments."""
        c, dut = self.memory.config, self.dut
        rows, queries, lanes = row_layout(c), query_layout(c), c.lanes
        for job in self.jobs:
            slot, p = job.payload["slot"], job.payload
            while not int(dut.slot_free.value) >> slot & 1:
                yield
            for r, setup in enumerate(job.rows):
                dut.row.value = pack(rows, {"valid": 1, **setup})
                yield
                dut.row.value = 0
                for tile in range(p["tiles"]):
                    codes = job.query[r, tile * lanes : (tile + 1) * lanes]
                    word = int.from_bytes(codes.astype("<u2").tobytes(), "little")
                    one = {"valid": 1, "slot": slot, "row": r, "tile": tile, "data": word}
                    dut.query.value = pack(queries, one | {"fp16": p["query_format"]})
                    yield
                dut.query.value = 0
            self._job.put({name: int(value) for name, value in p.items()})
            while not self._job.idle:
                yield
            self._segment.put(*job.segments)
            while not self._segment.idle:
                yield

    def _watch(self) -> Generator[None, None, None]:
        beat, useful = self.dut.beat, self.dut.useful
        while True:
            self.beats += int(beat.value)
            self.useful += int(useful.value)
            yield

    async def run(self) -> None:
        await self.clocked.start(row=0, query=0, loading=0)
        await self.clocked.until(lambda: len(self.events) == len(self.jobs), 20000, after=20)
        for number, job in enumerate(self.jobs):
            event = next(e for e in self.events if e["ident"] == number)
            got = output_bits(self.memory.config, self.memory, job)
            expected = expected_bits(job)
            wrong = np.argwhere(got != expected)
            assert not len(wrong), f"job {number} differs at {wrong[:5].tolist()}"
            outcome = (event["error"], event["status"])
            assert outcome == (0, int(job.expected.status)), f"job {number}"
        assert self.beats == sum(e["beats"] for e in self.events)
        assert 0 < self.useful <= self.beats


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.3])
async def random_jobs(dut: Any, stall: float) -> None:
    """Formats, masks, biases, soft cap, sinks, stored states: whatever comes."""
    memory = Memory(config(), 1 << 17, seed())
    jobs = [make_job(config(), memory, seed() % 1000, n) for n in range(4)]
    await EngineBench(dut, memory, jobs, stall).run()


@cocotb.test()
async def every_format(dut: Any) -> None:
    """One after another, so that formats change while jobs overlap."""
    memory = Memory(config(), 1 << 17, seed())
    jobs = [
        make_job(
            config(), memory, seed() % 1000, n, format=format, tokens=20, segments=1,
            output_format=list(OutputFormat)[n % len(OutputFormat)],
        )
        for n, format in enumerate(Format)
    ]  # fmt: skip
    await EngineBench(dut, memory, jobs, 0.1).run()


@on_both_simulators
def test_engine(bench: Bench) -> None:
    bench.run(Engine, preset("tiny"))
