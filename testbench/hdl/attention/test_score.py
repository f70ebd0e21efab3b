"""Score units with their control against golden: rows share a unit, token by token."""

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import ScoreKind, bits
from m890.hdl.attention.score import ScoreTiming, ScoreUnit
from m890.hdl.attention.score_control import ScoreControl
from m890.hdl.config import CoreConfig, preset
from m890.hdl.kv.items import scale_layout
from m890.hdl.memory.sram import Sram
from m890.hdl.numerics.formats import Format
from m890.hdl.numerics.types import Operand, Wide
from m890.sim.golden import output, score
from m890.sim.golden.wide import Wide as WideArray
from m890.sim.golden.wide import fold
from m890.testbench.hdl.kv.support import run, source
from m890.testbench.hdl.numerics import golden, numbers

TINY = preset("tiny")
ONE = 0x3F80


class Scores(wiring.Component):
    """ScoreControl, its units, and of the rows what keeps their finished scores."""

    if TYPE_CHECKING:  # the ports are made below, from the bundles' names

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.control = ScoreControl(config)
        self.units = [ScoreUnit(config) for _ in range(config.score_units)]
        b = self.control.bundles
        super().__init__(
            {
                "context": In(stream.Signature(b.context)),
                "scale": In(stream.Signature(scale_layout(config))),
                "scored": In(1),
                "totals": In(data.ArrayLayout(Wide, config.rows)),
                "params0": In(b.params),
                "params1": In(b.params),
                "setup": In(b.setup),
                "setup_row": In(bits(config.rows)),
                "setup_sink": In(Wide),
                "bias_write": In(b.bias_write),
                "bias_row": In(bits(config.rows)),
                "raw_l": In(b.raw_l),
                "l_ask": In(b.l_ask),
                "p": Out(data.ArrayLayout(Operand, config.score_units)),
                "l": Out(data.ArrayLayout(Wide, config.score_units)),
                "overflow": Out(1),
                "underflow": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c, control, units = self.config, self.control, self.units
        m.submodules.control = control
        wiring.connect(m, wiring.flipped(self.context), control.context)
        wiring.connect(m, wiring.flipped(self.scale), control.scale)
        for name in ("scored", "params0", "params1", "raw_l"):
            m.d.comb += getattr(control, name).eq(getattr(self, name))
        for n, unit in enumerate(units):
            m.submodules[f"unit{n}"] = unit
            m.d.comb += [unit.index.eq(n), self.p[n].eq(unit.p), self.l[n].eq(unit.l)]
            for name in unit.signature.members:
                if name in ScoreControl.BUNDLES:
                    m.d.comb += getattr(unit, name).eq(getattr(control, name))
                elif name in self.signature.members and name not in ("p", "l"):
                    m.d.comb += getattr(unit, name).eq(getattr(self, name))
        for row in range(c.rows):
            m.submodules[f"finished{row}"] = kept = Sram(Wide, c.score_depth)
            m.d.comb += [
                kept.write_address.eq(control.score_store.place),
                kept.write_enable.eq(control.score_store.enable),
                kept.write_data.eq(self.totals[row]),
                kept.read_address[0].eq(control.score_read.place),
                kept.read_enable[0].eq(control.score_read.enable),
                getattr(units[row // c.score_rows], f"finished{row % c.score_rows}").eq(
                    kept.read_data[0]
                ),
            ]
        status = [Cat(unit.status[n] for unit in units) & control.status_units for n in range(2)]
        m.d.comb += [
            control.units_visible.eq(Cat(unit.visible for unit in units)),
            self.overflow.eq(status[0].any()),
            self.underflow.eq(status[1].any()),
        ]
        return m


class Job:
    """Random scores of a job's rows, and what golden makes of them."""

    def __init__(self, config: CoreConfig, rng: np.random.Generator, slot: int) -> None:
        c, self.config, self.slot = config, config, slot
        self.rows = int(rng.integers(1, c.rows + 1))
        self.chunks = int(rng.integers(1, 5))
        self.tiles = int(rng.integers(1, 5))
        tokens = self.chunks * c.lanes
        self.base = int(rng.integers(4)) * c.lanes
        self.start = self.base + int(rng.integers(c.lanes))
        self.end = self.base + tokens - int(rng.integers(c.lanes))
        self.mask = int(rng.integers(1, 1 << c.rows))
        self.position = [self.base + int(rng.integers(tokens)) for _ in range(c.rows)]
        self.draft = [int(rng.integers(1 << 32)) for _ in range(c.rows)]
        self.is_draft, self.causal, self.sink, self.bias, self.scaled = (
            bool(x) for x in rng.integers(2, size=5)
        )
        self.window = int(rng.choice([0, 5]))
        self.sinks = int(rng.choice([0, self.base + 3]))
        self.softcap = np.float32(rng.choice([0, 30]))
        self.scores = [
            [numbers.wide(rng, near=1, spread=6, nan=0.005) for _ in range(tokens)]
            for _ in range(c.rows)
        ]
        self.logits = [numbers.wide(rng, near=0, spread=2, nan=0) for _ in range(c.rows)]
        draw = lambda: np.array([numbers.bf16_scale(rng) for _ in range(tokens)])  # noqa: E731
        self.k_scale, self.v_scale = (
            (draw(), draw()) if self.scaled else (np.full(tokens, ONE),) * 2
        )
        self.biases = rng.standard_normal((c.rows, tokens)).astype(np.float16)
        self.biases[rng.random(self.biases.shape) < 0.1] = -np.inf
        self._expect()

    def sees(self, row: int, token: int) -> bool:
        """The mask, read from docs/numerics.md; biases are not looked at."""
        if row >= self.rows or not self.mask >> row & 1 or not self.start <= token < self.end:
            return False
        if self.is_draft:
            index = token - self.start
            return index < 32 and bool(self.draft[row] >> index & 1)
        here = self.position[row]
        near = not self.window or token + self.window > here or token < self.sinks
        return (not self.causal or token <= here) and near

    def _expect(self) -> None:
        tokens = range(self.base, self.base + self.chunks * self.config.lanes)
        visible = np.array([[self.sees(r, t) for t in tokens] for r in range(self.config.rows)])
        s = np.stack([golden.wides(row).to_float64() for row in self.scores])
        s = score.scale(s, self.k_scale[None])
        if self.softcap:
            s = score.soft_cap(s, float(self.softcap), float(np.float32(1) / self.softcap))
        if self.bias:
            s, masked = score.add_bias(s, self.biases.view(np.uint16), Format.FP16)
            visible &= ~masked
        power = score.exp2(s)
        p = score.mask(power.p, visible)
        scaled = score.scale_p(p, self.v_scale[None])
        self.p = np.array(golden.bits(Operand, scaled), object).reshape(visible.shape)
        self.overflow = bool((power.overflow & visible)[: self.rows].any())
        self.underflow = bool((power.underflow & visible)[: self.rows].any())
        self.useful = int(visible.any(0).sum()) * self.tiles
        total = WideArray.zeros((self.config.rows, 8))
        if self.sink:
            power = score.exp2(golden.wides(self.logits).to_float64())
            self.overflow |= bool(power.overflow[: self.rows].any())
            self.underflow |= bool(power.underflow[: self.rows].any())
            first = _fold(total[..., :1], power.p, 1)
            total.sig[..., :1], total.exp[..., :1] = first.sig, first.exp
        self.l = golden.bits(Wide, output.sum_slots(_fold(total, p, 8)))

    def params(self) -> dict[str, int]:
        cap = self.softcap
        return {
            "causal": self.causal, "sink": self.sink, "query_format": 1, "window": self.window,
            "sinks": self.sinks, "softcap": int(cap.view(np.uint32)),
            "softcap_inverse": int((np.float32(1) / cap).view(np.uint32)) if cap else 0,
            "rows": self.rows, "tiles": self.tiles,
        }  # fmt: skip


def _fold(total: WideArray, p: Any, slots: int) -> WideArray:
    """Adds p [R, T] to the partial sums of its tokens, in order."""
    rows = p.sig.shape[0]
    sig = p.sig if p.nan is None else np.where(p.nan, np.float32(np.nan), p.sig)
    terms = [x.reshape(rows, -1, slots).transpose(1, 0, 2) for x in (sig, p.exp.astype(np.int32))]
    return fold(total, *terms)


class Bench:
    """Plays sequencer, rows and drain for some jobs."""

    def __init__(self, config: CoreConfig, jobs: list[Job], seed: int, stall: float) -> None:
        self.config, self.jobs, self.dut = config, jobs, Scores(config)
        self.chance, self.stall = random.Random(seed), stall
        self.room = config.score_depth
        self.chunks_begun = self.chunks_done = self.folded = self.drained = self.k_ends = (
            self.useful
        ) = 0
        self.buffer: dict[tuple[int, int, int], int] = {}
        self.status = [[0, 0] for _ in jobs]
        self.busy: list[int] = []  # cycles in which a score was read
        self.now = 0

    def run(self, limit: int = 8000) -> None:
        dut = self.dut
        scales = [
            {"k": job.k_scale[at : at + self.config.lanes].tolist(),
             "v": job.v_scale[at : at + self.config.lanes].tolist()}
            for job in self.jobs if job.scaled
            for at in range(0, job.chunks * self.config.lanes, self.config.lanes)
        ]  # fmt: skip
        run(
            dut, self.watch, self.lead, self.drain, lambda ctx: source(ctx, dut.scale, scales),
            until=lambda: self.drained == len(self.jobs), limit=limit, after=40,
        )  # fmt: skip
        assert self.useful == sum(job.useful for job in self.jobs)
        for job, status in zip(self.jobs, self.status, strict=True):
            assert status == [job.overflow, job.underflow]

    async def watch(self, ctx: Any) -> None:
        """Keeps every p where it belongs, counts, and checks l and p when they are complete."""
        dut, control, c = self.dut, self.dut.control, self.config
        chunks = [(job, n) for job in self.jobs for n in range(job.chunks)]
        begins = {id(job): number for number, job in enumerate(self.jobs)}
        while True:
            sampled = await ctx.tick().sample(
                Value.cast(control.p_write), Value.cast(dut.p), control.p_done, control.l_done,
                control.k_end, control.taken, control.useful_tiles, control.score_read.enable,
                dut.overflow, dut.underflow, control.status_slot,
            )  # fmt: skip
            write, p, p_done, l_done, k_end, taken, useful, read, over, under, slot = sampled[2:]
            self.now += 1
            self.room += taken
            self.k_ends += k_end
            self.useful += useful
            self.busy += [self.now] if read else []
            if over or under:
                later = range(self.folded, len(self.jobs))
                number = next(n for n in later if self.jobs[n].slot == slot)
                self.status[number][0] |= over
                self.status[number][1] |= under
            place = data.Const(control.bundles.p_write, write)
            for lane in range(c.lanes):
                if place.lanes >> lane & 1:
                    for unit in range(c.score_units):
                        row = unit * c.score_rows + place.row
                        word = p >> unit * len(Value.cast(dut.p[0]))
                        word &= (1 << len(Value.cast(dut.p[0]))) - 1
                        self.buffer[place.slot, row, lane] = word
            if p_done:
                job, n = chunks[self.chunks_done]
                slot, at = self.chunks_done % c.p_depth, n * c.lanes
                for row in range(c.rows):
                    got = [self.buffer.pop((slot, row, lane)) for lane in range(c.lanes)]
                    want = job.p[row, at : at + c.lanes].tolist()
                    assert got == want, f"job {begins[id(job)]}, chunk {n}, row {row}"
                self.chunks_done += 1
            self.folded += l_done

    async def drain(self, ctx: Any) -> None:
        """Looks at every row's l once it is kept."""
        dut, c = self.dut, self.config
        while True:
            while self.drained == self.folded:
                await ctx.tick()
            job = self.jobs[self.drained]
            for row in range(c.rows):
                unit, member = divmod(row, c.score_rows)
                ctx.set(dut.l_ask, {"unit": unit, "row": member, "slot": job.slot})
                await ctx.tick()
                got = ctx.get(Value.cast(dut.l[unit]))
                assert got == job.l[row], f"job {self.drained}, row {row}"
            self.drained += 1

    async def lead(self, ctx: Any) -> None:
        """Rows' parameters, contexts, and a token's finished scores of all rows at a time."""
        dut, c = self.dut, self.config
        begun = 0
        for number, job in enumerate(self.jobs):
            while self.k_ends < number - 1:
                await ctx.tick()
            ctx.set((dut.params0, dut.params1)[job.slot], job.params())
            for row in range(c.rows):
                ctx.set(dut.setup_row, row)
                ctx.set(dut.setup_sink, job.logits[row])
                ctx.set(dut.setup, {"valid": 1, "slot": job.slot, "position": job.position[row],
                                    "draft": job.draft[row]})  # fmt: skip
                await ctx.tick()
            ctx.set(dut.setup, {"valid": 0})
            tell = {"slot": job.slot, "l_zero": 0, "l_all": 0}
            if job.sink:
                await self.tell(ctx, tell | {"kind": ScoreKind.SINK})
                tell["l_zero"] = 1
            for n in range(job.chunks):
                await self.chunk(ctx, job, n, begun, tell)
                tell["l_zero"] = tell["l_all"] = 1
                begun += 1
            while self.drained < number:
                await ctx.tick()
            await self.tell(ctx, tell | {"kind": ScoreKind.END})

    async def chunk(self, ctx: Any, job: Job, n: int, begun: int, tell: dict[str, int]) -> None:
        dut, c = self.dut, self.config
        while begun - self.chunks_done >= (2 if job.bias else c.p_depth):
            await ctx.tick()
        at = n * c.lanes
        for row in range(c.rows if job.bias else 0):
            words = job.biases[row, at : at + c.lanes].tobytes()
            ctx.set(dut.bias_row, row)
            ctx.set(dut.bias_write, {"valid": 1, "slot": begun % 2,
                                     "data": int.from_bytes(words, "little")})  # fmt: skip
            await ctx.tick()
        ctx.set(dut.bias_write, {"valid": 0})
        await self.tell(
            ctx,
            tell | {
                "kind": ScoreKind.CHUNK, "p_address": begun % c.p_depth, "scaled": job.scaled,
                "bias": job.bias, "bias_slot": begun % 2, "base": job.base + at,
                "start": job.start, "end": job.end, "draft": job.is_draft, "row_mask": job.mask,
            },
        )  # fmt: skip
        for token in range(at, at + c.lanes):
            while self.room == 0 or self.chance.random() < self.stall:
                await ctx.tick()
            self.room -= 1
            ctx.set(dut.totals, [job.scores[row][token] for row in range(c.rows)])
            ctx.set(dut.scored, 1)
            await ctx.tick()
            ctx.set(dut.scored, 0)

    async def tell(self, ctx: Any, context: dict[str, Any]) -> None:
        await source(ctx, self.dut.context, [context])


@pytest.mark.parametrize(("score_rows", "rows"), [(1, 4), (2, 4), (4, 4), (8, 8), (2, 3), (4, 1)])
@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_jobs(score_rows: int, rows: int, stall: float) -> None:
    config = TINY.with_(rows=rows, score_rows=score_rows)
    seed = 100 * score_rows + rows
    rng = np.random.default_rng(seed)
    Bench(config, [Job(config, rng, n % 2) for n in range(6)], seed, stall).run()


def test_a_core_without_soft_cap() -> None:
    config = TINY.with_(softcap=False)
    rng = np.random.default_rng(9)
    jobs = [Job(config, rng, n % 2) for n in range(3)]
    for job in jobs:
        job.softcap = np.float32(0)
        job._expect()
    Bench(config, jobs, 9, 0.2).run()


@pytest.mark.parametrize("score_rows", [1, 2, 4])
def test_a_unit_takes_a_score_every_cycle(score_rows: int) -> None:
    """Where scores wait, and no sink or fold is in between."""
    config = TINY.with_(score_rows=score_rows)
    rng = np.random.default_rng(3)
    job = Job(config, rng, 0)
    while job.sink or job.bias or job.chunks < 3:
        job = Job(config, rng, 0)
    bench = Bench(config, [job], 3, 0.0)
    bench.run()
    scores = job.chunks * config.lanes * score_rows
    assert len(bench.busy) == scores
    # A token comes every cycle, except while a chunk is told of.
    assert bench.busy[-1] - bench.busy[0] < scores + 3 * job.chunks


@pytest.mark.parametrize("softcap", [True, False])
def test_latency(softcap: bool) -> None:
    """From a finished score to its p, as ScoreTiming says."""
    config = TINY.with_(softcap=softcap)
    timing = ScoreTiming.of(config)
    dut = Scores(config)
    cycles: dict[str, int] = {}

    async def lead(ctx: Any) -> None:
        ctx.set(dut.params0, {"rows": config.rows, "tiles": 1})
        chunk = {"kind": ScoreKind.CHUNK, "end": config.lanes, "row_mask": (1 << config.rows) - 1}
        await source(ctx, dut.context, [chunk])
        await ctx.tick().repeat(3)
        ctx.set(dut.scored, 1)
        await ctx.tick()
        ctx.set(dut.scored, 0)

    async def watch(ctx: Any) -> None:
        now = 0
        while True:
            _, _, scored, lanes = await ctx.tick().sample(dut.scored, dut.control.p_write.lanes)
            now += 1
            for name, holds in (("scored", scored), ("p", lanes)):
                if holds:
                    cycles.setdefault(name, now)

    run(dut, watch, lead, until=lambda: len(cycles) == 2, limit=200)
    assert cycles["p"] - cycles["scored"] == timing.AFTER_SUM + timing.pv


def test_refused() -> None:
    with pytest.raises(ValueError, match="score_rows must be 1, 2, 4 or 8, not 3"):
        TINY.with_(score_rows=3)
