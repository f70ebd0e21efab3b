"""The whole KV read path against the page layout: order, masks, errors."""

import random

import pytest

from m890.hdl.commands import Error, SegmentKind
from m890.hdl.kv.items import ItemKind
from m890.hdl.layout import PageLayout, raw_stride
from m890.hdl.numerics.formats import Format
from m890.testbench.hdl.kv.bench import CONFIGS, STREAMS, Bench, make_job
from m890.testbench.hdl.kv.support import MINE, Image


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stall", [0.0, 0.3])
def test_random_jobs(name, stall, seed):
    config = CONFIGS[name]
    chance = random.Random(seed)
    image = Image(config, seed)
    sizes = [1, 2, 3, 4] if config.lanes == 8 else [1, 2, 3]
    jobs = [make_job(config, image, chance, n, tiles=chance.choice(sizes)) for n in range(5)]
    stalls = {name: stall for name in (*STREAMS, "memory", "owner", "job")}
    Bench(config, image, jobs).run(seed, **stalls)


@pytest.mark.parametrize("slow", [*STREAMS, "memory", "owner", "job"])
def test_one_slow_stream(slow, seed):
    """One stream nearly stands still while the others run as far ahead as they can."""
    config = CONFIGS["tiny"]
    chance = random.Random(seed)
    image = Image(config, seed)
    jobs = [make_job(config, image, chance, n, tiles=2, bias=1) for n in range(4)]
    Bench(config, image, jobs).run(seed, **{slow: 0.85})


@pytest.mark.parametrize("what", ["next page", "upper bits"])
def test_bad_page(what, seed):
    """Chunks from the bad page on are dropped, END names the segment; the next job is whole."""
    config = CONFIGS["tiny"]
    chance = random.Random(seed)
    image = Image(config, seed)
    kinds = [SegmentKind.KV]
    everything = {"causal": False, "window": 0, "kinds": kinds, "bias": 1}
    jobs = [make_job(config, image, chance, n, segments=3, **everything) for n in range(3)]
    for segment in jobs[1].segments:
        segment.row_mask = 1
    bad = jobs[1].segments[1]
    entry = max(bad.pages)
    number = config.pages if what == "next page" else 1 << 16 | bad.pages[entry]
    bad.pages[entry] = image.words[bad.table + 4 * entry] = number
    bench = Bench(config, image, jobs)
    ends = [item for item in bench.expected.item if item["kind"] == ItemKind.END]
    assert [(i["error"], i["index"]) for i in ends] == [(0, 0), (Error.BAD_PAGE, 1), (0, 0)]
    bench.run(seed)


@pytest.mark.parametrize(
    ("owner", "error"),
    [
        ({"tenant": 1}, Error.BAD_TENANT),
        ({"tenant": 1, "public": 1}, Error.OK),
        ({"live": 0}, Error.BAD_PAGE),
        ({"live": 0, "tenant": 1, "public": 1}, Error.BAD_PAGE),
        ({"damaged": 1}, Error.TABLE_ERROR),
        ({"damaged": 1, "live": 0, "tenant": 1}, Error.TABLE_ERROR),
    ],
)
@pytest.mark.parametrize("stall", [0.0, 0.3])
def test_an_entry_that_names_a_page_out_of_reach(owner, error, stall, seed):
    """Nothing of the page is read (`compare` counts every beat); the jobs around are whole."""
    config = CONFIGS["tiny"]
    chance = random.Random(seed)
    image = Image(config, seed)
    everything = {"causal": False, "window": 0, "kinds": [SegmentKind.KV], "bias": 1}
    jobs = [make_job(config, image, chance, n, segments=3, **everything) for n in range(3)]
    for job in jobs:
        job.tenant = 2
    for page in image.owners:
        image.owners[page] |= {"tenant": 2, "public": 0}
    for segment in jobs[1].segments:
        segment.row_mask = 1
    wrong = next(n for n in range(config.pages) if n not in image.owners)
    image.owners[wrong] = MINE | {"tenant": 2} | owner
    bad = jobs[1].segments[1]
    entry = max(bad.pages)
    bad.pages[entry] = image.words[bad.table + 4 * entry] = wrong
    bench = Bench(config, image, jobs)
    ends = [item for item in bench.expected.item if item["kind"] == ItemKind.END]
    assert [(i["error"], i["index"]) for i in ends] == [(0, 0), (error, int(error != 0)), (0, 0)]
    bench.run(seed, memory=stall, owner=stall)


def test_bus_error_of_the_table(seed):
    config = CONFIGS["tiny"]
    chance = random.Random(seed)
    image = Image(config, seed)
    everything = {"causal": False, "window": 0, "kinds": [SegmentKind.KV]}
    jobs = [make_job(config, image, chance, n, segments=3, **everything) for n in range(3)]
    for segment in jobs[1].segments:
        segment.row_mask = 1
    bad = jobs[1].segments[2]
    image.errors.add((bad.table + 4 * min(bad.pages)) // config.port_bytes * config.port_bytes)
    bench = Bench(config, image, jobs)
    bench.run(seed)
    ends = [item for item in bench.got.item if item["kind"] == ItemKind.END]
    assert [(i["error"], i["index"]) for i in ends] == [(0, 0), (Error.BUS_ERROR, 2), (0, 0)]
    assert bench.bus_errors == []


@pytest.mark.parametrize("where", ["scale", "k", "v", "bias", "raw"])
def test_bus_error_of_data(where, seed):
    """The slot's bit pulses once per bad beat; the data come all the same."""
    config = CONFIGS["tiny"]
    chance = random.Random(seed)
    image = Image(config, seed)
    kinds = [SegmentKind.RAW if where == "raw" else SegmentKind.KV]
    fixed = {"causal": False, "window": 0, "kinds": kinds, "segments": 2, "tiles": 2, "bias": 1}
    jobs = [make_job(config, image, chance, n, format=Format.INT8, **fixed) for n in range(2)]
    segment = jobs[1].segments[1]
    segment.row_mask = 1
    layout = PageLayout(config, Format.INT8, 2, jobs[1].tags)
    page = jobs[1].base + segment.pages[max(segment.pages)] * jobs[1].stride
    image.errors.add(
        {
            "scale": page,
            "k": page + layout.k_offset,
            "v": page + layout.chunk_bytes - config.port_bytes,
            "bias": segment.address,
            "raw": segment.address + raw_stride(config, 2) * (jobs[1].rows - 1),
        }[where]
    )
    bench = Bench(config, image, jobs)
    bench.run(seed)
    assert bench.bus_errors == [1 << jobs[1].slot]


def test_invisible_chunks_cost_a_cycle_each(seed):
    """A window over a long context: the chunks before it are passed over at full speed."""
    config = CONFIGS["tiny"]
    chance = random.Random(seed)
    image = Image(config, seed)
    chunks = 500
    job = make_job(
        config, image, chance, 0, segments=1, kinds=[SegmentKind.KV], tiles=1, window=10, sinks=3,
        causal=True, positions=[config.lanes * chunks - 2] * config.rows, format=Format.E4M3,
    )  # fmt: skip
    segment = job.segments[0]
    segment.start, segment.end, segment.row_mask = 0, config.lanes * chunks, 1
    for entry in (0, chunks - 2, chunks - 1):
        page = segment.pages[entry] = chance.randrange(config.pages)
        image.words[segment.table + 4 * entry] = page
        image.hold(page, job.tenant)
    bench = Bench(config, image, [job])
    seen = [item for item in bench.expected.item if item["kind"] == ItemKind.CHUNK]
    assert [item["base_token"] // config.lanes for item in seen] == [0, chunks - 2, chunks - 1]
    assert bench.run(seed) < chunks + 120
