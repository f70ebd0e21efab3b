"""Write side of the memory port: many requesters, one AXI4 AW, W and B channel."""

from collections.abc import Collection
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.memory.burst import (
    INCR,
    Picker,
    Splitter,
    beat_bits,
    channel_layout,
    one_hot_mux,
    write_half,
)
from m890.hdl.memory.ports import WritePort
from m890.hdl.memory.queue import Queue
from m890.hdl.wake import Gated, sleeps

ORDER_DEPTH = 4
"""Bursts whose address is out and whose beats are still to come."""
COUNT_SLICE = 16
"""Strobes counted in one pipeline stage."""


class WriteArbiter(wiring.Component):
    """Shares the memory's write channels between requesters.

    Function
        Requests are cut at 4 KiB and their bursts interleaved; the beats of a burst are contiguous
        and in the order of the bursts. The AXI id is the number of the requester.
    Members
        port[n] : WritePort of requester n, seen from memory.
        axi : AW, W and B of the AXI4 port. `bready` is always 1.
        bytes : bytes written (strobes set) by the beat that was sent three cycles ago.
    Latency
        Request to `awvalid`: 2 cycles, to `wvalid`: 3, if the beat is there. B to `done`: 1 cycle.
    Throughput
        One burst per cycle, one beat per cycle.
    Backpressure
        A requester waits while `outstanding` of its bursts are not acknowledged. A burst that is
        chosen holds W until the requester has given all its beats, so a requester must not wait for
        another write in between. No ready depends on the AXI port combinationally.
    Storage
        Per requester one request and `outstanding` bits; two bursts at AW, two beats at W.
    Errors
        `error` comes with `done` if any burst of the request was not answered OKAY.
    Parameters
        requesters (up to 16); control : those that go first (Picker).
    """

    port: Any
    axi: Any
    bytes: Signal

    def __init__(
        self,
        config: CoreConfig,
        requesters: int,
        *,
        control: Collection[int] = (),
        outstanding: int = 16,
    ) -> None:
        if not 1 <= requesters <= 16:
            raise ValueError(f"4-bit ids serve 1 to 16 requesters, not {requesters}")
        self._config, self._control, self._outstanding = config, control, outstanding
        super().__init__(
            {
                "port": In(WritePort(config)).array(requesters),
                "axi": Out(write_half(config)),
                "bytes": Out(range(config.port_bytes + 1)),
            }
        )

    def elaborate(self, platform: object) -> Gated:
        m = Module()
        config, axi = self._config, self.axi
        ports = self.port
        count = len(ports)
        m.submodules.picker = picker = Picker(count, self._control)
        m.submodules.aw = aw = Queue(channel_layout(config), 2)
        m.submodules.order = order = Queue(
            data.StructLayout({"select": count, "length": 8}), ORDER_DEPTH
        )
        m.submodules.w = w = Queue(
            data.StructLayout({"data": config.port_bits, "strobe": config.port_bytes, "last": 1}), 2
        )
        select = order.o.payload.select
        eligible, bursts = [], []
        for n, port in enumerate(ports):
            m.submodules[f"splitter{n}"] = splitter = Splitter(config)
            m.submodules[f"final{n}"] = final = Queue(1, self._outstanding, sram=False)
            wiring.connect(m, wiring.flipped(port.request), splitter.i)
            burst = splitter.o
            mine = axi.bvalid & (axi.bid == n)
            failed = Signal(name=f"failed{n}")
            error = failed | (axi.bresp != 0)
            m.d.comb += [
                burst.ready.eq(picker.grant[n] & picker.take),
                final.i.valid.eq(burst.valid & burst.ready),
                final.i.payload.eq(burst.payload.final),
                final.o.ready.eq(mine),
                port.beat.ready.eq(order.o.valid & select[n] & w.i.ready),
            ]
            m.d.sync += [port.done.eq(mine & final.o.payload), port.error.eq(error)]
            with m.If(mine):
                m.d.sync += failed.eq(error & ~final.o.payload)
            eligible.append(burst.valid & final.i.ready)
            bursts.append(burst.payload)
        room = aw.i.ready & order.i.ready
        m.d.comb += [
            picker.request.eq(Cat(*eligible)),
            picker.take.eq(picker.request.any() & room),
            aw.i.valid.eq(picker.take),
            aw.i.payload.id.eq(one_hot_mux(picker.grant, [Const(n, 4) for n in range(count)])),
            aw.i.payload.address.eq(one_hot_mux(picker.grant, [b.address for b in bursts])),
            aw.i.payload.length.eq(one_hot_mux(picker.grant, [b.length for b in bursts])),
            order.i.valid.eq(picker.take),
            order.i.payload.select.eq(picker.grant),
            order.i.payload.length.eq(aw.i.payload.length),
            axi.awvalid.eq(aw.o.valid),
            aw.o.ready.eq(axi.awready),
            axi.awid.eq(aw.o.payload.id),
            axi.awaddr.eq(aw.o.payload.address),
            axi.awlen.eq(aw.o.payload.length),
            axi.awsize.eq(beat_bits(config)),
            axi.awburst.eq(INCR),
            axi.bready.eq(1),
        ]
        number = Signal(8)  # beat within the burst
        sent = w.i.valid & w.i.ready
        m.d.comb += [
            w.i.valid.eq(order.o.valid & (select & Cat(*(p.beat.valid for p in ports))).any()),
            w.i.payload.data.eq(one_hot_mux(select, [p.beat.payload.data for p in ports])),
            w.i.payload.strobe.eq(one_hot_mux(select, [p.beat.payload.strobe for p in ports])),
            w.i.payload.last.eq(number == order.o.payload.length),
            order.o.ready.eq(sent & w.i.payload.last),
            axi.wvalid.eq(w.o.valid),
            w.o.ready.eq(axi.wready),
            axi.wdata.eq(w.o.payload.data),
            axi.wstrb.eq(w.o.payload.strobe),
            axi.wlast.eq(w.o.payload.last),
        ]
        with m.If(sent):
            m.d.sync += number.eq(Mux(w.i.payload.last, 0, number + 1))
        self._count_bytes(m, Mux(sent, w.i.payload.strobe, 0))
        return sleeps(
            m, *(p.request.valid for p in ports), picker.request, order.o.valid, aw.o.valid,
            w.o.valid, axi.bvalid,
        )  # fmt: skip

    def _count_bytes(self, m: Module, strobe: Value) -> None:
        held = Signal(self._config.port_bytes)
        m.d.sync += held.eq(strobe)
        parts = []
        for low in range(0, len(held), COUNT_SLICE):
            part = Signal(range(COUNT_SLICE + 1), name=f"strobes{low}")
            m.d.sync += part.eq(sum(held[low : low + COUNT_SLICE], Const(0, 1)))
            parts.append(part)
        m.d.sync += self.bytes.eq(sum(parts, Const(0, 1)))
