"""Driver of one core: rings, completions, errors, scratch memory, counters, log."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from m890.firmware.device import Device
from m890.firmware.errors import (
    RING_ERRORS,
    DeviceTimeout,
    FirmwareError,
    RingError,
    ScratchFull,
    ShapeError,
    command_error,
)
from m890.firmware.log import COMPLETION_TYPE, TAGS, CommandLog
from m890.firmware.memory_map import MemoryMap, Scratch
from m890.firmware.records import pack
from m890.hdl.commands import COMMAND_BYTES, COMMANDS, COMPLETION_BYTES, Error, Opcode
from m890.hdl.registers import ADDRESS, COUNTERS, IDENT, VERSION


class Driver:
    """Runs commands on a device.

    Commands are numbered from 0 in the order of submission; a command's tag is its number modulo
    65,536. `submit` blocks only while a ring is full; `wait` returns completions or raises the
    named error of a command that failed. Buffers of `scratch` memory are recycled when the
    commands that could use them have completed.
    """

    def __init__(
        self,
        device: Device,
        *,
        ring: int = 1024,
        completions: int | None = None,
        scratch_bytes: int | None = None,
        log: int = 0,
        part: tuple[int, int] | None = None,
    ) -> None:
        """Takes over the device: lays out its memory, sets its registers, empties its rings.

        `ring` and `completions` are entries of the two rings; `scratch_bytes` is an eighth of the
        memory, at most 64 MiB, unless given; `log` keeps that many of the latest commands. `part`:
        the bytes [start, end) of memory that this core has to itself, all unless given.
        """
        self.device, self.config = device, device.config
        self.ring, self.completions = ring, completions or ring
        ident, version = self.read("IDENT"), self.read("VERSION")
        if (ident, version) != (IDENT, VERSION):
            raise FirmwareError(
                f"the device answers {ident:#010x} version {version}, not {IDENT:#010x} version"
                f" {VERSION}: connect an M890 core built from this release"
            )
        for name, size in (("ring", self.ring), ("completions", self.completions)):
            if not 1 <= size <= 32768 or size & (size - 1):
                raise ShapeError(f"{name} must be a power of two up to 32768, not {size}")
        self.memory = device.memory
        start, end = part or (0, self.memory.size)
        self.map = MemoryMap(self.config, end, start)
        self._ring_at = self.map.allocate("command ring", self.ring * COMMAND_BYTES)
        self._completions_at = self.map.allocate(
            "completion ring", self.completions * COMPLETION_BYTES
        )
        if scratch_bytes is None:
            scratch_bytes = min((end - start) // 8, 64 << 20) & ~4095
        self.scratch = Scratch(
            self.map.allocate("scratch", scratch_bytes), max(self.config.port_bytes, 64)
        )
        self._commands = np.zeros((TAGS, COMMAND_BYTES), np.uint8)  # as submitted, by tag
        self._results = np.zeros(TAGS, COMPLETION_TYPE)  # by tag
        self._pending = np.zeros(TAGS, bool)  # by tag: submitted, no completion yet
        self._failed: dict[int, None] = {}  # tags of failed commands nobody has waited for
        self.log = CommandLog(log)
        self._reset(pages=True)

    # ------------------------------------------------------------------ registers

    def read(self, register: str) -> int:
        return self.device.read(ADDRESS[register])

    def write(self, register: str, value: int) -> None:
        self.device.write(ADDRESS[register], value)

    def counters(self) -> dict[str, int]:
        """The device's 64-bit counters by name."""
        return {n: self.read(f"{n}_LO") | self.read(f"{n}_HI") << 32 for n in COUNTERS}

    def _write_wide(self, register: str, value: int) -> None:
        self.write(f"{register}_LO", value & 0xFFFFFFFF)
        self.write(f"{register}_HI", value >> 32)

    def _reset(self, *, pages: bool = False) -> None:
        """Empties both rings and programs them; `pages`: frees all pages, closes all sequences."""
        self.write("CONTROL", 6 if pages else 2)  # answers once nothing is in flight
        self.memory[self._completions_at.start : self._completions_at.end] = 0
        self._write_wide("MEMORY_LIMIT", self.memory.size)
        self._write_wide("RING_BASE", self._ring_at.start)
        self.write("RING_SIZE", self.ring)
        self._write_wide("COMPLETION_BASE", self._completions_at.start)
        self.write("COMPLETION_SIZE", self.completions)
        self.write("IRQ_STATUS", 3)
        self.write("IRQ_ENABLE", 3)
        self.write("CONTROL", 1)
        self.check_ring()
        self.submitted = 0
        self.completed = 0
        self._oldest = 0  # every command with a smaller number has completed
        self._pending[:] = False
        self._failed.clear()

    # ------------------------------------------------------------------ commands

    def submit(self, opcode: Opcode | str, **values: int) -> int:
        """Submits one command and returns its tag."""
        return int(self.submit_many(self.pack(opcode, 1, values))[0])

    def pack(self, opcode: Opcode | str, count: int, values: Mapping[str, ArrayLike]) -> NDArray:
        """`count` commands [count, 64] of one opcode; values are scalars or one per command."""
        code = Opcode[opcode] if isinstance(opcode, str) else opcode
        return pack(COMMANDS[code], count, {"opcode": int(code), **values})

    def submit_many(self, commands: NDArray[np.uint8] | Sequence[bytes]) -> NDArray[np.int64]:
        """Submits packed commands in order, tags filled in, and returns their tags.

        One doorbell for all that the rings can take; waits for completions while they are full.
        """
        if not isinstance(commands, np.ndarray):
            commands = np.frombuffer(b"".join(commands), np.uint8).reshape(-1, COMMAND_BYTES)
        tags = (self.submitted + np.arange(len(commands))) % TAGS
        commands = commands.copy()
        commands[:, 2:4] = tags.astype("<u2").view(np.uint8).reshape(-1, 2)
        done = 0
        while done < len(commands):
            room = min(self.ring, self.completions) - (self.submitted - self._oldest)
            if room <= 0:
                self._advance()
                continue
            count = min(room, len(commands) - done)
            part, to = commands[done : done + count], tags[done : done + count]
            for tag in self._failed.keys() & set(to.tolist()) if self._failed else ():
                del self._failed[tag]
            self._commands[to] = part
            self._pending[to] = True
            self.log.submitted(to)
            at = (self.submitted + np.arange(count)) % self.ring
            ring = self.memory[self._ring_at.start : self._ring_at.end].reshape(-1, COMMAND_BYTES)
            ring[at] = part
            self.submitted += count
            self.write("RING_TAIL", self.submitted % TAGS)
            done += count
        return tags

    def wait(self, tags: int | ArrayLike, *, but: Error = Error.OK) -> NDArray:
        """Completions (COMPLETION_TYPE) of the commands, or the error of the first that failed.

        Those that failed with the error `but` are returned like the others.
        """
        which = np.atleast_1d(np.asarray(tags, np.int64))
        results = self._wait(which)
        if self._failed and results["error"].any():
            self._forget(which[results["error"] == but])
            others = which[(results["error"] != Error.OK) & (results["error"] != but)]
            if len(others):
                self._raise(others)
        return results

    def results(self, tags: int | ArrayLike) -> NDArray:
        """Completions of the commands, also of those that failed: nothing is raised for them."""
        which = np.atleast_1d(np.asarray(tags, np.int64))
        results = self._wait(which)
        self._forget(which[results["error"] != Error.OK])
        return results

    def _wait(self, which: NDArray[np.int64]) -> NDArray:
        while self._pending[which].any():
            self._advance()
        return self._results[which]

    def wait_all(self) -> None:
        """Waits for every command; raises the error of the first failure that nobody waited for."""
        self.settle()
        if self._failed:
            self._raise(np.array(sorted(self._failed), np.int64))

    def settle(self) -> None:
        """Waits until no command is in flight; errors stay for those who wait for them."""
        while self.completed < self.submitted:
            self._advance()

    def _raise(self, tags: NDArray[np.int64]) -> None:
        """Raises the error of the first tag; the others count as reported."""
        self._forget(tags)
        tag = int(tags[0])
        result = {name: int(self._results[tag][name]) for name in COMPLETION_TYPE.names or ()}
        raise command_error(result, self._commands[tag].tobytes())

    def _forget(self, tags: NDArray[np.int64]) -> None:
        """Nobody waits for these failed commands any more."""
        for tag in tags.tolist():
            self._failed.pop(tag, None)

    def _advance(self) -> None:
        """Lets the device run until something completes, and takes the completions."""
        before = self.completed
        self._poll()
        if self.completed != before:
            return
        self.device.run(None)
        pending = self.read("IRQ_STATUS")
        self.write("IRQ_STATUS", pending & 1)
        self._poll()
        if pending & 2:
            self.check_ring()
        if not pending and self.completed == before:
            raise DeviceTimeout(0, f"command {self._oldest}")

    def _poll(self) -> None:
        """Takes the completions that the device has written."""
        count = (self.read("COMPLETION_TAIL") - self.completed) % TAGS
        if not count:
            return
        region = self._completions_at
        ring = self.memory[region.start : region.end].view(COMPLETION_TYPE)
        numbers = self.completed + np.arange(count)
        found = ring[numbers % self.completions]
        phase = 1 + numbers // self.completions
        if (found["phase"] != phase & 0xFFFFFFFF).any():
            raise FirmwareError(
                f"completion {self.completed} has phase {found['phase'][0]}, expected {phase[0]}:"
                " something else wrote to the completion ring"
            )
        tags = found["tag"].astype(np.int64)
        self._results[tags] = found
        self._pending[tags] = False
        self._failed |= dict.fromkeys(tags[found["error"] != 0].tolist())
        self.completed += count
        self.write("COMPLETION_HEAD", self.completed % TAGS)
        window = self._pending[(self._oldest + np.arange(self.submitted - self._oldest)) % TAGS]
        self._oldest += int(window.argmax()) if window.any() else len(window)
        self.scratch.reclaim(self._oldest)
        self.log.completed(found)

    def check_ring(self) -> None:
        """Raises the ring's error, if there is one, and clears it."""
        status = self.read("STATUS")
        if status & 2:
            self.write("IRQ_STATUS", 2)
            code = status >> 8 & 0xFF
            kind = RING_ERRORS.get(Error(code), RingError)
            raise kind(
                f"error {code}, tail {self.read('RING_TAIL')}, head {self.read('RING_HEAD')},"
                f" {self.ring} entries"
            )

    def recover(self) -> None:
        """Empties the rings and starts them again, after a RingError or a DeviceTimeout.

        Commands that have not started are forgotten and counters start at zero; planes, sequences
        and all other memory stay as they are.
        """
        self._reset()
        self.scratch.restart()

    # ------------------------------------------------------------------ scratch memory

    def buffer(self, size: int) -> int:
        """Address of `size` bytes of scratch memory; waits for older commands if it must."""
        while True:
            try:
                return self.scratch.allocate(size)
            except ScratchFull:
                if not self.scratch.waiting or self._oldest == self.submitted:
                    raise
            self._advance()

    def place(self, array: NDArray) -> int:
        """Copies an array into a new buffer and returns its address."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        address = self.buffer(data.size)
        self.memory[address : address + data.size] = data
        return address

    def free(self, *addresses: int) -> None:
        """Gives buffers back; they are reused once all commands submitted so far have completed."""
        for address in addresses:
            self.scratch.release(address, self.submitted - 1)
        self.scratch.reclaim(self._oldest)

    def view(self, address: int, shape: tuple[int, ...], kind: DTypeLike) -> NDArray:
        """Device memory at `address` as an array that shares its bytes."""
        dtype = np.dtype(kind)
        size = int(np.prod(shape)) * dtype.itemsize
        return self.memory[address : address + size].view(dtype).reshape(shape)
