"""Stream drivers, a read memory and the reference of the KV read path."""

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.sim import Simulator

from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import CODINGS, Format


def pick(config: CoreConfig, beat: dict[str, int]) -> list[int]:
    """The element beat that a tile beat stands for."""
    bits = CODINGS[Format(beat["format"])].bits
    words = beat["data"] >> beat["part"] * bits * config.lanes
    return [words >> n * bits & (1 << bits) - 1 for n in range(config.lanes)]


async def source(
    ctx: Any, stream: Any, payloads: Iterable, seed: int = 0, stall: float = 0.0
) -> None:
    """Offers payloads (dicts or ints) in order, each after a random wait."""
    chance = random.Random(seed)
    for payload in payloads:
        while chance.random() < stall:
            await ctx.tick()
        ctx.set(stream.payload, payload)
        ctx.set(stream.valid, 1)
        await ctx.tick().until(stream.ready)
        ctx.set(stream.valid, 0)


async def sink(
    ctx: Any, stream: Any, taken: Callable[[int], None], seed: int = 0, stall: float = 0.0
) -> None:
    """Takes payloads (as integers) and checks that an offered one stays as it is."""
    chance = random.Random(seed)
    payload = Value.cast(stream.payload)
    offered = None
    while True:
        ready = chance.random() >= stall
        ctx.set(stream.ready, ready)
        _, _, valid, value = await ctx.tick().sample(stream.valid, payload)
        assert offered is None or (valid and value == offered), "an offer changed"
        offered = value if valid and not ready else None
        if valid and ready:
            taken(value)


def run(
    dut: wiring.Component,
    *processes: Callable,
    until: Callable[[], bool],
    limit: int,
    after: int = 0,
) -> int:
    """Runs processes (the first argument is the context) until a condition holds; the cycles taken.

    `after` cycles more show that nothing superfluous comes.
    """
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    spent = 0

    async def watch(ctx: Any) -> None:
        nonlocal spent
        while not until():
            await ctx.tick()
            spent += 1
            assert spent < limit, f"not done after {limit} cycles"
        await ctx.tick().repeat(after + 1)

    for process in processes:

        async def start(ctx: Any, process: Callable = process) -> None:
            await process(ctx)

        simulator.add_testbench(start, background=True)
    simulator.add_testbench(watch)
    simulator.run()
    return spent


MINE = {"live": 1, "public": 0, "shared": 0, "damaged": 0, "tenant": 0}
"""The owner of a page that nobody has held: tenant 0 alone."""


class Image:
    """An endless memory: every 64-bit address has its own bytes; some words are written over."""

    def __init__(self, config: CoreConfig, seed: int) -> None:
        self.config = config
        self.seed = np.array([seed], np.uint64)  # array arithmetic wraps without a warning
        self.words: dict[int, int] = {}  # u32 at a byte address
        self.errors: set[int] = set()  # port-aligned addresses that fail
        self.read_beats: list[tuple[str, int]] = []
        self.owners: dict[int, dict[str, int]] = {}  # of pages, as PageGuards are told

    def hold(self, page: int, tenant: int) -> None:
        """Makes a page one that the tenant may read: its own, or public if it is another's."""
        owner = self.owners.setdefault(page, MINE | {"tenant": tenant})
        owner["public"] |= owner["tenant"] != tenant

    def owner(self, page: int) -> dict[str, int]:
        """Who holds a page."""
        return self.owners.get(page, MINE)

    def bytes(self, address: np.ndarray) -> np.ndarray:
        """Unwritten bytes at these addresses."""
        x = np.asarray(address).astype(np.uint64) + self.seed * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (x >> np.uint64(40) & np.uint64(0xFF)).astype(np.uint8)

    def codes(self, address: np.ndarray, size: int) -> np.ndarray:
        """Little-endian elements of `size` bytes at these addresses."""
        low = self.bytes(address).astype(np.uint16)
        return (
            low if size == 1 else low | self.bytes(np.asarray(address) + 1).astype(np.uint16) << 8
        )

    def beat(self, address: int) -> int:
        """A port beat."""
        raw = bytearray(self.bytes(address + np.arange(self.config.port_bytes)).tobytes())
        for at in range(0, self.config.port_bytes, 4):
            if address + at in self.words:
                raw[at : at + 4] = self.words[address + at].to_bytes(4, "little")
        return int.from_bytes(raw, "little")


async def owners(
    ctx: Any, image: Image, port: Any, *, latency: int = 2, seed: int = 0, stall: float = 0.0
) -> None:
    """Answers an OwnerPort as the page table does, and says nothing sensible at other times."""
    chance = random.Random(seed)
    now, due, number = 0, 0, None
    while True:
        ready = chance.random() >= stall
        ctx.set(port.request.ready, ready)
        give = number is not None and due <= now and chance.random() >= stall
        noise = MINE | {"public": 1}
        ctx.set(port.valid, give)
        ctx.set(port.owner, image.owner(number) if give and number is not None else noise)
        number = None if give else number
        _, _, valid, asked = await ctx.tick().sample(port.request.valid, port.request.payload)
        now += 1
        if valid and ready:
            assert number is None, "a question before the answer to the last"
            number, due = asked, now + latency - 1


async def memory(
    ctx: Any,
    image: Image,
    ports: dict[str, Any],
    *,
    latency: int = 20,
    seed: int = 0,
    stall: float = 0.0,
) -> None:
    """Serves read ports: one beat a cycle in all, requests in the order of their taking."""
    chance = random.Random(seed)
    waiting: deque = deque()  # (cycle from which it may be delivered, name, address, last)
    turn = 0
    now = 0
    names = list(ports)
    given = None
    requests = [
        signal
        for name in names
        for signal in (ports[name].request.valid, Value.cast(ports[name].request.payload))
    ]
    width = len(ports[names[0]].request.payload.address)
    held: dict[str, int] = {}
    while True:
        ready = {name: chance.random() >= stall for name in names}
        for name in names:
            ctx.set(ports[name].request.ready, ready[name])
        if given is not None:
            ctx.set(ports[given].data_valid, 0)
            given = None
        if waiting and waiting[0][0] <= now and chance.random() >= stall:
            _, given, address, last = waiting.popleft()
            image.read_beats.append((given, address))
            port = ports[given]
            ctx.set(port.data_valid, 1)
            ctx.set(port.data, image.beat(address))
            ctx.set(port.last, last)
            ctx.set(port.error, address in image.errors)
        _, _, *seen = await ctx.tick().sample(*requests)
        now += 1
        turn += 1
        for n in range(len(names)):
            name = names[(n + turn) % len(names)]
            valid, payload = seen[2 * names.index(name) :][:2]
            if name in held:
                assert valid and payload == held.pop(name), f"request of {name} changed"
            if valid and not ready[name]:
                held[name] = payload
            if valid and ready[name]:
                address, beats = payload & ((1 << width) - 1), payload >> width
                assert beats and address % image.config.port_bytes == 0
                for beat in range(beats):
                    at = address + beat * image.config.port_bytes
                    waiting.append((now + latency - 1, name, at, beat == beats - 1))
