"""Append's addresses: checks the pages of a command, then gives each token its place."""

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import Error
from m890.hdl.config import PAGE_NUMBER_BITS, TOKEN_BITS, CoreConfig
from m890.hdl.control.layouts import append_layout, bits
from m890.hdl.kv.items import COMMAND_BEATS_BITS, HEADER_BITS, header_beats, packing
from m890.hdl.memory.ports import ReadPort
from m890.hdl.memory.queue import Queue
from m890.hdl.pages.guard import OwnerPort, PageGuard

PLACES = 4
"""Places ahead: they hide the look-up at the border of a chunk."""


def place_layout(config: CoreConfig) -> data.StructLayout:
    """Where a token goes, or why it cannot (`error`).

    chunk, k, v: addresses of its chunk and of the chunk's K and V; lane: token within the chunk;
    index: token within the command; last: of the command.
    """
    address = config.address_bits
    return data.StructLayout(
        {
            "chunk": address, "k": address, "v": address, "lane": bits(config.lanes),
            "index": 16, "last": 1, "error": 8,
        }
    )  # fmt: skip


class AppendPlaces(wiring.Component):
    """Places of the tokens of an APPEND.

    Function
        `base` + page x stride + layout (m890.hdl.layout) of token start, start + 1, ... A place is
        given only in a page that PageGuard lets the command write: its tenant's, held by nobody
        else; of a repair any that its tenant may read. If the command reaches several pages, all
        are asked for before the first place is given, and again as they are used: the table may
        have changed meanwhile.
    Members
        job : In(append_layout). Steady from `start` until `idle`.
        start : In. One cycle: begins a job; only while `idle`.
        stop : In. Held until `idle`: ends the job early. Places still offered must be taken.
        idle : Out. No job.
        table : ReadPort of the block table. owner : OwnerPort of the page table.
        o : Out(stream of place_layout). The one with an error is the job's last.
    Latency
        Start to the first place: the table's latency + 8 cycles; with several pages 5 more for
        each, and a read for each table beat.
    Throughput
        One token per cycle within a chunk; 5 cycles more per chunk, and a table read for each table
        beat where the command spans several. The page's owner is looked up beside the address
        arithmetic; an answer later than after 2 cycles adds what it is late.
    Storage
        One table beat, PLACES places.
    Errors
        BAD_PAGE, BAD_TENANT, TABLE_ERROR: see PageGuard. BUS_ERROR: the table could not be read.
    """

    job: data.View
    start: Signal
    stop: Signal
    idle: Signal
    table: Any
    owner: Any
    o: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "job": In(append_layout(config)),
                "start": In(1),
                "stop": In(1),
                "idle": Out(1),
                "table": Out(ReadPort(config)),
                "owner": Out(OwnerPort(config)),
                "o": Out(stream.Signature(place_layout(config))),
            }
        )
        lanes_bits = config.lanes.bit_length() - 1
        self._page_bits = config.page_tokens.bit_length() - 1  # of a token: within its page
        self._lane_bits = lanes_bits
        self._word_bits = (config.port_bytes // 4).bit_length() - 1  # of a page: entry in its beat

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job, table = self._config, self.job, self.table
        m.submodules.places = places = Queue(place_layout(config), PLACES)
        m.submodules.guard = guard = PageGuard(config)
        wiring.connect(m, places.o, wiring.flipped(self.o))
        wiring.connect(m, guard.port, wiring.flipped(self.owner))

        token = Signal(TOKEN_BITS)
        left = Signal(16)  # tokens of the command after this one
        page = token[self._page_bits :]
        line = page[self._word_bits :]  # table beat
        final = Signal(len(page))  # page of the last token
        kept, kept_line = Signal(config.port_bits), Signal(len(line))
        word = kept.word_select(page[: self._word_bits], 32)
        entry = Signal(PAGE_NUMBER_BITS)
        sure = Signal()  # all pages have been asked for, or there is one only
        fault, fault_index = Signal(Error), Signal(16)

        chunk, k, v = (Signal(config.address_bits, name=n) for n in ("chunk", "k", "v"))
        product = Signal(config.address_bits)
        k_offset, v_offset, chunk_bytes = self._sizes(m)
        lane = token[: self._lane_bits]
        inside = token[self._lane_bits : self._page_bits]  # chunk within the page

        place = places.i.payload
        m.d.comb += [
            place.chunk.eq(chunk),
            place.k.eq(k),
            place.v.eq(v),
            place.lane.eq(lane),
            place.index.eq(Mux(fault == Error.OK, token - job.start, fault_index)),
            place.last.eq((left == 0) | (fault != Error.OK)),
            place.error.eq(fault),
            table.request.payload.address.eq(job.table + Cat(C(0, self._word_bits + 2), line)),
            table.request.payload.beats.eq(1),
            guard.number.eq(word),
            guard.tenant.eq(job.tenant),
            guard.alone.eq(~job.repair),
        ]

        def fail(error: Error | Value) -> None:
            m.d.sync += [fault.eq(error), fault_index.eq(token - job.start)]
            m.next = "GIVE"

        last_page = (job.start + job.tokens - 1)[self._page_bits : TOKEN_BITS]
        with m.FSM(name="state"):
            with m.State("IDLE"):
                m.d.comb += self.idle.eq(~places.o.valid)
                m.d.sync += [
                    token.eq(job.start),
                    left.eq(job.tokens - 1),
                    final.eq(last_page),
                    sure.eq(job.start[self._page_bits :] == last_page),
                    fault.eq(Error.OK),
                ]
                with m.If(self.start):
                    m.next = "ASK"
            with m.State("ASK"):
                m.d.comb += table.request.valid.eq(1)
                with m.If(table.request.ready):
                    m.next = "FETCH"
            with m.State("FETCH"):
                with m.If(table.data_valid):
                    m.d.sync += [kept.eq(table.data), kept_line.eq(line)]
                    m.next = "PICK"
                    with m.If(table.error):
                        fail(Error.BUS_ERROR)
            with m.State("PICK"):
                m.d.sync += entry.eq(word)
                with m.If(self.stop):
                    m.next = "IDLE"
                with m.Elif(kept_line != line):
                    m.next = "ASK"
                with m.Else():
                    m.d.comb += guard.start.eq(1)
                    m.next = "LOOK"
                    with m.If(sure):
                        m.next = "PAGE"
            with m.State("LOOK"):
                with m.If(guard.done):
                    m.next = "PICK"
                    with m.If(guard.error != Error.OK):
                        fail(guard.error)
                    with m.Elif(page == final):
                        m.d.sync += [token.eq(job.start), sure.eq(1)]
                    with m.Else():
                        m.d.sync += token.eq(Cat(C(0, self._page_bits), page + 1))
            with m.State("PAGE"):
                m.d.sync += product.eq(entry * job.stride)
                m.next = "CHUNK"
            with m.State("CHUNK"):
                m.d.sync += [chunk.eq(job.base + product), product.eq(inside * chunk_bytes)]
                m.next = "SUM"
            with m.State("SUM"):
                m.d.sync += chunk.eq(chunk + product)
                m.next = "ROWS"
            with m.State("ROWS"):
                m.d.sync += [k.eq(chunk + k_offset), v.eq(chunk + v_offset)]
                with m.If(guard.done):
                    m.next = "GIVE"
                    with m.If(guard.error != Error.OK):
                        fail(guard.error)
            with m.State("GIVE"):
                m.d.comb += places.i.valid.eq(1)
                with m.If(places.i.ready):
                    m.d.sync += [token.eq(token + 1), left.eq(left - 1)]
                    with m.If(place.last | self.stop):
                        m.next = "IDLE"
                    with m.Elif(lane == config.lanes - 1):
                        m.next = "PICK"
        return m

    def _sizes(self, m: Module) -> tuple[Value, Value, Value]:
        """Bytes: offsets of K and V in a chunk, and the chunk. Two cycles after `job`."""
        job = self.job
        tiles, header = Signal(COMMAND_BEATS_BITS), Signal(HEADER_BITS)
        k, v, chunk = (Signal(COMMAND_BEATS_BITS + 1, name=f"{n}_beats") for n in ("k", "v", "all"))
        m.d.sync += [
            tiles.eq((job.tiles << self._lane_bits) >> packing(job.format)),
            header.eq(header_beats(self._config, job.format, job.tiles, job.tags)),
            k.eq(header),
            v.eq(header + tiles),
            chunk.eq(header + (tiles << 1)),
        ]
        beat = C(0, self._lane_bits + 1)
        return Cat(beat, k), Cat(beat, v), Cat(beat, chunk)
