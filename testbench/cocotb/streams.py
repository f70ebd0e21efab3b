"""In the simulation: one clock, stream sources and sinks that stall at random, checked rules.

Everything moves in lockstep: at each rising edge every agent reads what stood before the edge and
sets what stands after it. Nothing reads between edges, so both simulators see the same.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from amaranth.lib import data
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from m890.sim.cocotb.launch import watch

MOODS = 50
"""Cycles after which a sink chooses between taking at random and waiting for valid first; while it
waits, only those with an offer count."""


class Agent(Protocol):
    """Something that acts once per cycle."""

    def step(self) -> None: ...


def pack(layout: Any, value: Any) -> int:
    """Bits of a payload given as integer or as the fields of `layout`."""
    return value if isinstance(value, int) else layout.const(value).as_value().value


def fields(layout: data.StructLayout, value: int) -> dict[str, int]:
    """The fields of a flat struct, by name."""
    return {
        name: value >> layout[name].offset & ((1 << layout[name].width) - 1)
        for name in layout.members
    }


class Clocked:
    """A design with its clock, its reset and the agents around it."""

    def __init__(self, dut: Any) -> None:
        self.dut, self.cycle = dut, 0
        self.agents: list[Agent] = []
        self._edge = RisingEdge(dut.clk)

    async def start(self, **inputs: int) -> None:
        """Starts the clock and resets; `inputs` are levels of ports that no agent drives."""
        watch()
        for name, value in inputs.items():
            getattr(self.dut, name).value = value
        self.dut.rst.value = 1
        Clock(self.dut.clk, 2, "ns", impl="gpi").start(start_high=False)
        for _ in range(3):
            await self._edge
        self.dut.rst.value = 0
        await self._edge

    async def tick(self, cycles: int = 1) -> None:
        for _ in range(cycles):
            await self._edge
            self.cycle += 1
            for agent in self.agents:
                agent.step()

    async def until(self, condition: Callable[[], bool], limit: int, *, after: int = 0) -> None:
        """Cycles until `condition`, and `after` more to see that nothing superfluous comes."""
        start = self.cycle
        while not condition():
            await self.tick()
            if self.cycle - start > limit:
                waiting = [str(a) for a in self.agents if str(a)]
                raise AssertionError(f"not done after {limit} cycles; {'; '.join(waiting)}")
        await self.tick(after)

    def add(self, agent: Any) -> Any:
        self.agents.append(agent)
        return agent

    def source(self, name: str, payloads: Iterable = (), **options: Any) -> "StreamSource":
        """A source at the stream port `name`."""
        source = self.add(StreamSource(self.dut, name, **options))
        source.put(*payloads)
        return source

    def sink(self, name: str, **options: Any) -> "StreamSink":
        """A sink at the stream port `name`."""
        return self.add(StreamSink(self.dut, name, **options))


class StreamSource:
    """Offers payloads in order, each after a random wait, and holds an offer until it is taken.

    While nothing is offered the payload is noise, so that a design that looks at it is found.
    """

    def __init__(
        self, dut: Any, name: str, *, layout: Any = None, stall: float = 0.0, seed: int = 0
    ) -> None:
        self.name, self.sent = name, 0
        self._valid, self._payload = (getattr(dut, f"{name}__{x}") for x in ("valid", "payload"))
        self._ready = getattr(dut, f"{name}__ready")
        self._layout, self._stall, self._chance = layout, stall, random.Random(f"{seed} {name}")
        self._width = len(self._payload)
        self._waiting: deque[int] = deque()
        self._offering = False
        self._valid.value = 0
        self._payload.value = self._chance.getrandbits(self._width)

    def put(self, *payloads: Any) -> None:
        """More to offer: integers, or fields of the layout."""
        self._waiting.extend(pack(self._layout, p) for p in payloads)

    @property
    def idle(self) -> bool:
        """Everything has been taken."""
        return not self._waiting

    def __str__(self) -> str:
        return "" if self.idle else f"{self.name} waits for ready (payload {self.sent})"

    def step(self) -> None:
        was = self._offering
        if was:
            if not int(self._ready.value):
                return
            self._waiting.popleft()
            self.sent += 1
        self._offering = bool(self._waiting) and self._chance.random() >= self._stall
        if self._offering:
            self._payload.value = self._waiting[0]
            if not was:
                self._valid.value = 1
        elif was:
            self._valid.value = 0
            self._payload.value = self._chance.getrandbits(self._width)


class StreamSink:
    """Takes payloads with random pauses and holds the design to the rules of a stream.

    A payload is transferred when valid and ready are high. Valid must not fall, nor the payload
    change, before that. Ready rises and falls at any time; in half of the time it rises only after
    valid was seen, so that a design whose valid waits for ready stands still and is found. Unknown
    bits (Icarus) in valid, or in a payload while valid, are failures too.
    """

    def __init__(
        self,
        dut: Any,
        name: str,
        *,
        stall: float = 0.0,
        seed: int = 0,
        taken: Callable[[int], None] | None = None,
    ) -> None:
        self.name = name
        self.taken: list[int] = []
        self._take = taken or self.taken.append
        self._valid, self._payload = (getattr(dut, f"{name}__{x}") for x in ("valid", "payload"))
        self._ready = getattr(dut, f"{name}__ready")
        self._stall, self._chance = stall, random.Random(f"{seed} {name}")
        self._offer: int | None = None  # not taken yet
        self._is_ready = self._shy = False
        self._mood = self.count = 0
        self._ready.value = 0

    def __str__(self) -> str:
        return f"{self.name} has brought {self.count}"

    def step(self) -> None:
        offer = int(self._payload.value) if int(self._valid.value) else None
        if self._offer is not None and offer != self._offer:
            what = "valid fell" if offer is None else f"{self._offer:#x} became {offer:#x}"
            raise AssertionError(f"{self.name}: an offer was not held: {what}")
        if offer is not None and self._is_ready:
            self.count += 1
            self._take(offer)
            offer = None
        self._offer = offer
        if not self._mood:
            self._mood, self._shy = MOODS, bool(self._stall) and self._chance.random() < 0.5
        if not self._shy or offer is not None:
            self._mood -= 1
        ready = (not self._shy or offer is not None) and self._chance.random() >= self._stall
        if ready != self._is_ready:
            self._is_ready = ready
            self._ready.value = ready
