"""Range check of a command's addresses, one after the other."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.memory.burst import beat_bits
from m890.hdl.wake import Gated, sleeps

COUNT_BITS = TOKEN_BITS
SIZE_BITS = TOKEN_BITS
ADDRESS_BITS = 64
"""Addresses in records."""


class AddressCheck(wiring.Component):
    """Does `address + count x stride + size` lie within memory?

    Function
        ok = address < 2^address_bits and address + count x stride + size <= limit, exactly; all but
        `address` in port beats. The product is made by adding shifted strides: one bit of `count`
        per cycle, so that one adder does for all.
    Members
        start : begin; the operands are read in this cycle only. busy : not done yet.
        ok : valid from the cycle in which busy falls until the next start.
    Latency
        4 cycles + the significant bits of `count`.
    Backpressure
        `start` is heeded while not busy only.
    """

    start: Signal
    address: Signal
    count: Signal
    stride: Signal
    size: Signal
    limit: Signal
    busy: Signal
    ok: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._low = beat_bits(config)
        self._address_bits = config.address_bits
        super().__init__(
            {
                "start": In(1),
                "address": In(ADDRESS_BITS),
                "count": In(COUNT_BITS),
                "stride": In(32 - self._low),
                "size": In(SIZE_BITS),
                "limit": In(config.address_bits - self._low + 1),
                "busy": Out(1),
                "ok": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Gated:
        m = Module()
        product = COUNT_BITS + 32 - self._low
        total = Signal(max(self._address_bits - self._low, product) + 2)
        addend, stride, count = Signal(product), Signal(product), Signal(COUNT_BITS)
        size, outside = Signal(SIZE_BITS), Signal()
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [
                    total.eq(self.address[self._low : self._address_bits]),
                    outside.eq(self.address[self._address_bits :].any()),
                    stride.eq(self.stride),
                    count.eq(self.count),
                    size.eq(self.size),
                ]
                with m.If(self.start):
                    m.d.sync += self.busy.eq(1)
                    m.next = "SIZE"
            with m.State("SIZE"):
                m.d.comb += addend.eq(size)
                m.next = "STRIDES"
            with m.State("STRIDES"):
                m.d.comb += addend.eq(Mux(count[0], stride, 0))
                m.d.sync += [stride.eq(stride << 1), count.eq(count >> 1)]
                with m.If(count == 0):
                    m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.sync += [self.ok.eq(~outside & (total <= self.limit)), self.busy.eq(0)]
                m.next = "IDLE"
        with m.If(self.busy):
            m.d.sync += total.eq(total + addend)
        return sleeps(m, self.start, self.busy, linger=0)
