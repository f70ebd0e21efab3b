"""The fetcher: order, tags, pieces, and requests only for what the buffer has room for."""

import random
from typing import Any

import pytest

from m890.hdl.config import preset
from m890.hdl.kv.fetch import Fetcher
from m890.hdl.kv.items import beat_layout
from m890.testbench.hdl.kv.bench import fields
from m890.testbench.hdl.kv.support import Image, memory, run, sink, source


@pytest.mark.parametrize("depth", [16, 32])
@pytest.mark.parametrize("stall", [0.0, 0.3, 0.8])
def test_commands_in_order(depth, stall, seed):
    config = preset("tiny")
    chance, image, port = random.Random(seed), Image(config, seed), config.port_bytes
    dut = Fetcher(config, tag=4, depth=depth)
    commands, beats, headers, is_header = [], [], [], []
    for _ in range(30):
        address, tag = chance.randrange(1 << 35) * port, chance.randrange(16)
        count, header = chance.choice([5, 8, 18, 64]), chance.choice([0, 0, 1, 2, 4])
        commands.append({"address": address, "beats": count, "header": header, "tag": tag})
        is_header += [n < header for n in range(count)]
        for n in range(count):
            data = image.beat(address + n * port)
            if n < header:
                headers.append((data, n == header - 1, header))
            else:
                beats.append({"data": data, "first": int(n == 0), "tag": tag})
    got: list[dict[str, int]] = []
    got_headers: list[tuple] = []
    requested: list[int] = []

    async def take_headers(ctx: Any) -> None:
        """Room comes and goes; a header is asked for only while there is some."""
        beat = dut.header
        while True:
            room = chance.random() >= stall
            ctx.set(dut.header_room, room)
            _, _, valid, reserve, *seen = await ctx.tick().sample(
                dut.header_valid, dut.header_reserve, beat.data, beat.last, beat.beats
            )
            assert room or not reserve
            if valid:
                got_headers.append(tuple(seen))

    async def watch(ctx: Any) -> None:
        """Beats asked for are never more than the buffer can take, headers aside."""
        request = dut.port.request
        while True:
            _, _, valid, ready, size = await ctx.tick().sample(
                request.valid, request.ready, request.payload.beats
            )
            if valid and ready:
                assert 1 <= size <= dut.piece
                requested.append(size)
                split = sum(is_header[: len(image.read_beats)])
                assert sum(requested) - len(got) - split <= depth

    run(
        dut,
        lambda ctx: memory(ctx, image, {"port": dut.port}, seed=seed, stall=stall / 2),
        lambda ctx: source(ctx, dut.i, commands, seed, stall / 2),
        lambda ctx: sink(
            ctx,
            dut.o,
            lambda x: got.append(fields(beat_layout(config, 4), x)),
            seed + 1,
            stall,
        ),
        take_headers,
        watch,
        until=lambda: len(got) == len(beats) and len(got_headers) == len(headers),
        limit=20000,
        after=40,
    )
    assert got == beats
    assert got_headers == headers
    assert sum(requested) == sum(command["beats"] for command in commands)


def test_a_beat_per_cycle(seed):
    """Behind the first access, short commands stream without a gap as long as data come."""
    config = preset("tiny")
    image = Image(config, seed)
    dut = Fetcher(config, tag=1, depth=32)
    commands = [{"address": 4096 * n, "beats": 8, "tag": n & 1} for n in range(40)]
    got: list[int] = []
    cycles = run(
        dut,
        lambda ctx: memory(ctx, image, {"port": dut.port}, latency=8),
        lambda ctx: source(ctx, dut.i, commands),
        lambda ctx: sink(ctx, dut.o, got.append),
        until=lambda: len(got) == 320,
        limit=1000,
    )
    assert cycles <= 320 + 20


def test_a_piece_that_cannot_fit_is_refused():
    with pytest.raises(ValueError, match="a piece has 2 to 8 beats .the buffer's., not 9"):
        Fetcher(preset("tiny"), tag=1, depth=8, piece=9)
