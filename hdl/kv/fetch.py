"""Fetchers: run ahead of the array as far as their buffers allow."""

from typing import Any

from amaranth.hdl import Module, Mux, ShapeLike, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import (
    COMMAND_BEATS_BITS,
    COUNT_BITS,
    ITEM_DEPTH,
    beat_layout,
    command_layout,
    raw_layout,
    scale_layout,
)
from m890.hdl.memory.ports import ReadPort, request_layout
from m890.hdl.memory.queue import Queue

LONGEST_PIECE = 32
"""Most port beats of one request."""
REQUESTS = 8
"""Requests under way."""
SCALES = 8
"""Chunks whose scales may wait."""


class Fetcher(wiring.Component):
    """Fetches the port beats of its commands, in order, into a buffer.

    Function
        Each command is requested in pieces of up to `piece` beats, each as soon as the buffer has
        room for all of it, so read data never wait. The two scale beats of a `scaled` command are
        split off.
    Members
        i : stream of commands. port : read port.
        o : stream of beats with the command's tag.
        scale : stream of a scaled command's scales, once both have come.
        bus_error[slot] : a beat of a command of `slot` came with a bus error, in this cycle.
    Latency
        Command to request: 4 cycles. Data to o: 2 cycles.
    Throughput
        One beat per cycle; two cycles and the memory's ready between requests.
    Backpressure
        Requests stop when buffer, scale queue or the list of requests under way is full.
    Storage
        depth beats with tag; SCALES x 2 port beats; ITEM_DEPTH commands; REQUESTS tags.
    Errors
        A beat with a bus error is delivered like any other.
    Parameters
        tag : shape that returns with every beat. depth : beats of the buffer. piece : <= depth.
        scales : build the scale path; without it no command may be `scaled`.
    """

    i: stream.Interface
    o: stream.Interface
    scale: stream.Interface
    port: Any
    bus_error: Signal

    def __init__(
        self,
        config: CoreConfig,
        *,
        tag: ShapeLike,
        depth: int,
        piece: int | None = None,
        scales: bool = False,
    ) -> None:
        self.config = config
        self.depth = depth
        self.piece = min(LONGEST_PIECE, depth // 2) if piece is None else piece
        if not 2 <= self.piece <= depth:
            raise ValueError(f"a piece has 2 to {depth} beats (the buffer's), not {self.piece}")
        self._tag = tag
        self._scales = scales
        super().__init__(
            {
                "i": In(stream.Signature(command_layout(config, tag))),
                "o": Out(stream.Signature(beat_layout(config, tag))),
                "scale": Out(stream.Signature(scale_layout(config))),
                "port": Out(ReadPort(config)),
                "bus_error": Out(2),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, tag = self.config, self._tag
        flight_shape = data.StructLayout({"slot": 1, "first": 1, "scaled": 1, "tag": tag})
        m.submodules.commands = commands = Queue(command_layout(config, tag), ITEM_DEPTH)
        m.submodules.buffer = buffer = Queue(beat_layout(config, tag), self.depth, sram=True)
        # In registers: what a request brings must be known in the cycle after it.
        m.submodules.flight = flight = Queue(flight_shape, REQUESTS, sram=False)
        wiring.connect(m, wiring.flipped(self.i), commands.i)
        wiring.connect(m, buffer.o, wiring.flipped(self.o))

        reserved = Signal(range(self.depth + 1))  # beats asked for and not yet gone
        grant = Signal(range(self.piece + 1))
        gone, split = Signal(), Signal()
        m.d.sync += reserved.eq(reserved + grant - gone - split)
        m.d.comb += gone.eq(buffer.o.valid & buffer.o.ready)
        scale_room = self._split(m, flight, split)

        command = Signal(command_layout(config, tag))
        first = Signal()  # the next piece is the command's first
        size = Signal(range(self.piece + 1))
        after = Signal(COMMAND_BEATS_BITS)  # beats left after the next piece
        request = Signal(request_layout(config))
        m.d.comb += [
            self.port.request.payload.eq(request),
            flight.i.payload.slot.eq(command.slot),
            flight.i.payload.first.eq(first),
            flight.i.payload.scaled.eq(command.scaled & first),
            flight.i.payload.tag.eq(command.tag),
        ]
        with m.FSM(name="fetch"):
            with m.State("COMMAND"):
                m.d.comb += commands.o.ready.eq(1)
                m.d.sync += [command.eq(commands.o.payload), first.eq(1)]
                with m.If(commands.o.valid):
                    m.next = "SIZE"
            with m.State("SIZE"):
                m.d.sync += size.eq(Mux(command.beats > self.piece, self.piece, command.beats))
                m.next = "ROOM"
            with m.State("ROOM"):
                room = reserved + size <= self.depth
                with m.If(room & flight.i.ready & (~(command.scaled & first) | scale_room)):
                    m.d.comb += [grant.eq(size), flight.i.valid.eq(1)]
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
        first_beat = Signal(init=1)  # of the request
        m.d.comb += [
            flight.o.ready.eq(self.port.data_valid & self.port.last),
            buffer.i.valid.eq(self.port.data_valid & ~split),
            buffer.i.payload.data.eq(self.port.data),
            buffer.i.payload.first.eq(coming.first & first_beat),
            buffer.i.payload.tag.eq(coming.tag),
        ]
        with m.If(self.port.data_valid):
            m.d.sync += first_beat.eq(self.port.last)
            with m.If(self.port.error):
                for slot in range(2):
                    m.d.comb += self.bus_error[slot].eq(coming.slot == slot)
        return m

    def _split(self, m: Module, flight: Queue, split: Signal) -> Signal:
        """Takes the scale beats off; whether the next chunk's scales would have room."""
        room = Signal()
        if not self._scales:
            return room
        m.submodules.scales = scales = Queue(scale_layout(self.config), SCALES)
        wiring.connect(m, scales.o, wiring.flipped(self.scale))
        reserved = Signal(range(SCALES + 1))
        seen = Signal(2)  # beats of the request, up to 2
        k = Signal(self.config.port_bits)
        gone = scales.o.valid & scales.o.ready
        asked = flight.i.valid & flight.i.ready & flight.i.payload.scaled
        m.d.sync += reserved.eq(reserved + asked - gone)
        m.d.comb += [
            room.eq(reserved != SCALES),
            split.eq(self.port.data_valid & flight.o.payload.scaled & (seen != 2)),
            scales.i.valid.eq(split & (seen == 1)),
            scales.i.payload.k.as_value().eq(k),
            scales.i.payload.v.as_value().eq(self.port.data),
        ]
        with m.If(self.port.data_valid):
            with m.If(seen == 0):
                m.d.sync += k.eq(self.port.data)
            with m.If(self.port.last):
                m.d.sync += seen.eq(0)
            with m.Elif(seen != 2):
                m.d.sync += seen.eq(seen + 1)
        return room


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
                m.d.sync += [address.eq(self.i.payload.source), row.eq(0), following.eq(1)]
                with m.If(self.i.valid):
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
