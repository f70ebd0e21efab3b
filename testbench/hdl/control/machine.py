"""Control with a memory and engines played in Python, driven like firmware does."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from amaranth.sim import Simulator

from m890.hdl.commands import (
    COMMAND_BYTES,
    COMMANDS,
    COMPLETION,
    COMPLETION_BYTES,
    ROW,
    SEGMENT,
    Error,
    Opcode,
)
from m890.hdl.config import CoreConfig, preset
from m890.hdl.control.control import Control
from m890.hdl.registers import ADDRESS, COUNTERS, Stall
from m890.testbench.hdl.memory.stubs import read_server, write_server

RING_AT, COMPLETIONS_AT, MEMORY = 0x400, 0x1000, 0x10000
TIMEOUT = 4000
"""Cycles that a test waits for anything."""


@dataclass
class Job:
    """An ATTEND as the engines saw it."""

    job: dict[str, int]
    rows: dict[int, dict[str, int]] = field(default_factory=dict)
    queries: dict[tuple[int, int], int] = field(default_factory=dict)  # (row, tile): beat
    segments: list[dict[str, int]] = field(default_factory=list)


def values(payload: Any) -> dict[str, int]:
    """A structure's fields as integers."""
    return {name: int(payload[name]) for name in payload.shape().members}


class Machine:
    """`run(test)` simulates `await test(machine)`; the engines log what reaches them.

    `log` holds (event, number) in order: the number-th "append", "append done", "attend" or
    "attend done". `hold` keeps engines from finishing while it is true.
    """

    def __init__(
        self, seed: int, config: CoreConfig | None = None, ring: int = 8, memory: int = MEMORY
    ) -> None:
        self.config = config or preset("tiny")
        self.rng = random.Random(seed)
        self.seed, self.ring, self.completions = seed, ring, ring
        self.memory = bytearray(self.rng.randbytes(memory))
        self.memory[COMPLETIONS_AT : COMPLETIONS_AT + ring * COMPLETION_BYTES] = bytes(
            ring * COMPLETION_BYTES
        )
        self.dut = Control(self.config)
        self.log: list[tuple[str, int]] = []
        self.ctx: Any = None
        self.jobs: list[Job] = []
        self.appends: list[dict[str, int]] = []
        self.reads: list[tuple[int, int]] = []
        self.hold = False
        self.bad_reads: set[int] = set()  # beats that meet a bus error
        self.bad_writes: set[int] = set()
        self.append_error = Error.OK
        self.attend_error: dict[str, int] = {}
        self.submitted = self.taken = 0
        self.array_cycles = {"beat": 0, "useful": 0, **{s.name: 0 for s in Stall}}

    # ---------------------------------------------------------------- simulation

    def run(self, test: Callable[["Machine"], Any]) -> None:
        print(f"seed {self.seed}")
        sim = Simulator(self.dut)
        sim.add_clock(1e-9)

        async def main(ctx: Any) -> None:
            self.ctx = ctx
            await test(self)

        bad_read = lambda address: address in self.bad_reads  # noqa: E731
        bad_write = lambda address: address in self.bad_writes  # noqa: E731
        dut = self.dut
        for port in (dut.ring, dut.loader, dut.page_list):
            sim.add_testbench(
                read_server(self.config, port, self.memory, self.rng, bad=bad_read, log=self.reads),
                background=True,
            )
        for port in (dut.completion, dut.page_entry):
            sim.add_testbench(
                write_server(self.config, port, self.memory, self.rng, bad=bad_write),
                background=True,
            )
        sim.add_testbench(self._append_unit, background=True)
        sim.add_testbench(self._attend_unit, background=True)
        sim.add_testbench(main)
        sim.run()

    async def tick(self, cycles: int = 1) -> None:
        await self.ctx.tick().repeat(cycles)

    # ---------------------------------------------------------------- engines

    async def _append_unit(self, ctx: Any) -> None:
        i, o = self.dut.append, self.dut.append_done
        running: deque[tuple[int, dict[str, int]]] = deque()
        cycle = 0
        offered = False
        while True:
            ready = len(running) < 2 and self.rng.random() < 0.5
            ctx.set(i.ready, ready)
            if running and not offered and not self.hold and running[0][0] <= cycle:
                offered = True
                command = running[0][1]
                error = self.append_error
                index = 5 if error else 0
                ctx.set(
                    o.payload,
                    {"ident": command["ident"], "error": error, "index": index, "status": 8},
                )
            ctx.set(o.valid, offered)
            _, _, valid, payload, taken = await ctx.tick().sample(i.valid, i.payload, o.ready)
            cycle += 1
            if valid and ready:
                command = values(payload)
                self.appends.append(command)
                running.append((cycle + self.rng.randrange(60), command))
                self._note("append")
            if offered and taken:
                offered = False
                running.popleft()
                self._note("append done")

    async def _attend_unit(self, ctx: Any) -> None:
        dut = self.dut
        rows: list[dict] = [{}, {}]
        queries: list[dict] = [{}, {}]
        free = [True, True]
        current: Job | None = None  # its segments are being taken
        running: deque[list[Any]] = deque()  # [cycle K is over, cycle of the end, job]
        cycle, offered = 0, False
        while True:
            ready = current is None and len(running) < 3 and self.rng.random() < 0.5
            take = current is not None and self.rng.random() < 0.5
            ctx.set(dut.job.ready, ready)
            ctx.set(dut.segment.ready, take)
            ctx.set(dut.slot_free, free[0] | free[1] << 1)
            if running and not self.hold and not offered and running[0][1] <= cycle:
                offered = True
                outcome = {"error": 0, "field": 0, "index": 0, "status": 3, "beats": 77}
                ctx.set(
                    dut.attend_done.payload,
                    {"ident": running[0][2].job["ident"], **outcome, **self.attend_error},
                )
            ctx.set(dut.attend_done.valid, offered)
            beat, useful = self.rng.random() < 0.5, self.rng.random() < 0.3
            stall = self.rng.choice(list(Stall))
            ctx.set(dut.beat, beat)
            ctx.set(dut.useful, useful)
            ctx.set(dut.stall, stall)
            (_, _, valid, payload, segment_valid, segment, row, query, done_ready) = (
                await ctx.tick().sample(
                    dut.job.valid, dut.job.payload, dut.segment.valid, dut.segment.payload,
                    dut.row, dut.query, dut.attend_done.ready,
                )
            )  # fmt: skip
            cycle += 1
            if row.valid:
                rows[row.slot][row.row] = values(row)
                assert free[row.slot], "a row was written into a slot in use"
            if query.valid:
                queries[query.slot][query.row, query.tile] = query.data
                assert free[query.slot], "a query was written into a slot in use"
            if valid and ready:
                slot = payload.slot
                current = Job(values(payload), rows[slot], queries[slot])
                self.jobs.append(current)
                rows[slot], queries[slot] = {}, {}
                free[slot] = False
                self._note("attend")
            elif segment_valid and take:
                assert current is not None
                current.segments.append(values(segment))
                if segment.last:
                    over = cycle + self.rng.randrange(60)
                    running.append([over, over + self.rng.randrange(60), current])
                    current = None
            for over, _, job in running:
                if over <= cycle and not self.hold:
                    slot = job.job["slot"]
                    newest = [j for j in self.jobs if j.job["slot"] == slot][-1]
                    free[slot] |= newest is job
            if offered and done_ready:
                offered = False
                running.popleft()
                self._note("attend done")

    def _note(self, event: str) -> None:
        self.log.append((event, sum(e == event for e, _ in self.log)))

    # ---------------------------------------------------------------- firmware's side

    async def write(self, register: str | int, value: int, strobe: int = 15) -> int:
        """Writes a register, address and data in any order; returns the response."""
        bus, ctx = self.dut.csr, self.ctx
        address = ADDRESS[register] if isinstance(register, str) else register
        late = self.rng.choice(("aw", "w", ""))
        ctx.set(bus.awaddr, address)
        ctx.set(bus.wdata, value)
        ctx.set(bus.wstrb, strobe)
        todo = {"aw": bus.awready, "w": bus.wready}
        held = {"aw": late == "aw", "w": late == "w"}
        while todo:
            for name in ("aw", "w"):
                valid = bus.awvalid if name == "aw" else bus.wvalid
                ctx.set(valid, name in todo and not held[name])
            _, _, aw, w = await ctx.tick().sample(bus.awready, bus.wready)
            for name, ready in (("aw", aw), ("w", w)):
                if name in todo and ready and not held[name]:
                    del todo[name]
            if self.rng.random() < 0.5:
                held = {"aw": False, "w": False}
        ctx.set(bus.awvalid, 0)
        ctx.set(bus.wvalid, 0)
        return await self._response(bus.bready, bus.bvalid, bus.bresp)

    async def _response(self, ready: Any, valid: Any, *what: Any) -> Any:
        for _ in range(TIMEOUT):
            take = self.rng.random() < 0.5
            self.ctx.set(ready, take)
            _, _, given, *answer = await self.ctx.tick().sample(valid, *what)
            if given and take:
                self.ctx.set(ready, 0)
                return answer[0] if len(answer) == 1 else answer
        raise AssertionError("no answer from the registers")

    async def read(self, register: str | int) -> int:
        value, response = await self.read_raw(register)
        assert response == 0
        return value

    async def read_raw(self, register: str | int) -> tuple[int, int]:
        bus, ctx = self.dut.csr, self.ctx
        ctx.set(bus.araddr, ADDRESS[register] if isinstance(register, str) else register)
        ctx.set(bus.arvalid, 1)
        await ctx.tick().until(bus.arready)
        ctx.set(bus.arvalid, 0)
        return tuple(await self._response(bus.rready, bus.rvalid, bus.rdata, bus.rresp))

    async def counters(self) -> dict[str, int]:
        return {n: await self.read(f"{n}_LO") | await self.read(f"{n}_HI") << 32 for n in COUNTERS}

    async def start(self) -> None:
        """What the driver does first."""
        await self.write("CONTROL", 2)
        for name, value in (
            ("MEMORY_LIMIT", len(self.memory)), ("RING_BASE", RING_AT),
            ("COMPLETION_BASE", COMPLETIONS_AT),
        ):  # fmt: skip
            await self.write(f"{name}_LO", value)
            await self.write(f"{name}_HI", 0)
        await self.write("RING_SIZE", self.ring)
        await self.write("COMPLETION_SIZE", self.completions)
        await self.write("IRQ_ENABLE", 3)
        await self.write("CONTROL", 1)

    def place(self, command: bytes) -> None:
        """Puts a command into the ring without ringing the bell."""
        at = RING_AT + self.submitted % self.ring * COMMAND_BYTES
        self.memory[at : at + COMMAND_BYTES] = command
        self.submitted += 1

    def command(self, opcode: Opcode, **fields: int) -> bytes:
        """A command with its number as tag; bits that no field names are random."""
        record = COMMANDS[opcode]
        fields = {"opcode": opcode, "tag": self.submitted & 0xFFFF, **fields}
        word = int.from_bytes(record.pack(**fields), "little")
        named = 0
        for f in record.fields:
            named |= ((1 << f.width) - 1) << f.lsb
        word |= self.rng.getrandbits(8 * COMMAND_BYTES) & ~named
        return word.to_bytes(COMMAND_BYTES, "little")

    async def ring_bell(self) -> None:
        await self.write("RING_TAIL", self.submitted & 0xFFFF)

    async def submit(self, opcode: Opcode, **fields: int) -> int:
        """One command; returns its tag."""
        self.place(self.command(opcode, **fields))
        await self.ring_bell()
        return self.submitted - 1 & 0xFFFF

    def completion(self, number: int) -> dict[str, int]:
        at = COMPLETIONS_AT + number % self.completions * COMPLETION_BYTES
        return COMPLETION.unpack(bytes(self.memory[at : at + COMPLETION_BYTES]))

    async def next(self) -> dict[str, int]:
        """Waits for the next completion and takes it."""
        while await self.read("COMPLETION_TAIL") == self.taken & 0xFFFF:
            await self.until(lambda: self.ctx.get(self.dut.irq))
            await self.write("IRQ_STATUS", 1)
        found = self.completion(self.taken)
        assert found["phase"] == 1 + self.taken // self.completions
        assert found["start"] < found["end"]
        self.taken += 1
        await self.write("COMPLETION_HEAD", self.taken & 0xFFFF)
        return found

    async def until(self, condition: Callable[[], Any]) -> None:
        for _ in range(TIMEOUT):
            if condition():
                return
            await self.tick()
        raise AssertionError(f"nothing after {TIMEOUT} cycles; log {self.log[-5:]}")

    async def poll(self) -> dict[str, int]:
        """As `next`, but looks into memory: fewer register accesses, more commands per second."""
        number, phase = self.taken, 1 + self.taken // self.completions
        await self.until(lambda: self.completion(number)["phase"] == phase)
        self.taken += 1
        if self.taken % (self.completions // 2) == 0:
            await self.write("COMPLETION_HEAD", self.taken & 0xFFFF)
        return self.completion(number)

    async def perform(self, opcode: Opcode, **fields: int) -> dict[str, int]:
        """Submits a command with nothing else in flight and returns its completion."""
        tag = await self.submit(opcode, **fields)
        found = await self.poll()
        assert (found["tag"], found["opcode"]) == (tag, opcode)
        return found

    async def open(self, sequence: int, table: int, tokens: int, plane: int, source: int) -> None:
        """A sequence with committed tokens in pages of its own; the log begins behind it.

        source: where the plane's rows could come from; the append unit reads nothing.
        """
        wide = self.config.max_tiles * self.config.port_bytes
        found = await self.perform(Opcode.CREATE, sequence=sequence, table=table, limit=tokens)
        assert found["error"] == 0
        found = await self.perform(
            Opcode.APPEND, plane=plane, sequence=sequence, tokens=tokens, commit=1, k=source,
            v=source, source_stride=wide,
        )  # fmt: skip
        assert found["error"] == 0
        self.appends.clear()
        self.log.clear()

    # ---------------------------------------------------------------- jobs

    def tables(self, at: int, rows: list[dict[str, int]], segments: list[dict[str, int]]) -> None:
        """Row and segment tables as an ATTEND expects them at `at`."""
        port = self.config.port_bytes
        for record, entries in ((ROW, rows), (SEGMENT, segments)):
            for entry in entries:
                raw = int.from_bytes(record.pack(**entry), "little")
                self.memory[at : at + record.bytes] = raw.to_bytes(record.bytes, "little")
                at += record.bytes
            at = -(-at // port) * port
