"""The KV read path: from jobs to element beats."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.fetch import Fetcher, RawFetcher
from m890.hdl.kv.gearbox import Gearbox
from m890.hdl.kv.header import HeaderReader
from m890.hdl.kv.items import (
    CHUNK_TAG,
    ITEM_DEPTH,
    ItemKind,
    elements_layout,
    item_layout,
    job_layout,
    raw_layout,
    scale_layout,
    see_layout,
    segment_layout,
)
from m890.hdl.kv.tags import CHECK, FAULT, TagCheck, TagReader
from m890.hdl.kv.translate import Translator
from m890.hdl.kv.transpose import Transposer
from m890.hdl.kv.walker import Walker
from m890.hdl.memory.ports import ReadPort
from m890.hdl.memory.queue import Queue
from m890.hdl.pages.guard import OwnerPort

PORTS = ("table", "k", "v", "bias", "raw")
"""Read ports, the one whose waiting holds up most first."""


class KvPath(wiring.Component):
    """Streams the visible chunks of jobs: K as stored, V transposed, scales, biases, stored states.

    Function
        job, segment -> Walker -> Translator -> a queue of items for the sequencer, and one fetcher
        each for K (with the scales), V, bias and stored states. Each output is in order of the
        items and independent of the others: a CHUNK item brings tiles x lanes beats on k_beat
        ([tile][token]) and as many on v_beat ([tile][feature]), one payload on scale if its format
        is scaled, `rows` payloads on bias_beat if `bias` is set; a RAW item brings
        rows x (1 + 2 tiles) payloads on raw_beat.
    Members
        job, segment : streams in (Walker). see, seen : visibility query (Walker).
        item : stream of items, in order; known before their data have come.
        k_beat, v_beat : streams of `lanes` raw codes. scale : stream of K and V scales of a chunk.
        bias_beat : stream of `lanes` 16-bit floats, one per row. raw_beat : stream of port beats.
        table, k, v, bias, raw : read ports. owner : OwnerPort of the page table (Translator).
        k_fault, v_fault : Out(FAULT). A row is not its integrity tag's. Comes before the row's last
        element beat has left the array.
        bus_error[slot] : pulse; data of that slot's job had a bus error. Comes before the data.
        walking : a job is here, but no item is known.
    Latency
        Job to first item: ITEM_CYCLES and a table read. From there to its first K beat: K_CYCLES
        and a read, where the header is two beats; its first V beat comes lanes + 3 cycles and the
        time of a tile later.
    Throughput
        One element beat per cycle on k_beat and v_beat each, as far as the memory gives them.
    Backpressure
        Any output may stall; the others go on as far as the buffers and ITEM_DEPTH items allow.
    Storage
        fifo_beats port beats for K and V each, 2 rows for bias, and the parts' own.
    Errors
        END items carry the Translator's.
    """

    ITEM_CYCLES = 21
    K_CYCLES = 8

    job: stream.Interface
    segment: stream.Interface
    see: data.View
    seen: Signal
    item: stream.Interface
    k_beat: stream.Interface
    v_beat: stream.Interface
    scale: stream.Interface
    bias_beat: stream.Interface
    raw_beat: stream.Interface
    table: Any
    k: Any
    v: Any
    bias: Any
    raw: Any
    owner: Any
    k_fault: Any
    v_fault: Any
    bus_error: Signal
    walking: Signal

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        elements = stream.Signature(elements_layout(config))
        super().__init__(
            {
                "job": In(stream.Signature(job_layout(config))),
                "segment": In(stream.Signature(segment_layout(config))),
                "see": Out(see_layout(config)),
                "seen": In(1),
                "item": Out(stream.Signature(item_layout(config))),
                "k_beat": Out(elements),
                "v_beat": Out(elements),
                "scale": Out(stream.Signature(scale_layout(config))),
                "bias_beat": Out(elements),
                "raw_beat": Out(stream.Signature(raw_layout(config))),
                **{name: Out(ReadPort(config)) for name in PORTS},
                "owner": Out(OwnerPort(config)),
                "k_fault": Out(FAULT),
                "v_fault": Out(FAULT),
                "bus_error": Out(2),
                "walking": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.walker = walker = Walker(config)
        m.submodules.translator = translator = Translator(config)
        m.submodules.items = items = Queue(item_layout(config), ITEM_DEPTH)
        m.submodules.k_fetch = k = self._tile_fetcher()
        m.submodules.v_fetch = v = self._tile_fetcher()
        m.submodules.header = header = HeaderReader(config)
        m.submodules.tags = tags = TagReader(config)
        m.submodules.k_check = k_check = TagCheck(config)
        m.submodules.v_check = v_check = TagCheck(config)
        m.submodules.bias_fetch = bias = Fetcher(
            config, tag=1, depth=max(2 * config.rows, 4), piece=max(config.rows, 2)
        )
        m.submodules.raw_fetch = raw = RawFetcher(config)
        m.submodules.k_gearbox = k_gearbox = Gearbox(config)
        m.submodules.v_gearbox = v_gearbox = Gearbox(config)
        m.submodules.transposer = transposer = Transposer(config)

        def out(source: Any, name: str) -> None:
            wiring.connect(m, source, wiring.flipped(getattr(self, name)))

        wiring.connect(m, wiring.flipped(self.job), walker.job)
        wiring.connect(m, wiring.flipped(self.segment), walker.segment)
        wiring.connect(m, walker.o, translator.i)
        for fetcher, check, gearbox, expected in (
            (k, k_check, k_gearbox, tags.k), (v, v_check, v_gearbox, tags.v)
        ):  # fmt: skip
            wiring.connect(m, fetcher.o, check.i)
            wiring.connect(m, check.o, gearbox.i)
            wiring.connect(m, expected, check.expected)
        wiring.connect(m, v_gearbox.o, transposer.i)
        for source, name in (
            (items.o, "item"), (k_gearbox.o, "k_beat"), (header.scale, "scale"),
            (raw.o, "raw_beat"), (translator.table, "table"), (translator.owner, "owner"),
            (k.port, "k"), (v.port, "v"), (bias.port, "bias"), (raw.port, "raw"),
        ):  # fmt: skip
            out(source, name)
        m.d.comb += [
            header.reserve.eq(k.header_reserve),
            header.reserve_beats.eq(k.reserve_beats),
            header.k_look.eq(k.look),
            header.v_look.eq(v.look),
            k.there.eq(header.k_there),
            v.there.eq(header.v_there),
            k_gearbox.scales.eq(header.k_group),
            v_gearbox.scales.eq(header.v_group),
            k.header_room.eq(header.room & tags.room),
            header.valid.eq(k.header_valid),
            header.beat.eq(k.header),
            tags.reserve.eq(k.header_reserve),
            tags.valid.eq(k.header_valid),
            tags.beat.eq(k.header),
            self.k_fault.eq(k_check.fault),
            self.v_fault.eq(v_check.fault),
            self.see.eq(walker.see),
            walker.seen.eq(self.seen),
            self.v_beat.valid.eq(transposer.o.valid),
            self.v_beat.payload.eq(transposer.o.payload.data),
            transposer.o.ready.eq(self.v_beat.ready),
            self.bias_beat.valid.eq(bias.o.valid),
            self.bias_beat.payload.as_value().eq(bias.o.payload.data),
            bias.o.ready.eq(self.bias_beat.ready),
            self.bus_error.eq(k.bus_error | v.bus_error | bias.bus_error | raw.bus_error),
        ]
        self._share(m, translator.o, items, k, v, bias, raw, (k_check, v_check))

        # Jobs between their first cycle here and the taking of their END item.
        jobs = Signal(range(4 * ITEM_DEPTH))
        taken = self.item.valid & self.item.ready & (self.item.payload.kind == ItemKind.END)
        m.d.sync += jobs.eq(jobs + (self.job.valid & self.job.ready) - taken)
        m.d.comb += self.walking.eq((jobs != 0) & ~self.item.valid)
        return m

    def _tile_fetcher(self) -> Fetcher:
        return Fetcher(self.config, tag=CHUNK_TAG, depth=self.config.fifo_beats, tiles=True)

    def _share(
        self,
        m: Module,
        located: stream.Interface,
        items: Queue,
        k: Fetcher,
        v: Fetcher,
        bias: Fetcher,
        raw: RawFetcher,
        checks: tuple[TagCheck, TagCheck],
    ) -> None:
        """Hands every located item to the sequencer, the fetchers and the checks it concerns."""
        payload, item = located.payload, located.payload.item
        chunk = item.kind == ItemKind.CHUNK
        targets = (
            (items.i, Const(1)),
            (k.i, chunk),
            (v.i, chunk),
            (bias.i, chunk & item.bias),
            (raw.i, item.kind == ItemKind.RAW),
            *((check.chunk, chunk & item.tags) for check in checks),
        )
        sent = Signal(len(targets))
        done = Signal(len(targets))
        for n, (target, wanted) in enumerate(targets):
            m.d.comb += [
                target.valid.eq(located.valid & wanted & ~sent[n]),
                done[n].eq(sent[n] | ~wanted | target.ready),
            ]
            with m.If(located.valid):
                m.d.sync += sent[n].eq(done[n] & ~located.ready)
        m.d.comb += [
            located.ready.eq(done.all()),
            items.i.payload.eq(item),
            k.i.payload.address.eq(payload.address),
            k.i.payload.beats.eq(payload.beats + payload.header),
            k.i.payload.header.eq(payload.header),
            v.i.payload.address.eq(payload.v_address),
            v.i.payload.beats.eq(payload.beats),
            bias.i.payload.address.eq(payload.source),
            bias.i.payload.beats.eq(item.rows),
            *(
                fetcher.i.payload.tag[name].eq(item[name])
                for fetcher in (k, v)
                for name in CHUNK_TAG.members
            ),
            *(
                check.chunk.payload[name].eq(item[name])
                for check in checks
                for name in CHECK.members
            ),
            Cat(command.i.payload.slot for command in (k, v, bias, raw)).eq(item.slot.replicate(4)),
            raw.i.payload.source.eq(payload.source),
            raw.i.payload.rows.eq(item.rows),
            raw.i.payload.tiles.eq(item.tiles),
        ]
