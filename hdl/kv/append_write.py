"""Append's write side: codes and scales become strobed beats of the memory port."""

from amaranth.hdl import C, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import is_narrow
from m890.hdl.memory.ports import WritePort, request_layout
from m890.hdl.memory.queue import Queue
from m890.hdl.numerics.formats import Format
from m890.hdl.numerics.pipeline import delay
from m890.hdl.numerics.quantise import Quantise

WRITES = 32
"""Writes formed and not yet taken by memory."""


class AppendWriter(wiring.Component):
    """Quantises beats of a row and forms their writes.

    Function
        The codes of a beat (Quantise) are packed, 8-bit formats two per 16 bits, and put where the
        address lies within the port's beat; strobes mark them. A scale is two bytes likewise.
    Members
        format, source_format : In. Steady while writes are under way.
        issue : In. A write is wanted; only with `room`.
        address, scale, is_scale : In, with `issue`. Byte address of the write: a scale's two bytes
            (`is_scale`), else the codes of `beat`. scale : the row's, as BF16 bits.
        beat : In. `lanes` elements of the row, one cycle after `issue`.
        room : Out.
        event : Out. One cycle: QUANTISE happened in codes that were issued.
        request, beats : streams of the write port. Requests of one beat.
    Latency
        issue to `request.valid`: 11 cycles where nothing waits.
    Throughput
        One write per cycle.
    Backpressure
        `room` depends on state only.
    Storage
        WRITES port beats with strobes and addresses.
    """

    format: Signal
    source_format: Signal
    issue: Signal
    address: Signal
    scale: Signal
    is_scale: Signal
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
                "issue": In(1),
                "address": In(config.address_bits),
                "scale": In(16),
                "is_scale": In(1),
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
        lanes, offset_bits = config.lanes, config.port_bytes.bit_length() - 1
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
        address = delay(m, self.address, depth, name="address")
        is_scale = delay(m, self.is_scale, depth, name="is_scale")
        scale = delay(m, scale, quantise.latency, name="scale_late")

        narrow = is_narrow(self.format)
        offset = address[:offset_bits]
        strobe = Mux(
            is_scale,
            C(3) << offset,
            Mux(narrow, C((1 << lanes) - 1) << offset, C((1 << 2 * lanes) - 1)),
        )
        half = Cat(code[:8] for code in quantise.codes)
        codes = Mux(narrow, Cat(half, half), quantise.codes.as_value())
        m.submodules.requests = requests = Queue(request_layout(config), WRITES)
        shape = data.StructLayout({"data": config.port_bits, "strobe": config.port_bytes})
        m.submodules.words = words = Queue(shape, WRITES)
        m.d.comb += [
            requests.i.valid.eq(valid),
            requests.i.payload.address.eq(Cat(C(0, offset_bits), address[offset_bits:])),
            requests.i.payload.beats.eq(1),
            words.i.valid.eq(valid),
            words.i.payload.data.eq(Mux(is_scale, scale.replicate(lanes), codes)),
            words.i.payload.strobe.eq(strobe),
            self.event.eq(valid & ~is_scale & quantise.event),
        ]
        # What is in the pipeline must find room, and so must the write that is decided on now.
        most = WRITES - depth - 1
        m.d.comb += self.room.eq((requests.level < most) & (words.level < most))
        wiring.connect(m, requests.o, wiring.flipped(self.request))
        wiring.connect(m, words.o, wiring.flipped(self.beats))
        return m
