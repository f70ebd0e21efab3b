"""Headers of chunks: from entries per token to what the array takes per chunk or element beat."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import (
    COUNT_BITS,
    HEADER_BITS,
    is_grouped,
    is_scaled,
    scale_layout,
    tile_group,
)
from m890.hdl.layout import PageLayout
from m890.hdl.memory.queue import Queue
from m890.hdl.memory.sram import Sram
from m890.hdl.numerics.formats import Format
from m890.hdl.numerics.quantise import beat_groups

CHUNKS = 8
"""Chunks of the largest header that may wait."""
READERS = ("k", "v")


def header_layout(config: CoreConfig) -> data.StructLayout:
    """A port beat of a header; `last` of its chunk, of `beats` beats in all."""
    return data.StructLayout(
        {"data": config.port_bits, "last": 1, "beats": HEADER_BITS, "format": 4, "tags": 1}
    )


def look_layout(config: CoreConfig) -> data.StructLayout:
    """An element beat is being read: its place in its chunk; `last` of the chunk."""
    lane_bits = config.lanes.bit_length() - 1
    return data.StructLayout(
        {"valid": 1, "token": lane_bits, "tile": COUNT_BITS, "format": 4, "last": 1}
    )


class HeaderReader(wiring.Component):
    """Keeps the scales of chunks until they are used.

    Function
        A token's entry is its K half and its V half, `beats` bytes each (m890.hdl.layout). BF16
        scales, the first two bytes of a half, are collected per chunk. E8M0 scales stay as they
        came; the K and the V side look up the bytes of the groups of an element beat.
    Members
        reserve : In. One cycle: a chunk's header of `reserve_beats` is asked for; only with `room`.
        room : Out.
        valid, beat : In(header_layout). The beats of the headers asked for, in order.
        scale : Out(stream of scale_layout). One per chunk of a format with BF16 scales.
        k_there, v_there : Out. The chunk whose turn it is on this side has its E8M0 scales here.
        k_look, v_look : In(look_layout). Element beats, in order; in a format with E8M0 scales only
            with `there`.
        k_group, v_group : Out. E8M0 scales of the beat's groups, one cycle after look, held.
    Latency
        2 cycles from a chunk's last beat to `scale`, 1 to `there`.
    Throughput
        One beat per cycle.
    Backpressure
        None: `room` counts what has been reserved and not been used.
    Storage
        CHUNKS x 2 x `lanes` scales; CHUNKS x header beats of the largest head, two read ports.
    """

    reserve: Signal
    reserve_beats: Signal
    room: Signal
    valid: Signal
    beat: Any
    scale: stream.Interface
    k_there: Signal
    v_there: Signal
    k_look: Any
    v_look: Any
    k_group: Signal
    v_group: Signal

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        largest = PageLayout(config, Format.MXFP4, config.max_tiles, tags=True)
        self.most = largest.header_beats
        self.depth = CHUNKS * self.most
        groups = 8 * beat_groups(config.lanes)
        super().__init__(
            {
                "reserve": In(1),
                "reserve_beats": In(HEADER_BITS),
                "room": Out(1),
                "valid": In(1),
                "beat": In(header_layout(config)),
                "scale": Out(stream.Signature(scale_layout(config))),
                **{f"{name}_there": Out(1) for name in READERS},
                **{f"{name}_look": In(look_layout(config)) for name in READERS},
                **{f"{name}_group": Out(groups) for name in READERS},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rooms = self._collect(m), self._keep(m)
        m.d.comb += self.room.eq(Cat(rooms).all())
        return m

    def _collect(self, m: Module) -> Value:
        """BF16 scales of a chunk; whether there is room for one more chunk's."""
        beat = self.beat
        m.submodules.scales = scales = Queue(scale_layout(self.config), CHUNKS, sram=True)
        wiring.connect(m, scales.o, wiring.flipped(self.scale))
        reserved = Signal(range(CHUNKS + 1))
        taken = scales.o.valid & scales.o.ready
        unused = self.valid & beat.last & ~is_scaled(beat.format)
        m.d.sync += reserved.eq(reserved + self.reserve - taken - unused)
        m.d.comb += scales.i.valid.eq(self.valid & beat.last & is_scaled(beat.format))
        for name, value in (("k", 0), ("v", 1)):
            # The tokens so far, shifted down as more come.
            kept = Signal(16 * self.config.lanes, name=f"{name}_kept")
            two, four = (self._words(half, value) for half in (2, 4))
            after = Mux(beat.beats == 2, Cat(kept[len(two) :], two), Cat(kept[len(four) :], four))
            with m.If(self.valid):
                m.d.sync += kept.eq(after)
            m.d.comb += scales.i.payload[name].as_value().eq(after)
        return reserved != CHUNKS

    def _words(self, half: int, value: int) -> Value:
        """First two bytes of every K (or V) half of `half` bytes in a beat."""
        data, bits = self.beat.data, 8 * half
        starts = range(value * bits, self.config.port_bits, 2 * bits)
        return Cat(data[start : start + 16] for start in starts)

    def _keep(self, m: Module) -> Value:
        """Headers with E8M0 scales; whether there is room for one more of any size."""
        beat = self.beat
        index = self.depth.bit_length() - 1
        m.submodules.beats = beats = Sram(
            self.config.port_bits, self.depth, reads=2, collisions=False
        )
        # Positions count beats, with a bit more than the address: full is not empty.
        written, asked = Signal(index + 1), Signal(index + 1)
        write = self.valid & is_grouped(beat.format)
        unused = Mux(self.valid & beat.last & ~is_grouped(beat.format), beat.beats, 0)
        m.d.sync += [
            written.eq(written + write),
            # What is not kept is given back, so that `asked` and `written` count the same beats.
            asked.eq(asked + Mux(self.reserve, self.reserve_beats, 0) - unused),
        ]
        m.d.comb += [
            beats.write_address.eq(written[:index]),
            beats.write_data.eq(beat.data),
            beats.write_enable.eq(write),
        ]
        rooms = []
        for n, name in enumerate(READERS):
            position, room = self._side(m, name, n, beats, write & beat.last)
            used = Signal(index + 2, name=f"{name}_used")
            m.d.comb += used.eq((asked - position)[: index + 1])
            rooms.append(room & (used + self.most <= self.depth))
        return Cat(rooms).all()

    def _side(
        self, m: Module, name: str, value: int, beats: Sram, come: Value
    ) -> tuple[Signal, Value]:
        """One side's look-ups; where its chunk begins, and whether it may be told of one more."""
        config, look = self.config, getattr(self, f"{name}_look")
        lane_bits = config.lanes.bit_length() - 1
        # Most chunks have fewer than `most` beats, so more of them find room.
        m.submodules[f"{name}_chunks"] = chunks = Queue(HEADER_BITS, 2 * CHUNKS, sram=False)
        known = Signal(range(2 * CHUNKS + 1), name=f"{name}_known")  # asked for, not yet used up
        grouped = is_grouped(look.format)
        done = look.valid & look.last & grouped
        start = Signal(len(beats.read_address[value]) + 1, name=f"{name}_start")
        half = chunks.o.payload
        m.d.comb += [
            chunks.i.valid.eq(come),
            chunks.i.payload.eq(self.beat.beats),
            chunks.o.ready.eq(done),
            getattr(self, f"{name}_there").eq(chunks.o.valid),
        ]
        unused = self.valid & self.beat.last & ~is_grouped(self.beat.format)
        m.d.sync += known.eq(known + self.reserve - done - unused)
        with m.If(done):
            m.d.sync += start.eq(start + half)

        # 2^lane_bits / half entries of 2 x half bytes in a beat.
        place = Signal(lane_bits + HEADER_BITS, name=f"{name}_place")
        with m.Switch(half):
            for n in range(HEADER_BITS):
                with m.Case(1 << n):
                    m.d.comb += place.eq(look.token << n)
        byte = Signal(lane_bits + 1, name=f"{name}_byte")
        inside = Signal(lane_bits + 1, name=f"{name}_inside")
        m.d.comb += [
            beats.read_address[value].eq(start + place[lane_bits:]),
            beats.read_enable[value].eq(look.valid),
            inside.eq(Cat(Const(0, 1), place[:lane_bits])),
        ]
        with m.If(look.valid):
            first = tile_group(config, look.tile)
            m.d.sync += byte.eq(inside + (half if value else 0) + first)
        count = beat_groups(config.lanes)
        words = beats.read_data[value].word_select(byte[count.bit_length() - 1 :], 8 * count)
        m.d.comb += getattr(self, f"{name}_group").eq(words)
        return start, known != 2 * CHUNKS
