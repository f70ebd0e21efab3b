"""Port beats to element beats."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import beat_layout, elements_layout
from m890.hdl.memory.queue import Queue


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
        i.ready depends on i.payload and stored state, not on o.ready.
    Storage
        Two element beats.
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

        def half(n: int) -> Value:
            codes = [beat.data[8 * (n * lanes + lane) :][:8] for lane in range(lanes)]
            return Cat(Cat(code, Const(0, 8)) for code in codes)

        # Two places, so that the array's ready ends here and does not reach the buffer's memory.
        m.submodules.out = out = Queue(elements_layout(self.config), 2)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        m.d.comb += [
            self.i.ready.eq(out.i.ready & (~beat.tag | high)),
            out.i.valid.eq(self.i.valid),
            out.i.payload.as_value().eq(Mux(beat.tag, Mux(high, half(1), half(0)), beat.data)),
        ]
        with m.If(out.i.valid & out.i.ready):
            m.d.sync += high.eq(beat.tag & ~high)
        return m
