"""Port beats to element beats."""

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import elements_layout, packing, tile_beat_layout
from m890.hdl.memory.queue import Queue
from m890.hdl.numerics.formats import GROUP
from m890.hdl.numerics.four_bits import CODE_BITS, SCALE_BITS, with_scale
from m890.hdl.numerics.quantise import beat_groups


class Gearbox(wiring.Component):
    """Picks an element beat out of its port beat: `lanes` raw codes of 16 bits.

    Function
        Codes of part `part`, zero-extended; 4-bit codes with the E8M0 scale of their group above
        them (`four_bits.with_scale`).
    Members
        i : stream of port beats (Regroup). scales : In, with `i`. E8M0 scales of the beat's groups
            of lanes. o : stream of element beats.
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
    scales: Signal
    o: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(tile_beat_layout(config))),
                "scales": In(8 * beat_groups(config.lanes)),
                "o": Out(stream.Signature(elements_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes, beat = self.config.lanes, self.i.payload

        def codes(part: int) -> Value:
            """Part `part` of a beat of 8-bit elements."""
            start = part * lanes * 8
            return Cat(Cat(beat.data[start + n * 8 :][:8], Const(0, 8)) for n in range(lanes))

        def scaled(part: int) -> Value:
            """The same of 4-bit elements."""
            start = part * lanes * CODE_BITS
            return Cat(
                with_scale(
                    beat.data[start + n * CODE_BITS :][:CODE_BITS],
                    self.scales.word_select(n // GROUP, SCALE_BITS),
                )
                for n in range(lanes)
            )

        # Two places, so that the array's ready ends here and does not reach the buffer's memory.
        m.submodules.out = out = Queue(self.o.payload.shape(), 2)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        payload, packed = Value.cast(out.i.payload), packing(beat.format)
        m.d.comb += [
            self.i.ready.eq(out.i.ready),
            out.i.valid.eq(self.i.valid),
            payload.eq(beat.data),
        ]
        for n, pick in ((1, codes), (2, scaled)):
            with m.If(packed == n):
                with m.Switch(beat.part[:n]):
                    for part in range(1 << n):
                        with m.Case(part):
                            m.d.comb += payload.eq(pick(part))
        return m
