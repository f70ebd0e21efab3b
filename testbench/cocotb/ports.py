"""In the simulation: memory behind the core's own ports, requesters, scripts."""

import random
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

from amaranth.hdl import Shape

from m890.testbench.cocotb.streams import Clocked, StreamSource, pack


class Image(Protocol):
    """A memory of port beats that knows what was read and what shall fail."""

    errors: set[int]
    read_beats: list[tuple[str, int]]

    def beat(self, address: int) -> int: ...


class Bytes:
    """Random memory as an image of port beats."""

    def __init__(self, size: int, beat: int, seed: int) -> None:
        self.bytes, self._beat = bytearray(random.Random(seed).randbytes(size)), beat
        self.errors: set[int] = set()
        self.read_beats: list[tuple[str, int]] = []

    def beat(self, address: int) -> int:
        return int.from_bytes(self.bytes[address : address + self._beat], "little")


class Script:
    """An agent from a generator that yields once per cycle."""

    def __init__(self, steps: Generator[None, None, None]) -> None:
        self._steps, self.done = steps, False

    def __str__(self) -> str:
        return ""

    def step(self) -> None:
        if not self.done:
            self.done = next(self._steps, "end") == "end"


class ReadServer:
    """Serves the read ports of a block: one beat a cycle in all, requests in order of arrival."""

    def __init__(
        self,
        clocked: Clocked,
        names: Iterable[str],
        image: Image,
        *,
        port_bytes: int,
        address_bits: int,
        latency: int = 20,
        stall: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._clocked, self._image, self._bytes = clocked, image, port_bytes
        self._latency, self._stall = latency, stall
        self._chance = random.Random(f"{seed} reads")
        self._waiting: deque[tuple[int, str, int, bool]] = deque()  # cycle, port, address, last
        self._given: str | None = None
        self._ports = {}
        for name in names:
            ends = ("data_valid", "data", "last", "error")
            self._ports[name] = [getattr(clocked.dut, f"{name}__{x}") for x in ends]
            for handle in self._ports[name]:
                handle.value = 0
            take = self._taker(name, (1 << address_bits) - 1, address_bits)
            clocked.sink(f"{name}__request", stall=stall, seed=seed, taken=take)
        clocked.add(self)

    def __str__(self) -> str:
        return f"{len(self._waiting)} read beats are on their way"

    def _taker(self, name: str, mask: int, bits: int) -> Callable[[int], None]:
        def take(request: int) -> None:
            address, beats = request & mask, request >> bits
            assert beats and address % self._bytes == 0, f"{name} asked for {request:#x}"
            due = self._clocked.cycle + self._latency
            for n in range(beats):
                self._waiting.append((due, name, address + n * self._bytes, n == beats - 1))

        return take

    def step(self) -> None:
        if self._given is not None:
            valid, *_, error = self._ports[self._given]
            valid.value, error.value, self._given = 0, self._chance.getrandbits(1), None
        due = self._waiting and self._waiting[0][0] <= self._clocked.cycle
        if due and self._chance.random() >= self._stall:
            _, name, address, last = self._waiting.popleft()
            self._image.read_beats.append((name, address))
            word, bad = self._image.beat(address), address in self._image.errors
            for handle, value in zip(self._ports[name], (1, word, last, bad), strict=True):
                handle.value = int(value)
            self._given = name


class OwnerServer:
    """Answers a PageGuard's questions: `owner(page)` has the fields of `layout`."""

    def __init__(
        self, clocked: Clocked, name: str, owner: Callable[[int], dict[str, int]], layout: Any, *,
        stall: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        self._owner, self._layout, self._stall = owner, layout, stall
        self._chance = random.Random(f"{seed} owners")
        self._valid, self._answer = (
            getattr(clocked.dut, f"{name}__{x}") for x in ("valid", "owner")
        )
        self._valid.value = self._answer.value = 0
        self._asked: list[int] = []
        clocked.sink(f"{name}__request", stall=stall, seed=seed, taken=self._asked.append)
        clocked.add(self)

    def __str__(self) -> str:
        return f"{len(self._asked)} questions about pages are open"

    def step(self) -> None:
        assert len(self._asked) < 2, "a question before the answer to the last"
        give = bool(self._asked) and self._chance.random() >= self._stall
        self._valid.value = int(give)
        if give:
            self._answer.value = pack(self._layout, self._owner(self._asked.pop()))
        else:
            self._answer.value = self._chance.getrandbits(Shape.cast(self._layout).width)


class WriteServer:
    """Serves one write port; bytes reach `memory` when the request is acknowledged, not before."""

    def __init__(
        self,
        clocked: Clocked,
        name: str,
        memory: Any,
        *,
        port_bytes: int,
        address_bits: int,
        latency: int = 5,
        stall: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._clocked, self._memory, self._bytes = clocked, memory, port_bytes
        self._latency, self._bits = latency, address_bits
        self._chance, self._stall = random.Random(f"{seed} writes"), stall
        self._requests = clocked.sink(f"{name}__request", stall=stall, seed=seed)
        self._beats = clocked.sink(f"{name}__beat", stall=stall, seed=seed)
        self._answers: deque[tuple[int, int, list[int]]] = deque()  # cycle, address, beats
        self._done, self._error = (getattr(clocked.dut, f"{name}__{x}") for x in ("done", "error"))
        self._done.value = self._error.value = 0
        clocked.add(self)

    def __str__(self) -> str:
        return f"{len(self._answers)} writes wait for their answer"

    def step(self) -> None:
        requests, beats, now = self._requests.taken, self._beats.taken, self._clocked.cycle
        while requests and len(beats) >= requests[0] >> self._bits:
            request = requests.pop(0)
            count = request >> self._bits
            address = request & ((1 << self._bits) - 1)
            assert count and address % self._bytes == 0, f"request {request:#x}"
            self._answers.append((now + self._latency, address, beats[:count]))
            del beats[:count]
        due = self._answers and self._answers[0][0] <= now
        done = bool(due) and self._chance.random() >= self._stall
        self._done.value = int(done)
        if done:
            _, address, words = self._answers.popleft()
            for n, beat in enumerate(words):
                write_beat(self._memory, address + n * self._bytes, beat, self._bytes)


def write_beat(memory: Any, address: int, beat: int, size: int) -> None:
    """A beat (data, then strobes) into a memory of bytes."""
    for n, byte in enumerate((beat & ((1 << 8 * size) - 1)).to_bytes(size, "little")):
        if beat >> 8 * size + n & 1:
            memory[address + n] = byte


class Requester:
    """Asks a ReadPort for data and notes every beat that comes back: (data, last, error)."""

    def __init__(self, clocked: Clocked, name: str, **options: Any) -> None:
        self.source: StreamSource = clocked.source(f"{name}__request", **options)
        self.beats: list[tuple[int, int, int]] = []
        ends = ("data_valid", "data", "last", "error")
        self._valid, *self._rest = (getattr(clocked.dut, f"{name}__{x}") for x in ends)
        clocked.add(self)

    def __str__(self) -> str:
        return ""

    def step(self) -> None:
        if int(self._valid.value):
            data, last, error = (int(x.value) for x in self._rest)
            self.beats.append((data, last, error))


class Writer:
    """Writes through a WritePort and counts the answers."""

    def __init__(self, clocked: Clocked, name: str, **options: Any) -> None:
        self.requests: StreamSource = clocked.source(f"{name}__request", **options)
        self.beats: StreamSource = clocked.source(f"{name}__beat", **options)
        self.errors: list[int] = []
        self._done, self._error = (getattr(clocked.dut, f"{name}__{x}") for x in ("done", "error"))
        clocked.add(self)

    def __str__(self) -> str:
        return f"{len(self.errors)} writes are done"

    def step(self) -> None:
        if int(self._done.value):
            self.errors.append(int(self._error.value))
