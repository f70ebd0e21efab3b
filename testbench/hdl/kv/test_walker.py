"""The walker: which chunks it asks about, what it lets through, how fast."""

import random

import pytest
from amaranth.hdl import Value

from m890.hdl.commands import SegmentKind
from m890.hdl.config import preset
from m890.hdl.kv.items import ItemKind, entry_layout, item_layout, see_layout
from m890.hdl.kv.walker import SEEN_LATENCY, Walker
from m890.testbench.hdl.kv.bench import fields
from m890.testbench.hdl.kv.support import run, sink, source


def segment(index: int, start: int, end: int, *, kind=SegmentKind.KV, last=False) -> dict:
    return {
        "kind": int(kind), "start": start, "end": end, "row_mask": index + 1, "table": 1 << 20,
        "address": 1 << 12 + index, "last": int(last), "index": index,
    }  # fmt: skip


def walk(config, job, segments, sees, seed=0, stall=0.0, slow=None):
    """Entries as (kind, first token, source, segment index); questions; cycles."""
    dut = Walker(config)
    entries, questions = [], []
    bits = item_layout(config).size
    layout = entry_layout(config)

    def taken(value: int) -> None:
        item = fields(item_layout(config), value & ((1 << bits) - 1))
        source_bits = value >> layout["source"].offset
        entries.append((item["kind"], item["base_token"], source_bits, item["index"]))

    async def rows(ctx) -> None:
        answers = [0] * (SEEN_LATENCY - 1)
        while True:
            _, _, value = await ctx.tick().sample(Value.cast(dut.see))
            ctx.set(dut.seen, answers.pop(0))
            question = fields(see_layout(config), value)
            if question["valid"]:
                questions.append((question["t_low"], question["t_high"], question["row_mask"]))
            # Noise where nothing was asked.
            answers.append(sees(question["t_low"]) if question["valid"] else 1)

    cycles = run(
        dut,
        rows,
        lambda ctx: source(ctx, dut.job, [job], seed, stall),
        lambda ctx: source(ctx, dut.segment, segments, seed + 1, stall),
        lambda ctx: sink(ctx, dut.o, taken, seed + 2, stall if slow is None else slow),
        until=lambda: bool(entries) and entries[-1][0] == ItemKind.END,
        limit=3000,
        after=10,
    )
    return entries, questions, cycles


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_chunks_of_segments(name, stall, seed):
    config = preset(name)
    lanes, chance = config.lanes, random.Random(seed)
    segments = []
    for n in range(8):
        kind = chance.choice(list(SegmentKind))
        start = chance.randrange(5 * lanes)
        end = chance.choice([start, start + 1, start + chance.randint(1, 6 * lanes)])
        segments.append(segment(n, start, end, kind=kind, last=n == 7))
    hidden = {chance.randrange(12) for _ in range(4)}

    def sees(token: int) -> bool:
        return token // lanes not in hidden

    entries, questions = [], []
    for n, s in enumerate(segments):
        if s["kind"] == SegmentKind.RAW:
            entries.append((ItemKind.RAW, None, s["address"], n))
            continue
        first = s["start"] // lanes
        for chunk in range(first, -(-s["end"] // lanes) if s["end"] > s["start"] else first):
            low = max(chunk * lanes, s["start"])
            questions.append((low, min(chunk * lanes + lanes, s["end"]) - 1, n + 1))
            if sees(low):
                at = s["address"] + (chunk - first) * 3 * config.port_bytes
                entries.append((ItemKind.CHUNK, chunk * lanes, at, n))
    job = {"slot": 1, "rows": 3, "tiles": 1, "bias": 1}
    got, asked, _ = walk(config, job, segments, sees, seed, stall)
    assert asked == questions
    assert got.pop()[0] == ItemKind.END
    assert [
        (kind, None if kind == ItemKind.RAW else token, source, index)
        for kind, token, source, index in got
    ] == entries


def test_one_chunk_per_cycle():
    config = preset("tiny")
    segments = [segment(0, 0, 8000, last=True)]
    job = {"rows": 1, "tiles": 1}
    none, _, unseen = walk(config, job, segments, lambda token: False)
    every, _, seen = walk(config, job, segments, lambda token: True)
    assert (len(none), len(every)) == (1, 1001)
    assert 1000 <= unseen <= 1015
    assert 1000 <= seen <= 1015


def test_a_full_queue_holds_questions_back(seed):
    """No chunk is lost when all are visible and hardly any is taken."""
    config = preset("tiny")
    segments = [segment(0, 0, 800, last=True)]
    got, _, _ = walk(config, {"rows": 1}, segments, lambda token: True, seed, slow=0.9)
    assert [token for _, token, _, _ in got[:-1]] == list(range(0, 800, 8))
