"""Random commands of the page manager on the native core, each against the reference model."""

import random
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from m890.firmware.device import Device
from m890.hdl.commands import (
    COMMAND_BYTES,
    COMMANDS,
    COMPLETION,
    COMPLETION_BYTES,
    Error,
    Opcode,
    Query,
)
from m890.hdl.config import CoreConfig
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.hdl.registers import ADDRESS
from m890.sim.golden.pages import PageManager, Result
from m890.sim.timing.checks import Plane, Tables
from m890.sim.timing.execute import Append, Executor
from m890.testbench.hdl.pages.traffic import FORMATS, Map, Traffic, memory_map

RING = 512
PLANES = 2
PATIENCE = 2_000_000
"""Cycles in which a batch must be over."""


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


def places(config: CoreConfig, *, tokens: int, longest: int) -> Places:
    """Room for sequences of `tokens`, and for APPENDs of `longest` tokens."""
    map = memory_map(config, PLANES, tokens=tokens, host_slots=8, tags=False)
    source = -(-map.limit // 4096) * 4096
    source_bytes = (longest + 2) * PLANES * config.port_bytes
    lists = source + -(-source_bytes // 4096) * 4096
    list_bytes = 2 * -(-4 * config.pages // config.port_bytes) * config.port_bytes
    ring = lists + -(-RING * list_bytes // 4096) * 4096
    completions = ring + RING * COMMAND_BYTES
    # A spoiled command may name the last beat of memory: nothing lies there.
    end = -(-(completions + RING * COMPLETION_BYTES + config.port_bytes) // 4096) * 4096
    map = replace(map, limit=end)
    return Places(map, source, source_bytes, lists, list_bytes, ring, completions, end)


class PageSoak:
    """Batches of random commands: every completion, then memory, as in the model.

    The model has a memory of its own; what the host writes (page lists, sources) is written into
    both. Commands of a batch overlap in the core as they like.
    """

    def __init__(
        self, device: Device, at: Places, seed: int, *, longest: int, bad: float = 0.25
    ) -> None:
        config = device.config
        self.device, self.at, self.config = device, at, config
        self.rng = random.Random(seed)
        numbers = np.random.default_rng(seed)
        self.memory = numbers.integers(0, 256, at.end, np.uint8)
        # Sources are finite and small: what does not fit a format is tested elsewhere.
        source = self.memory[at.source : at.source + at.source_bytes].view("<f2")
        source[:] = numbers.normal(size=len(source))
        device.memory[: at.end] = self.memory
        self.model = PageManager(config, self.memory)
        self.model.limit = at.end
        self.model.planes = dict(enumerate(at.map.planes))
        self.tables = Tables(config, self.memory)
        self.executor = Executor(self.tables)
        self.traffic = Traffic(self.rng, self.model, at.map, bad=bad, longest=longest)
        self.met: Counter[tuple[str, str]] = Counter()
        self.submitted = self.taken = 0
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
        planes = []
        for n, (base, stride, _) in enumerate(self.at.map.planes):
            tiles = 1 + n % self.config.max_tiles
            form = Format(FORMATS[n % len(FORMATS)])
            layout = PageLayout(self.config, form, tiles)
            self.tables.planes[n] = Plane(base, stride, layout, False)
            planes.append(COMMANDS[Opcode.PLANE].pack(
                opcode=int(Opcode.PLANE), plane=n, format=int(form), head=tiles, base=base,
                stride=stride,
            ))  # fmt: skip
        assert not any(one["error"] for one in self._run(planes))

    # ---------------------------------------------------------------- the device

    def _run(self, commands: list[bytes]) -> list[dict[str, int]]:
        """Completions in the order of the commands, whose tags are their places in the batch."""
        memory, at = self.device.memory, self.at
        for n, raw in enumerate(commands):
            here = at.ring + (self.submitted + n) % RING * COMMAND_BYTES
            memory[here : here + COMMAND_BYTES] = np.frombuffer(raw, np.uint8)
            memory[here + 2 : here + 4] = [n & 255, n >> 8]
        self.submitted += len(commands)
        self._write("RING_TAIL", self.submitted & 0xFFFF)
        spent = 0
        while self.device.read(ADDRESS["COMPLETION_TAIL"]) != self.submitted & 0xFFFF:
            spent += self.device.run(200)
            assert spent < PATIENCE, "the batch does not end"
        found: dict[int, dict[str, int]] = {}
        for _ in commands:
            here = at.completions + self.taken % RING * COMPLETION_BYTES
            one = COMPLETION.unpack(memory[here : here + COMPLETION_BYTES].tobytes())
            found[one["tag"]] = one
            self.taken += 1
        self._write("COMPLETION_HEAD", self.taken & 0xFFFF)
        return [found[n] for n in range(len(commands))]

    # ---------------------------------------------------------------- the comparison

    def batch(self, count: int) -> None:
        """`count` random commands at once."""
        drawn, wanted = [], []
        for n in range(count):
            self.traffic.lists = self.at.lists + n * self.at.list_bytes
            opcode, c = self.traffic.draw()
            if opcode == Opcode.APPEND:
                self._source(c)
            part = slice(self.traffic.lists, self.traffic.lists + self.at.list_bytes)
            self.device.memory[part] = self.memory[part]
            drawn.append((opcode, c))
            wanted.append(self._model(opcode, c))
        raw = [COMMANDS[opcode].pack(**c) for opcode, c in drawn]
        for (opcode, c), want, got in zip(drawn, wanted, self._run(raw), strict=True):
            found = Result(Error(got["error"]), got["field"], got["index"], got["beats"])
            assert found == want, (opcode.name, c, found, want)
            self.met[opcode.name, want.error.name] += 1
        self._same_memory()

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

    def _same_memory(self) -> None:
        """All that the device writes: block tables, lists, pages, host pool."""
        mine, its = self.memory[: self.at.ring], self.device.memory[: self.at.ring]
        if not np.array_equal(mine, its):
            first = int(np.flatnonzero(mine != its)[0])
            raise AssertionError(f"memory differs from {first:#x} on; map {self.at.map}")

    def same_state(self) -> None:
        """Every page, tenant and sequence, by QUERY."""
        asked = [
            {"what": Query.FREE},
            *({"what": Query.PAGE, "page": n} for n in range(self.config.pages)),
        ]
        for what in (Query.HELD, Query.QUOTA):
            asked += [{"what": what, "tenant": n} for n in range(self.config.tenants)]
        for what in (Query.LENGTH, Query.PAGES):
            asked += [{"what": what, "sequence": n} for n in range(self.config.sequences)]
        blank = dict.fromkeys((f.name for f in COMMANDS[Opcode.QUERY].fields), 0)
        blank["opcode"] = int(Opcode.QUERY)
        while asked:
            part, asked = asked[: RING // 2], asked[RING // 2 :]
            commands = [blank | {k: int(v) for k, v in fields.items()} for fields in part]
            raw = [COMMANDS[Opcode.QUERY].pack(**c) for c in commands]
            for c, got in zip(commands, self._run(raw), strict=True):
                want = self.model.run(Opcode.QUERY, c)
                found = Result(Error(got["error"]), got["field"], got["index"], got["beats"])
                assert found == want, (c, found, want)
