"""Command ring: fetches commands ahead of their execution."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import COMMAND_BYTES
from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import COMMAND
from m890.hdl.memory.burst import beat_bits
from m890.hdl.memory.ports import ReadPort
from m890.hdl.memory.queue import Queue
from m890.hdl.wake import Gated, sleeps

PREFETCH = 4
"""Commands requested or fetched and not yet taken by dispatch."""


class RingFetch(wiring.Component):
    """Reads commands from the ring in memory.

    Function
        While enabled, commands from head to tail are requested one by one; `head` counts a command
        once it has arrived, so that firmware may overwrite its entry. On a port wider than a
        command each command is read with its beat, at its own time: its neighbour may not be
        written yet.
    Members
        enable, base (bytes, 128-byte aligned), size (power of two), tail : from the registers.
        clear : head returns to zero; only while idle. head : commands fetched so far.
        idle : nothing to fetch, on its way or waiting. read : to the arbiter. o : stream of
        COMMAND.
    Latency
        That of memory + 4 cycles.
    Throughput
        One command per 64 bytes of the port's width, with up to PREFETCH on their way.
    Backpressure
        No more is requested than the queue holds.
    Storage
        PREFETCH commands.
    Errors
        A command that arrives with a bus error carries `error`.
    """

    enable: Signal
    base: Signal
    size: Signal
    tail: Signal
    clear: Signal
    head: Signal
    idle: Signal
    read: Any
    o: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "enable": In(1),
                "base": In(config.address_bits),
                "size": In(16),
                "tail": In(16),
                "clear": In(1),
                "head": Out(16),
                "idle": Out(1),
                "read": Out(ReadPort(config)),
                "o": Out(stream.Signature(COMMAND)),
            }
        )

    def elaborate(self, platform: object) -> Gated:
        m = Module()
        config, read = self._config, self.read
        m.submodules.commands = commands = Queue(COMMAND, PREFETCH, sram=True)
        wiring.connect(m, commands.o, wiring.flipped(self.o))
        issued = Signal(16)  # commands requested so far
        room = Signal(range(PREFETCH + 1), init=PREFETCH)
        mask = Signal(16)
        m.d.sync += mask.eq(self.size - 1)
        taken = self.o.valid & self.o.ready
        issue = Signal()
        m.d.comb += [
            issue.eq(
                self.enable
                & (issued != self.tail)
                & (room != 0)
                & (~read.request.valid | read.request.ready)
            ),
            self.idle.eq(
                ~read.request.valid & (room == PREFETCH) & (~self.enable | (issued == self.tail))
            ),
        ]
        m.d.sync += room.eq(room + taken - issue)
        low = beat_bits(config)
        entry_bits = (COMMAND_BYTES - 1).bit_length()
        with m.If(~read.request.valid | read.request.ready):
            m.d.sync += [
                read.request.valid.eq(issue),
                read.request.payload.address.eq(
                    self.base + Cat(Const(0, entry_bits), issued & mask)
                ),
                read.request.payload.address[:low].eq(0),
                read.request.payload.beats.eq(max(1, COMMAND_BYTES // config.port_bytes)),
            ]
        with m.If(issue):
            m.d.sync += issued.eq(issued + 1)
        self._assemble(m, commands, mask)
        with m.If(self.clear):
            m.d.sync += [issued.eq(0), self.head.eq(0)]
        return sleeps(
            m, ~self.enable, issue, taken, read.request.valid, read.data_valid, self.clear
        )

    def _assemble(self, m: Module, commands: Queue, mask: Signal) -> None:
        """Collects the beats of a command, or picks it out of its beat."""
        width, beat = 8 * COMMAND_BYTES, self._config.port_bits
        read = self.read
        if beat > width:
            per_beat = beat // width
            number = (self.head & mask)[: (per_beat - 1).bit_length()]
            word, error = read.data.word_select(number, width), read.error
        elif beat == width:
            word, error = read.data, read.error
        else:
            earlier, failed = Signal(width - beat), Signal()
            word, error = Cat(earlier, read.data), read.error | failed
            with m.If(read.data_valid):
                m.d.sync += [
                    earlier.eq(word[beat:]),
                    failed.eq(error & ~read.last),
                ]
        m.d.comb += [
            commands.i.valid.eq(read.data_valid & read.last),
            commands.i.payload.data.eq(word),
            commands.i.payload.error.eq(error),
        ]
        with m.If(commands.i.valid):
            m.d.sync += self.head.eq(self.head + 1)
