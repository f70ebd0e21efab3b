"""The fetcher: order, tags, pieces, and requests only for what the buffer has room for."""

import random
from typing import Any

import pytest

from m890.hdl.config import preset
from m890.hdl.kv.fetch import SCALES, Fetcher
from m890.hdl.kv.items import beat_layout
from m890.testbench.hdl.kv.bench import fields
from m890.testbench.hdl.kv.support import Image, memory, run, sink, source


@pytest.mark.parametrize("depth", [16, 32])
@pytest.mark.parametrize("stall", [0.0, 0.3, 0.8])
def test_commands_in_order(depth, stall, seed):
    config = preset("tiny")
    chance, image, port = random.Random(seed), Image(config, seed), config.port_bytes
    dut = Fetcher(config, tag=4, depth=depth, scales=True)
    commands, beats, scales, is_scale = [], [], [], []
    for _ in range(30):
        address, tag = chance.randrange(1 << 35) * port, chance.randrange(16)
        count, scaled = chance.choice([3, 8, 18, 64]), chance.randrange(2)
        commands.append({"address": address, "beats": count, "scaled": scaled, "tag": tag})
        if scaled:
            scales.append(image.beat(address) | image.beat(address + port) << config.port_bits)
        is_scale += [n < 2 * scaled for n in range(count)]
        for n in range(2 * scaled, count):
            data = image.beat(address + n * port)
            beats.append({"data": data, "first": int(n == 0), "tag": tag})
    got: list[dict[str, int]] = []
    got_scales: list[int] = []
    requested: list[int] = []

    async def watch(ctx: Any) -> None:
        """Beats asked for are never more than the buffer can take, scale beats aside."""
        request = dut.port.request
        while True:
            _, _, valid, ready, size = await ctx.tick().sample(
                request.valid, request.ready, request.payload.beats
            )
            if valid and ready:
                assert 1 <= size <= dut.piece
                requested.append(size)
                split = sum(is_scale[: len(image.read_beats)])
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
        lambda ctx: sink(ctx, dut.scale, got_scales.append, seed + 2, stall),
        watch,
        until=lambda: len(got) == len(beats) and len(got_scales) == len(scales),
        limit=20000,
        after=40,
    )
    assert got == beats
    assert got_scales == scales
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


def test_waiting_scales_hold_requests_back(seed):
    """More scaled commands than the scale queue holds, their beats taken at once, scales late."""
    config = preset("tiny")
    image, port = Image(config, seed), config.port_bytes
    dut = Fetcher(config, tag=1, depth=32, scales=True)
    commands = [{"address": 4096 * n, "beats": 4, "scaled": 1} for n in range(2 * SCALES)]
    scales = [
        image.beat(4096 * n) | image.beat(4096 * n + port) << config.port_bits
        for n in range(2 * SCALES)
    ]
    got: list[int] = []
    run(
        dut,
        lambda ctx: memory(ctx, image, {"port": dut.port}),
        lambda ctx: source(ctx, dut.i, commands),
        lambda ctx: sink(ctx, dut.o, lambda beat: None),
        lambda ctx: sink(ctx, dut.scale, got.append, seed, 0.97),
        until=lambda: len(got) == len(scales),
        limit=5000,
    )
    assert got == scales
