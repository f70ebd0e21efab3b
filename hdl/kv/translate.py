"""Block table look-up: from token to page to byte address."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import Error
from m890.hdl.config import PAGE_NUMBER_BITS, TOKEN_BITS, CoreConfig
from m890.hdl.kv.items import (
    COMMAND_BEATS_BITS,
    COUNT_BITS,
    HEADER_BITS,
    ItemKind,
    entry_layout,
    header_beats,
    located_layout,
    packing,
)
from m890.hdl.memory.ports import ReadPort
from m890.hdl.memory.queue import Queue
from m890.hdl.pages.guard import OwnerPort, PageGuard

PENDING = 8
"""Entries between a table read's request and its use."""
READS = 4
"""Table beats requested and not yet used up."""


class Translator(wiring.Component):
    """Finds the page of every chunk and the address of its K and V.

    Function
        Page number of token t: the u32 at table + 4 (t // page_tokens). Chunk address:
        base + page x stride + (chunk in page) x chunk bytes. Entries leave in order. A chunk leaves
        only if PageGuard lets the job's tenant reach its page: nothing of another page is ever
        fetched. After an error the job's other chunks and stored states are dropped; its END leaves
        with the first error and that segment's index.
    Members
        i : stream of entries. o : stream of located items. table : read port, one beat a request.
        owner : OwnerPort of the page table.
    Latency
        10 cycles and a read for the first chunk of a table beat. The page's owner is looked up
        beside the address arithmetic; an answer later than after 2 cycles adds what it is late.
    Throughput
        One chunk per 7 cycles (a chunk streams for 2 lanes or more). A table beat is read once for
        all its neighbouring entries; READS reads are under way at a time.
    Backpressure
        i.ready depends on i.payload and table.request.ready, not on o.ready.
    Storage
        PENDING entries, READS + 1 table beats.
    Errors
        BAD_PAGE, BAD_TENANT, TABLE_ERROR: see PageGuard. BUS_ERROR: the block table could not be
        read.
    """

    i: stream.Interface
    o: stream.Interface
    table: Any
    owner: Any

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(entry_layout(config))),
                "o": Out(stream.Signature(located_layout(config))),
                "table": Out(ReadPort(config)),
                "owner": Out(OwnerPort(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pending_shape = data.StructLayout({"entry": entry_layout(self.config), "fresh": 1})
        beat_shape = data.StructLayout({"data": self.config.port_bits, "error": 1})
        m.submodules.pending = pending = Queue(pending_shape, PENDING)
        m.submodules.beats = beats = Queue(beat_shape, READS, sram=True)
        m.submodules.guard = guard = PageGuard(self.config)
        wiring.connect(m, guard.port, wiring.flipped(self.owner))
        m.d.comb += [
            beats.i.valid.eq(self.table.data_valid),
            beats.i.payload.data.eq(self.table.data),
            beats.i.payload.error.eq(self.table.error),
        ]
        self._request(m, pending, beats)
        self._locate(m, pending, beats, guard)
        return m

    def _split(self, token: data.View) -> tuple:
        """(chunk in page, word in table beat, table beat) of a token index."""
        chunk = token[self.config.lanes.bit_length() - 1 :]
        inside = self.config.chunks_per_page.bit_length() - 1
        word = (self.config.port_bytes // 4).bit_length() - 1
        return chunk[:inside], chunk[inside:][:word], chunk[inside:][word:]

    def _request(self, m: Module, pending: Queue, beats: Queue) -> None:
        """Asks for the table beats that entries need, ahead of their use."""
        entry, request = self.i.payload, self.table.request
        _, _, line = self._split(entry.item.base_token)
        known = Signal()  # `line_kept` of segment `index_kept` is the last beat asked for
        line_kept = Signal(TOKEN_BITS)
        index_kept = Signal(COUNT_BITS)
        chunk = entry.item.kind == ItemKind.CHUNK
        same = known & (line_kept == line) & (index_kept == entry.item.index)
        fresh, take, used = Signal(), Signal(), Signal()
        reads = Signal(range(READS + 1))
        m.d.comb += [
            fresh.eq(chunk & ~same),
            used.eq(beats.o.valid & beats.o.ready),
            self.i.ready.eq(
                pending.i.ready & (~fresh | (~request.valid | request.ready) & (reads != READS))
            ),
            take.eq(self.i.valid & self.i.ready),
            pending.i.valid.eq(take),
            pending.i.payload.entry.eq(entry),
            pending.i.payload.fresh.eq(fresh),
        ]
        m.d.sync += reads.eq(reads + (take & fresh) - used)
        with m.If(request.ready):
            m.d.sync += request.valid.eq(0)
        with m.If(take):
            m.d.sync += known.eq((entry.item.kind != ItemKind.END) & (chunk | known))
            with m.If(fresh):
                m.d.sync += [
                    line_kept.eq(line),
                    index_kept.eq(entry.item.index),
                    request.valid.eq(1),
                    request.payload.address.eq(
                        entry.table + (line << (self.config.port_bytes.bit_length() - 1))
                    ),
                    request.payload.beats.eq(1),
                ]

    def _locate(self, m: Module, pending: Queue, beats: Queue, guard: PageGuard) -> None:
        """Takes the entries in order through look-up and address arithmetic."""
        config = self.config
        entry, fresh = pending.o.payload.entry, pending.o.payload.fresh
        item = entry.item
        port = Const(0, config.port_bytes.bit_length() - 1)
        inside, word, _ = self._split(item.base_token)

        kept = Signal(config.port_bits)  # the last table beat
        kept_error = Signal()
        error = Signal(8)
        error_index = Signal(COUNT_BITS)
        number = Signal(32)
        tile_beats = Signal(COMMAND_BEATS_BITS)  # of K, and as many of V
        chunk_beats = Signal(COMMAND_BEATS_BITS + 1)
        before_v = Signal(COMMAND_BEATS_BITS)  # header and K tiles
        header = Signal(HEADER_BITS)
        offset = Signal(len(chunk_beats) + len(inside))
        address = Signal(config.address_bits)
        v_address = Signal(config.address_bits)

        def fail(reason: Error | Value) -> list:
            return [error.eq(reason), error_index.eq(item.index)]

        located = self.o.payload
        m.d.comb += [
            located.item.eq(item),
            located.address.eq(address),
            located.v_address.eq(v_address),
            located.header.eq(header),
            located.beats.eq(tile_beats),
            located.source.eq(entry.source),
            guard.number.eq(number),
            guard.tenant.eq(entry.tenant),
        ]
        with m.If(item.kind == ItemKind.END):
            m.d.comb += [located.item.error.eq(error), located.item.index.eq(error_index)]

        with m.FSM(name="locate"):
            with m.State("WAIT"):
                with m.If(pending.o.valid & (~fresh | beats.o.valid)):
                    with m.If(fresh):
                        m.d.comb += beats.o.ready.eq(1)
                        m.d.sync += [
                            kept.eq(beats.o.payload.data),
                            kept_error.eq(beats.o.payload.error),
                        ]
                    with m.If(item.kind == ItemKind.END):
                        m.next = "EMIT"
                    with m.Elif(error != Error.OK):
                        m.d.comb += pending.o.ready.eq(1)
                    with m.Elif(item.kind == ItemKind.CHUNK):
                        m.next = "SELECT"
                    with m.Else():
                        m.next = "EMIT"
            with m.State("SELECT"):
                with m.Switch(word):
                    for n in range(config.port_bytes // 4):
                        with m.Case(n):
                            m.d.sync += number.eq(kept[32 * n : 32 * n + 32])
                tiles = Cat(Const(0, config.lanes.bit_length() - 1), item.tiles)
                m.d.sync += [
                    tile_beats.eq(tiles >> packing(item.format)),
                    header.eq(header_beats(config, item.format, item.tiles, item.tags)),
                ]
                m.next = "CHECK"
            with m.State("CHECK"):
                m.d.sync += [
                    before_v.eq(tile_beats + header),
                    chunk_beats.eq((tile_beats << 1) + header),
                ]
                m.next = "MULTIPLY"
                with m.If(kept_error):
                    m.d.sync += fail(Error.BUS_ERROR)
                    m.next = "DROP"
                with m.Else():
                    m.d.comb += guard.start.eq(1)
            with m.State("MULTIPLY"):
                m.d.sync += [
                    address.eq(number[:PAGE_NUMBER_BITS] * entry.stride),
                    offset.eq(inside * chunk_beats),
                ]
                m.next = "PAGE"
            with m.State("PAGE"):
                m.d.sync += address.eq(address + entry.base)
                m.next = "CHUNK"
            with m.State("CHUNK"):
                m.d.sync += address.eq(address + Cat(port, offset))
                m.next = "VALUE"
            with m.State("VALUE"):
                m.d.sync += v_address.eq(address + Cat(port, before_v))
                with m.If(guard.done):
                    m.next = "EMIT"
                    with m.If(guard.error != Error.OK):
                        m.d.sync += fail(guard.error)
                        m.next = "DROP"
            with m.State("DROP"):
                m.d.comb += pending.o.ready.eq(1)
                m.next = "WAIT"
            with m.State("EMIT"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.d.comb += pending.o.ready.eq(1)
                    m.next = "WAIT"
                    with m.If(item.kind == ItemKind.END):
                        m.d.sync += [error.eq(Error.OK), error_index.eq(0)]
