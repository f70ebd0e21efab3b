"""The fetch buffer of K and V: from the order of memory to the order of the array."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.header import look_layout
from m890.hdl.kv.items import (
    CHUNK_TAG,
    COUNT_BITS,
    ITEM_DEPTH,
    group_size,
    is_grouped,
    packing,
    tile_beat_layout,
)
from m890.hdl.memory.queue import Queue
from m890.hdl.memory.sram import Sram


class Regroup(wiring.Component):
    """Buffers the port beats of tiles and gives them out tile by tile, token by token.

    Function
        In memory a group of up to 4 tiles lies token by token (m890.hdl.layout), so a port beat may
        hold several tiles of a token, or a tile of several tokens. A group's beats are read once
        per tile, and once more per token where they hold several: one beat out per token and tile.
    Members
        chunk : In(stream of CHUNK_TAG). One per chunk, in order, no later than its first beat.
        write, data : In. A port beat comes; only where there is room for it.
        freed : Out. One cycle: a port beat's place is free again.
        look : Out(look_layout). An element beat is read: it is on `o` from the next cycle on.
        there : In. In formats with E8M0 scales, the chunk's scales can be looked up.
        o : Out(stream of tile_beat_layout): the port beat, and the part of it that is the element
            beat.
    Latency
        2 cycles.
    Throughput
        One element beat per cycle, over groups and chunks too.
    Backpressure
        A group stays until its last tile is read: room for a group and a request must be there.
    Storage
        depth port beats, ITEM_DEPTH chunks.
    """

    chunk: stream.Interface
    write: Signal
    data: Signal
    freed: Signal
    look: Any
    there: Signal
    o: stream.Interface

    def __init__(self, config: CoreConfig, depth: int) -> None:
        if depth & (depth - 1) or depth < config.lanes:
            raise ValueError(f"depth is a power of two of at least lanes, not {depth}")
        self.config, self.depth = config, depth
        super().__init__(
            {
                "chunk": In(stream.Signature(CHUNK_TAG)),
                "write": In(1),
                "data": In(config.port_bits),
                "freed": Out(1),
                "look": Out(look_layout(config)),
                "there": In(1),
                "o": Out(stream.Signature(tile_beat_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, lane_bits = self.config, self.config.lanes.bit_length() - 1
        index = self.depth.bit_length() - 1
        m.submodules.chunks = chunks = Queue(CHUNK_TAG, ITEM_DEPTH, sram=False)
        wiring.connect(m, wiring.flipped(self.chunk), chunks.i)
        m.submodules.buffer = buffer = Sram(config.port_bits, self.depth, collisions=False)

        written = Signal(index + 1)  # with a bit more than the address: full is not empty
        m.d.sync += written.eq(written + self.write)
        m.d.comb += [
            buffer.write_address.eq(written[:index]),
            buffer.write_data.eq(self.data),
            buffer.write_enable.eq(self.write),
        ]

        active = Signal()
        format, tags = Signal(4), Signal()
        left = Signal(COUNT_BITS)  # tiles of the chunk, this group's included
        packed, size = Signal(2), Signal(2)  # tiles of a full group, of this one (log2)
        first = Signal(COUNT_BITS)  # tile of the group
        tile, token = Signal(2), Signal(lane_bits)  # tile within the group
        start, at = Signal(index + 1), Signal(index + 1)  # of the group, of the next beat

        count = Signal(3)  # tiles of the group
        # A beat holds 2^apart tokens' parts of the group.
        apart, part, end = Signal(2), Signal(2), Signal()
        read, reading = Signal(), Signal()
        scales = self.there | ~is_grouped(format)
        tile_end, group_end, chunk_end = Signal(), Signal(), Signal()
        m.d.comb += [
            count.eq(Mux(size == 2, 4, size + 1)),
            apart.eq(packed - size),
            part.eq(self._part(token, tile, apart, size)),
            end.eq(self._low(token, apart)),
            tile_end.eq(token.all()),
            group_end.eq(tile_end & (tile == count - 1)),
            chunk_end.eq(group_end & (left == count)),
            read.eq(active & (at != written) & scales & (~reading | self.o.ready)),
            self.freed.eq(read & end & (tile == count - 1)),
        ]
        with m.If(read):
            m.d.sync += [token.eq(token + 1), at.eq(at + end)]
            with m.If(tile_end):
                m.d.sync += [tile.eq(tile + 1), at.eq(start)]
            with m.If(group_end):
                rest = left - count
                m.d.sync += [
                    tile.eq(0), start.eq(at + 1), at.eq(at + 1), left.eq(rest),
                    size.eq(group_size(packed, rest)), first.eq(first + count),
                ]  # fmt: skip
        m.d.comb += chunks.o.ready.eq(~active | (read & chunk_end))
        with m.If(chunks.o.ready):
            coming = chunks.o.payload
            m.d.sync += [
                active.eq(chunks.o.valid), first.eq(0), left.eq(coming.tiles),
                format.eq(coming.format), tags.eq(coming.tags),
                packed.eq(packing(coming.format)),
                size.eq(group_size(packing(coming.format), coming.tiles)),
            ]  # fmt: skip

        o, look = self.o.payload, self.look
        m.d.comb += [
            look.valid.eq(read), look.token.eq(token), look.tile.eq(first + tile),
            look.format.eq(format), look.last.eq(chunk_end),
        ]  # fmt: skip
        with m.If(read):
            m.d.sync += [reading.eq(1), o.part.eq(part), o.format.eq(format), o.tags.eq(tags)]
        with m.Elif(self.o.ready):
            m.d.sync += reading.eq(0)
        m.d.comb += [
            buffer.read_address[0].eq(at[:index]),
            buffer.read_enable[0].eq(read),
            self.o.valid.eq(reading),
            o.data.eq(buffer.read_data[0]),
        ]
        return m

    @staticmethod
    def _low(token: Value, apart: Value) -> Value:
        """Whether the token is the last of its beat."""
        return Mux(apart == 0, 1, Mux(apart == 1, token[0], token[:2].all()))

    @staticmethod
    def _part(token: Value, tile: Value, apart: Value, size: Value) -> Value:
        """Place of the element beat in the port beat: its token's, then its tile's."""
        place = Mux(apart == 0, 0, Mux(apart == 1, token[:1], token[:2]))
        return Mux(size == 0, place, Mux(size == 1, Cat(tile[0], place[0]), tile))
