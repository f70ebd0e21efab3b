"""Error of the model device's cycles against the RTL, command by command.

Figures: `timing.error.COMMAND.P`, the largest |model / RTL - 1| of a command's cycles, from its
dispatch to its completion, over random scenes of the preset P: pages, sharing, planes, head sizes
and memory latency differ. `appends` and `jobs`: several under one doorbell, from the first start to
the last end; `pages`: commands of the page manager likewise.
"""

from collections.abc import Sequence

import numpy as np

from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.memory_map import PlaneShape, memory_bytes
from m890.firmware.records import pack
from m890.hdl.commands import ROW, SEGMENT, Opcode, Query
from m890.hdl.config import CoreConfig, preset
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim.bench.registry import LOWER, BenchContext, BenchError, Item
from m890.sim.rtl.device import RtlDevice
from m890.sim.timing.device import ModelDevice
from m890.sim.timing.model import Timing

PRESETS = ("tiny", "small")
OPTIONS = {
    "scenes": "random scenes of a preset, each with planes and pages of its own (6)",
    "latency": "of the memory in cycles; 0: 20 and 100 in turn (0)",
}
BETTER = {"timing.error.*": LOWER}
SCRATCH = 4 << 20
LATENCIES = (20, 100)
"""Of the memory, scene by scene, unless one is asked for."""
FORMATS = (Format.FP16, Format.E4M3, Format.INT4)
AT_ONCE = 6
"""Commands under one doorbell."""
SLOTS = 4
"""Of the host pool."""


def run(context: BenchContext) -> list[Item]:
    """The errors of all commands, for each preset."""
    names = [context.preset] if context.preset else PRESETS
    return [item for name in names for item in _run(preset(name), context)]


def _run(config: CoreConfig, context: BenchContext) -> list[Item]:
    scenes, latency = context.option("scenes", 6), context.option("latency", 0)
    if scenes < 1 or latency < 0:
        raise BenchError("scenes start at 1, and latency at 0")
    found: dict[str, list[float]] = {}
    latencies = (latency,) if latency else LATENCIES
    for n in range(scenes):
        memory = latencies[n % len(latencies)]
        for name, error in errors(config, memory, context.seed + n, context).items():
            found.setdefault(name, []).extend(error)
        context.progress.say(f"{config.name}: {n + 1} of {scenes} scenes")
    facts = {"preset": config.name, "scenes": scenes, "memory": "fixed"}
    return [
        context.item(
            f"timing.error.{name}.{config.name}", "1", max(each), **facts, commands=len(each),
            mean=round(sum(each) / len(each), 4),
        )
        for name, each in sorted(found.items())
    ]  # fmt: skip


def errors(
    config: CoreConfig, latency: int, seed: int, context: BenchContext
) -> dict[str, list[float]]:
    """|model / RTL - 1| of every command of one scene, by name."""
    with RtlDevice(
        config, memory_bytes=_memory(config), latency=latency, seed=seed, say=context.progress.say
    ) as device:
        rtl = Scene(device, seed).play()
    model = Scene(
        ModelDevice(config, _memory(config), timing=Timing(memory=latency)), seed
    ).play()
    out: dict[str, list[float]] = {}
    for (name, real), (_, guess) in zip(rtl, model, strict=True):
        out.setdefault(name, []).append(abs(guess / real - 1))
    return out


def _memory(config: CoreConfig) -> int:
    shape = PlaneShape(4, Format.FP16, min(128, config.max_head))
    return memory_bytes(config, shape, scratch=SCRATCH) + (16 << 20)


class Scene:
    """Random commands, the same for the same seed on every device; cycles of each.

    Sequence 0 holds pages; the others come and go. Nothing but cycles is looked at, so K, V and
    queries are whatever lies in memory.
    """

    def __init__(self, device: Device, seed: int) -> None:
        self.driver = Driver(device, ring=64, scratch_bytes=SCRATCH)
        self.config, self.rng = device.config, np.random.default_rng(seed)
        self.cycles: list[tuple[str, int]] = []
        config, rng = self.config, self.rng
        self.planes = int(rng.integers(1, 5))
        head = int(rng.integers(1, min(128, config.max_head) // config.lanes + 1)) * config.lanes
        self.shape = PlaneShape(self.planes, FORMATS[rng.integers(len(FORMATS))], head)
        self.tiles, self.size = head // config.lanes, config.page_tokens
        self.table_bytes = 4 * config.pages
        map_, stride = self.driver.map, self.shape.stride(config)
        self.tables = map_.allocate("tables", 8 * self.table_bytes).start
        self.host = map_.allocate("host", SLOTS * self.planes * stride).start
        bases = map_.allocate("planes", self.planes * config.pages * stride, 1 << 16).start
        for plane in range(self.planes):
            self._wait(
                "PLANE", plane=plane, format=int(self.shape.format), head=self.tiles,
                base=bases + plane * config.pages * stride, stride=stride,
            )  # fmt: skip

    def play(self) -> list[tuple[str, int]]:
        """Names of commands and their cycles, in order."""
        most = min(self.config.pages // 4, 400)
        for pages in (int(self.rng.integers(1, 6)), int(self.rng.integers(6, most + 1))):
            self._questions()
            self._pages(pages)
            self._host_pool(min(pages, SLOTS))
            self._appends()
            self._jobs(min(pages, 40))
            self._give_back()
        return self.cycles

    # ---------------------------------------------------------------- groups of commands

    def _questions(self) -> None:
        for what in Query:
            self._one("query", "QUERY", what=int(what), **self._opened(what))
        self._one("quota", "QUOTA", tenant=1, pages=1)

    def _opened(self, what: Query) -> dict[str, int]:
        """LENGTH and PAGES ask about a sequence: there has to be one."""
        if what != Query.LENGTH:
            return {}
        self._one("create", "CREATE", sequence=0, **self._table(0))
        return {}

    def _pages(self, pages: int) -> None:
        """Pages for sequence 0, which are shared and pinned in many ways and given up."""
        size, some = self.size, int(self.rng.integers(0, pages + 1))
        at = self._take(pages)
        self._one("release", "RELEASE", sequence=0)
        self._one("create", "CREATE", sequence=0, tokens=pages * size, list=at, **self._table(0))
        self._one("unpin", "UNPIN", listed=1, list=at, count=pages)
        self._one("fork", "FORK", sequence=0, target=1, tokens=some * size, **self._table(1))
        inside = pages * size - int(self.rng.integers(1, size))
        self._one("fork", "FORK", sequence=0, target=2, tokens=inside, **self._table(2))
        for public in (0, 1):
            self._one("pin", "PIN", sequence=0, start=0, end=pages * size, public=public)
        for _ in range(2):
            self._one("unpin", "UNPIN", sequence=0, start=0, end=pages * size)
        self._one("trim", "TRIM", sequence=2, tokens=int(self.rng.integers(0, inside + 1)))
        self._one("trim", "TRIM", sequence=1, tokens=some // 2 * size)
        for sequence in (1, 2):
            self._one("release", "RELEASE", sequence=sequence)
        tokens = [int(t) for t in self.rng.integers(0, pages * size + 1, AT_ONCE)]
        forks = [
            self._pack("FORK", sequence=0, target=1 + n, tokens=t, **self._table(1 + n))
            for n, t in enumerate(tokens)
        ]
        ends = [self._pack("RELEASE", sequence=1 + n) for n in range(AT_ONCE)]
        self._many("pages", [*forks, *ends])

    def _host_pool(self, count: int) -> None:
        driver = self.driver
        at, slots = self._take(count), driver.place(np.arange(count, dtype="<u4"))
        pool = {
            "slots": slots, "count": count, "host": self.host, "host_slots": SLOTS,
            "host_stride": self.planes * self.shape.stride(self.config),
        }  # fmt: skip
        for inward in (0, 1):
            self._one("copy", "COPY", inward=inward, list=at, **pool)
            self._one("unpin", "UNPIN", listed=1, list=at, count=count)
        driver.free(at, slots)

    def _appends(self) -> None:
        """Into new pages, pages that are there, shared ones; of one token and of many."""
        rng, size = self.rng, self.size
        self._one("create", "CREATE", sequence=1, **self._table(1))
        source = self.driver.buffer(4 * size * self.tiles * self.config.port_bytes)
        for tokens in (1, int(rng.integers(2, size + 1)), int(rng.integers(size + 1, 4 * size))):
            append = {
                "sequence": 1, "tokens": tokens, "source_format": int(Format.FP16), "k": source,
                "v": source, "source_stride": self.tiles * self.config.port_bytes,
            }  # fmt: skip
            self._one("append", "APPEND", commit=1, **append)
            self._one("append", "APPEND", **append)
            self._one("fork", "FORK", sequence=1, target=2, tokens=tokens, **self._table(2))
            self._one("append", "APPEND", **append)
            self._one("release", "RELEASE", sequence=2)
            self._many("appends", [self._pack("APPEND", **append)] * AT_ONCE)
            self._one("trim", "TRIM", sequence=1, tokens=0)
        self._one("release", "RELEASE", sequence=1)
        self.driver.free(source)

    def _jobs(self, pages: int) -> None:
        """Rows that see all of some pages of sequence 0, one job and several."""
        config, driver = self.config, self.driver
        rows = int(self.rng.integers(1, config.rows + 1))
        positions = pack(ROW, rows, {"position": pages * self.size}).reshape(-1)
        gap = np.zeros(-positions.size % config.port_bytes, np.uint8)
        segment = {"sequence": 0, "end": pages * self.size, "row_mask": (1 << rows) - 1}
        tables = driver.place(np.concatenate([positions, gap, pack(SEGMENT, 1, segment)[0]]))
        stride = self.tiles * config.port_bytes
        query = driver.place(np.zeros(rows * stride, np.uint8))
        output = driver.buffer(rows * 2 * stride)
        job = self._pack(
            "ATTEND", rows=rows, segments=1, query_format=1, tables=tables, query=query,
            output_format=int(OutputFormat.FP16), query_stride=stride, output=output,
            output_stride=2 * stride,
        )  # fmt: skip
        self._many("attend", [job])
        self._many("jobs", [job] * AT_ONCE)
        driver.free(tables, query, output)

    def _give_back(self) -> None:
        self._one("release", "RELEASE", sequence=0)

    # ---------------------------------------------------------------- one command

    def _table(self, sequence: int) -> dict[str, int]:
        """Fields of a command that opens a sequence."""
        limit = self.config.pages * self.size
        return {"table": self.tables + sequence * self.table_bytes, "limit": limit}

    def _take(self, count: int) -> int:
        at = self.driver.buffer(4 * count)
        self._one("copy", "COPY", inward=1, blank=1, list=at, count=count)
        return at

    def _pack(self, opcode: str, **fields: int) -> np.ndarray:
        return self.driver.pack(Opcode[opcode], 1, fields)

    def _wait(self, opcode: str, **fields: int) -> None:
        self.driver.wait(self.driver.submit(opcode, **fields))

    def _one(self, name: str, opcode: str, **fields: int) -> None:
        self._many(name, [self._pack(opcode, **fields)])

    def _many(self, name: str, commands: Sequence[np.ndarray]) -> None:
        """Commands under one doorbell, from the first start to the last end."""
        done = self.driver.wait(self.driver.submit_many(np.concatenate(commands)))
        self.cycles.append((name, int(done["end"].max()) - int(done["start"].min())))
