"""Integrity tags on the read path: what rows must be, what they are, the first bad one."""

from typing import Any

from amaranth.hdl import Cat, Const, EnableInserter, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.control.layouts import ENTRIES, bits
from m890.hdl.kv.header import CHUNKS, header_layout
from m890.hdl.kv.items import COUNT_BITS, elements_layout, packing, tile_beat_layout
from m890.hdl.layout import PageLayout
from m890.hdl.memory.queue import Queue
from m890.hdl.memory.sram import Sram
from m890.hdl.numerics.crc import TAG_BITS, Crc, advance, rewind, started
from m890.hdl.numerics.formats import Format
from m890.hdl.numerics.pipeline import bundle, delay

AHEAD = 32
"""Chunks with tags between the translator and the fetch buffers' outputs."""
ROW_NAME = data.StructLayout({"sequence": 16, "token": TOKEN_BITS})
"""What a bad row is named by, beside its job's plane."""
FAULT = data.StructLayout({"valid": 1, "ident": bits(ENTRIES), "name": ROW_NAME})
"""A row that is not its tag's; `ident` of its job."""
CHECK = data.StructLayout(
    {
        "ident": bits(ENTRIES), "sequence": 16, "base_token": TOKEN_BITS, "start": TOKEN_BITS,
        "end": TOKEN_BITS, "tiles": COUNT_BITS,
    }
)  # fmt: skip
"""A chunk whose tags are checked (fields as in item_layout)."""


def half_sizes(config: CoreConfig) -> list[int]:
    """Bytes that half an entry of a header with tags can have."""
    tiles = range(1, config.max_tiles + 1)
    return sorted({PageLayout(config, f, n, True).half_bytes for f in Format for n in tiles})


class TagReader(wiring.Component):
    """Makes of the headers of chunks with tags what their rows' codes must leave as remainder.

    Function
        Per row the tag, run backwards over the half entry's bytes before it.
    Members
        reserve, valid, beat : In. As of HeaderReader, in chunks of all kinds. room : Out.
        k, v : Out(stream of `lanes` remainders). One per chunk with tags.
    Latency
        4 cycles from a chunk's last beat to k and v.
    Throughput
        One beat per cycle.
    Backpressure
        None: `room` counts what has been reserved and not been taken.
    Storage
        CHUNKS x `lanes` remainders for K, 2 CHUNKS for V, which waits for p.
    """

    reserve: Signal
    room: Signal
    valid: Signal
    beat: Any
    k: stream.Interface
    v: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        rows = stream.Signature(elements_layout(config))
        super().__init__(
            {
                "reserve": In(1),
                "room": Out(1),
                "valid": In(1),
                "beat": In(header_layout(config)),
                "k": Out(rows),
                "v": Out(rows),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat, sizes = self.beat, half_sizes(self._config)
        tagged = self.valid & beat.tags
        unused = self.valid & beat.last & ~beat.tags
        here = delay(m, tagged, 1, name="here", reset=True)
        last = delay(m, tagged & beat.last, 1, name="last", reset=True)
        half = delay(m, beat.beats, 1, name="half")
        come = delay(m, last, 1, name="come", reset=True)
        rooms = []
        for value, (name, depth) in enumerate((("k", CHUNKS), ("v", 2 * CHUNKS))):
            queue = Queue(elements_layout(self._config), depth, sram=True)
            m.submodules[name] = EnableInserter(come | queue.level.any())(queue)
            out = getattr(self, name)
            wiring.connect(m, queue.o, wiring.flipped(out))
            rows = [self._rewound(size, value) for size in sizes]
            new = Signal(max(map(len, rows)), name=f"{name}_new")
            # The tokens so far, shifted down as more come.
            kept = Signal(TAG_BITS * self._config.lanes, name=f"{name}_kept")
            with m.If(tagged):  # nothing toggles where there are no tags
                for size, row in zip(sizes, rows, strict=True):
                    with m.If(beat.beats == size):
                        m.d.sync += new.eq(row)
            with m.If(here):
                for size, row in zip(sizes, rows, strict=True):
                    with m.If(half == size):
                        m.d.sync += kept.eq(Cat(kept[len(row) :], new[: len(row)]))
            reserved = Signal(range(depth + 1), name=f"{name}_reserved")
            taken = out.valid & out.ready
            m.d.sync += reserved.eq(reserved + self.reserve - taken - unused)
            m.d.comb += [queue.i.valid.eq(come), queue.i.payload.as_value().eq(kept)]
            rooms.append(reserved != depth)
        m.d.comb += self.room.eq(Cat(rooms).all())
        return m

    def _rewound(self, half: int, value: int) -> Value:
        """Remainders of all rows of K (or V) whose halves of `half` bytes lie in a beat."""
        size = 8 * half
        starts = range(value * size, self._config.port_bits, 2 * size)
        return Cat(rewind(self.beat.data[start : start + size]) for start in starts)


def about_layout(config: CoreConfig) -> data.StructLayout:
    """What a tile's remainder is compared with, and whose row it is."""
    return data.StructLayout(
        {
            "first": 1, "last": 1, "lane": config.lanes.bit_length() - 1, "packed": 2,
            "wanted": TAG_BITS, "ident": FAULT["ident"].shape, "name": ROW_NAME,
        }
    )  # fmt: skip


class RowCheck(wiring.Component):
    """Compares rows' remainders with those they must have.

    Function
        Remainder after remainder, one per lane; a row's last tile tells.
    Members
        valid, about, codes : In. A tile, and its row; about_layout. fault : Out(FAULT).
    Latency
        `latency` cycles.
    Throughput
        One tile per cycle.
    Storage
        `lanes` remainders.
    """

    valid: Signal
    about: Any
    codes: Signal
    fault: Any
    latency = 2 + Crc.latency

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "valid": In(1),
                "about": In(about_layout(config)),
                "codes": In(config.port_bits),
                "fault": Out(FAULT),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.crc = crc = Crc(config.port_bits)
        message = Signal(config.port_bits)
        with m.If(self.valid):
            m.d.sync += message.eq(self.codes)
        m.d.comb += crc.message.eq(message)
        early = delay(m, self.about, Crc.latency, name="about")
        now = delay(m, early, 1, name="now")
        valid = delay(m, self.valid, 1 + Crc.latency, name="valid", reset=True)
        m.submodules.rows = rows = Sram(TAG_BITS, config.lanes)
        after = Signal(TAG_BITS)
        m.d.comb += [
            rows.read_address[0].eq(early.lane),
            rows.read_enable[0].eq(1),
            rows.write_address.eq(now.lane),
            rows.write_data.eq(after),
            rows.write_enable.eq(valid),
            after.eq(
                next_remainder(config.port_bytes, now.packed, now.first, rows.read_data[0], crc.o)
            ),
        ]
        m.d.sync += [
            self.fault.valid.eq(valid & now.last & (after != now.wanted)),
            self.fault.ident.eq(now.ident),
            self.fault.name.eq(now.name),
        ]
        return m


class TagCheck(wiring.Component):
    """Checks the rows of K (or V) on their way from the fetch buffer.

    Function
        The remainder of each row's codes, tile by tile, against the one that TagReader expects;
        rows of tokens outside [start, end) may be anything. Beats pass unchanged.
    Members
        i, o : streams of tile beats. chunk : In(stream of CHECK), one per chunk with tags, before
        its beats. expected : In(stream), from TagReader. fault : Out(FAULT).
    Latency
        None from i to o; `latency` cycles from a row's last beat to `fault`.
    Throughput
        One beat per cycle.
    Backpressure
        A beat of a chunk with tags waits for `expected`; K's header comes before K, and V's first p
        is later still, so the array never waits for this. i.ready depends on i.payload and o.ready.
    Storage
        AHEAD chunks, and RowCheck's.
    """

    i: stream.Interface
    o: stream.Interface
    chunk: stream.Interface
    expected: stream.Interface
    fault: Any
    latency = RowCheck.latency

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        beats = stream.Signature(tile_beat_layout(config))
        super().__init__(
            {
                "i": In(beats),
                "o": Out(beats),
                "chunk": In(stream.Signature(CHECK)),
                "expected": In(stream.Signature(elements_layout(config))),
                "fault": Out(FAULT),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, beat = self._config, self.i.payload
        lane_bits = config.lanes.bit_length() - 1
        chunks = Queue(CHECK, AHEAD)
        m.submodules.chunks = EnableInserter(self.chunk.valid | chunks.level.any())(chunks)
        wiring.connect(m, wiring.flipped(self.chunk), chunks.i)
        chunk = chunks.o.payload
        lane, tile = Signal(lane_bits), Signal(COUNT_BITS)
        passes, checked, last = Signal(), Signal(), Signal()
        m.d.comb += [
            passes.eq(~beat.tags | (chunks.o.valid & self.expected.valid)),
            self.o.valid.eq(self.i.valid & passes),
            self.o.payload.eq(beat),
            self.i.ready.eq(self.o.ready & passes),
            checked.eq(self.i.valid & self.i.ready & beat.tags),
            last.eq(tile == chunk.tiles - 1),
            chunks.o.ready.eq(checked & last & lane.all()),
            self.expected.ready.eq(chunks.o.ready),
        ]
        with m.If(checked):
            m.d.sync += lane.eq(lane + 1)
            with m.If(lane.all()):
                m.d.sync += tile.eq(Mux(last, 0, tile + 1))

        about = bundle(about_layout(config), name="about")
        token = Cat(lane, chunk.base_token[lane_bits:])
        seen = (token >= chunk.start) & (token < chunk.end)
        m.d.comb += [
            about.first.eq(tile == 0), about.last.eq(last & seen), about.lane.eq(lane),
            about.packed.eq(packing(beat.format)), about.wanted.eq(self.expected.payload[lane]),
            about.ident.eq(chunk.ident), about.name.sequence.eq(chunk.sequence),
            about.name.token.eq(token),
        ]  # fmt: skip
        rows = RowCheck(config)
        waking = [checked]  # until the fault has been told
        for n in range(self.latency):
            waking.append(delay(m, waking[-1], 1, name=f"wake{n}", reset=True))
        m.submodules.rows = EnableInserter(Cat(waking).any())(rows)
        m.d.comb += [
            rows.valid.eq(checked), rows.about.eq(about), rows.codes.eq(self._codes(m, beat)),
            self.fault.eq(rows.fault),
        ]  # fmt: skip
        return m

    def _codes(self, m: Module, beat: data.View) -> Value:
        """The beat's part of the port beat, at the top."""
        width = self._config.port_bits
        half, quarter = width // 2, width // 4
        halves = Mux(beat.part[0], beat.data[half:], beat.data[:half])
        quarters = Mux(beat.part[1], beat.data[half:], beat.data[:half])
        quarters = Mux(beat.part[0], quarters[quarter:], quarters[:quarter])
        packed = packing(beat.format)
        top = Signal(width, name="codes")
        m.d.comb += top.eq(beat.data)
        with m.If(packed == 1):
            m.d.comb += top.eq(Cat(Const(0, half), halves))
        with m.If(packed == 2):
            m.d.comb += top.eq(Cat(Const(0, half + quarter), quarters))
        return top


def next_remainder(size: int, packed: Value, first: Value, before: Value, new: Value) -> Value:
    """A row's remainder after further codes of `size` bytes, 2^packed times less where they are
    narrow; by themselves they give `new`."""
    sizes = [size >> n for n in range(3)]
    old = [Mux(first, started(size), advance(before, size)) for size in sizes]
    return Mux(packed == 0, old[0], Mux(packed == 1, old[1], old[2])) ^ new


class TagFaults(wiring.Component):
    """Keeps each job's first bad row of K, and of V, until the job is drained.

    Function
        Both come in stream order, but K runs ahead of V by what the memory likes; K's goes first,
        so that the outcome does not depend on time.
    Members
        clear, clear_ident : In. A job begins. k, v : In(FAULT). ident : In. A job that has ended.
        bad : Out. It had a bad row. name : Out(ROW_NAME). Its first; a cycle after `ident`.
    Storage
        ENTRIES x 2 names.
    """

    clear: Signal
    clear_ident: Signal
    k: Any
    v: Any
    ident: Signal
    bad: Signal
    name: Any

    def __init__(self) -> None:
        ident = bits(ENTRIES)
        super().__init__(
            {
                "clear": In(1),
                "clear_ident": In(ident),
                "k": In(FAULT),
                "v": In(FAULT),
                "ident": In(ident),
                "bad": Out(1),
                "name": Out(ROW_NAME),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        names, bad = [], []
        for name, fault in (("k", self.k), ("v", self.v)):
            found = Signal(ENTRIES, name=f"{name}_found")
            m.submodules[name] = memory = Sram(ROW_NAME, ENTRIES)
            m.d.comb += [
                memory.write_address.eq(fault.ident),
                memory.write_data.eq(fault.name),
                memory.write_enable.eq(fault.valid & ~found.bit_select(fault.ident, 1)),
                memory.read_address[0].eq(self.ident),
                memory.read_enable[0].eq(1),
            ]
            with m.If(self.clear):
                m.d.sync += found.bit_select(self.clear_ident, 1).eq(0)
            with m.If(fault.valid):
                m.d.sync += found.bit_select(fault.ident, 1).eq(1)
            names.append(memory.read_data[0])
            bad.append(found.bit_select(self.ident, 1))
        first = Signal()
        m.d.sync += first.eq(bad[0])
        m.d.comb += [
            self.bad.eq(bad[0] | bad[1]),
            self.name.eq(Mux(first, names[0].as_value(), names[1].as_value())),
        ]
        return m
