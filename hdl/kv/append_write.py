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
from m890.hdl.numerics.formats import Format
from m890.hdl.numerics.pipeline import delay
from m890.hdl.numerics.quantise import Quantise, beat_groups

WRITES = 32
"""Writes formed and not yet taken by memory."""


class AppendWriter(wiring.Component):
    """Quantises beats of a row and forms their writes.

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
        beat : In. `lanes` elements of the row, one cycle after `issue`.
        room : Out.
        event : Out. One cycle: QUANTISE happened in codes that were issued.
        request, beats : streams of the write port. Requests of one beat.
    Latency
        issue to `request.valid`: 13 cycles where nothing waits.
    Throughput
        One tile or entry per cycle.
    Backpressure
        `room` depends on state only.
    Storage
        WRITES port beats with strobes and addresses; the codes of a group, and of two until their
        row's tag is there.
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
        config = self._config
        lanes, port = config.lanes, config.port_bytes
        offset_bits = port.bit_length() - 1
        m.submodules.quantise = quantise = Quantise(lanes)
        scale = delay(m, self.scale, 1, name="scale")
        m.d.comb += [
            quantise.raw.eq(self.beat),
            quantise.is_fp16.eq(self.source_format == Format.FP16),
            quantise.scale.eq(scale),
            quantise.format.eq(self.format),
        ]
        depth = 1 + quantise.latency
        valid = delay(m, self.issue, depth, name="valid", reset=True)
        is_code = valid & ~delay(m, self.is_header, depth, name="is_header")
        apart = delay(m, self.apart, depth, name="apart")
        codes = self._pack(m, quantise.codes, is_code, apart)
        m.submodules.row_tags = row_tags = RowTags(config)
        m.d.comb += [
            row_tags.enable.eq(self.tags), row_tags.format.eq(self.format),
            row_tags.valid.eq(is_code), row_tags.codes.eq(quantise.codes),
            row_tags.begins.eq(delay(m, self.begins, depth, name="begins")),
            self.event.eq(is_code & quantise.event),
        ]  # fmt: skip

        # A token's entry follows its last codes at once, so all writes wait as long as its tags.
        wait = RowTags.latency - 1
        depth += wait
        valid = delay(m, valid, wait, name="valid_late", reset=True)
        codes = delay(m, codes, wait, name="codes")
        apart = delay(m, apart, wait, name="apart_late")
        address = delay(m, self.address, depth, name="address")
        emit = delay(m, self.emit, depth, name="emit")
        is_header = delay(m, self.is_header, depth, name="is_header_late")
        with_scale = is_scaled(self.format) | is_grouped(self.format)
        scales = [
            delay(m, Mux(with_scale, row, 0), depth, name=name)
            for name, row in (("k_scales", self.k_scales), ("v_scales", self.v_scales))
        ]
        entry, entry_bytes = self._entry(m, scales, [row_tags.k, row_tags.v])
        group_bytes = [C((1 << (port >> n)) - 1, port) for n in range(3)]
        mask = Mux(apart == 0, group_bytes[0], Mux(apart == 1, group_bytes[1], group_bytes[2]))
        strobe = Mux(is_header, entry_bytes, mask) << address[:offset_bits]
        m.submodules.requests = requests = Queue(request_layout(config), WRITES)
        shape = data.StructLayout({"data": config.port_bits, "strobe": config.port_bytes})
        m.submodules.words = words = Queue(shape, WRITES)
        m.d.comb += [
            requests.i.valid.eq(valid & (emit | is_header)),
            requests.i.payload.address.eq(Cat(C(0, offset_bits), address[offset_bits:])),
            requests.i.payload.beats.eq(1),
            words.i.valid.eq(valid & (emit | is_header)),
            words.i.payload.data.eq(Mux(is_header, entry, codes)),
            words.i.payload.strobe.eq(strobe),
        ]
        # What is in the pipeline must find room, and so must the write that is decided on now.
        most = WRITES - depth - 1
        m.d.comb += self.room.eq((requests.level < most) & (words.level < most))
        wiring.connect(m, requests.o, wiring.flipped(self.request))
        wiring.connect(m, words.o, wiring.flipped(self.beats))
        return m

    def _pack(self, m: Module, codes: data.View, valid: Value, apart: Value) -> Value:
        """A port beat that holds the group's codes so far, in every place where they may go."""
        bits = self._config.port_bits
        kept, after = Signal(bits, name="group"), Signal(bits, name="group_after")
        packed = packing(self.format)
        pieces = [Cat(code[: 16 >> n] for code in codes) for n in range(3)]
        # Each tile moves the earlier ones down: a group ends at the top.
        m.d.comb += after.eq(pieces[0])
        for n in (1, 2):
            with m.If(packed == n):
                m.d.comb += after.eq(Cat(kept[len(pieces[n]) :], pieces[n]))
        with m.If(valid):
            m.d.sync += kept.eq(after)
        half, quarter = after[bits // 2 :], after[3 * bits // 4 :]
        return Mux(apart == 0, after, Mux(apart == 1, half.replicate(2), quarter.replicate(4)))

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
