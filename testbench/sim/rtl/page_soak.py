"""Random commands of the page manager on the native core, each against the reference model."""

import functools
import random
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from m890.firmware.device import Device
from m890.firmware.log import COMPLETION_TYPE
from m890.hdl.commands import COMMAND_BYTES, COMMANDS, COMPLETION_BYTES, Error, Opcode, Query
from m890.hdl.config import CoreConfig
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.hdl.registers import ADDRESS
from m890.sim.golden.pages import PageManager, Result
from m890.sim.timing.checks import Plane, Tables
from m890.sim.timing.execute import Append, Executor
from m890.testbench.hdl.pages.traffic import FORMATS, Map, Traffic, memory_map

RING = 8192
PLANES = 2
PATIENCE = 2_000_000
"""Cycles in which a batch must be over."""
ASKING, SAMPLE = 0.25, 2
"""Share of batches in which each command has QUERYs right behind it, for how many of its pages."""


@dataclass(frozen=True)
class Places:
    """What the soak keeps in memory beside `Map`: sources of APPENDs, page lists, rings."""

    map: Map
    source: int
    source_bytes: int
    lists: int
    list_bytes: int  # two lists of one command
    ring: int
    completions: int
    end: int


def places(config: CoreConfig, *, tokens: int, longest: int, batch: int) -> Places:
    """Room for sequences of `tokens`, APPENDs of `longest` tokens, `batch` commands at once."""
    map = memory_map(config, PLANES, tokens=tokens, host_slots=8, tags=False)
    source = -(-map.limit // 4096) * 4096
    source_bytes = (longest + 2) * PLANES * config.port_bytes
    lists = source + -(-source_bytes // 4096) * 4096
    list_bytes = 2 * -(-4 * config.pages // config.port_bytes) * config.port_bytes
    ring = lists + -(-batch * list_bytes // 4096) * 4096
    completions = ring + RING * COMMAND_BYTES
    # A spoiled command may name the last beat of memory: nothing lies there.
    end = -(-(completions + RING * COMPLETION_BYTES + config.port_bytes) // 4096) * 4096
    map = replace(map, limit=end)
    return Places(map, source, source_bytes, lists, list_bytes, ring, completions, end)


class WatchedManager(PageManager):
    """The reference model, which names the pages whose counts a command looked at or changed."""

    def __init__(self, config: CoreConfig, memory: NDArray[np.uint8]) -> None:
        self.touched: dict[int, None] = {}
        super().__init__(config, memory)

    def _take(self, *arguments, **named) -> int:
        number = super()._take(*arguments, **named)
        self.touched[number] = None
        return number

    def _hold(self, pages, *arguments, **named) -> None:
        self.touched |= dict.fromkeys(pages)
        super()._hold(pages, *arguments, **named)

    def _drop(self, pages, *arguments, **named) -> None:
        pages = list(pages)
        self.touched |= dict.fromkeys(pages)
        super()._drop(pages, *arguments, **named)


class PageSoak:
    """Batches of random commands: every completion, then memory and state, as in the model.

    The model has a memory of its own; what the host writes (page lists, sources) is written into
    both. Commands of a batch overlap in the core as they like. In some batches each command has
    QUERYs right behind it: free pages, its tenant's, length and pages of its sequences, two of the
    pages that it touched. At the end of each batch memory is compared, and by QUERY what its
    commands touched: of many pages some, at random. `same_state` compares everything.
    """

    def __init__(
        self, device: Device, at: Places, seed: int, *, longest: int, bad: float = 0.25
    ) -> None:
        config = device.config
        self.device, self.at, self.config, self.seed = device, at, config, seed
        self.rng = random.Random(seed)
        numbers = np.random.default_rng(seed)
        self.memory = numbers.integers(0, 256, at.end, np.uint8)
        # Sources are finite and small: what does not fit a format is tested elsewhere.
        source = self.memory[at.source : at.source + at.source_bytes].view("<f2")
        source[:] = numbers.normal(size=len(source))
        device.memory[: at.end] = self.memory
        self.model = WatchedManager(config, self.memory)
        self.model.limit = at.end
        self.model.planes = dict(enumerate(at.map.planes))
        self.tables = Tables(config, self.memory)
        self.executor = Executor(self.tables)
        self.traffic = Traffic(self.rng, self.model, at.map, bad=bad, longest=longest)
        self.met: Counter[tuple[str, str]] = Counter()
        self.queries = 0
        self.submitted = self.taken = 0
        self._drawn: list[tuple[Opcode, dict[str, int]]] = []  # what runs next
        self._packed: list[bytes] = []
        self._wanted: list[Result] = []
        self._start()

    def _write(self, name: str, value: int) -> None:
        self.device.write(ADDRESS[name], value)

    def _start(self) -> None:
        self._write("CONTROL", 2)
        for name, value in (
            ("MEMORY_LIMIT", self.at.end), ("RING_BASE", self.at.ring),
            ("COMPLETION_BASE", self.at.completions),
        ):  # fmt: skip
            self._write(f"{name}_LO", value)
            self._write(f"{name}_HI", 0)
        self._write("RING_SIZE", RING)
        self._write("COMPLETION_SIZE", RING)
        self._write("CONTROL", 1)
        for n, (base, stride, _) in enumerate(self.at.map.planes):
            tiles = 1 + n % self.config.max_tiles
            form = Format(FORMATS[n % len(FORMATS)])
            layout = PageLayout(self.config, form, tiles)
            self.tables.planes[n] = Plane(base, stride, layout, False)
            fields = {"plane": n, "format": int(form), "head": tiles, "base": base}
            self._expect(Opcode.PLANE, _blank(Opcode.PLANE) | fields | {"stride": stride}, Result())
        self._run()

    # ---------------------------------------------------------------- the device

    def _expect(self, opcode: Opcode, c: dict[str, int], want: Result) -> None:
        self._drawn.append((opcode, c))
        self._packed.append(COMMANDS[opcode].pack(**c))
        self._wanted.append(want)

    def _run(self) -> None:
        """Runs what is expected, under one doorbell, and compares completions.

        Tags are places in the batch.
        """
        memory, at, count = self.device.memory, self.at, len(self._packed)
        assert count <= RING
        places = np.arange(count)
        raw = np.frombuffer(b"".join(self._packed), np.uint8).reshape(count, COMMAND_BYTES).copy()
        raw[:, 2:4] = places.astype("<u2").view(np.uint8).reshape(count, 2)
        ring = memory[at.ring : at.completions].reshape(RING, COMMAND_BYTES)
        ring[(self.submitted + places) % RING] = raw
        self.submitted += count
        self._write("RING_TAIL", self.submitted & 0xFFFF)
        spent, step = 0, 100 + 4 * count
        while self.device.read(ADDRESS["COMPLETION_TAIL"]) != self.submitted & 0xFFFF:
            spent += self.device.run(step)
            assert spent < PATIENCE, "the batch does not end"
        past = at.completions + RING * COMPLETION_BYTES
        done = memory[at.completions : past].view(COMPLETION_TYPE)
        done = done[(self.taken + places) % RING]
        done = done[np.argsort(done["tag"])]
        self.taken += count
        self._write("COMPLETION_HEAD", self.taken & 0xFFFF)
        want = np.array([(w.error, w.field, w.index, w.value) for w in self._wanted])
        got = np.stack([done[name] for name in ("error", "field", "index", "beats")], 1)
        wrong = (got != want).any(1) | (done["tag"] != places)
        if wrong.any():
            n = int(wrong.argmax())
            found = f"{Error(done['error'][n]).name} {done[n]}"
            self._fail(f"{self._drawn[n]} ends as {found}, not {self._wanted[n]}")
        self._drawn, self._packed, self._wanted = [], [], []

    def _fail(self, what: str) -> None:
        raise AssertionError(f"seed {self.seed}, {self.met.total()} commands were right: {what}")

    # ---------------------------------------------------------------- commands

    def batch(self, count: int) -> None:
        """`count` random commands at once."""
        asking = self.rng.random() < ASKING
        met: list[tuple[str, str]] = []
        touched: dict[tuple[Query, int], None] = {}  # in order, each once
        touched_pages: dict[int, None] = {}
        for n in range(count):
            self.traffic.lists = self.at.lists + n * self.at.list_bytes
            opcode, c = self.traffic.draw()
            if opcode == Opcode.APPEND:
                self._source(c)
            part = slice(self.traffic.lists, self.traffic.lists + self.at.list_bytes)
            self.device.memory[part] = self.memory[part]
            self.model.touched.clear()
            want = self._model(opcode, c)
            self._expect(opcode, c, want)
            met.append((opcode.name, want.error.name))
            around = self._around(c)
            pages = [number for number in self.model.touched if number < self.config.pages]
            touched |= around
            touched_pages |= dict.fromkeys(pages)
            if asking:
                self._ask([*around, *self._some(pages, SAMPLE)])
        self._ask([*touched, *self._some([*touched_pages], count + 8)])
        self._run()
        self.met.update(met)
        self._same_memory()

    def _around(self, c: dict[str, int]) -> dict[tuple[Query, int], None]:
        """What a command may have changed beside pages."""
        tenants, numbers = {c.get("tenant", 0)}, {c.get("sequence", 0), c.get("target", 0)}
        tenants |= {one.tenant for one in map(self.model.sequences.get, numbers) if one}
        asked = [(Query.FREE, 0)]
        for number in sorted(numbers):
            if number < self.config.sequences:
                asked += [(Query.LENGTH, number), (Query.PAGES, number)]
        asked += [(Query.HELD, n) for n in sorted(tenants) if n < self.config.tenants]
        if c["opcode"] == Opcode.QUOTA and c["tenant"] < self.config.tenants:
            asked.append((Query.QUOTA, c["tenant"]))
        return dict.fromkeys(asked)

    def _some(self, pages: list[int], most: int) -> list[tuple[Query, int]]:
        return [(Query.PAGE, n) for n in self.rng.sample(pages, min(most, len(pages)))]

    def _source(self, c: dict[str, int]) -> None:
        """Data for an APPEND; its plane and format may be wrong, too."""
        c["plane"] = self.rng.randrange(PLANES)
        c["source_format"] = int(Format.FP16)
        c["source_stride"] = PLANES * self.config.port_bytes
        c["tokens"] = min(c["tokens"], self.at.source_bytes // c["source_stride"] - 2)
        c["k"] = self.at.source
        c["v"] = self.at.source + self.config.port_bytes * self.rng.randrange(PLANES)

    def _model(self, opcode: Opcode, c: dict[str, int]) -> Result:
        result = self.model.run(opcode, c)
        if opcode == Opcode.APPEND and not result.error:
            table = self.model.sequences[c["sequence"]].table
            self.executor.append([Append(c, self.tables.planes[c["plane"]], table)])
            self.model.committed(c)
        return result

    # ---------------------------------------------------------------- the comparison

    def _ask(self, asked: list[tuple[Query, int]]) -> None:
        """QUERYs, of what the model says now."""
        self.queries += len(asked)
        for what, number in asked:
            c, packed = _query(what, number)
            self._drawn.append((Opcode.QUERY, c))
            self._packed.append(packed)
            self._wanted.append(self.model.run(Opcode.QUERY, c))

    def _same_memory(self) -> None:
        """All that the device writes: block tables, lists, pages, host pool."""
        mine, its = self.memory[: self.at.ring], self.device.memory[: self.at.ring]
        if not np.array_equal(mine, its):
            first = int(np.flatnonzero(mine != its)[0])
            self._fail(f"memory differs from {first:#x} on; map {self.at.map}")

    def same_state(self) -> None:
        """Every page, tenant and sequence, by QUERY."""
        config = self.config
        self._ask([(Query.FREE, 0)])
        for what, count in (
            (Query.PAGE, config.pages), (Query.HELD, config.tenants), (Query.QUOTA, config.tenants),
            (Query.LENGTH, config.sequences), (Query.PAGES, config.sequences),
        ):  # fmt: skip
            self._ask([(what, n) for n in range(count)])
        self._run()

    def no_page_is_lost(self) -> None:
        """Everything given back, every page is free; then sequences take each of them once."""
        config, model, at = self.config, self.model, self.at
        for tenant in range(config.tenants):
            self._do(Opcode.QUOTA, tenant=tenant, pages=config.pages)
        for number, one in list(model.sequences.items()):
            self._do(Opcode.RELEASE, sequence=number, tenant=one.tenant)
        while pinned := [n for n, page in enumerate(model.pages) if page and page.pins]:
            tenant = model._page(pinned[0]).tenant
            mine = [n for n in pinned if model._page(n).tenant == tenant]
            for memory in (self.memory, self.device.memory):
                memory[at.lists : at.lists + 4 * len(mine)].view("<u4")[:] = mine
            self._do(Opcode.UNPIN, tenant=tenant, listed=1, count=len(mine), list=at.lists)
            self._run()
        assert sorted(model.free) == list(range(config.pages))
        self.same_state()
        room = at.map.table_bytes // 4 * config.page_tokens
        for number in range(config.sequences):
            table = at.map.tables + number * at.map.table_bytes
            self._do(Opcode.CREATE, sequence=number, table=table, limit=room)
            length = 0
            while left := min(room - length, len(model.free) * config.page_tokens):
                c = {"sequence": number, "start": length, "tokens": left, "commit": 1}
                self._source(c)
                self._do(Opcode.APPEND, **c)
                length += c["tokens"]
        assert not model.free
        self.same_state()
        self._same_memory()

    def _do(self, opcode: Opcode, **fields: int) -> None:
        c = _blank(opcode) | fields
        assert not self._model(opcode, c).error, (opcode.name, fields)
        self._expect(opcode, c, Result())


def _blank(opcode: Opcode) -> dict[str, int]:
    return dict.fromkeys((f.name for f in COMMANDS[opcode].fields), 0) | {"opcode": int(opcode)}


@functools.cache
def _query(what: Query, number: int) -> tuple[dict[str, int], bytes]:
    """A QUERY's fields and record; `number` of a page, a tenant or a sequence."""
    subject = {Query.PAGE: "page", Query.HELD: "tenant", Query.QUOTA: "tenant"}
    fields = {"what": int(what), subject.get(what, "sequence"): number}
    c = _blank(Opcode.QUERY) | fields
    return c, COMMANDS[Opcode.QUERY].pack(**c)
