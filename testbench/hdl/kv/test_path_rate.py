"""How fast the KV read path feeds an array that takes one beat, of K or of V, per cycle."""

import itertools
import random
from typing import Any

import pytest

from m890.hdl.commands import SegmentKind
from m890.hdl.config import CoreConfig, preset
from m890.hdl.kv.items import ItemKind, item_layout
from m890.hdl.kv.path import KvPath
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.testbench.hdl.kv.bench import Bench, fields, make_job
from m890.testbench.hdl.kv.support import Image, run, sink


class ArrayBench(Bench):
    """The bench with the row array's manner of taking beats: V where its K is done, else K."""

    def __init__(self, config: CoreConfig, image: Image, jobs: list) -> None:
        super().__init__(config, image, jobs)
        self.k_ahead = 0  # K beats taken whose V beats have not been
        self.beats = 0
        self.idle: list[int] = []  # after which beat each idle cycle came
        self.first: dict[str, int] = {}  # the cycle in which each stream first had something

    async def array(self, ctx: Any) -> None:
        dut, config = self.dut, self.config
        chunks: list[int] = []  # beats of each chunk whose K is known and not finished
        waiting: list[int] = []  # beats of each chunk that is ready for V
        k = v = 0
        total = len(self.expected.k_beat) + len(self.expected.v_beat)
        while self.beats < total:
            ctx.set(dut.item.ready, len(chunks) < 2)
            take_v = bool(waiting) and ctx.get(dut.v_beat.valid)
            take_k = not take_v and chunks and len(waiting) < config.p_depth
            take_k = bool(take_k and ctx.get(dut.k_beat.valid))
            ctx.set(dut.v_beat.ready, take_v)
            ctx.set(dut.k_beat.ready, take_k)
            if take_v or take_k:
                self.beats += 1
            elif self.beats:
                self.idle.append(self.beats)
            k, v = k + take_k, v + take_v
            if take_k and k == chunks[0]:
                waiting.append(chunks.pop(0))
                k = 0
            if take_v and v == waiting[0]:
                waiting.pop(0)
                v = 0
            _, _, valid, ready, item = await ctx.tick().sample(
                dut.item.valid, dut.item.ready, dut.item.payload.as_value()
            )
            if valid and ready:
                found = fields(item_layout(config), item)
                self.got.item.append(found)
                if found["kind"] == ItemKind.CHUNK:
                    chunks.append(found["tiles"] * config.lanes)

    async def watch(self, ctx: Any) -> None:
        names = ("job", "item", "k_beat")
        valids = [getattr(self.dut, name).valid for name in names]
        for cycle in itertools.count():
            _, _, *seen = await ctx.tick().sample(*valids)
            for name, valid in zip(names, seen, strict=True):
                if valid:
                    self.first.setdefault(name, cycle)

    def measure(self, *, latency: int) -> None:
        """Runs the jobs to the array's last beat."""
        nothing = lambda payload: None  # noqa: E731
        streams = [getattr(self.dut, name) for name in ("scale", "bias_beat", "raw_beat")]
        run(
            self.dut,
            self.see,
            self.array,
            self.watch,
            lambda ctx: self.serve(ctx, latency=latency),
            self.answer,
            lambda ctx: self.feed(ctx, 0, 0.0),
            *(lambda ctx, stream=stream: sink(ctx, stream, nothing) for stream in streams),
            until=lambda: self.beats == len(self.expected.k_beat) + len(self.expected.v_beat),
            limit=20000,
        )


def make_bench(config: CoreConfig, seed: int, formats: list[Format], tiles: int) -> ArrayBench:
    """Jobs of three segments, some of one chunk, all visible."""
    chance = random.Random(seed)
    image = Image(config, seed)
    fixed: dict[str, Any] = {"causal": False, "window": 0, "kinds": [SegmentKind.KV], "bias": 0,
                             "tags": False}  # fmt: skip
    jobs = []
    for n, form in enumerate(formats):
        job = make_job(
            config, image, chance, n, format=form, tiles=tiles, segments=3,
            tokens=5 * config.lanes, **fixed,
        )  # fmt: skip
        for segment in job.segments:
            segment.row_mask = 1
        jobs.append(job)
    return ArrayBench(config, image, jobs)


@pytest.mark.parametrize(
    ("name", "tiles", "latency"), [("tiny", 4, 20), ("tiny", 1, 20), ("small", 4, 20)]
)
def test_no_idle_cycle_with_8_bits(name, tiles, latency, seed):
    formats = [Format.E4M3, Format.INT8, Format.E5M2, Format.INT8][: 4 if name == "tiny" else 2]
    bench = make_bench(preset(name), seed, formats, tiles)
    bench.measure(latency=latency)
    check_rate(bench, name, tiles, latency)


@pytest.mark.parametrize(("name", "tiles"), [("tiny", 4), ("tiny", 3), ("tiny", 1), ("small", 4)])
def test_no_idle_cycle_with_4_bits(name, tiles, seed):
    """Groups of four, two and one tiles; scales of their own."""
    formats = [Format.INT4, Format.MXFP4, Format.E4M3, Format.INT4][: 4 if name == "tiny" else 2]
    bench = make_bench(preset(name), seed, formats, tiles)
    bench.measure(latency=20)
    check_rate(bench, name, tiles, 20)


def check_rate(bench: ArrayBench, name: str, tiles: int, latency: int) -> None:
    """No idle cycle after the first chunk; the first K beat comes as soon as its data allow."""
    filling = 2 * tiles * preset(name).lanes  # of the first chunk, after reset
    assert [at for at in bench.idle if at >= filling] == []
    assert len(bench.idle) <= latency
    header = PageLayout(bench.config, bench.jobs[0].format, tiles).header_beats
    start, item, k = (bench.first[name] for name in ("job", "item", "k_beat"))
    assert item - start == KvPath.ITEM_CYCLES + latency
    assert k - item == KvPath.K_CYCLES + latency + header - 2


def test_16_bits_keep_the_port_busy(seed):
    bench = make_bench(preset("tiny"), seed, [Format.FP16, Format.BF16, Format.FP16], 4)
    bench.measure(latency=20)
    assert len(bench.idle) <= 0.05 * bench.beats
