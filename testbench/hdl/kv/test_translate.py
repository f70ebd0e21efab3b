"""The translator: addresses, table beats read once and ahead, errors, the job after an error."""

import random
from typing import Any

import pytest

from m890.hdl.commands import Error
from m890.hdl.config import CoreConfig, preset
from m890.hdl.kv.items import ItemKind, item_layout, located_layout
from m890.hdl.kv.translate import Translator
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.testbench.hdl.kv.bench import fields
from m890.testbench.hdl.kv.support import MINE, Image, memory, owners, run, sink, source


def translate(
    config: CoreConfig, image: Image, entries: list[dict], *, latency=20, seed=0, stall=0.0
) -> tuple[list[dict[str, int]], int]:
    """What leaves, as flat dicts, and the cycles that it took."""
    dut = Translator(config)
    got: list[dict[str, int]] = []
    layout = located_layout(config)

    def taken(value: int) -> None:
        item = fields(item_layout(config), value)
        for name in ("address", "v_address", "beats", "source"):
            field = layout[name]
            item[name] = value >> field.offset & ((1 << field.width) - 1)
        got.append(item)

    ends = sum(entry["item"]["kind"] == ItemKind.END for entry in entries)
    cycles = run(
        dut,
        lambda ctx: memory(ctx, image, {"t": dut.table}, latency=latency, seed=seed, stall=stall),
        lambda ctx: owners(ctx, image, dut.owner, seed=seed, stall=stall),
        lambda ctx: source(ctx, dut.i, entries, seed + 1, stall),
        lambda ctx: sink(ctx, dut.o, taken, seed + 2, stall),
        until=lambda: sum(item["kind"] == ItemKind.END for item in got) == ends,
        limit=5000,
        after=20,
    )
    return got, cycles


def chunk(index: int, token: int, table: int, **constants: Any) -> dict:
    item = {"kind": ItemKind.CHUNK, "index": index, "base_token": token, "tiles": 2}
    item["format"] = constants.pop("format", Format.FP16)
    return {"item": item, "table": table, **constants}


END = {"item": {"kind": ItemKind.END}}


@pytest.mark.parametrize("page_tokens", [8, 32])
@pytest.mark.parametrize("form", [Format.BF16, Format.INT8])
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_addresses(page_tokens, form, stall, seed):
    config = preset("tiny").with_(page_tokens=page_tokens)
    chance, image = random.Random(seed), Image(config, seed)
    layout = PageLayout(config, form, 2)
    entries, expected = [], []
    for index in range(4):
        base, stride = chance.randrange(1 << 35) * 16, chance.randrange(1 << 28) * 16
        table, token = chance.randrange(1 << 35) * 16, chance.randrange(1 << 20) * 8
        for at in range(token, token + 64, chance.choice([8, 16, 24])):
            place = table + 4 * (at // page_tokens)
            page = image.words.setdefault(place, chance.randrange(config.pages))
            start = base + page * stride + at % page_tokens // 8 * layout.chunk_bytes
            start &= (1 << config.address_bits) - 1
            entries.append(chunk(index, at, table, base=base, stride=stride, format=form))
            value = start + layout.v_offset & (1 << config.address_bits) - 1
            expected.append((at, start, value, layout.region_beats))
    got, _ = translate(config, image, [*entries, END], seed=seed, stall=stall)
    names = ("base_token", "address", "v_address", "beats")
    assert [tuple(item[name] for name in names) for item in got[:-1]] == expected


def test_table_beats_are_read_once_and_ahead(seed):
    """Sixteen neighbours share four beats; strangers' reads overlap."""
    config = preset("tiny")
    image = Image(config, seed)
    for n in range(16):
        image.words[4096 + 4 * n] = n
        for other in range(16):
            image.words[(other + 2) * 4096 + 4 * n] = n
    translate(config, image, [*(chunk(0, 8 * n, 4096) for n in range(16)), END])
    assert len(image.read_beats) == 4
    image.read_beats.clear()
    entries = [chunk(n, 0, 4096 * (n + 1)) for n in range(16)]
    _, cycles = translate(config, image, [*entries, END], latency=60)
    assert len(image.read_beats) == 16
    assert cycles < 16 * 60 / 2  # one after the other it would be 16 x 60 and more


def test_a_new_job_reads_its_table_again(seed):
    """The firmware may have changed the table in the meantime."""
    config = preset("tiny")
    image = Image(config, seed)
    image.words[4096] = 1
    translate(config, image, [chunk(0, 0, 4096), END, chunk(0, 0, 4096), END])
    assert len(image.read_beats) == 2


def test_only_the_job_with_the_error_loses_chunks(seed):
    config = preset("tiny")
    image = Image(config, seed)
    image.words |= {4096 + 4 * n: n for n in range(4)} | {4096 + 8: config.pages}
    image.words |= {12288: 7}
    image.owners[7] = MINE | {"tenant": 1}
    image.errors.add(8192)
    good = [chunk(0, 0, 4096), chunk(0, 8, 4096)]
    raw = {"item": {"kind": ItemKind.RAW, "index": 3}, "source": 64}
    bad = [chunk(1, 16, 4096), chunk(2, 0, 8192), raw, chunk(2, 24, 4096)]
    foreign = [chunk(0, 0, 4096), chunk(2, 0, 12288), chunk(1, 0, 4096), END]
    own = [chunk(0, 0, 12288, tenant=1), chunk(4, 0, 4096, tenant=1), END]
    got, _ = translate(
        config, image, [*good, *bad, END, chunk(0, 0, 8192), END, *foreign, *own, *good, raw, END]
    )
    seen = [(item["kind"], item["error"], item["index"]) for item in got]
    chunks = [(ItemKind.CHUNK, 0, 0)] * 2
    assert seen == [
        *chunks, (ItemKind.END, Error.BAD_PAGE, 1),
        (ItemKind.END, Error.BUS_ERROR, 0),
        (ItemKind.CHUNK, 0, 0), (ItemKind.END, Error.BAD_TENANT, 2),
        (ItemKind.CHUNK, 0, 0), (ItemKind.END, Error.BAD_TENANT, 4),
        *chunks, (ItemKind.RAW, 0, 3), (ItemKind.END, 0, 0),
    ]  # fmt: skip
