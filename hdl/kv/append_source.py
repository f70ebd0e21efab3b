"""Append's read side: K and V rows of new tokens, buffered until their scale is known."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import append_layout, bits
from m890.hdl.memory.ports import ReadPort
from m890.hdl.memory.queue import Queue
from m890.hdl.memory.sram import Sram
from m890.hdl.numerics.formats import Format
from m890.hdl.numerics.hadamard import BEAT, RotateBeats
from m890.hdl.numerics.pipeline import delay, largest, register
from m890.hdl.numerics.quantise import RowScale, finite_magnitude
from m890.hdl.numerics.rotation import kv_shift

ROWS = 32
"""Rows (K or V of one token) asked for or buffered: they hide the memory's latency."""

ROW = data.StructLayout({"scale": 16, "error": 1})
"""A buffered row: its scale as BF16 bits, and whether reading it met a bus error."""


class AppendSource(wiring.Component):
    """Reads the rows of an APPEND, in the order K, V of token 0, K, V of token 1, ...

    Function
        Row n is `tiles` port beats at k or v + (n // 2) x source_stride. Its largest magnitude is
        found as it arrives, and its scale from that (RowScale). Of a rotated plane, each beat is
        rotated first.
    Members
        job : In(append_layout). Steady from `start` until `idle`.
        start : In. One cycle: begins a job; only while `idle`.
        stop : In. Ends it: nothing more is asked for. Rows that come are offered all the same.
        idle : Out. Nothing is asked for or buffered.
        read : ReadPort.
        row : Out(stream of ROW). Offered when all of it is buffered; taking it frees its place.
        tile : In. Beat of the offered row to read. beat : Out. That beat, one cycle later.
    Latency
        Last beat to `row.valid`: 9 + ceil(log2(lanes) / 2) cycles, and Rotate's if it is rotated.
    Throughput
        One beat per cycle.
    Backpressure
        No request while ROWS rows are asked for or buffered.
    Storage
        ROWS x max_tiles port beats, 1 write port, 1 read port.
    """

    job: data.View
    start: Signal
    stop: Signal
    idle: Signal
    read: Any
    row: stream.Interface
    tile: Signal
    beat: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "job": In(append_layout(config)),
                "start": In(1),
                "stop": In(1),
                "idle": Out(1),
                "read": Out(ReadPort(config)),
                "row": Out(stream.Signature(ROW)),
                "tile": In(bits(config.max_tiles)),
                "beat": Out(config.port_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        job, request = self.job, self.read.request
        left = Signal(17)  # rows not asked for yet
        held = Signal(range(ROWS + 1))
        ask, take = Signal(), Signal()
        addresses = [Signal(self._config.address_bits, name=f"next_{name}") for name in "kv"]
        value = left[0]  # an even number of rows: V is next where an odd one is left
        m.d.comb += [
            ask.eq(left.any() & ~self.stop & (held != ROWS) & (~request.valid | request.ready)),
            take.eq(self.row.valid & self.row.ready),
            self.idle.eq((held == 0) & (left == 0)),
        ]
        m.d.sync += held.eq(held + ask - take)
        with m.If(request.ready):
            m.d.sync += request.valid.eq(0)
        with m.If(ask):
            m.d.sync += [
                request.valid.eq(1),
                request.payload.address.eq(Mux(value, addresses[1], addresses[0])),
                request.payload.beats.eq(job.tiles),
                left.eq(left - 1),
            ]
            for n, address in enumerate(addresses):
                with m.If(value == n):
                    m.d.sync += address.eq(address + job.source_stride)
        with m.If(self.stop):
            m.d.sync += left.eq(0)
        with m.Elif(self.start):
            m.d.sync += [left.eq(job.tokens << 1), addresses[0].eq(job.k), addresses[1].eq(job.v)]
        m.submodules.rotate = beats = RotateBeats(self._config, kv_shift(self._config.lanes))
        m.d.comb += [
            beats.enable.eq(job.rotate),
            beats.is_fp16.eq(job.source_format == Format.FP16),
            *(getattr(beats, n).eq(getattr(self.read, n)) for n in BEAT),
        ]
        self._buffer(m, beats, take)
        self._scale(m, beats)
        return m

    def _buffer(self, m: Module, beats: RotateBeats, take: Value) -> None:
        config = self._config
        m.submodules.buffer = buffer = Sram(config.port_bits, ROWS * config.max_tiles)
        fill, drain = Signal(range(ROWS)), Signal(range(ROWS))
        beat = Signal(bits(config.max_tiles))
        inside = bits(config.max_tiles) if config.max_tiles > 1 else 0
        m.d.comb += [
            buffer.write_address.eq(Cat(beat[:inside], fill)),
            buffer.write_data.eq(beats.o_data),
            buffer.write_enable.eq(beats.o_valid),
            buffer.read_address[0].eq(Cat(self.tile[:inside], drain)),
            buffer.read_enable[0].eq(1),
            self.beat.eq(buffer.read_data[0]),
        ]
        with m.If(beats.o_valid):
            m.d.sync += beat.eq(Mux(beats.o_last, 0, beat + 1))
        m.d.sync += [fill.eq(fill + (beats.o_valid & beats.o_last)), drain.eq(drain + take)]

    def _scale(self, m: Module, beats: RotateBeats) -> None:
        config, job = self._config, self.job
        is_fp16 = job.source_format == Format.FP16
        sizes = [
            register(m, finite_magnitude(beats.o_data.word_select(n, 16), is_fp16), name=f"size{n}")
            for n in range(config.lanes)
        ]
        levels = 0
        while len(sizes) > 1:
            levels += 1
            sizes = [
                register(
                    m, largest(m, sizes[n : n + 4], name=f"size{levels}_{n // 4}"),
                    name=f"size{levels}_{n // 4}",
                )
                for n in range(0, len(sizes), 4)
            ]  # fmt: skip
        valid = delay(m, beats.o_valid, 1 + levels, name="valid", reset=True)
        last = delay(m, beats.o_last, 1 + levels, name="last")
        error = delay(m, beats.o_error, 1 + levels, name="error")

        inside = Signal()  # of a row: `amax` and `bad` are about its earlier beats
        amax, bad, ready = Signal(15), Signal(), Signal()
        m.d.sync += ready.eq(valid & last)
        with m.If(valid):
            m.d.sync += [
                inside.eq(~last),
                amax.eq(Mux(inside & (amax > sizes[0]), amax, sizes[0])),
                bad.eq(error | (inside & bad)),
            ]
        m.submodules.row_scale = scale = RowScale()
        m.submodules.rows = rows = Queue(ROW, ROWS)
        m.d.comb += [
            scale.amax.eq(amax),
            scale.is_fp16.eq(is_fp16),
            scale.format.eq(job.format),
            rows.i.payload.scale.eq(scale.scale),
            rows.i.payload.error.eq(delay(m, bad, scale.latency, name="bad")),
            rows.i.valid.eq(delay(m, ready, scale.latency, name="ready", reset=True)),
        ]
        wiring.connect(m, rows.o, wiring.flipped(self.row))
