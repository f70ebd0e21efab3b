"""On-chip memory that corrects one wrong bit of a word and detects two."""

import functools
import itertools
from typing import Any

from amaranth.hdl import Cat, Const, Module, Shape, ShapeLike, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.memory.sram import Sram


def check_bits(width: int) -> int:
    """Check bits beside `width` bits of data."""
    bits = 3
    while (1 << bits - 1) - bits < width:
        bits += 1
    return bits


@functools.cache
def columns(width: int) -> tuple[int, ...]:
    """Check bits that each data bit takes part in: different odd sets of three or more."""
    bits, found = check_bits(width), []
    for size in range(3, bits + 1, 2):
        for chosen in itertools.combinations(range(bits), size):
            found.append(sum(1 << bit for bit in chosen))
    return tuple(found[:width])


def encode(word: Value) -> Value:
    """Check bits of a word."""
    parts = []
    for bit in range(check_bits(len(word))):
        parity: Value = Const(0, 1)
        for n, column in enumerate(columns(len(word))):
            if column >> bit & 1:
                parity = parity ^ word[n]
        parts.append(parity)
    return Cat(*parts)


class SecdedSram(wiring.Component):
    """A synchronous memory with an error-correcting code.

    Function
        Hsiao's code: each word carries check bits; a read corrects one wrong bit of the word and
        detects two. The memory itself keeps a wrong bit until the word is written again.
    Members
        write_address, write_data, write_enable : the write port. inject : bits to be turned over in
        the word written: 1 its first, 2 its first two.
        read_address[n], read_enable[n] : read port n. read_data[n] : one cycle later, corrected,
        combinational behind the memory. corrected[n], fatal[n] : one bit of it was wrong; more.
    Latency
        1 cycle.
    Storage
        depth x (width + check bits), 1 write port, `reads` read ports.
    Source
        M. Y. Hsiao, "A Class of Optimal Minimum Odd-weight-column SEC-DED Codes", 1970.
    """

    write_address: Signal
    write_data: Any
    write_enable: Signal
    inject: Signal
    read_address: Any
    read_enable: Any
    read_data: Any
    corrected: Any
    fatal: Any

    def __init__(self, shape: ShapeLike, depth: int, *, reads: int = 1) -> None:
        self.depth, self._reads = depth, reads
        self._width = Shape.cast(shape).width
        address = range(max(2, depth))
        super().__init__(
            {
                "write_address": In(address),
                "write_data": In(shape),
                "write_enable": In(1),
                "inject": In(2),
                "read_address": In(address).array(reads),
                "read_enable": In(1).array(reads),
                "read_data": Out(shape).array(reads),
                "corrected": Out(1).array(reads),
                "fatal": Out(1).array(reads),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width, checks = self._width, check_bits(self._width)
        m.submodules.sram = sram = Sram(width + checks, max(2, self.depth), reads=self._reads)
        written = Value.cast(self.write_data)
        m.d.comb += [
            sram.write_address.eq(self.write_address),
            sram.write_data.eq(Cat(written, encode(written)) ^ self.inject),
            sram.write_enable.eq(self.write_enable),
        ]
        for n in range(self._reads):
            raw = sram.read_data[n]
            word, syndrome = raw[:width], Signal(checks, name=f"syndrome{n}")
            wrong = Cat(*(syndrome == column for column in columns(width)))
            single = syndrome.xor()  # an odd number of check bits disagrees
            known = wrong.any() | Cat(*(syndrome == 1 << bit for bit in range(checks))).any()
            m.d.comb += [
                sram.read_address[n].eq(self.read_address[n]),
                sram.read_enable[n].eq(self.read_enable[n]),
                syndrome.eq(raw[width:] ^ encode(word)),
                Value.cast(self.read_data[n]).eq(word ^ wrong),
                self.corrected[n].eq(single & known),
                self.fatal[n].eq(syndrome.any() & ~(single & known)),
            ]
        return m
