"""Mover: copies runs of port beats within memory."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.memory.burst import beat_bits
from m890.hdl.memory.ports import ReadPort, WritePort
from m890.hdl.memory.queue import Queue
from m890.hdl.pages.layouts import move_layout

PIECE = 16
"""Beats of one request."""
MOVES = 4
"""Moves whose beats are being read or written."""


class Mover(wiring.Component):
    """Copies runs of beats, several one behind the other.

    Function
        Each move is read in pieces, ahead of the writes of it and of earlier moves as far as the
        buffer allows. A piece is written once all of it is there, so that a write never holds the
        port for want of data.
    Members
        i : stream of move_layout. idle : every move is acknowledged. error : a read or write failed
        since `restart`.
        read : ReadPort. write : WritePort.
    Latency
        Memory's read and write + 10 cycles for one piece.
    Throughput
        One beat per cycle, while memory's latency is less than `fifo_beats`.
    Backpressure
        i.ready depends on state only.
    Storage
        fifo_beats beats, MOVES moves.
    Errors
        A beat that could not be read is written nevertheless (with whatever came) and told.
    """

    i: stream.Interface
    idle: Signal
    error: Signal
    restart: Signal
    read: Any
    write: Any

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(move_layout(config))),
                "idle": Out(1),
                "error": Out(1),
                "restart": In(1),
                "read": Out(ReadPort(config)),
                "write": Out(WritePort(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, low = self._config, beat_bits(self._config)
        m.submodules.beats = beats = Queue(config.port_bits, config.fifo_beats, sram=True)
        m.submodules.moves = moves = Queue(move_layout(config), MOVES)
        room = Signal(range(config.fifo_beats + 1), init=config.fifo_beats)
        pending = Signal(12)  # writes asked for and not acknowledged

        def piece_of(beats_left: Signal) -> Any:
            return Mux(beats_left < PIECE, beats_left[:5], PIECE)

        asked = self._read(m, moves, room, piece_of)
        m.d.comb += [beats.i.valid.eq(self.read.data_valid), beats.i.payload.eq(self.read.data)]
        used = beats.o.valid & beats.o.ready
        m.d.sync += room.eq(room - asked + used)

        write = self.write
        left, target = Signal(20), Signal(config.address_bits)
        piece, tail = Signal(5), Signal(low)  # beats of the piece still to be sent
        final = Signal()  # the piece is the move's last
        strobe = Mux((piece == 1) & final & (tail != 0), (1 << tail) - 1, (1 << (1 << low)) - 1)
        m.d.comb += [
            write.request.payload.address.eq(target),
            write.request.payload.beats.eq(piece_of(left)),
            write.beat.payload.data.eq(beats.o.payload),
            write.beat.payload.strobe.eq(strobe),
        ]
        with m.FSM(name="write") as writes:
            with m.State("IDLE"):
                m.d.comb += moves.o.ready.eq(1)
                m.d.sync += [
                    left.eq(moves.o.payload.beats), target.eq(moves.o.payload.target),
                    tail.eq(moves.o.payload.tail),
                ]  # fmt: skip
                with m.If(moves.o.valid):
                    m.next = "ASK"
            with m.State("ASK"):
                here = beats.level >= piece_of(left)
                m.d.comb += write.request.valid.eq(here)
                with m.If(here & write.request.ready):
                    m.d.sync += [
                        piece.eq(piece_of(left)), left.eq(left - piece_of(left)),
                        target.eq(target + (piece_of(left) << low)), final.eq(left <= PIECE),
                    ]  # fmt: skip
                    m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += [
                    write.beat.valid.eq(beats.o.valid), beats.o.ready.eq(write.beat.ready)
                ]  # fmt: skip
                with m.If(used):
                    m.d.sync += piece.eq(piece - 1)
                    with m.If(piece == 1):
                        m.next = "ASK"
                        with m.If(final):
                            m.next = "IDLE"
        asks = write.request.valid & write.request.ready
        m.d.sync += pending.eq(pending + asks - write.done)
        with m.If(self.restart):
            m.d.sync += self.error.eq(0)
        with m.If(self.read.data_valid & self.read.error | write.done & write.error):
            m.d.sync += self.error.eq(1)
        m.d.comb += self.idle.eq(
            writes.ongoing("IDLE") & ~moves.o.valid & (pending == 0) & ~self._reading
        )
        return m

    def _read(self, m: Module, moves: Queue, room: Signal, piece_of: Any) -> Any:
        """Asks for the beats of one move after the other; how many in this cycle."""
        low, read = beat_bits(self._config), self.read
        left, source = Signal(20), Signal(self._config.address_bits)
        self._reading = Signal()
        asks = read.request.valid & read.request.ready
        m.d.comb += [
            self._reading.eq(left != 0),
            self.i.ready.eq((left == 0) & moves.i.ready),
            moves.i.valid.eq(self.i.valid & (left == 0)),
            moves.i.payload.eq(self.i.payload),
            read.request.valid.eq((left != 0) & (room >= PIECE)),
            read.request.payload.address.eq(source),
            read.request.payload.beats.eq(piece_of(left)),
        ]
        with m.If(asks):
            m.d.sync += [
                left.eq(left - piece_of(left)), source.eq(source + (piece_of(left) << low))
            ]  # fmt: skip
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [left.eq(self.i.payload.beats), source.eq(self.i.payload.source)]
        return Mux(asks, piece_of(left), 0)
