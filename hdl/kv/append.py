"""Append unit: quantises K and V of new tokens into a sequence's pages."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import Error, Status
from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import APPEND_DONE, append_layout
from m890.hdl.kv.append_place import AppendPlaces
from m890.hdl.kv.append_source import AppendSource
from m890.hdl.kv.append_write import AppendWriter
from m890.hdl.kv.items import is_narrow, is_scaled
from m890.hdl.memory.ports import ReadPort, WritePort


class Append(wiring.Component):
    """Writes new tokens of a sequence into a plane's pages.

    Function
        For each token the K and the V row (head size elements of BF16 or FP16) are read, scaled and
        quantised (docs/numerics.md, "Append") and written to the token's place in its page
        (m890.hdl.layout): first the scale, where the format has one, then one write per tile.
    Members
        command : In(stream of append_layout). Fields are checked already, but for page numbers.
        done : Out(stream of APPEND_DONE). After memory has acknowledged every write.
        read, table : ReadPort. Source rows; block table.
        write : WritePort. Requests of one beat.
        token : Out. One cycle: a token is on its way to memory.
    Latency
        One token, from `command` to `done`, in a memory that gives the first beat R cycles after a
        request and acknowledges a write after W: R + W + 3 tiles + 2 scaled + 24 +
        ceil(log2(lanes) / 2) cycles (`scaled`: 1 if the format has scales).
    Throughput
        One write per cycle, 2 (tiles + scaled) cycles per token, if memory takes them and R is less
        than the time of 7 tokens: the rows of the next 8 tokens are read ahead. A chunk of fewer
        writes than about 14 waits for its place. One command at a time.
    Backpressure
        command.ready and done.valid depend on state only. Reads are asked for where there is room.
    Storage
        See AppendSource (rows), AppendPlaces (places) and AppendWriter (writes).
    Errors
        BAD_PAGE: a page number of `pages` or more; nothing is written. BUS_ERROR: a read or write
        failed; writing stops, and earlier tokens of the command may be written: they lie behind
        the sequence's committed length. `index` is the token's number within the command.
    """

    command: stream.Interface
    done: stream.Interface
    read: Any
    table: Any
    write: Any
    token: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "command": In(stream.Signature(append_layout(config))),
                "done": Out(stream.Signature(APPEND_DONE)),
                "read": Out(ReadPort(config)),
                "table": Out(ReadPort(config)),
                "write": Out(WritePort(config)),
                "token": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        job = Signal(append_layout(config))
        m.submodules.source = source = AppendSource(config)
        m.submodules.places = places = AppendPlaces(config)
        m.submodules.writer = writer = AppendWriter(config)
        wiring.connect(m, source.read, wiring.flipped(self.read))
        wiring.connect(m, places.table, wiring.flipped(self.table))
        wiring.connect(m, writer.request, wiring.flipped(self.write.request))
        wiring.connect(m, writer.beats, wiring.flipped(self.write.beat))

        place, row = places.o, source.row
        start, stop = Signal(), Signal()
        value = Signal()  # the row is the token's V, not its K
        tile = Signal.like(source.tile)
        scale_done = Signal()
        is_scale = Signal()
        m.d.comb += [
            source.job.eq(job), source.start.eq(start), source.stop.eq(stop), source.tile.eq(tile),
            places.job.eq(job), places.start.eq(start), places.stop.eq(stop),
            writer.format.eq(job.format),
            writer.source_format.eq(job.source_format),
            writer.beat.eq(source.beat),
            writer.scale.eq(row.payload.scale),
            is_scale.eq(is_scaled(job.format) & ~scale_done),
            writer.is_scale.eq(is_scale),
        ]  # fmt: skip
        self._address(m, job, place.payload, writer, tile, value)

        result = Signal(APPEND_DONE)
        pending = Signal(16)  # writes issued and not acknowledged
        unconfirmed = self._confirm(m, start, job)
        m.d.comb += self.done.payload.eq(result)
        m.d.sync += pending.eq(pending + writer.issue - self.write.done)
        with m.If(writer.event):
            m.d.sync += result.status.eq(1 << Status.QUANTISE)

        def fail(error: Value | Error, index: Value) -> None:
            with m.If(result.error == Error.OK):
                m.d.sync += [result.error.eq(error), result.index.eq(index)]
            m.next = "STOP"

        write_failed = self.write.done & self.write.error
        with m.FSM(name="state"):
            with m.State("IDLE"):
                m.d.comb += self.command.ready.eq(1)
                m.d.sync += [
                    job.eq(self.command.payload), result.eq(0),
                    result.ident.eq(self.command.payload.ident),
                    tile.eq(0), value.eq(0), scale_done.eq(0),
                ]  # fmt: skip
                with m.If(self.command.valid):
                    m.next = "START"
            with m.State("START"):
                m.d.comb += start.eq(1)
                m.next = "WRITE"
            with m.State("WRITE"):
                with m.If(place.valid & (place.payload.error != Error.OK)):
                    fail(place.payload.error, place.payload.index)
                with m.Elif(place.valid & row.valid & row.payload.error):
                    fail(Error.BUS_ERROR, place.payload.index)
                with m.Elif(place.valid & row.valid & writer.room):
                    m.d.comb += writer.issue.eq(1)
                    with m.If(is_scale):
                        m.d.sync += scale_done.eq(1)
                    with m.Elif(tile != job.tiles - 1):
                        m.d.sync += tile.eq(tile + 1)
                    with m.Else():
                        m.d.comb += [
                            row.ready.eq(1), place.ready.eq(value), self.token.eq(value)
                        ]  # fmt: skip
                        m.d.sync += [tile.eq(0), scale_done.eq(0), value.eq(~value)]
                        with m.If(value & place.payload.last):
                            m.next = "STOP"
                with m.If(write_failed):
                    fail(Error.BUS_ERROR, unconfirmed)
            with m.State("STOP"):
                # After an error: drop what was read ahead. After the last token nothing is left.
                m.d.comb += [stop.eq(1), row.ready.eq(1), place.ready.eq(1)]
                with m.If(source.idle & places.idle & (pending == 0)):
                    m.next = "DONE"
                with m.If(write_failed):
                    fail(Error.BUS_ERROR, unconfirmed)
            with m.State("DONE"):
                m.d.comb += self.done.valid.eq(1)
                with m.If(self.done.ready):
                    m.next = "IDLE"
        return m

    def _address(
        self, m: Module, job: data.View, place: data.View, writer: AppendWriter, tile: Value,
        value: Value,
    ) -> None:  # fmt: skip
        """Byte address of the next write."""
        lanes = self._config.lanes
        following = Signal(self._config.address_bits)
        tile_bytes = Mux(is_narrow(job.format), lanes * lanes, 2 * lanes * lanes)
        with m.If(writer.is_scale):
            scales = place.chunk + Mux(value, self._config.port_bytes, 0)
            m.d.comb += writer.address.eq(scales + (place.lane << 1))
        with m.Elif(tile == 0):
            m.d.comb += writer.address.eq(Mux(value, place.v, place.k))
        with m.Else():
            m.d.comb += writer.address.eq(following)
        with m.If(writer.issue):
            m.d.sync += following.eq(writer.address + tile_bytes)

    def _confirm(self, m: Module, start: Value, job: data.View) -> Signal:
        """Number of the first token whose writes are not all acknowledged."""
        writes = (job.tiles + is_scaled(job.format)) << 1  # of a token
        count, token = Signal(10), Signal(16)
        with m.If(start):
            m.d.sync += [count.eq(0), token.eq(0)]
        with m.Elif(self.write.done):
            m.d.sync += count.eq(count + 1)
            with m.If(count == writes - 1):
                m.d.sync += [count.eq(0), token.eq(token + 1)]
        return token
