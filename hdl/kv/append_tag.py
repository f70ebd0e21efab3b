"""Append's integrity tags: remainders of the rows while their codes are formed."""

from typing import Any

from amaranth.hdl import C, Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import elements_layout, packing
from m890.hdl.kv.tags import next_remainder
from m890.hdl.numerics.crc import TAG_BITS, Crc
from m890.hdl.numerics.pipeline import delay


class RowTags(wiring.Component):
    """Remainders of the codes of a token's K and V.

    Function
        The CRC of a row's codes as stored, tile after tile (docs/numerics.md, "Integrity tags").
    Members
        enable : In. The plane has tags. Steady. format : In. Steady.
        valid, begins, codes : In. A tile; the first of its row.
        k, v : Out. Of the last but one row, of the last one.
    Latency
        `latency` cycles from a row's last tile to v. A further row is seen in k and v as late after
        its first tile.
    Throughput
        One tile per cycle.
    """

    enable: Signal
    format: Signal
    valid: Signal
    begins: Signal
    codes: Any
    k: Signal
    v: Signal
    latency = 1 + Crc.latency

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "enable": In(1),
                "format": In(4),
                "valid": In(1),
                "begins": In(1),
                "codes": In(elements_layout(config)),
                "k": Out(TAG_BITS),
                "v": Out(TAG_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits, packed = self._config.port_bits, packing(self.format)
        m.submodules.crc = crc = Crc(bits)
        with m.If(self.enable):  # nothing toggles where there are no tags
            for n in range(3):
                codes = Cat(code[: 16 >> n] for code in self.codes)
                with m.If(packed == n):
                    m.d.comb += crc.message.eq(Cat(C(0, bits - len(codes)), codes))
        valid = delay(m, self.valid & self.enable, Crc.latency, name="valid", reset=True)
        begins = delay(m, self.begins, Crc.latency, name="begins")
        with m.If(valid):
            m.d.sync += self.v.eq(next_remainder(self._config, packed, begins, self.v, crc.o))
            with m.If(begins):
                m.d.sync += self.k.eq(self.v)
        return m
