"""Append's integrity tags: remainders of the rows while their codes are formed."""

from typing import Any

from amaranth.hdl import C, Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.kv.items import packing
from m890.hdl.kv.tags import next_remainder
from m890.hdl.numerics.crc import TAG_BITS, contribution
from m890.hdl.numerics.pipeline import delay, register


class RowTags(wiring.Component):
    """Remainders of the codes of a token's K and V.

    Function
        The CRC of a row's codes as stored, `lanes` after `lanes` (docs/numerics.md, "Integrity
        tags").
    Members
        enable : In. The plane has tags. Steady. format : In. Steady.
        valid, begins, codes : In. Codes; the first of their row.
        k, v : Out. Of the last but one row, of the last one.
    Latency
        `latency` cycles from a row's last codes to v. A further row is seen in k and v as late
        after its first ones.
    Throughput
        `lanes` codes per cycle.
    Parameters
        lanes : an even number.
    """

    enable: Signal
    format: Signal
    valid: Signal
    begins: Signal
    codes: Any
    k: Signal
    v: Signal
    latency = 2

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        super().__init__(
            {
                "enable": In(1),
                "format": In(4),
                "valid": In(1),
                "begins": In(1),
                "codes": In(data.ArrayLayout(16, lanes)),
                "k": Out(TAG_BITS),
                "v": Out(TAG_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width, packed = 16 * self._lanes, packing(self.format)
        message = Signal(width)
        with m.If(self.enable):  # nothing toggles where there are no tags
            for n in range(3):
                codes = Cat(code[: 16 >> n] for code in self.codes)
                with m.If(packed == n):
                    m.d.comb += message.eq(Cat(C(0, width - len(codes)), codes))
        new = register(m, contribution(message), name="new")
        valid = delay(m, self.valid & self.enable, 1, name="valid", reset=True)
        begins = delay(m, self.begins, 1, name="begins")
        with m.If(valid):
            m.d.sync += self.v.eq(next_remainder(width // 8, packed, begins, self.v, new))
            with m.If(begins):
                m.d.sync += self.k.eq(self.v)
        return m
