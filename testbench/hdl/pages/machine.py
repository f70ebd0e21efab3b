"""The page manager between memories in Python, beside its reference model."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from amaranth.sim import Simulator

from m890.hdl.commands import COMMANDS, Opcode
from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import Format
from m890.hdl.pages.manager import PageManager as PageUnit
from m890.sim.golden.pages import PageManager, Refused, Result
from m890.testbench.hdl.memory.stubs import Fault, read_server, write_server
from m890.testbench.hdl.pages.traffic import FORMATS, Map

LIMIT = 200_000


class PageMachine:
    """A `PageUnit` and a model with equal memories; `bad` names beats that meet a bus error."""

    ctx: Any  # of the simulation, while it runs
    asked = 0  # owners of pages

    def __init__(
        self, config: CoreConfig, map: Map, seed: int, *, latency: int = 3, steady: bool = False,
        bad: Callable[[int], bool] = lambda address: False,
        refused: Callable[[int], bool] | None = None, fault: Fault = "keeps", ask: bool = False,
    ) -> None:  # fmt: skip
        """refused: beats that meet a bus error when they are written, if others than `bad`; fault:
        what becomes of them. ask: owners of pages are asked for all the time, while commands run.
        """
        self.config, self.map = config, map
        self.rng = random.Random(seed)
        start = np.random.default_rng(seed).integers(0, 256, map.limit, np.uint8)
        self.model = PageManager(config, start.copy())
        self.model.planes = dict(enumerate(map.planes))
        self.memory = bytearray(start.tobytes())
        self.unit = PageUnit(config)
        self.cycles = 0
        self._simulator = Simulator(self.unit)
        self._simulator.add_clock(1e-6)
        for port in ("list", "copy"):
            self._add(read_server(
                config, getattr(self.unit, port), self.memory, self.rng, latency=latency,
                steady=steady, bad=bad
            ))  # fmt: skip
        for port in ("entry", "page"):
            self._add(write_server(
                config, getattr(self.unit, port), self.memory, self.rng, latency=latency,
                steady=steady, bad=refused or bad, fault=fault
            ))  # fmt: skip
        self._add(self._planes)
        self._past = self._owners()  # before the last command
        self._odd: list[tuple[int, tuple[int, ...]]] = []  # answers of neither state
        if ask:
            self._add(self._ask)
        self.corrected = 0  # words read from the unit's memories with one wrong bit
        self._add(self._count)

    def _add(self, process: Callable[[Any], Any]) -> None:
        self._simulator.add_testbench(process, background=True)

    def run(self, test: Callable[[Any], Any]) -> None:
        async def start(ctx: Any) -> None:
            self.ctx = ctx
            unit, port = self.unit, self.config.port_bytes
            ctx.set(unit.limit, self.map.limit // port)
            ctx.set(unit.copied, sum(size for _, _, size in self.map.planes) // port)
            await ctx.tick().until(unit.ready)
            await test(self)

        self._simulator.add_testbench(start)
        self._simulator.run()

    async def _planes(self, ctx: Any) -> None:
        """The plane table, which control has."""
        unit = self.unit
        while True:
            (_, _, number) = await ctx.tick().sample(unit.plane_address)
            entry = {"base": 0, "stride": 0, "tiles": 0, "format": 0, "tags": 0}
            if number < len(self.map.planes):
                base, stride, _ = self.map.planes[number]
                tiles = 1 + number % self.config.max_tiles
                form = Format(FORMATS[number % len(FORMATS)])
                entry = {
                    "base": base,
                    "stride": stride,
                    "tiles": tiles,
                    "format": int(form),
                    "tags": number % 2,
                }
            ctx.set(unit.plane_entry, entry)

    def _owners(self) -> list[tuple[int, ...]]:
        """Of every page of the model, what a PageGuard is to be told."""
        return [(1, p.public, p.tenant) if p else (0,) for p in self.model.pages]

    async def _ask(self, ctx: Any) -> None:
        """Questions as a PageGuard's, with pauses."""
        port, chance = self.unit.owner, random.Random(1)
        number, pause = 0, 10  # the sweep after reset is longer
        open_, asking = False, False
        while True:
            if pause:
                pause -= 1
            elif not open_:
                number, open_, asking = chance.randrange(self.config.pages), True, True
            ctx.set(port.request.valid, asking)
            ctx.set(port.request.payload, number if asking else chance.randrange(self.config.pages))
            _, _, ready, answered, owner = await ctx.tick().sample(
                port.request.ready, port.valid, port.owner
            )
            asking &= not ready
            assert not answered or open_, "an answer that nobody asked for"
            if answered:
                self._answered(number, owner)
                open_, pause = False, chance.choice((0, 0, 1, 5))

    def _answered(self, number: int, owner: Any) -> None:
        found = (1, owner.public, owner.tenant) if owner.live else (0,)
        assert not owner.damaged
        if found not in (self._past[number], self._owners()[number]):
            self._odd.append((number, found))  # the command under way has changed it
        self.asked += 1

    async def _count(self, ctx: Any) -> None:
        while True:
            (_, _, corrected) = await ctx.tick().sample(self.unit.corrected)
            self.corrected += corrected

    # ---------------------------------------------------------------- commands

    async def perform(self, opcode: Opcode, c: dict[str, int]) -> Result:
        """The unit's outcome of a command; `cycles` is how long it took."""
        ctx, unit = self.ctx, self.unit
        if opcode == Opcode.APPEND:
            return await self._append(c)
        word = int.from_bytes(COMMANDS[opcode].pack(**c), "little")
        ident = self.rng.randrange(8)
        ctx.set(unit.i.payload, {"data": word, "ident": ident})
        ctx.set(unit.i.valid, 1)
        await ctx.tick().until(unit.i.ready)
        ctx.set(unit.i.valid, 0)
        ctx.set(unit.i.payload, {"data": self.rng.getrandbits(512), "ident": 0})
        self.cycles = 1
        while not ctx.get(unit.event.valid):
            await ctx.tick()
            self.cycles += 1
            assert self.cycles < LIMIT, "the command does not end"
        event = ctx.get(unit.event.payload)
        await ctx.tick().repeat(self.rng.randint(1, 3))
        ctx.set(unit.event.ready, 1)
        await ctx.tick()
        ctx.set(unit.event.ready, 0)
        assert event.ident == ident and event.status == 0
        return Result(event.error, event.field, event.index, event.beats)

    async def _append(self, c: dict[str, int]) -> Result:
        """What dispatch and the append unit do of an APPEND, around the unit's part of it."""
        ctx, unit = self.ctx, self.unit
        names = [f.name for f in COMMANDS[Opcode.APPEND].fields]
        try:
            self.model.check_append(c)
        except Refused as refused:
            return Result(refused.error, names.index(refused.field), refused.index)
        if c["repair"]:
            return Result()
        ctx.set(unit.prepare.payload, {k: c[k] for k in ("sequence", "start", "tokens")})
        ctx.set(unit.prepare.valid, 1)
        self.cycles = 0
        while not ctx.get(unit.prepare.ready):
            await ctx.tick()
            self.cycles += 1
            assert self.cycles < LIMIT, "the pages do not come"
        assert ctx.get(unit.prepared)
        outcome = ctx.get(unit.prepared_outcome)
        await ctx.tick()
        ctx.set(unit.prepare.valid, 0)
        if outcome.error:
            field = "sequence" if outcome.page else "tokens"
            return Result(outcome.error, names.index(field), outcome.index)
        if c["commit"]:
            ctx.set(unit.commit, 1)
            ctx.set(unit.commit_sequence, c["sequence"])
            ctx.set(unit.commit_length, c["start"] + c["tokens"])
            await ctx.tick()
            ctx.set(unit.commit, 0)
        return Result()

    async def both(self, opcode: Opcode, c: dict[str, int]) -> Result:
        """The same outcome and the same memory, in the unit as in the model."""
        lists = slice(self.map.lists, self.map.planes[0][0])
        self.memory[lists] = self.model.memory[lists].tobytes()
        found = await self.perform(opcode, c)
        self._past = self._owners()
        wanted = self.model.run(opcode, c)
        here = self._owners()
        for number, owner in self._odd:
            assert owner == here[number], f"page {number} is {owner}, not {here[number]}: {c}"
        self._odd.clear()
        if opcode == Opcode.APPEND and not wanted.error:
            self.model.committed(c)
        assert found == wanted, (opcode, c, found, wanted)
        if bytes(self.memory) != self.model.memory.tobytes():
            here = np.frombuffer(bytes(self.memory), np.uint8)
            at = int(np.flatnonzero(here != self.model.memory)[0])
            raise AssertionError(f"memory differs from {at:#x} on after {opcode.name} {c}")
        return found

    async def same_state(self) -> None:
        """Every page, tenant and sequence as the model has it."""
        blank = dict.fromkeys((f.name for f in COMMANDS[Opcode.QUERY].fields), 0)
        blank["opcode"] = int(Opcode.QUERY)
        asked = [{"what": 2}, *({"what": 3, "page": n} for n in range(self.config.pages))]
        asked += [{"what": w, "tenant": n} for n in range(self.config.tenants) for w in (4, 5)]
        asked += [{"what": w, "sequence": n} for n in range(self.config.sequences) for w in (0, 1)]
        for fields in asked:
            await self.both(Opcode.QUERY, blank | fields)
