"""Page walker: one operation on each page of a block table or list."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import Error
from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import bits
from m890.hdl.memory.burst import beat_bits
from m890.hdl.memory.ports import ReadPort
from m890.hdl.memory.queue import Queue
from m890.hdl.pages.layouts import Op, operation_layout, outcome_layout, places_bits

ROOM = 16
"""Beats of the list that may be here or on their way."""
PIECE = 4
"""Beats of one request."""


def walk_layout(config: CoreConfig) -> data.StructLayout:
    """`count` u32 from byte `address` on (a multiple of 4). plain: only compare with `bound`."""
    return data.StructLayout(
        {
            "address": config.address_bits, "count": places_bits(config), "op": Op, "pin": 1,
            "tenant": bits(config.tenants), "plain": 1, "bound": 32,
        }
    )  # fmt: skip


class PageWalker(wiring.Component):
    """Reads page numbers from memory and gives each to the store, until one fails.

    Function
        Numbers in the order of memory; number >= `pages` is given as a bad page. The first failure
        ends the walk: `index` entries were done, none behind them.
    Members
        start, walk : begin; walk is read in this cycle only. busy : until the end.
        error, index, number, shared : of the walk that has ended: outcome; entries done; the last
        number read; entries whose page others hold too.
        read : ReadPort. operation : stream to the store. done, outcome, idle : from it.
    Latency
        Memory's + 8 cycles to the first operation's end.
    Throughput
        One entry per cycle, if memory keeps up with ROOM beats on their way.
    Storage
        ROOM beats.
    Errors
        The store's; BUS_ERROR: the list could not be read. plain: BAD_RANGE, number >= bound.
    """

    start: Signal
    walk: Any
    busy: Signal
    error: Signal
    index: Signal
    number: Signal
    shared: Signal
    read: Any
    operation: stream.Interface
    done: Signal
    outcome: Any
    idle: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        places = places_bits(config)
        super().__init__(
            {
                "start": In(1),
                "walk": In(walk_layout(config)),
                "busy": Out(1),
                "error": Out(8),
                "index": Out(places),
                "number": Out(32),
                "shared": Out(places),
                "read": Out(ReadPort(config)),
                "operation": Out(stream.Signature(operation_layout(config))),
                "done": In(1),
                "outcome": In(outcome_layout(config)),
                "idle": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        low = beat_bits(config)
        shape = data.StructLayout({"data": config.port_bits, "error": 1})
        m.submodules.beats = beats = Queue(shape, ROOM, sram=True)
        walk = Signal(walk_layout(config))
        here = Signal(range(ROOM + 1))  # beats asked for and not used up
        left = Signal(len(walk.count) + 1)  # beats to ask for
        word = Signal(low - 2)  # entry within its beat
        given = Signal(len(walk.count))  # entries given to the store, or looked at
        failed, drop = Signal(), Signal()

        request = self.read.request
        piece = Mux(left < PIECE, left[:3], PIECE)
        ask, used = request.valid & request.ready, beats.o.valid & beats.o.ready
        m.d.comb += [
            beats.i.valid.eq(self.read.data_valid),
            beats.i.payload.data.eq(self.read.data),
            beats.i.payload.error.eq(self.read.error),
            request.payload.address.eq(walk.address),
            request.payload.address[:low].eq(0),
            request.payload.beats.eq(piece),
        ]
        m.d.sync += here.eq(here + Mux(ask, piece, 0) - used)
        with m.If(ask):
            m.d.sync += [
                left.eq(left - piece), walk.address.eq(walk.address + (piece << low))
            ]  # fmt: skip
        # One number waits between the beat and the store, so that neither's logic meets the other's
        held, held_valid = Signal(32), Signal()
        broken = Signal()  # the beat could not be read
        operation = self.operation
        m.d.comb += [
            operation.payload.op.eq(walk.op),
            operation.payload.pin.eq(walk.pin),
            operation.payload.tenant.eq(walk.tenant),
            operation.payload.number.eq(held),
            operation.payload.bad.eq(held >= config.pages),
            operation.valid.eq(held_valid & ~walk.plain),
        ]
        moves = ~held_valid | Mux(walk.plain, 1, operation.ready)
        more = (given != walk.count) & ~failed & ~broken
        last_word = word == (1 << low - 2) - 1
        m.d.comb += beats.o.ready.eq(drop)
        with m.If(moves):
            m.d.sync += held_valid.eq(0)
            with m.If(self.busy & ~drop & more & beats.o.valid):
                m.d.sync += broken.eq(beats.o.payload.error)
                with m.If(~beats.o.payload.error):
                    m.d.sync += [
                        held.eq(beats.o.payload.data.word_select(word, 32)),
                        held_valid.eq(1), given.eq(given + 1), word.eq(word + 1),
                    ]  # fmt: skip
                    m.d.comb += beats.o.ready.eq(last_word)
        with m.If(held_valid):
            m.d.sync += self.number.eq(held)
        outside = held_valid & walk.plain & (held >= walk.bound)
        with m.If(~failed):
            with m.If(outside | self.done & (self.outcome.error != Error.OK)):
                m.d.sync += [
                    failed.eq(1),
                    self.error.eq(Mux(walk.plain, Error.BAD_RANGE, self.outcome.error)),
                ]
            with m.Elif(self.done | held_valid & walk.plain):
                m.d.sync += [
                    self.index.eq(self.index + 1),
                    self.shared.eq(self.shared + (self.done & self.outcome.shared)),
                ]

        with m.FSM(name="walk"):
            with m.State("IDLE"):
                m.d.sync += [
                    word.eq(self.walk.address[2:low]), given.eq(0), failed.eq(0), broken.eq(0)
                ]  # fmt: skip
                with m.If(self.start):
                    m.d.sync += [
                        walk.eq(self.walk), self.busy.eq(1), self.error.eq(Error.OK),
                        self.index.eq(0), self.shared.eq(0),
                        left.eq(
                            (self.walk.address[2:low] + self.walk.count + (1 << low - 2) - 1)
                            >> low - 2
                        ),
                    ]  # fmt: skip
                    m.next = "WALK"
            with m.State("WALK"):
                m.d.comb += request.valid.eq((left != 0) & (here <= ROOM - PIECE))
                ended = failed | broken & ~held_valid | (self.index == walk.count)
                with m.If(ended & ~(request.valid & ~request.ready)):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += drop.eq(1)
                with m.If((here == 0) & ~held_valid & self.idle & ~self.done):
                    m.d.sync += self.busy.eq(0)
                    with m.If(broken & ~failed & (self.index != walk.count)):
                        m.d.sync += self.error.eq(Error.BUS_ERROR)
                    m.next = "IDLE"
        return m
