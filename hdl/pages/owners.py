"""Owner arbiter: guards that share the page table's port, one question at a time."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.pages.guard import OwnerPort


class OwnerArbiter(wiring.Component):
    """Shares the page table's OwnerPort between two requesters.

    Function
        One question after the other; an answer goes to who asked. Port 0 goes first.
    Members
        port : two OwnerPorts of requesters. owner : OwnerPort of PageStore.
    Latency
        None; while an answer is due, the other's question waits.
    Throughput
        One question per 2 cycles, PageStore's latency. Port 0's requester has its own pace, so that
        port 1 is served.
    Backpressure
        owner.request follows the requests and owner.valid within the cycle, their `ready` also
        owner.request.ready.
    """

    port: Any
    owner: Any

    def __init__(self, config: CoreConfig) -> None:
        port = OwnerPort(config)
        super().__init__({"port": In(port).array(2), "owner": Out(port)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        first, second = self.port
        request = self.owner.request
        due, offered = Signal(), Signal()  # an answer; a question that has not been taken
        asks = Signal()  # port of the question, also while its answer is due
        picked = Signal()
        m.d.comb += [
            picked.eq(Mux(offered, asks, ~first.request.valid)),
            request.valid.eq(
                (first.request.valid | second.request.valid) & (~due | self.owner.valid)
            ),
            request.payload.eq(
                Mux(picked, second.request.payload, first.request.payload)
            ),
        ]  # fmt: skip
        taken = request.valid & request.ready
        with m.If(request.valid):
            m.d.sync += asks.eq(picked)
        m.d.sync += [
            offered.eq(request.valid & ~request.ready),
            due.eq(taken | due & ~self.owner.valid),
        ]
        for n, port in enumerate((first, second)):
            m.d.comb += [
                port.request.ready.eq(taken & (picked == n)),
                port.valid.eq(self.owner.valid & (asks == n)),
                port.owner.eq(self.owner.owner),
            ]
        return m
