"""Append unit: pages as the layout and the golden model say, in every format, with stalls."""

import random
from binascii import crc_hqx
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from m890.firmware.stored import pack
from m890.hdl.commands import Error, Status
from m890.hdl.config import PRESETS, CoreConfig
from m890.hdl.kv.append import Append
from m890.hdl.layout import TAG_START, PageLayout
from m890.hdl.numerics.formats import CODINGS, Format
from m890.sim.golden.append import append
from m890.sim.golden.rotate import rotate_kv
from m890.testbench.hdl.kv.support import MINE, Image, owners, run, sink, source
from m890.testbench.hdl.memory.stubs import read_server, write_server
from m890.testbench.hdl.numerics import numbers

TINY = PRESETS["tiny"]
TABLE, SOURCE, POOL = 0x1000, 0x4000, 0x20000
SIZE = 0x80000


@dataclass
class Command:
    """An APPEND, what it reads, and what it must do."""

    config: CoreConfig
    format: Format
    source_format: Format
    tiles: int
    start: int
    rows: np.ndarray  # [K or V, tokens, head] bits
    pages: list[int]  # block table from page 0 on
    ident: int = 7
    error: Error = Error.OK
    index: int = 0
    gap: int = 0  # bytes between the pages, and between source rows
    tags: bool = False
    rotate: bool = False
    tenant: int = 0
    repair: bool = False
    layout: PageLayout = field(init=False)

    def __post_init__(self) -> None:
        self.layout = PageLayout(self.config, self.format, self.tiles, self.tags)

    @property
    def stride(self) -> int:
        return self.layout.page_bytes + self.gap

    @property
    def source_stride(self) -> int:
        return self.tiles * self.config.port_bytes + self.gap

    def payload(self) -> dict[str, int]:
        tokens = self.rows.shape[1]
        return {
            "base": POOL, "stride": self.stride, "tiles": self.tiles, "format": self.format,
            "tags": self.tags, "rotate": self.rotate, "table": TABLE, "start": self.start,
            "tokens": tokens,
            "source_format": self.source_format, "k": SOURCE,
            "v": SOURCE + tokens * self.source_stride, "source_stride": self.source_stride,
            "tenant": self.tenant, "repair": self.repair, "ident": self.ident,
        }  # fmt: skip

    def place_inputs(self, memory: bytearray) -> None:
        table = np.array(self.pages, "<u4").tobytes()
        memory[TABLE : TABLE + len(table)] = table
        for n, row in enumerate(self.rows.reshape(-1, self.rows.shape[2])):
            at = SOURCE + n * self.source_stride
            memory[at : at + 2 * len(row)] = row.astype("<u2").tobytes()

    def expect(self, memory: bytearray) -> int:
        """Writes what the command should write; returns its status bits."""
        rows = self.rows
        if self.rotate:
            rows = rotate_kv(rows, self.source_format, self.config.lanes)
        codes, scales, event = append(self.format, rows, self.source_format)
        bits = CODINGS[self.format].bits
        for which in (0, 1):
            for n, row in enumerate(codes[which]):
                page, token = divmod(self.start + n, self.config.page_tokens)
                base = POOL + self.pages[page] * self.stride
                for f, code in enumerate(row):
                    at = base + self.layout.element(token, f, value=bool(which))
                    if bits == 4:
                        shift = 4 * (f % 2)
                        memory[at] = memory[at] & 0xF0 >> shift | int(code) << shift
                    else:
                        memory[at : at + bits // 8] = int(code).to_bytes(bits // 8, "little")
                at = base + self.layout.scale(token, value=bool(which))
                half = b"" if scales is None else scales[which, n].tobytes()
                half = half.ljust(self.layout.half_bytes - 2 * self.tags, b"\0")
                if self.tags:
                    stored = pack(self.layout, row).tobytes()
                    half += crc_hqx(stored + half, TAG_START).to_bytes(2, "little")
                memory[at : at + self.layout.half_bytes] = half
        return int(event.any()) << Status.QUANTISE


def make(rng: np.random.Generator, config: CoreConfig, format: Format, **changes: Any) -> Command:
    """A random command; page numbers differ and are not in order."""
    source_format = Format(int(rng.integers(2)))
    tiles = int(rng.integers(1, config.max_tiles + 1))
    start = int(rng.integers(0, 3 * config.page_tokens))
    tokens = int(rng.integers(1, config.page_tokens + 4))
    changes = {"tiles": tiles, "start": start, "source_format": source_format} | changes
    changes.setdefault("rotate", bool(rng.integers(2)))
    changes.setdefault("tags", bool(rng.integers(2)))
    tokens = changes.pop("tokens", tokens)
    shape = (2, tokens, changes["tiles"] * config.lanes)
    values = rng.normal(size=shape).astype(np.float32)
    if changes["source_format"] == Format.FP16:
        rows = values.astype(np.float16).view(np.uint16)
    else:
        rows = (values.view(np.uint32) >> 16).astype(np.uint16)
    if rng.integers(3) == 0:
        some = rng.random(shape) < 0.05
        rows[some] = [numbers.raw16(rng, changes["source_format"]) for _ in range(some.sum())]
    count = (changes["start"] + tokens - 1) // config.page_tokens + 1
    pages = [int(x) for x in rng.permutation(config.pages)[:count]]
    # Entries outside the command's range may be anything.
    first = changes["start"] // config.page_tokens
    pages = [0xFFFFFFFF] * first + pages[first:]
    return Command(config, format, rows=rows, pages=pages, **changes)


def play(
    command: list[Command], seed: int, *, latency: int = 3, bad: Any = lambda at: False,
    bad_write: Any = lambda at: False, held: dict[int, dict[str, int]] | None = None,
    stall: float = 0.0, changes: dict[int, int] | None = None,
) -> tuple[list[dict], list[bytes], int]:  # fmt: skip
    """Runs commands one after another; (completions, pool after each, cycles).

    Pages are tenant 0's alone, but for those that are `held`; owners are told with stalls.
    `changes`: words of block tables that become another once their beat has been read.
    """
    config = command[0].config
    dut = Append(config)
    image = Image(config, seed)
    image.owners = held or {}
    memory = bytearray(random.Random(seed).randbytes(SIZE))
    done: list[dict] = []
    pools: list[bytes] = [bytes(memory[POOL:])]

    def finish(payload: int) -> None:
        done.append(
            {
                "ident": payload & 0xFFFF,
                "error": payload >> 16 & 0xFF,
                "index": payload >> 24 & 0xFFFF,
                "status": payload >> 40 & 0xFF,
            }
        )
        pools.append(bytes(memory[POOL:]))

    def table_read(address: int) -> bool:
        if changes and address in changes:
            memory[address : address + 4] = changes.pop(address).to_bytes(4, "little")
        return bad(address)

    async def commands(ctx: Any) -> None:
        for n, one in enumerate(command):
            one.place_inputs(memory)
            await source(ctx, dut.command, [one.payload()], seed + n, 0.5)
            while len(done) <= n:
                await ctx.tick()

    async def completions(ctx: Any) -> None:
        await sink(ctx, dut.done, finish, seed, 0.5)

    chance = [random.Random(seed + n) for n in range(3)]
    cycles = run(
        dut,
        commands,
        completions,
        read_server(config, dut.read, memory, chance[0], latency=latency, bad=bad),
        read_server(config, dut.table, memory, chance[1], latency=latency, bad=table_read),
        write_server(config, dut.write, memory, chance[2], latency=latency, bad=bad_write),
        lambda ctx: owners(ctx, image, dut.owner, seed=seed, stall=stall),
        until=lambda: len(done) == len(command),
        limit=20000,
        after=50,
    )
    assert bytes(memory[POOL:]) == pools[-1], "a write after the completion"
    return done, pools, cycles


def check(command: list[Command], done: list[dict], pools: list[bytes]) -> None:
    for n, one in enumerate(command):
        want = bytearray(SIZE)
        want[POOL:] = pools[n]
        status = one.expect(want) if one.error == Error.OK else 0
        assert done[n] == {
            "ident": one.ident, "error": one.error, "index": one.index, "status": status,
        }, f"{one.payload()}"  # fmt: skip
        assert pools[n + 1] == bytes(want[POOL:]), f"{one.payload()}"


@pytest.mark.parametrize("format", Format)
def test_pages(rng: np.random.Generator, seed: int, format: Format) -> None:
    """Head sizes, page crossings, both sources, specials; fast memory, then slow memory."""
    for latency in (1, 40):
        command = [make(rng, TINY, format, gap=16 * n, ident=n) for n in range(2)]
        command.append(make(rng, TINY, format, start=5, tokens=1, tiles=1))
        done, pools, _ = play(command, seed, latency=latency)
        check(command, done, pools)


def test_several_chunks_per_page(rng: np.random.Generator, seed: int) -> None:
    config = TINY.with_(page_tokens=32, lanes=8)
    command = [make(rng, config, format) for format in (Format.E4M3, Format.FP16)]
    done, pools, _ = play(command, seed)
    check(command, done, pools)


def test_wider_port(rng: np.random.Generator, seed: int) -> None:
    config = PRESETS["small"].with_(pages=32, max_head=64)
    command = [
        make(rng, config, format, tokens=5, ident=9) for format in (Format.BF16, Format.E4M3)
    ]
    done, pools, _ = play(command, seed, latency=10)
    check(command, done, pools)


@pytest.mark.parametrize("lanes", [16, 32, 64])
def test_groups_with_scales(rng: np.random.Generator, seed: int, lanes: int) -> None:
    """Groups that span tiles, are a tile, or half a tile; a last one that is not whole."""
    config = TINY.with_(lanes=lanes, page_tokens=lanes, max_head=128, fifo_beats=2 * lanes, pages=8)
    sizes = {16: (8, 5, 3, 1), 32: (4, 3), 64: (2, 1)}[lanes]
    formats = [f for f in Format if CODINGS[f].grouped]
    command = [
        make(rng, config, formats[n % 2], tokens=3, start=lanes - 2, tiles=tiles)
        for n, tiles in enumerate(sizes)
    ]
    done, pools, _ = play(command, seed)
    check(command, done, pools)


def test_many_table_beats(rng: np.random.Generator, seed: int) -> None:
    """More pages than a table beat names: read once to check, and again as they are used."""
    command = [make(rng, TINY, Format.INT8, tiles=1, start=13, tokens=90)]
    done, pools, _ = play(command, seed)
    check(command, done, pools)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_bad_page(rng: np.random.Generator, seed: int, where: str) -> None:
    """Nothing is written, the token is named, and the next command works."""
    command = make(rng, TINY, Format.E4M3, start=12, tokens=60, tiles=2, error=Error.BAD_PAGE)
    page = {"first": 1, "middle": 5, "last": 8}[where]
    command.pages[page] = TINY.pages if where != "middle" else 0x10003
    command.index = max(0, page * TINY.page_tokens - command.start)
    commands = [command, make(rng, TINY, Format.E4M3, tokens=3)]
    done, pools, _ = play(commands, seed)
    check(commands, done, pools)


@pytest.mark.parametrize("stall", [0.0, 0.6])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize(
    "owner,error,repairs",
    [
        ({"tenant": 2}, Error.BAD_TENANT, False),
        ({"tenant": 2, "public": 1}, Error.BAD_TENANT, True),
        ({"shared": 1}, Error.BAD_PAGE, True),
        ({"live": 0, "public": 1}, Error.BAD_PAGE, False),
        ({"damaged": 1}, Error.TABLE_ERROR, False),
    ],
)
def test_a_page_that_it_may_not_write(
    rng: np.random.Generator, seed: int, owner: dict[str, int], error: Error, repairs: bool,
    where: str, stall: float,
) -> None:  # fmt: skip
    """Nothing is written; a repair writes where its tenant reads. The next command is right."""
    command = [
        make(rng, TINY, Format.E4M3, start=12, tokens=44, tiles=1, repair=repair)
        for repair in (False, True)
    ]
    page = {"first": 1, "middle": 4, "last": 6}[where]
    command[1].pages = command[0].pages
    for one in command[: 1 if repairs else 2]:
        one.error, one.index = error, max(0, page * TINY.page_tokens - one.start)
    command.append(make(rng, TINY, Format.INT8, tokens=2, tiles=1))
    number = command[0].pages[page]
    command[2].pages = [n for n in command[0].pages[1:] if n != number][: len(command[2].pages)]
    done, pools, _ = play(command, seed, held={number: MINE | owner}, stall=stall)
    check(command, done, pools)


def test_a_table_that_changes_meanwhile(rng: np.random.Generator, seed: int) -> None:
    """Once all pages were found good, an entry names a stranger's: not a byte of it is written."""
    command = make(rng, TINY, Format.FP16, start=0, tokens=64, tiles=2)
    stranger = next(n for n in range(TINY.pages) if n not in command.pages)
    changes = {TABLE + TINY.port_bytes: stranger}
    held = {stranger: MINE | {"tenant": 1}}
    done, pools, _ = play([command], seed, held=held, changes=changes)
    assert (done[0]["error"], done[0]["index"]) == (Error.BAD_TENANT, 4 * TINY.page_tokens)
    command.rows = command.rows[:, : done[0]["index"]]
    want = bytearray(SIZE)
    want[POOL:] = pools[0]
    command.expect(want)
    assert pools[1] == bytes(want[POOL:])


@pytest.mark.parametrize("what", ["table", "source"])
def test_read_error(rng: np.random.Generator, seed: int, what: str) -> None:
    """BUS_ERROR names the token; it and later ones are not written; the next command works."""
    command = make(rng, TINY, Format.FP16, start=3, tokens=9, tiles=2, error=Error.BUS_ERROR)
    command.index = 0 if what == "table" else 4
    at = TABLE if what == "table" else SOURCE + 4 * command.source_stride + TINY.port_bytes
    done, pools, _ = play([command], seed, bad=lambda address: address == at)
    assert (done[0]["error"], done[0]["index"]) == (Error.BUS_ERROR, command.index)
    command.rows = command.rows[:, : command.index]
    want = bytearray(SIZE)
    want[POOL:] = pools[0]
    if command.index:
        command.expect(want)
    assert pools[1] == bytes(want[POOL:])


def test_recovers(rng: np.random.Generator, seed: int) -> None:
    """After a bus error on a source row, the next command is done as if nothing had been."""
    broken = make(rng, TINY, Format.E5M2, tokens=12, tiles=3, gap=0, error=Error.BUS_ERROR)
    good = make(rng, TINY, Format.E5M2, tokens=2, tiles=1)
    at = SOURCE + 7 * broken.source_stride
    done, pools, _ = play([broken, good], seed, bad=lambda address: address == at, latency=20)
    assert done[0]["error"] == Error.BUS_ERROR and done[0]["index"] == 7
    check([good], done[1:], pools[1:])


def test_write_error(rng: np.random.Generator, seed: int) -> None:
    command = make(rng, TINY, Format.E4M3, start=8, tokens=6, tiles=2)
    page = POOL + command.pages[1] * command.stride
    at = page + command.layout.element(3, 0, value=True) // TINY.port_bytes * TINY.port_bytes
    second = make(rng, TINY, Format.E4M3, start=0, tokens=1, tiles=2)
    second.pages[0] = command.pages[1] ^ 1
    done, _, _ = play([command, second], seed, bad_write=lambda address: address == at)
    assert done[0]["error"] == Error.BUS_ERROR and done[0]["index"] == 3
    assert done[1]["error"] == Error.OK
