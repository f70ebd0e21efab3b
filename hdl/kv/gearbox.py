"""Port beats to element beats."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import beat_layout, elements_layout


class Gearbox(wiring.Component):
    """Widens 8-bit elements to 16 bits, so that every element beat has `lanes` raw codes.

    Function
        A wide beat passes as it is; a narrow one (`tag` set) becomes two beats, low half first,
        each byte zero-extended.
    Members
        i : stream of fetched beats, tag = narrow. o : stream of element beats.
    Latency
        1 cycle.
    Throughput
        One element beat per cycle, across changes of format too.
    Backpressure
        Combinational from o.ready to i.ready.
    Storage
        One element beat.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(beat_layout(config, 1))),
                "o": Out(stream.Signature(elements_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes, beat = self.config.lanes, self.i.payload
        high = Signal()  # the low half has gone

        def half(n: int):
            codes = [beat.data[8 * (n * lanes + lane) :][:8] for lane in range(lanes)]
            return Cat(Cat(code, Const(0, 8)) for code in codes)

        free = ~self.o.valid | self.o.ready
        m.d.comb += self.i.ready.eq(free & (~beat.tag | high))
        with m.If(free):
            m.d.sync += self.o.valid.eq(self.i.valid)
            with m.If(self.i.valid):
                m.d.sync += high.eq(beat.tag & ~high)
                with m.If(~beat.tag):
                    m.d.sync += self.o.payload.as_value().eq(beat.data)
                with m.Elif(high):
                    m.d.sync += self.o.payload.as_value().eq(half(1))
                with m.Else():
                    m.d.sync += self.o.payload.as_value().eq(half(0))
        return m
