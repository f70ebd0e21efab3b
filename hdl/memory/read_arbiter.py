"""Read side of the memory port: many requesters, one AXI4 AR and R channel."""

from collections.abc import Collection
from typing import Any

from amaranth.hdl import Cat, Const, EnableInserter, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.memory.burst import (
    INCR,
    Picker,
    Splitter,
    beat_bits,
    channel_layout,
    one_hot_mux,
    read_half,
)
from m890.hdl.memory.ports import ReadPort
from m890.hdl.memory.queue import Queue


class ReadArbiter(wiring.Component):
    """Shares the memory's read channels between requesters.

    Function
        Requests are cut at 4 KiB, bursts of all requesters are interleaved; the AXI id is the
        number of the requester, so beats come back in order per requester and may interleave
        between them.
    Members
        port[n] : ReadPort of requester n, seen from memory.
        axi : AR and R of the AXI4 port. `rready` is always 1.
        beat, kv_beat : a beat came back in the last cycle; it was asked for by one of `kv`.
    Latency
        Request to `arvalid`: 2 cycles. R beat to `data_valid`: 1 cycle.
    Throughput
        One burst per cycle, one beat per cycle.
    Backpressure
        A requester waits while `outstanding` of its bursts are on their way.
        `port[n].request.ready` depends on registers and on other requests only, never on the AXI
        port.
    Storage
        Per requester one request and `outstanding` bits; two bursts at AR; one beat at R.
    Errors
        A beat whose `rresp` is not OKAY is passed on with `error`.
    Parameters
        requesters (up to 16); control : those that go first (Picker); kv : those that `kv_beat`
        counts.
    """

    port: Any
    axi: Any
    beat: Signal
    kv_beat: Signal

    def __init__(
        self,
        config: CoreConfig,
        requesters: int,
        *,
        control: Collection[int] = (),
        kv: Collection[int] = (),
        outstanding: int = 16,
    ) -> None:
        if not 1 <= requesters <= 16:
            raise ValueError(f"4-bit ids serve 1 to 16 requesters, not {requesters}")
        self._config, self._control, self._outstanding = config, control, outstanding
        self._kv = frozenset(kv)
        super().__init__(
            {
                "port": In(ReadPort(config)).array(requesters),
                "axi": Out(read_half(config)),
                "beat": Out(1),
                "kv_beat": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        axi, ports = self.axi, self.port
        count = len(ports)
        m.submodules.picker = picker = Picker(count, self._control)
        m.submodules.ar = ar = Queue(channel_layout(self._config), 2)
        eligible, bursts = [], []
        done: list[Value] = []
        error = axi.rresp != 0
        word = Signal(self._config.port_bits)  # one register for all: only `data_valid` differs
        m.d.sync += word.eq(axi.rdata)
        for n, port in enumerate(ports):
            m.submodules[f"splitter{n}"] = splitter = Splitter(self._config)
            final = Queue(1, self._outstanding, sram=False)
            stirs = final.i.valid | final.o.ready
            m.submodules[f"final{n}"] = EnableInserter(stirs)(final)
            wiring.connect(m, wiring.flipped(port.request), splitter.i)
            burst = splitter.o
            mine = axi.rvalid & (axi.rid == n)
            m.d.comb += [
                burst.ready.eq(picker.grant[n] & picker.take),
                final.i.valid.eq(burst.valid & burst.ready),
                final.i.payload.eq(burst.payload.final),
                final.o.ready.eq(mine & axi.rlast),
                port.data.eq(word),
            ]
            m.d.sync += [
                port.data_valid.eq(mine),
                port.last.eq(axi.rlast & final.o.payload),
                port.error.eq(error),
            ]
            eligible.append(burst.valid & final.i.ready)
            bursts.append(burst.payload)
            done.append(mine)
        m.d.comb += [
            picker.request.eq(Cat(*eligible)),
            picker.take.eq(picker.request.any() & ar.i.ready),
            ar.i.valid.eq(picker.request.any()),
            ar.i.payload.id.eq(one_hot_mux(picker.grant, [Const(n, 4) for n in range(count)])),
            ar.i.payload.address.eq(one_hot_mux(picker.grant, [b.address for b in bursts])),
            ar.i.payload.length.eq(one_hot_mux(picker.grant, [b.length for b in bursts])),
            axi.arvalid.eq(ar.o.valid),
            ar.o.ready.eq(axi.arready),
            axi.arid.eq(ar.o.payload.id),
            axi.araddr.eq(ar.o.payload.address),
            axi.arlen.eq(ar.o.payload.length),
            axi.arsize.eq(beat_bits(self._config)),
            axi.arburst.eq(INCR),
            axi.rready.eq(1),
        ]
        m.d.sync += [
            self.beat.eq(Cat(*done).any()),
            self.kv_beat.eq(Cat(*(done[n] for n in sorted(self._kv))).any() if self._kv else 0),
        ]
        return m
