"""A device without RTL: the ring from memory, golden numbers, modelled cycles."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from m890.firmware.errors import DeviceTimeout
from m890.firmware.log import COMPLETION_TYPE
from m890.firmware.records import unpack
from m890.hdl.commands import COMMAND_BYTES, COMMANDS, Error, Opcode
from m890.hdl.config import CoreConfig
from m890.hdl.registers import ADDRESS
from m890.sim.timing.checks import PLANE_FIELD, Failure, Plane, Tables, plane_page
from m890.sim.timing.execute import Append, Attend, Executor
from m890.sim.timing.jobs import JobReader
from m890.sim.timing.manager import PageWork
from m890.sim.timing.model import Pipeline, Timing
from m890.sim.timing.pages import MANAGED, Managed, PageUnit
from m890.sim.timing.registers import RegisterFile


class ModelDevice:
    """Does what the core does, bit for bit, and guesses how long it takes.

    Function
        The same registers, commands, completions, checks and errors as the RTL. Every command
        between head and tail runs when time passes (`run`), neighbours of one kind in one batch.
    Errors
        DeviceTimeout from `run(None)` when no command is left that could raise an interrupt.
    """

    def __init__(
        self,
        config: CoreConfig,
        memory_bytes: int = 0,
        *,
        timing: Timing | None = None,
        seed: int | None = None,
        memory: NDArray[np.uint8] | None = None,
    ) -> None:
        """`seed` fills the memory with random bytes, as hardware might find it; else zeros.

        `memory`: one that is there already, instead.
        """
        size = -(-memory_bytes // 4096) * 4096
        self.config = config
        if memory is not None:
            self.memory = memory
        elif seed is None:
            self.memory = np.zeros(size, np.uint8)
        else:
            self.memory = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
        self.timing = timing or Timing()
        self._pipeline = Pipeline(config, self.timing)
        self._registers = RegisterFile(config)
        self._tables = Tables(config, self.memory)
        self._jobs = JobReader(self._tables)
        self._executor = Executor(self._tables)
        self._pages = PageUnit(self._tables.pages)
        self._run: dict[int, Callable[[list[dict[str, int]], NDArray], None]] = {
            Opcode.PLANE: self._planes,
            Opcode.APPEND: self._appends,
            Opcode.ATTEND: self._attends,
        }

    # ---------------------------------------------------------------- Device

    def read(self, address: int) -> int:
        return self._registers.read(address)

    def write(self, address: int, value: int) -> None:
        self._registers.write(address, value)
        if address == ADDRESS["CONTROL"] and value & 2:
            self._pipeline = Pipeline(self.config, self.timing)
            if value & 4:
                self._tables.pages.reset()
                self._jobs.forget()

    def run(self, cycles: int | None = None) -> int:
        registers = self._registers
        before = registers.cycles
        if registers.interrupt:
            return 0
        self._work()
        if not registers.interrupt:
            if cycles is None:
                raise DeviceTimeout(0, "an interrupt, with no command left to run")
            registers.cycles = max(registers.cycles, before + cycles)
        return registers.cycles - before

    def close(self) -> None:
        pass

    # ---------------------------------------------------------------- commands

    def _work(self) -> None:
        """Runs all commands for which the completion ring has room."""
        registers = self._registers
        count = registers.takeable
        if not count:
            return
        at = (registers.head + np.arange(count)) % registers.ring_size
        base = registers.ring_base
        ring = self.memory[base : base + registers.ring_size * COMMAND_BYTES]
        commands = ring.reshape(-1, COMMAND_BYTES)[at]
        self._tables.pages.limit = registers.limit
        done = np.zeros(count, COMPLETION_TYPE)
        done["opcode"] = commands[:, 0]
        done["tag"] = commands[:, 2:4].copy().view("<u2")[:, 0]
        self._pipeline.submit(registers.cycles)
        borders = np.flatnonzero(np.diff(commands[:, 0])) + 1
        start = 0
        for end in [*borders.tolist(), count]:
            self._batch(commands[start:end], done[start:end])
            start = end
        self._complete(done)
        registers.head = (registers.head + count) % (1 << 16)

    def _batch(self, commands: NDArray[np.uint8], done: NDArray) -> None:
        """Neighbouring commands of one opcode."""
        opcode = int(commands[0, 0])
        if opcode in self._run or opcode in MANAGED:
            columns = unpack(COMMANDS[Opcode(opcode)], commands)
            names = list(columns)
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            fields = [dict(zip(names, row, strict=True)) for row in rows]
            if opcode in MANAGED:
                self._manage(Opcode(opcode), fields, done)
            else:
                self._run[opcode](fields, done)
            return
        if opcode not in (Opcode.NOP, Opcode.FENCE):
            done["error"] = Error.BAD_OPCODE
        for one in done:
            self._time(one, self._pipeline.other())

    def _planes(self, commands: list[dict[str, int]], done: NDArray) -> None:
        self._jobs.forget()
        for c, one in zip(commands, done, strict=True):
            failure = self._tables.check_plane(c)
            self._time(one, self._pipeline.other(), failure)
            if failure is None:
                layout = plane_page(self.config, c)
                plane = Plane(c["base"], c["stride"], layout, bool(c["rotate"]))
                self._tables.define(c["plane"], plane)

    def _manage(self, opcode: Opcode, commands: list[dict[str, int]], done: NDArray) -> None:
        """Commands of the page manager."""
        self._jobs.forget()
        for c, one in zip(commands, done, strict=True):
            outcome = self._pages.run(opcode, c)
            taken = self._pipeline.manager.command(opcode, c, outcome.work, self._pages.planes)
            cycles = self._pipeline.manage(taken, background=opcode == Opcode.COPY)
            one["index"], one["beats"] = outcome.index, outcome.value
            self._time(one, cycles, outcome.failure)
            self._count_copied(outcome.copied)

    def _count_copied(self, count: int) -> None:
        self._registers.counters["READ_BYTES"] += count
        self._registers.counters["WRITE_BYTES"] += count

    def _appends(self, commands: list[dict[str, int]], done: NDArray) -> None:
        counters = self._registers.counters
        jobs: list[Append] = []
        places: list[int] = []

        def write() -> None:
            if jobs:
                self._executor.append(jobs)
                done["status"][places] = [job.status for job in jobs]
                jobs.clear()
                places.clear()

        for i, c in enumerate(commands):
            if jobs and jobs[-1].command["repair"]:
                write()  # before a page that it rewrites is copied
            failure, pages = self._tables.check_append(c), Managed(PageWork())
            if failure is None:
                pages = self._pages.run(Opcode.APPEND, c)
                failure = pages.failure
            if failure is not None:
                self._time(done[i], self._pipeline.other(), failure)
                continue
            self._tables.pages.committed(c)
            if pages.copied:  # the old page may be free now
                self._jobs.forget()
            plane = self._tables.planes[c["plane"]]
            jobs.append(Append(c, plane, self._tables.sequences[c["sequence"]].table))
            places.append(i)
            tiles = plane.layout.tiles
            prepare = 0
            if pages.work.pages:
                prepare = self._pipeline.manager.prepare(pages.work, self._pages.planes)
            self._time(done[i], self._pipeline.append(plane.layout, c["tokens"], prepare))
            self._count_copied(pages.copied)
            counters["TOKENS"] += c["tokens"]
            counters["READ_BYTES"] += 2 * c["tokens"] * tiles * self.config.port_bytes
            token = plane.layout.chunk_bytes // self.config.lanes
            counters["WRITE_BYTES"] += c["tokens"] * token
        write()

    def _attends(self, commands: list[dict[str, int]], done: NDArray) -> None:
        counters = self._registers.counters
        jobs: list[Attend] = []
        places = []
        for i, c in enumerate(commands):
            job = self._jobs.read(c)
            if isinstance(job, Failure):
                self._time(done[i], self._pipeline.other(), job)
                continue
            work = job.template.work
            bad = self._executor.bad_tag(job)
            failure = None if bad is None else Failure(Error.BAD_TAG, PLANE_FIELD, *bad)
            self._time(done[i], self._pipeline.attend(work), failure)
            counters["BEATS"] += work.beats
            counters["USEFUL_BEATS"] += work.beats
            counters["READ_BYTES"] += work.read_bytes
            counters["KV_BYTES"] += work.kv_bytes
            if failure is not None:
                continue
            done[i]["beats"] = work.beats
            counters["JOBS"] += 1
            counters["WRITE_BYTES"] += work.write_bytes
            jobs.append(job)
            places.append(i)
        if jobs:
            self._executor.attend(jobs)
            done["status"][places] = [job.status for job in jobs]

    def _time(self, one: np.void, cycles: tuple[int, int], failure: Failure | None = None) -> None:
        """Start, end and outcome of one command."""
        one["start"], one["end"] = cycles
        self._registers.cycles = max(self._registers.cycles, cycles[1])
        if failure is not None:
            one["error"], one["field"], one["index"] = failure.error, failure.field, failure.index
            one["beats"] = failure.beats

    def _complete(self, done: NDArray) -> None:
        """Writes completions to their ring."""
        registers = self._registers
        numbers = registers.completed + np.arange(len(done))
        done["phase"] = 1 + numbers // registers.completion_size
        base, size = registers.completion_base, registers.completion_size
        ring = self.memory[base : base + size * COMPLETION_TYPE.itemsize].view(COMPLETION_TYPE)
        ring[numbers % size] = done
        registers.completed += len(done)
        registers.irq_status |= 1
