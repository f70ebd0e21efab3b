"""A bench for the whole KV read path: random jobs, the rows' answers, a sink on every stream."""

import random
from collections import Counter
from typing import Any

from amaranth.hdl import Value

from m890.hdl.commands import SegmentKind
from m890.hdl.config import CoreConfig, preset
from m890.hdl.kv.items import ItemKind, item_layout, see_layout
from m890.hdl.kv.path import PORTS, KvPath
from m890.hdl.kv.tags import FAULT, ROW_NAME
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.testbench.hdl.kv.reference import Job, Segment, Streams, expect
from m890.testbench.hdl.kv.support import Image, memory, owners, run, sink, source

STREAMS = ("item", "k_beat", "v_beat", "scale", "bias_beat", "raw_beat")
CONFIGS = {
    "tiny": preset("tiny"),
    "tiny, 2 chunks a page": preset("tiny").with_(page_tokens=16),
    "small": preset("small"),
}


def fields(layout: Any, value: int) -> dict[str, int]:
    """The fields of a flat struct, by name."""
    return {
        name: value >> f.offset & ((1 << f.width) - 1)
        for name, f in ((name, layout[name]) for name in layout.members)
    }


def codes(value: int, count: int) -> list[int]:
    return [value >> 16 * n & 0xFFFF for n in range(count)]


def make_job(
    config: CoreConfig, image: Image, chance: random.Random, number: int, **fixed: Any
) -> Job:
    """A random job whose block tables stand in the image; addresses use all their bits."""
    lanes, port, rows = config.lanes, config.port_bytes, config.rows
    form = fixed.pop("format", None)
    form = chance.choice(list(Format)) if form is None else form
    tiles = fixed.pop("tiles", None) or chance.randint(1, config.max_tiles)
    tokens = fixed.pop("tokens", 4 * lanes)
    count = fixed.pop("segments", None) or chance.randint(1, 4)
    kinds = fixed.pop("kinds", list(SegmentKind))
    numbers = iter(chance.sample(range(config.pages), 40))
    tenant = chance.randrange(config.tenants)
    segments = []
    for _ in range(count):
        kind = chance.choice(kinds)
        start = chance.choice([0, chance.randrange(1000)])
        end = start + chance.randint(1, 32 if kind == SegmentKind.DRAFT else tokens)
        table = port * chance.randrange(1 << 34)
        pages = {}
        for entry in range(start // config.page_tokens, (end - 1) // config.page_tokens + 1):
            pages[entry] = next(numbers)
            image.words[table + 4 * entry] = pages[entry]
            image.hold(pages[entry], tenant)
        segments.append(
            Segment(
                kind, start, end, chance.randrange(1 << rows), table,
                port * chance.randrange(1 << 34), chance.randrange(1 << 16), pages,
            )
        )  # fmt: skip
    used = chance.randint(1, rows)
    tags = fixed.pop("tags", bool(chance.randrange(2)))
    size = PageLayout(config, form, tiles, tags).page_bytes
    values = {
        "bias": chance.randrange(2),
        "rows": used,
        "causal": bool(chance.randrange(2)),
        "window": chance.choice([0, chance.randint(1, 60)]),
        "sinks": chance.choice([0, chance.randint(1, 20)]),
        "positions": [chance.randrange(1100) for _ in range(rows)],
    } | fixed
    return Job(
        slot=number & 1,
        ident=chance.randrange(1 << 16),
        format=form,
        tiles=tiles,
        tags=tags,
        base=port * chance.randrange(1 << 34),
        stride=size + port * chance.choice([0, chance.randrange(1000)]),
        drafts=[chance.randrange(1 << 32) for _ in range(rows)],
        segments=segments,
        tenant=tenant,
        **values,
    )


class Bench:
    """The path with a memory, the rows' answers and a sink on every stream."""

    def __init__(self, config: CoreConfig, image: Image, jobs: list[Job]) -> None:
        self.config, self.image, self.jobs = config, image, jobs
        self.expected = expect(config, image, jobs)
        self.got = Streams()
        self.bus_errors: list[int] = []
        self.walking = 0
        self.dut = KvPath(config)

    def ended(self, slot: int | None = None) -> int:
        """Jobs (of a slot) whose END item has been taken."""
        ends = [item for item in self.got.item if item["kind"] == ItemKind.END]
        return sum(slot is None or item["slot"] == slot for item in ends)

    async def see(self, ctx: Any) -> None:
        """Answers two cycles after the question; noise at all other times."""
        layout, chance = see_layout(self.config), random.Random(1)
        answer = None
        while True:
            _, _, value, errors, walking, *faults = await ctx.tick().sample(
                Value.cast(self.dut.see), self.dut.bus_error, self.dut.walking,
                Value.cast(self.dut.k_fault), Value.cast(self.dut.v_fault),
            )  # fmt: skip
            for fault, found in zip(faults, (self.got.k_fault, self.got.v_fault), strict=True):
                row = fields(FAULT, fault)
                if row["valid"]:
                    name = fields(ROW_NAME, row["name"])
                    found.append((row["ident"], name["sequence"], name["token"]))
            if errors:
                self.bus_errors.append(errors)
            self.walking += walking
            ctx.set(self.dut.seen, chance.randrange(2) if answer is None else answer)
            question, answer = fields(layout, value), None
            if question["valid"]:
                # A slot's rows are those of its oldest job that has not ended.
                slot = question["slot"]
                job = [job for job in self.jobs if job.slot == slot][self.ended(slot)]
                low, high = question["t_low"], question["t_high"]
                self.got.query.append((low, high))
                answer = job.seen(
                    low, high, question["start"], question["row_mask"],
                    draft=bool(question["draft"]),
                )  # fmt: skip

    async def feed(self, ctx: Any, seed: int, stall: float) -> None:
        """Jobs and segments; a job waits for the end of the one before the last (its slot)."""
        dut = self.dut
        for number, job in enumerate(self.jobs):
            while self.ended() < number - 1:
                await ctx.tick()
            await source(ctx, dut.job, [job.payload()], seed + number, stall)
            last = len(job.segments) - 1
            payloads = [s.payload(index=n, last=n == last) for n, s in enumerate(job.segments)]
            await source(ctx, dut.segment, payloads, seed - number, stall)

    def takers(self) -> dict[str, Any]:
        got, lanes, port = self.got, self.config.lanes, self.config.port_bits
        layout = item_layout(self.config)
        return {
            "item": lambda x: got.item.append(fields(layout, x)),
            "k_beat": lambda x: got.k_beat.append(codes(x, lanes)),
            "v_beat": lambda x: got.v_beat.append(codes(x, lanes)),
            "scale": lambda x: got.scale.append(codes(x, 2 * lanes)),
            "bias_beat": lambda x: got.bias_beat.append(codes(x, lanes)),
            "raw_beat": lambda x: got.raw_beat.append(
                (x >> port + 1, x >> port & 1, x & ((1 << port) - 1))
            ),
        }

    def done(self) -> bool:
        return self.got.counts() == self.expected.counts()

    async def serve(self, ctx: Any, **options: Any) -> None:
        ports = {name: getattr(self.dut, name) for name in PORTS}
        await memory(ctx, self.image, ports, **options)

    async def answer(self, ctx: Any, **options: Any) -> None:
        """The page table."""
        await owners(ctx, self.image, self.dut.owner, **options)

    def run(self, seed: int, **stalls: float) -> int:
        """Runs all jobs, with these chances of a stall on `job`, `memory` and the streams."""

        def taking(n: int, name: str, taken: Any) -> Any:
            stall = stalls.get(name, 0.0)
            return lambda ctx: sink(ctx, getattr(self.dut, name), taken, seed + n, stall)

        serving = {"seed": seed, "stall": stalls.get("memory", 0.0)}
        cycles = run(
            self.dut,
            self.see,
            lambda ctx: self.serve(ctx, **serving),
            lambda ctx: self.answer(ctx, seed=seed, stall=stalls.get("owner", 0.0)),
            lambda ctx: self.feed(ctx, seed, stalls.get("job", 0.0)),
            *(taking(n, name, taken) for n, (name, taken) in enumerate(self.takers().items())),
            until=self.done,
            limit=30000,
            after=60,
        )
        self.compare()
        return cycles

    def compare(self) -> None:
        """Every stream as expected, and no port beat read that is not needed."""
        assert len(self.got.item) == len(self.expected.item)
        for got, expected in zip(self.got.item, self.expected.item, strict=True):
            assert {name: got[name] for name in expected} == expected
        self.got.table = [at for name, at in self.image.read_beats if name == "table"]
        for name in vars(self.got):
            if name != "item":
                assert getattr(self.got, name) == getattr(self.expected, name), name
        chunks = [i for i in self.got.item if i["kind"] == ItemKind.CHUNK]
        layouts = [
            PageLayout(self.config, Format(i["format"]), i["tiles"], bool(i["tags"]))
            for i in chunks
        ]
        needed = {
            "table": len(self.expected.table),
            "k": sum(x.header_beats + x.region_beats for x in layouts),
            "v": sum(x.region_beats for x in layouts),
            "bias": len(self.expected.bias_beat),
            "raw": len(self.expected.raw_beat),
        }
        read = Counter(name for name, _ in self.image.read_beats)
        assert {name: read[name] for name in PORTS} == needed
