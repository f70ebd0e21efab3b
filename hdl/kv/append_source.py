"""Append's read side: K and V rows of new tokens, buffered until their scale is known."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import append_layout, bits
from m890.hdl.kv.items import is_grouped, scale_bytes, tile_group
from m890.hdl.memory.ports import ReadPort
from m890.hdl.memory.queue import Queue
from m890.hdl.memory.sram import Sram
from m890.hdl.numerics.formats import GROUP, Format
from m890.hdl.numerics.pipeline import delay, largest, register
from m890.hdl.numerics.quantise import RowScale, beat_groups, finite_magnitude
from m890.hdl.numerics.rotate import BEAT, RotateBeats
from m890.hdl.numerics.rotation import kv_shift

ROWS = 32
"""Rows (K or V of one token) asked for or buffered: they hide the memory's latency."""


def row_shape(config: CoreConfig) -> data.StructLayout:
    """A buffered row: its BF16 scale or the E8M0 scales of its groups, as they lie in the header,
    and whether reading it met a bus error."""
    return data.StructLayout({"scales": 8 * scale_bytes(config), "error": 1})


class AppendSource(wiring.Component):
    """Reads the rows of an APPEND, in the order K, V of token 0, K, V of token 1, ...

    Function
        Row n is `tiles` port beats at k or v + (n // 2) x source_stride. Its largest magnitude, or
        those of its groups, are found as it arrives, and the scales from them (RowScale). Of a
        rotated plane, each beat is rotated first.
    Members
        job : In(append_layout). Steady from `start` until `idle`.
        start : In. One cycle: begins a job; only while `idle`.
        stop : In. Ends it: nothing more is asked for. Rows that come are offered all the same.
        idle : Out. Nothing is asked for or buffered.
        read : ReadPort.
        row : Out(stream of row_shape). Offered when all of it is buffered; taking it frees its
            place.
        tile, fetch : In. Beat of the offered row to read now. beat : Out. That beat, from the next
            cycle until another is read.
    Latency
        Last beat to `row.valid`: 9 + ceil(log2(lanes) / 2) cycles, and RotateBeats' if it is
        rotated.
    Throughput
        One beat per cycle, or RotateBeats'.
    Backpressure
        No request while ROWS rows are asked for or buffered, or RotateBeats has no room.
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
    fetch: Signal
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
                "row": Out(stream.Signature(row_shape(config))),
                "tile": In(bits(config.max_tiles)),
                "fetch": In(1),
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
        m.submodules.rotate = beats = RotateBeats(self._config, kv_shift(self._config.lanes))
        room = (held != ROWS) & beats.may_ask
        m.d.comb += [
            ask.eq(left.any() & ~self.stop & room & (~request.valid | request.ready)),
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
        m.d.comb += [
            beats.ask.eq(ask),
            beats.enable.eq(job.rotate),
            beats.is_fp16.eq(job.source_format == Format.FP16),
            *(getattr(beats, n).eq(getattr(self.read, n)) for n in BEAT),
        ]
        self._buffer(m, beats, take)
        self._scale(m, beats)
        return m

    def _buffer(self, m: Module, beats: RotateBeats, take: Value) -> None:
        config = self._config
        m.submodules.buffer = buffer = Sram(
            config.port_bits, ROWS * config.max_tiles, collisions=False
        )
        fill, drain = Signal(range(ROWS)), Signal(range(ROWS))
        beat = Signal(bits(config.max_tiles))
        inside = bits(config.max_tiles) if config.max_tiles > 1 else 0
        m.d.comb += [
            buffer.write_address.eq(Cat(beat[:inside], fill)),
            buffer.write_data.eq(beats.o_data),
            buffer.write_enable.eq(beats.o_valid),
            buffer.read_address[0].eq(Cat(self.tile[:inside], drain)),
            buffer.read_enable[0].eq(self.fetch),
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
        parts = beat_groups(config.lanes)
        groups: list[Value] = []  # the largest of each GROUP lanes, where there are several
        while len(sizes) > 1:
            levels += 1
            if len(sizes) <= 4 and parts > 1:
                each = len(sizes) // parts
                groups = [
                    register(
                        m, largest(m, sizes[n * each : (n + 1) * each], name=f"group_size{n}"),
                        name=f"group_size{n}",
                    )
                    for n in range(parts)
                ]  # fmt: skip
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

        grouped = Signal()
        m.d.sync += grouped.eq(is_grouped(job.format))
        tile = Signal(bits(config.max_tiles))
        inside = Signal()  # of a row or group: `amax` is about its earlier beats, too
        bad, ready, at = Signal(), Signal(), Signal(bits(config.max_tiles))
        per_group = max(1, GROUP // config.lanes)
        starts = tile & (per_group - 1) == 0
        m.d.comb += inside.eq((tile != 0) & ~(grouped & starts))
        amax = [Signal(15, name=f"amax{n}") for n in range(parts)]
        m.d.sync += [ready.eq(valid & last), at.eq(tile)]
        with m.If(valid):
            m.d.sync += [tile.eq(Mux(last, 0, tile + 1)), bad.eq(error | ((tile != 0) & bad))]
            for n in range(parts):
                coming = Mux(grouped, groups[n], sizes[0]) if groups else sizes[0]
                m.d.sync += amax[n].eq(Mux(inside & (amax[n] > coming), amax[n], coming))
        self._collect(m, amax, is_fp16, grouped, at, ready, bad)

    def _collect(
        self, m: Module, amax: list[Signal], is_fp16: Value, grouped: Value, at: Value,
        ready: Value, bad: Value,
    ) -> None:  # fmt: skip
        """Scales from magnitudes after tile `at`; a whole row's leave with its last tile."""
        config = self._config
        scales = []
        for n, size in enumerate(amax):
            unit = m.submodules[f"row_scale{n}"] = RowScale()
            m.d.comb += [
                unit.amax.eq(size), unit.is_fp16.eq(is_fp16), unit.format.eq(self.job.format)
            ]  # fmt: skip
            scales.append(unit.scale)
        at = delay(m, at, RowScale.latency, name="at")
        group = tile_group(config, at)
        kept, after = (Signal(8 * scale_bytes(config), name=n) for n in ("kept", "scales"))
        # A group that goes on is written again, and larger, by its next tile.
        m.d.comb += after.eq(Mux(at == 0, 0, kept))
        for n in range(scale_bytes(config)):
            unit = n % len(scales)
            with m.If(group == n - unit):
                m.d.comb += after[8 * n : 8 * n + 8].eq(scales[unit][7:15])
        m.d.sync += kept.eq(after)
        m.submodules.rows = rows = Queue(row_shape(config), ROWS)
        m.d.comb += [
            rows.i.payload.scales.eq(Mux(grouped, after, scales[0])),
            rows.i.payload.error.eq(delay(m, bad, RowScale.latency, name="bad")),
            rows.i.valid.eq(delay(m, ready, RowScale.latency, name="ready", reset=True)),
        ]
        wiring.connect(m, rows.o, wiring.flipped(self.row))
