"""Page copier: a page in every defined plane, to another page or to the host pool and back."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.control.checks import page_beats
from m890.hdl.control.layouts import bits, plane_layout
from m890.hdl.memory.burst import beat_bits
from m890.hdl.pages.layouts import move_layout, page_bits

DIRECT, OUTWARD, INWARD = 0, 1, 2
"""Page to page; page to host; host to page."""


def copy_layout(config: CoreConfig) -> data.StructLayout:
    """way: DIRECT, OUTWARD or INWARD. slot: of the host pool."""
    number = page_bits(config)
    return data.StructLayout(
        {
            "way": 2, "source": number, "target": number, "slot": 32,
            "host": config.address_bits, "host_stride": 32,
        }
    )  # fmt: skip


class PageCopier(wiring.Component):
    """Turns a page copy into moves, one per defined plane.

    Function
        Per plane, in the order of plane numbers: base + page x stride, the plane's page without its
        padding; in a slot of the host pool the planes' pages follow each other.
    Members
        start, copy : begin; copy is read in this cycle only. busy : moves are still to be given.
        plane_address, plane_entry : plane table; the entry one cycle after the address.
        move : stream of move_layout.
    Latency
        4 cycles per defined plane, 2 per other plane, if the mover takes them.
    """

    start: Signal
    copy: Any
    busy: Signal
    plane_address: Signal
    plane_entry: Any
    move: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "copy": In(copy_layout(config)),
                "busy": Out(1),
                "plane_address": Out(bits(config.planes)),
                "plane_entry": In(plane_layout(config)),
                "move": Out(stream.Signature(move_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, low = self._config, beat_bits(self._config)
        copy, plane = Signal(copy_layout(config)), self.plane_entry
        number = Signal(range(config.planes + 1))
        host = Signal(config.address_bits)
        source, target = Signal(config.address_bits), Signal(config.address_bits)
        beats = Signal(20)
        move = self.move.payload
        m.d.comb += [
            self.plane_address.eq(number),
            move.source.eq(source), move.target.eq(target), move.beats.eq(beats),
        ]  # fmt: skip
        with m.FSM(name="copy"):
            with m.State("IDLE"):
                m.d.sync += [copy.eq(self.copy), number.eq(0)]
                with m.If(self.start):
                    m.d.sync += self.busy.eq(1)
                    m.next = "SLOT"
            with m.State("SLOT"):
                m.d.sync += host.eq(copy.slot * copy.host_stride)
                m.next = "HOST"
            with m.State("HOST"):
                m.d.sync += host.eq(host + copy.host)
                m.next = "LOOK"
            with m.State("LOOK"):
                m.next = "PLANE"
                with m.If(number == config.planes):
                    m.d.sync += self.busy.eq(0)
                    m.next = "IDLE"
            with m.State("PLANE"):
                m.d.sync += [
                    source.eq(copy.source * plane.stride),
                    target.eq(copy.target * plane.stride),
                    beats.eq(page_beats(config, plane.format, plane.tiles, plane.tags)),
                ]
                m.next = "ADDRESS"
                with m.If(plane.tiles == 0):
                    m.d.sync += number.eq(number + 1)
                    m.next = "LOOK"
            with m.State("ADDRESS"):
                m.d.sync += [
                    source.eq(Mux(copy.way == INWARD, host, source + plane.base)),
                    target.eq(Mux(copy.way == OUTWARD, host, target + plane.base)),
                    host.eq(host + Cat(Const(0, low), beats)),
                ]
                m.next = "MOVE"
            with m.State("MOVE"):
                m.d.comb += self.move.valid.eq(1)
                with m.If(self.move.ready):
                    m.d.sync += number.eq(number + 1)
                    m.next = "LOOK"
        return m
