"""The CRC of integrity tags as sums of bits: parallel over a beat, and backwards over scales."""

from collections.abc import Callable, Sequence

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.layout import TAG_POLYNOMIAL, TAG_START
from m890.hdl.numerics.pipeline import register, wire

TAG_BITS = 16
PIECE = 128
"""Bits of a message that are summed in the first cycle."""


def forward(tag: int, message: Sequence[int]) -> int:
    """The remainder after further bytes."""
    for byte in message:
        tag ^= byte << 8
        for _ in range(8):
            tag = tag << 1 ^ (1 << TAG_BITS | TAG_POLYNOMIAL) * (tag >> TAG_BITS - 1)
    return tag


def backward(tag: int, message: Sequence[int]) -> int:
    """The remainder before these bytes, where `tag` is the one after them."""
    for byte in reversed(message):
        for _ in range(8):
            tag = (tag ^ (1 << TAG_BITS | TAG_POLYNOMIAL) * (tag & 1)) >> 1
        tag ^= byte << 8
    return tag


def advance(tag: Value, count: int) -> Value:
    """The remainder after `count` bytes of zeros."""
    return _sum(tag, [forward(1 << n, bytes(count)) for n in range(TAG_BITS)])


def started(count: int) -> int:
    """The remainder of `count` bytes of zeros."""
    return forward(TAG_START, bytes(count))


def contribution(message: Value) -> Value:
    """What whole bytes, the first the lowest, add to the remainder of their many zeros."""
    count = len(message) // 8
    return _sum(message, _columns(count, lambda raw: forward(0, raw)))


def rewind(half: Value) -> Value:
    """The remainder before the bytes of a half entry, the last two of which are the tag."""
    count = len(half) // 8 - 2
    columns = _columns(count, lambda raw: backward(0, raw))
    tag = [backward(1 << n, bytes(count)) for n in range(TAG_BITS)]
    return _sum(half, columns + tag)


def _columns(count: int, function: Callable[[bytes], int]) -> list[int]:
    """What each bit of `count` bytes gives by itself under a linear function."""
    return [function((1 << n).to_bytes(count, "little")) for n in range(8 * count)]


def _sum(value: Value, columns: Sequence[int]) -> Value:
    """Sum modulo 2 of the columns whose bit of `value` is set."""
    masks = [sum((c >> n & 1) << i for i, c in enumerate(columns)) for n in range(TAG_BITS)]
    return Cat((value & Const(mask, len(columns))).xor() for mask in masks)


class Crc(wiring.Component):
    """What a message adds to a remainder, whatever it was before.

    Function
        `contribution` of the message; a shorter one lies at the top, zeros below it.
    Members
        message : In. `o` : Out.
    Latency
        2 cycles.
    Throughput
        One message per cycle.
    Source
        G. Campobello, G. Patane, M. Russo, "Parallel CRC Realization", IEEE Trans. Computers 52
        (2003).
    """

    message: Signal
    o: Signal
    latency = 2

    def __init__(self, bits: int) -> None:
        super().__init__({"message": In(bits), "o": Out(TAG_BITS)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits = len(self.message)
        parts = []
        for start in range(0, bits, PIECE):
            part = self.message[start : start + PIECE]
            # Advanced past the pieces behind it, which costs nothing: the sums are one sum.
            zeros = (bits - start - len(part)) // 8
            columns = _columns(
                len(part) // 8, lambda raw, zeros=zeros: forward(0, raw + bytes(zeros))
            )
            parts.append(register(m, _sum(part, columns), name=f"part{start // PIECE}"))
        total: Value = parts[0]
        for part in parts[1:]:
            total = total ^ part
        m.d.comb += self.o.eq(register(m, wire(m, total, name="total"), name="sum"))
        return m
