"""Headers of chunks: from entries per token to what the array takes per chunk."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import HEADER_BITS, is_scaled, scale_layout
from m890.hdl.memory.queue import Queue

CHUNKS = 8
"""Chunks whose headers may wait."""


def header_layout(config: CoreConfig) -> data.StructLayout:
    """A port beat of a header; `last` of its chunk, of `beats` beats in all."""
    return data.StructLayout(
        {"data": config.port_bits, "last": 1, "beats": HEADER_BITS, "format": 4, "tags": 1}
    )


class HeaderReader(wiring.Component):
    """Collects the scales of a chunk's tokens from its header.

    Function
        A token's entry is its K half and its V half, `beats` bytes each (m890.hdl.layout); a BF16
        scale is the first two bytes of its half.
    Members
        reserve : In. One cycle: a chunk's header is asked for; only with `room`. room : Out.
        valid, beat : In(header_layout). The beats of the headers asked for, in order.
        scale : Out(stream of scale_layout). One per chunk of a format with BF16 scales.
    Latency
        2 cycles from a chunk's last beat to `scale`.
    Throughput
        One beat per cycle.
    Backpressure
        None: `room` counts what has been reserved and not been taken.
    Storage
        CHUNKS x 2 x `lanes` scales.
    """

    reserve: Signal
    room: Signal
    valid: Signal
    beat: Any
    scale: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        super().__init__(
            {
                "reserve": In(1),
                "room": Out(1),
                "valid": In(1),
                "beat": In(header_layout(config)),
                "scale": Out(stream.Signature(scale_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat = self.beat
        m.submodules.scales = scales = Queue(scale_layout(self.config), CHUNKS, sram=True)
        wiring.connect(m, scales.o, wiring.flipped(self.scale))
        reserved = Signal(range(CHUNKS + 1))
        taken = scales.o.valid & scales.o.ready
        unused = self.valid & beat.last & ~is_scaled(beat.format)
        m.d.sync += reserved.eq(reserved + self.reserve - taken - unused)
        m.d.comb += [
            self.room.eq(reserved != CHUNKS),
            scales.i.valid.eq(self.valid & beat.last & is_scaled(beat.format)),
        ]
        for name, value in (("k", 0), ("v", 1)):
            # The tokens so far, shifted down as more come.
            kept = Signal(16 * self.config.lanes, name=f"{name}_kept")
            two, four = (self._words(half, value) for half in (2, 4))
            after = Mux(beat.beats == 2, Cat(kept[len(two) :], two), Cat(kept[len(four) :], four))
            with m.If(self.valid):
                m.d.sync += kept.eq(after)
            m.d.comb += scales.i.payload[name].as_value().eq(after)
        return m

    def _words(self, half: int, value: int) -> Value:
        """First two bytes of every K (or V) half of `half` bytes in a beat."""
        data, bits = self.beat.data, 8 * half
        starts = range(value * bits, self.config.port_bits, 2 * bits)
        return Cat(data[start : start + 16] for start in starts)
