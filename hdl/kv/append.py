"""Append unit: quantises K and V of new tokens into a sequence's pages."""

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import Error, Status
from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import APPEND_DONE, append_layout
from m890.hdl.kv.append_place import AppendPlaces
from m890.hdl.kv.append_source import AppendSource
from m890.hdl.kv.append_write import AppendWriter
from m890.hdl.kv.items import (
    HEADER_BITS,
    group_size,
    header_beats,
    is_grouped,
    packing,
    tile_group,
)
from m890.hdl.memory.ports import ReadPort, WritePort
from m890.hdl.numerics.quantise import beat_groups
from m890.hdl.pages.guard import OwnerPort


class Append(wiring.Component):
    """Writes new tokens of a sequence into a plane's pages.

    Function
        For each token the K and the V row (head size elements of BF16 or FP16) are read, rotated if
        the plane is, scaled and quantised (docs/numerics.md, "Append") and written to the token's
        place in its page (m890.hdl.layout): a write per group of K's tiles, then of V's, then the
        token's entry in the header, where the plane has one.
    Members
        command : In(stream of append_layout). Fields are checked already, but for page numbers;
        `repair` writes in pages that others hold, too.
        done : Out(stream of APPEND_DONE). After memory has acknowledged every write.
        read, table : ReadPort. Source rows; block table. owner : OwnerPort of the page table.
        write : WritePort. Requests of one beat.
        token : Out. One cycle: a token is on its way to memory.
        busy : Out. A command is here or offered; the unit may stand still while it is low.
    Latency
        One token, from `command` to `done`, in a memory that gives the first beat R cycles after a
        request and acknowledges a write after W: R + W + tiles + 2 tiles x code_steps + header + 25
        + ceil(log2(lanes) / 2) cycles (`header`: 1 if the plane has headers; code_steps: as in
        CoreConfig). If it is rotated, RotateBeats' latency more, and its cycles for tiles - 1
        beats.
    Throughput
        2 tiles x code_steps + header cycles per token and 5 for each page but the first, if memory
        takes the writes and R is less than the time of 14 tokens: the rows of the next 16 are read
        ahead. Rotation goes as fast. One command at a time.
    Backpressure
        command.ready and done.valid depend on state only. Reads are asked for where there is room.
    Storage
        See AppendSource (rows), AppendPlaces (places) and AppendWriter (writes).
    Errors
        BAD_PAGE, BAD_TENANT, TABLE_ERROR: of a page that it may not write (AppendPlaces); nothing
        is written, unless the block table changes while the command runs. BUS_ERROR: a read or
        write failed; writing stops, and earlier tokens of the command may be written: they lie
        behind the sequence's committed length. `index` is the token's number within the command.
    """

    command: stream.Interface
    done: stream.Interface
    read: Any
    table: Any
    owner: Any
    write: Any
    token: Signal
    busy: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "command": In(stream.Signature(append_layout(config))),
                "done": Out(stream.Signature(APPEND_DONE)),
                "read": Out(ReadPort(config)),
                "table": Out(ReadPort(config)),
                "owner": Out(OwnerPort(config)),
                "write": Out(WritePort(config)),
                "token": Out(1),
                "busy": Out(1),
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
        wiring.connect(m, places.owner, wiring.flipped(self.owner))
        wiring.connect(m, writer.request, wiring.flipped(self.write.request))
        wiring.connect(m, writer.beats, wiring.flipped(self.write.beat))

        place, row = places.o, source.row
        start, stop = Signal(), Signal()
        value = Signal()  # the row is the token's V, not its K
        tile = Signal.like(source.tile)
        row_end = Signal()
        is_header = Signal()  # both rows are written, the token's entry is next
        k_scales = Signal.like(row.payload.scales)
        header = Signal(HEADER_BITS)  # bytes of half an entry, 0: no headers
        m.d.sync += header.eq(header_beats(config, job.format, job.tiles, job.tags))
        m.d.comb += [
            source.job.eq(job), source.start.eq(start), source.stop.eq(stop), source.tile.eq(tile),
            source.fetch.eq(writer.issue),
            places.job.eq(job), places.start.eq(start), places.stop.eq(stop),
            row_end.eq(tile == job.tiles - 1),
            writer.format.eq(job.format),
            writer.source_format.eq(job.source_format),
            writer.beat.eq(source.beat),
            writer.k_scales.eq(k_scales),
            writer.v_scales.eq(row.payload.scales),
            writer.header.eq(header),
            writer.tags.eq(job.tags),
            writer.begins.eq(tile == 0),
            writer.is_header.eq(is_header),
        ]  # fmt: skip
        group = tile_group(config, tile)
        for n in range(beat_groups(config.lanes)):
            byte = row.payload.scales.word_select(group + n, 8)
            wide = Cat(C(0, 7), byte, C(0, 1))  # as BF16
            m.d.comb += writer.scale[n].eq(
                Mux(is_grouped(job.format), wide, row.payload.scales[:16])
            )
        self._address(m, job, place.payload, writer, start, tile, value, row_end)

        result = Signal(APPEND_DONE)
        pending = Signal(16)  # writes issued and not acknowledged
        unconfirmed = self._confirm(m, start, job, header)
        m.d.comb += self.done.payload.eq(result)
        writes = writer.issue & (writer.emit | writer.is_header)
        m.d.sync += pending.eq(pending + writes - self.write.done)
        with m.If(writer.event):
            m.d.sync += result.status.eq(1 << Status.QUANTISE)

        def fail(error: Value | Error, index: Value) -> None:
            with m.If(result.error == Error.OK):
                m.d.sync += [result.error.eq(error), result.index.eq(index)]
            m.next = "STOP"

        write_failed = self.write.done & self.write.error
        with m.FSM(name="state") as fsm:
            m.d.comb += self.busy.eq(self.command.valid | ~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.comb += self.command.ready.eq(1)
                m.d.sync += [
                    job.eq(self.command.payload), result.eq(0),
                    result.ident.eq(self.command.payload.ident),
                    tile.eq(0), value.eq(0), is_header.eq(0),
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
                    with m.If(~row_end & ~is_header):
                        m.d.sync += tile.eq(tile + 1)
                    with m.Elif(~value):
                        m.d.comb += row.ready.eq(1)
                        m.d.sync += [tile.eq(0), value.eq(1), k_scales.eq(row.payload.scales)]
                    with m.Elif(header.any() & ~is_header):
                        m.d.sync += [tile.eq(0), is_header.eq(1)]
                    with m.Else():
                        m.d.comb += [row.ready.eq(1), place.ready.eq(1), self.token.eq(1)]
                        m.d.sync += [tile.eq(0), value.eq(0), is_header.eq(0)]
                        with m.If(place.payload.last):
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
        self, m: Module, job: data.View, place: data.View, writer: AppendWriter, start: Value,
        tile: Value, value: Value, row_end: Value,
    ) -> None:  # fmt: skip
        """Byte address of the next write, and whether it is due with this tile."""
        lane_bits = self._config.lanes.bit_length() - 1
        packed, size = Signal(2), Signal(2)  # tiles of a full group, of this one (log2)
        inside = Signal(2)  # tile within the group
        following, group = (
            Signal(self._config.address_bits, name=n) for n in ("following", "group")
        )
        offset = Signal(2 * lane_bits + 1)
        first_size = group_size(packed, job.tiles)
        m.d.comb += [
            packed.eq(packing(job.format)),
            writer.apart.eq(packed - size),
            writer.emit.eq(inside == (1 << size)[:3] - 1),
            group.eq(Mux(tile == 0, Mux(value, place.v, place.k), following)),
        ]
        with m.If(writer.is_header):
            with m.Switch(writer.header):
                for n in range(HEADER_BITS):
                    with m.Case(1 << n):
                        m.d.comb += offset.eq(place.lane << n + 1)
            m.d.comb += writer.address.eq(place.chunk + offset)
        with m.Else():
            m.d.comb += [
                offset.eq((place.lane << lane_bits + 1) >> writer.apart),
                writer.address.eq(group + offset),
            ]
        with m.If(start):
            m.d.sync += [size.eq(first_size), inside.eq(0)]
        with m.Elif(writer.issue & ~writer.is_header):
            m.d.sync += [inside.eq(inside + 1), following.eq(group)]
            with m.If(writer.emit):
                m.d.sync += [
                    inside.eq(0),
                    following.eq(group + (C(1 << 2 * lane_bits + 1) >> writer.apart)),
                ]
                left = job.tiles - 1 - tile
                m.d.sync += size.eq(Mux(row_end, first_size, group_size(packed, left)))

    def _confirm(self, m: Module, start: Value, job: data.View, header: Value) -> Signal:
        """Number of the first token whose writes are not all acknowledged."""
        tiles, packed = job.tiles, packing(job.format)
        whole = tiles >> packed
        rest = Mux(packed == 0, 0, tiles[0] + Mux(packed == 2, tiles[1], 0))
        writes = ((whole + rest) << 1) + header.any()  # of a token
        count, token = Signal(10), Signal(16)
        with m.If(start):
            m.d.sync += [count.eq(0), token.eq(0)]
        with m.Elif(self.write.done):
            m.d.sync += count.eq(count + 1)
            with m.If(count == writes - 1):
                m.d.sync += [count.eq(0), token.eq(token + 1)]
        return token
