"""Fetchers: run ahead of the array as far as their buffers allow."""

from typing import Any

from amaranth.hdl import Const, Module, Mux, ShapeLike, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.header import header_layout, look_layout
from m890.hdl.kv.items import (
    COMMAND_BEATS_BITS,
    COUNT_BITS,
    HEADER_BITS,
    ITEM_DEPTH,
    beat_layout,
    command_layout,
    raw_layout,
    tile_beat_layout,
)
from m890.hdl.kv.regroup import Regroup
from m890.hdl.memory.ports import ReadPort, request_layout
from m890.hdl.memory.queue import Queue
from m890.hdl.wake import Gated, sleeps

LONGEST_PIECE = 32
"""Most port beats of one request."""
REQUESTS = 8
"""Requests under way."""


class Fetcher(wiring.Component):
    """Fetches the port beats of its commands, in order, into a buffer.

    Function
        Each command is requested in pieces of up to `piece` beats, each as soon as the buffer has
        room for all of it, so read data never wait. The first `header` beats of a command go to
        `header`. With `tiles` the buffer is a Regroup, and a command's other beats are a chunk's K
        (or V).
    Members
        i : stream of commands. port : read port.
        o : stream of beats with the command's tag; with `tiles` of tile beats (Regroup).
        header_reserve : a command with a header of `reserve_beats` is requested. header_room : it
            may be.
        header_valid, header : a beat of a header has come.
        look, there : with `tiles` (Regroup).
        bus_error[slot] : a beat of a command of `slot` came with a bus error, in this cycle.
    Latency
        Command to request: 4 cycles. Data to o: 2 cycles.
    Throughput
        One beat per cycle; two cycles and the memory's ready between requests.
    Backpressure
        Requests stop when the buffer or the list of requests under way is full, or a header has no
        room.
    Storage
        depth beats with tag; ITEM_DEPTH commands; REQUESTS tags.
    Errors
        A beat with a bus error is delivered like any other.
    Parameters
        tag : shape that returns with every beat. depth : beats of the buffer. piece : <= depth;
        headers are not longer. tiles : the tag is CHUNK_TAG, the buffer a Regroup.
    """

    i: stream.Interface
    o: stream.Interface
    header_reserve: Signal
    reserve_beats: Signal
    look: Any
    there: Signal
    header_room: Signal
    header_valid: Signal
    header: Any
    port: Any
    bus_error: Signal

    def __init__(
        self,
        config: CoreConfig,
        *,
        tag: ShapeLike,
        depth: int,
        piece: int | None = None,
        tiles: bool = False,
    ) -> None:
        self.config = config
        self.depth = depth
        self.piece = min(LONGEST_PIECE, depth // 2) if piece is None else piece
        if not 2 <= self.piece <= depth:
            raise ValueError(f"a piece has 2 to {depth} beats (the buffer's), not {self.piece}")
        self._tag = tag
        self._tiles = tiles
        out = tile_beat_layout(config) if tiles else beat_layout(config, tag)
        super().__init__(
            {
                "i": In(stream.Signature(command_layout(config, tag))),
                "o": Out(stream.Signature(out)),
                "header_reserve": Out(1),
                "reserve_beats": Out(HEADER_BITS),
                "look": Out(look_layout(config)),
                "there": In(1),
                "header_room": In(1),
                "header_valid": Out(1),
                "header": Out(header_layout(config)),
                "port": Out(ReadPort(config)),
                "bus_error": Out(2),
            }
        )

    def elaborate(self, platform: object) -> Gated:
        m = Module()
        config, tag = self.config, self._tag
        flight_shape = data.StructLayout({"slot": 1, "first": 1, "header": HEADER_BITS, "tag": tag})
        m.submodules.commands = commands = Queue(command_layout(config, tag), ITEM_DEPTH)
        # In registers: what a request brings must be known in the cycle after it.
        m.submodules.flight = flight = Queue(flight_shape, REQUESTS, sram=False)
        wiring.connect(m, wiring.flipped(self.i), commands.i)

        reserved = Signal(range(self.depth + 1))  # beats asked for and not yet gone
        grant = Signal(range(self.piece + 1))
        gone, split = Signal(), Signal()
        m.d.sync += reserved.eq(reserved + grant - gone - split)
        chunk_room = self._buffer(m, flight, split, gone)
        self._split(m, flight, split)

        command = Signal(command_layout(config, tag))
        first = Signal()  # the next piece is the command's first
        size = Signal(range(self.piece + 1))
        after = Signal(COMMAND_BEATS_BITS)  # beats left after the next piece
        request = Signal(request_layout(config))
        m.d.comb += [
            self.reserve_beats.eq(command.header),
            self.port.request.payload.eq(request),
            flight.i.payload.slot.eq(command.slot),
            flight.i.payload.first.eq(first),
            flight.i.payload.header.eq(Mux(first, command.header, 0)),
            flight.i.payload.tag.eq(command.tag),
        ]
        with m.FSM(name="fetch") as fsm:
            with m.State("COMMAND"):
                m.d.comb += commands.o.ready.eq(1)
                m.d.sync += [command.eq(commands.o.payload), first.eq(1)]
                with m.If(commands.o.valid):
                    m.next = "SIZE"
            with m.State("SIZE"):
                m.d.sync += size.eq(Mux(command.beats > self.piece, self.piece, command.beats))
                m.next = "ROOM"
            with m.State("ROOM"):
                room = (reserved + size <= self.depth) & (~first | chunk_room)
                with_header = first & command.header.any()
                with m.If(room & flight.i.ready & (~with_header | self.header_room)):
                    m.d.comb += [
                        grant.eq(size), flight.i.valid.eq(1), self.header_reserve.eq(with_header)
                    ]  # fmt: skip
                    m.d.sync += [
                        request.address.eq(command.address),
                        request.beats.eq(size),
                        after.eq(command.beats - size),
                    ]
                    m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += self.port.request.valid.eq(1)
                with m.If(self.port.request.ready):
                    m.d.sync += [
                        first.eq(0),
                        command.beats.eq(after),
                        command.address.eq(command.address + size * config.port_bytes),
                    ]
                    m.next = "COMMAND"
                    with m.If(after != 0):
                        m.next = "SIZE"

        coming = flight.o.payload
        m.d.comb += flight.o.ready.eq(self.port.data_valid & self.port.last)
        with m.If(self.port.data_valid & self.port.error):
            for slot in range(2):
                m.d.comb += self.bus_error[slot].eq(coming.slot == slot)
        return sleeps(
            m, self.i.valid, commands.o.valid, ~fsm.ongoing("COMMAND"), reserved.any(),
            flight.o.valid,
        )  # fmt: skip

    def _buffer(self, m: Module, flight: Queue, split: Value, gone: Signal) -> Value:
        """Where beats wait; whether a further command's chunk would be taken note of."""
        coming = flight.o.payload
        store = self.port.data_valid & ~split
        if self._tiles:
            m.submodules.buffer = regroup = Regroup(self.config, self.depth)
            wiring.connect(m, regroup.o, wiring.flipped(self.o))
            m.d.comb += [
                self.look.eq(regroup.look), regroup.there.eq(self.there),
                regroup.write.eq(store), regroup.data.eq(self.port.data), gone.eq(regroup.freed),
                regroup.chunk.payload.eq(flight.i.payload.tag),
                regroup.chunk.valid.eq(flight.i.valid & flight.i.payload.first),
            ]  # fmt: skip
            return regroup.chunk.ready
        shape = beat_layout(self.config, self._tag)
        m.submodules.buffer = buffer = Queue(shape, self.depth, sram=True)
        wiring.connect(m, buffer.o, wiring.flipped(self.o))
        first_beat = Signal(init=1)  # of the request
        with m.If(self.port.data_valid):
            m.d.sync += first_beat.eq(self.port.last)
        m.d.comb += [
            gone.eq(buffer.o.valid & buffer.o.ready),
            buffer.i.valid.eq(store),
            buffer.i.payload.data.eq(self.port.data),
            buffer.i.payload.first.eq(coming.first & first_beat),
            buffer.i.payload.tag.eq(coming.tag),
        ]
        return Const(1)

    def _split(self, m: Module, flight: Queue, split: Signal) -> None:
        """Takes the beats of headers off."""
        coming, header = flight.o.payload, self.header
        seen = Signal(HEADER_BITS)  # beats of the request, up to its header's
        m.d.comb += [
            split.eq(self.port.data_valid & (seen != coming.header)),
            self.header_valid.eq(split),
            header.data.eq(self.port.data),
            header.last.eq(seen + 1 == coming.header),
            header.beats.eq(coming.header),
        ]
        if self._tiles:
            m.d.comb += [header.format.eq(coming.tag.format), header.tags.eq(coming.tag.tags)]
        with m.If(self.port.data_valid):
            m.d.sync += seen.eq(Mux(self.port.last, 0, seen + split))


class RawFetcher(wiring.Component):
    """Fetches the stored state of every row of a job.

    Function
        For each RAW item, row r = 0 ... rows - 1: 1 + 2 tiles port beats from `source` on, row
        after row without a gap.
    Members
        i : stream of {source, rows, tiles, slot}. port : read port.
        o : stream of beats; `first` marks a row's header beat, `row` its row.
        bus_error : as the Fetcher's.
    Latency
        Item to request: 6 cycles.
    Throughput
        One beat per cycle within a row.
    Storage
        `DEPTH` port beats.
    """

    DEPTH = 16

    i: stream.Interface
    o: stream.Interface
    port: Any
    bus_error: Signal

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        shape = data.StructLayout(
            {"source": config.address_bits, "rows": COUNT_BITS, "tiles": COUNT_BITS, "slot": 1}
        )
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(raw_layout(config))),
                "port": Out(ReadPort(config)),
                "bus_error": Out(2),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fetcher = fetcher = Fetcher(self.config, tag=COUNT_BITS, depth=self.DEPTH)
        wiring.connect(m, fetcher.port, wiring.flipped(self.port))
        row = Signal(COUNT_BITS)
        following = Signal(COUNT_BITS)
        address = Signal(self.config.address_bits)
        command = fetcher.i.payload
        m.d.comb += [
            self.bus_error.eq(fetcher.bus_error),
            self.o.valid.eq(fetcher.o.valid),
            self.o.payload.data.eq(fetcher.o.payload.data),
            self.o.payload.first.eq(fetcher.o.payload.first),
            self.o.payload.row.eq(fetcher.o.payload.tag),
            fetcher.o.ready.eq(self.o.ready),
            command.address.eq(address),
            command.beats.eq((self.i.payload.tiles << 1) | 1),
            command.slot.eq(self.i.payload.slot),
            command.tag.eq(row),
        ]
        with m.FSM(name="raw"):
            with m.State("ITEM"):
                with m.If(self.i.valid):
                    m.d.sync += [address.eq(self.i.payload.source), row.eq(0), following.eq(1)]
                    m.next = "ROW"
            with m.State("ROW"):
                m.d.comb += fetcher.i.valid.eq(1)
                with m.If(fetcher.i.ready):
                    m.d.sync += [
                        address.eq(address + command.beats * self.config.port_bytes),
                        row.eq(following),
                        following.eq(following + 1),
                    ]
                    with m.If(following == self.i.payload.rows):
                        m.d.comb += self.i.ready.eq(1)
                        m.next = "ITEM"
        return m
