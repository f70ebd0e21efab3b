"""The CRC in logic against Python's own."""

import random
from binascii import crc_hqx

import pytest
from amaranth.hdl import Module, Value

from m890.hdl.numerics.crc import Crc, advance, contribution, rewind
from m890.testbench.hdl.numerics.pipelines import Registered, run_pipeline


@pytest.mark.parametrize("size", [16, 32, 128])
def test_messages(size: int, seed: int) -> None:
    """Of all sizes up to the beat's, short ones at the top."""
    chance = random.Random(seed)
    messages = [chance.randbytes(chance.choice([size, size // 2, size // 4])) for _ in range(200)]
    words = [int.from_bytes(m.rjust(size, b"\0"), "little") for m in messages]
    got = run_pipeline(Crc(8 * size), {"message": words}, ["o"], Crc.latency)["o"]
    assert got == [crc_hqx(m, 0) for m in messages]


@pytest.mark.parametrize("count", [1, 2, 4, 16, 128])
def test_zeros(count: int, seed: int) -> None:
    tags = [1 << n for n in range(16)] + random.Random(seed).choices(range(1 << 16), k=50)

    def function(_: Module, tag: Value) -> Value:
        return advance(tag, count)

    got = run_pipeline(Registered({"tag": 16}, 16, function), {"tag": tags}, ["o"], 1)["o"]
    assert got == [crc_hqx(bytes(count), tag) for tag in tags]


@pytest.mark.parametrize("half", [2, 4, 8, 16])
def test_half_entries(half: int, seed: int) -> None:
    """Backwards from the tag over the bytes before it, and forwards over them."""
    chance, tags = random.Random(seed), half - 2

    def back(_: Module, half: Value) -> Value:
        return rewind(half)

    def on(_: Module, tag: Value, half: Value) -> Value:
        return advance(tag, tags) ^ contribution(half[: 8 * tags])

    before = chance.choices(range(1 << 16), k=100)
    messages = [chance.randbytes(tags) for _ in before]
    after = [crc_hqx(m, tag) for m, tag in zip(messages, before, strict=True)]
    words = [
        int.from_bytes(m + tag.to_bytes(2, "little"), "little")
        for m, tag in zip(messages, after, strict=True)
    ]
    dut = Registered({"half": 8 * half}, 16, back)
    assert run_pipeline(dut, {"half": words}, ["o"], 1)["o"] == before
    dut = Registered({"tag": 16, "half": 8 * half}, 16, on)
    assert run_pipeline(dut, {"tag": before, "half": words}, ["o"], 1)["o"] == after
