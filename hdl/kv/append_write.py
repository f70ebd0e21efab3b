"""Append's write side: codes, scales and tags become strobed beats of the memory port."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.append_tag import RowTags
from m890.hdl.kv.items import HEADER_BITS, is_grouped, is_scaled, packing, scale_bytes
from m890.hdl.kv.tags import half_sizes
from m890.hdl.layout import TAG_BYTES
from m890.hdl.memory.ports import WritePort, request_layout
from m890.hdl.memory.queue import Queue
from m890.hdl.numerics.crc import advance, contribution
from m890.hdl.numerics.formats import GROUP, Format
from m890.hdl.numerics.pipeline import bundle, delay
from m890.hdl.numerics.quantise import Quantise, beat_groups

WRITES = 16
"""Writes formed and not yet taken by memory."""


class AppendWriter(wiring.Component):
    """Quantises beats of a row, a few elements per cycle, and forms their writes.

    Function
        The codes (Quantise) of a group's tiles are packed into one write, put where the address
        lies within the port's beat; strobes mark them. So is a token's entry of the header: scale
        and tag of K, then of V.
    Members
        format, source_format, header : In. Steady while writes are under way. header : bytes of
            half an entry.
        issue : In. A tile is to be quantised, or an entry to be written; only with `room`.
        tags : In. The plane has tags. Steady. begins : In, with `issue`. The tile is its row's
            first.
        emit, is_header, address : In, with `issue`. The tile is its group's last, or there is none
            but the entry: a write to this byte address.
        apart : In, with `issue`. log2 of the tokens whose groups share a port beat.
        scale : In, with `issue`. Scales of the tile's groups as BF16 bits (Quantise). k_scales,
            v_scales : In, with `is_header`. Scales of the rows as they lie in the entry.
        beat : In. `lanes` elements of the row, from the cycle after `issue` to the next `issue`.
        room : Out.
        event : Out. One cycle: QUANTISE happened in codes that were issued.
        request, beats : streams of the write port. Requests of one beat.
    Latency
        issue to `request.valid`: 11 cycles for an entry, 10 + code_steps for a tile, where nothing
        waits.
    Throughput
        One tile per code_steps cycles, one entry per cycle.
    Backpressure
        `room` depends on state only.
    Storage
        WRITES port beats with strobes and addresses; the codes of a group.
    """

    format: Signal
    source_format: Signal
    header: Signal
    issue: Signal
    tags: Signal
    begins: Signal
    emit: Signal
    is_header: Signal
    apart: Signal
    address: Signal
    scale: data.View
    k_scales: Signal
    v_scales: Signal
    beat: Signal
    room: Signal
    event: Signal
    request: stream.Interface
    beats: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        port = WritePort(config).members
        super().__init__(
            {
                "format": In(4),
                "source_format": In(4),
                "header": In(HEADER_BITS),
                "issue": In(1),
                "tags": In(1),
                "begins": In(1),
                "emit": In(1),
                "is_header": In(1),
                "apart": In(2),
                "address": In(config.address_bits),
                "scale": In(data.ArrayLayout(16, beat_groups(config.lanes))),
                "k_scales": In(8 * scale_bytes(config)),
                "v_scales": In(8 * scale_bytes(config)),
                "beat": In(config.port_bits),
                "room": Out(1),
                "event": Out(1),
                "request": port["request"],
                "beats": port["beat"],
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, port = self._config, self._config.port_bytes
        offset_bits = port.bit_length() - 1
        lanes, steps = config.code_lanes, config.code_steps

        # A tile takes all steps, an entry the last one only.
        step, active, final, free = Signal(range(steps)), Signal(), Signal(), Signal()
        m.d.comb += [final.eq(step == steps - 1), free.eq(~active | final)]
        m.d.sync += step.eq(step + 1)
        with m.If(free):
            m.d.sync += [active.eq(self.issue), step.eq(Mux(self.is_header, steps - 1, 0))]
        begins, scale = Signal(), Signal.like(self.scale, name="scale_now")
        now = bundle(self._write_layout(), name="now")
        with m.If(self.issue):
            m.d.sync += [begins.eq(self.begins), scale.eq(self.scale)]
            m.d.sync += [now[name].eq(getattr(self, name)) for name in now.shape().members]

        m.submodules.quantise = quantise = Quantise(lanes)
        m.d.comb += [
            quantise.raw.eq(self.beat.word_select(step, 16 * lanes)),
            quantise.is_fp16.eq(self.source_format == Format.FP16),
            quantise.scale.eq(scale[0]),
            quantise.format.eq(self.format),
        ]
        for n in range(1, beat_groups(config.lanes)):
            with m.If(step >= n * GROUP // lanes):
                m.d.comb += quantise.scale.eq(scale[n])
        depth = quantise.latency
        valid = delay(m, active & ~now.is_header, depth, name="valid", reset=True)
        codes = self._gather(m, quantise.codes, valid)
        m.submodules.row_tags = row_tags = RowTags(lanes)
        m.d.comb += [
            row_tags.enable.eq(self.tags), row_tags.format.eq(self.format),
            row_tags.valid.eq(valid), row_tags.codes.eq(quantise.codes),
            row_tags.begins.eq(delay(m, begins & (step == 0), depth, name="begins")),
            self.event.eq(valid & quantise.event),
        ]  # fmt: skip

        # One cycle later the last codes are among the others. An entry comes a cycle behind them
        # at the earliest: then its tags are there.
        depth += 1
        assert row_tags.latency == 2
        due = active & final & (now.emit | now.is_header)
        due = delay(m, due, depth, name="due", reset=True)
        late = delay(m, now, depth, name="write")
        with_scale = is_scaled(self.format) | is_grouped(self.format)
        scales = [Mux(with_scale, row, 0) for row in (late.k_scales, late.v_scales)]
        entry, entry_bytes = self._entry(m, scales, [row_tags.k, row_tags.v])
        group_bytes = [C((1 << (port >> n)) - 1, port) for n in range(3)]
        apart, address = late.apart, late.address
        mask = Mux(apart == 0, group_bytes[0], Mux(apart == 1, group_bytes[1], group_bytes[2]))
        strobe = Mux(late.is_header, entry_bytes, mask) << address[:offset_bits]
        m.submodules.requests = requests = Queue(request_layout(config), WRITES)
        shape = data.StructLayout({"data": config.port_bits, "strobe": config.port_bytes})
        m.submodules.words = words = Queue(shape, WRITES)
        m.d.comb += [
            requests.i.valid.eq(due),
            requests.i.payload.address.eq(Cat(C(0, offset_bits), address[offset_bits:])),
            requests.i.payload.beats.eq(1),
            words.i.valid.eq(due),
            words.i.payload.data.eq(Mux(late.is_header, entry, self._places(codes, apart))),
            words.i.payload.strobe.eq(strobe),
        ]
        # What is in the pipeline must find room, and so must the write that is decided on now: a
        # write per tile at most, and an entry per two.
        most = WRITES - (depth // steps + 1) - (depth // (2 * steps + 1) + 1) - 1
        m.d.comb += self.room.eq(free & (requests.level < most) & (words.level < most))
        wiring.connect(m, requests.o, wiring.flipped(self.request))
        wiring.connect(m, words.o, wiring.flipped(self.beats))
        return m

    def _write_layout(self) -> data.StructLayout:
        """What is known of a write as it is issued."""
        names = ("emit", "is_header", "apart", "address", "k_scales", "v_scales")
        return data.StructLayout({name: getattr(self, name).shape() for name in names})

    def _gather(self, m: Module, codes: data.View, valid: Value) -> Signal:
        """The codes of the last tiles, the latest at the top, one cycle after they are there."""
        kept = Signal(self._config.port_bits, name="group")
        packed = packing(self.format)
        with m.If(valid):
            for n in range(3):
                piece = Cat(code[: 16 >> n] for code in codes)
                with m.If(packed == n):
                    m.d.sync += kept.eq(Cat(kept[len(piece) :], piece))
        return kept

    def _places(self, group: Signal, apart: Value) -> Value:
        """A port beat that holds the group in every place where it may go."""
        bits = len(group)
        half, quarter = group[bits // 2 :], group[3 * bits // 4 :]
        return Mux(apart == 0, group, Mux(apart == 1, half.replicate(2), quarter.replicate(4)))

    def _entry(
        self, m: Module, scales: list[Value], remainders: list[Signal]
    ) -> tuple[Signal, Signal]:
        """A token's entry of the header in every place of a beat, and strobes of the first."""
        config = self._config
        entry, mask = Signal(config.port_bits, name="entry"), Signal(config.port_bytes)
        with m.Switch(self.header):
            for n in range(min(config.lanes.bit_length(), len(self.header))):
                half = 1 << n
                with m.Case(half):
                    rows = zip(scales, remainders, strict=True)
                    word = Cat(self._half(half, *row) for row in rows)
                    places = config.port_bytes // (2 * half)
                    m.d.comb += [
                        entry.eq(word.replicate(places)), mask.eq((1 << 2 * half) - 1)
                    ]  # fmt: skip
        return entry, mask

    def _half(self, size: int, scale: Value, remainder: Value) -> Value:
        """A row's half of an entry: its scale, zeros, its tag if the plane has them."""
        word = Cat(scale, C(0, 8 * size))[: 8 * size]
        if size not in half_sizes(self._config):
            return word
        before = word[: 8 * (size - TAG_BYTES)]
        tag = advance(remainder, size - TAG_BYTES)
        if len(before):
            tag = tag ^ contribution(before)
        return Cat(before, Mux(self.tags, tag, word[len(before) :]))
