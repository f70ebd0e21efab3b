"""Port beats to element beats."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import elements_layout, packing, tile_beat_layout
from m890.hdl.memory.queue import Queue


class Gearbox(wiring.Component):
    """Picks an element beat out of its port beat: `lanes` raw codes of 16 bits.

    Function
        Codes of part `part`, zero-extended.
    Members
        i : stream of port beats (Regroup). o : stream of element beats.
    Latency
        1 cycle.
    Throughput
        One element beat per cycle, across changes of format too.
    Backpressure
        i.ready depends on stored state only.
    Storage
        Two element beats.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(tile_beat_layout(config))),
                "o": Out(stream.Signature(elements_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes, beat = self.config.lanes, self.i.payload

        def codes(bits: int, part: int) -> Value:
            """Part `part` of a beat of elements of `bits` bits."""
            start = part * lanes * bits
            return Cat(
                Cat(beat.data[start + n * bits :][:bits], Const(0, 16 - bits)) for n in range(lanes)
            )

        # Two places, so that the array's ready ends here and does not reach the buffer's memory.
        m.submodules.out = out = Queue(elements_layout(self.config), 2)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        narrow = Signal(16 * lanes)
        m.d.comb += [
            self.i.ready.eq(out.i.ready),
            out.i.valid.eq(self.i.valid),
            narrow.eq(Mux(beat.part[0], codes(8, 1), codes(8, 0))),
            out.i.payload.as_value().eq(Mux(packing(beat.format) == 1, narrow, beat.data)),
        ]
        return m
