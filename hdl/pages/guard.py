"""Who owns a page, asked before anything of the page is read or written."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import Error
from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import bits
from m890.hdl.pages.layouts import page_bits


def owner_layout(config: CoreConfig) -> data.StructLayout:
    """What the page table says of a page.

    shared: it has more than one reference or pin. damaged: its word cannot be read, the rest is
    noise.
    """
    return data.StructLayout(
        {"live": 1, "public": 1, "shared": 1, "damaged": 1, "tenant": bits(config.tenants)}
    )


class OwnerPort(wiring.Signature):
    """A requester's view of the page table.

    Members
    -------
    request : Out(stream of a page's number)
        Not while an answer is due.
    valid, owner : In
        The answer, at any time after the request; `owner` is an owner_layout.
    """

    def __init__(self, config: CoreConfig) -> None:
        super().__init__(
            {
                "request": Out(stream.Signature(page_bits(config))),
                "valid": In(1),
                "owner": In(owner_layout(config)),
            }
        )


class PageGuard(wiring.Component):
    """Tells whether a tenant may reach the page that a block table names.

    Function
        It may if the page is one of the pool, held by somebody, and its own or public; `alone`: if
        it is its own, and nobody else holds it. Each page is asked for anew: no answer outlives the
        question.
    Members
        start, number, tenant, alone : a question; read in this cycle only, and not while one is
        open.
        port : OwnerPort.
        done, error : the verdict (commands.Error), from its cycle until the next start.
    Latency
        Start to `done`: 2 cycles and the page table's answer (PageStore: 2); without a page of that
        number 1.
    Errors
        BAD_PAGE: no page of the pool, or free; `alone`: or shared. BAD_TENANT: another tenant's.
        TABLE_ERROR: the page table's word of it cannot be read.
    """

    start: Signal
    number: Signal
    tenant: Signal
    alone: Signal
    port: Any
    done: Signal
    error: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "number": In(32),
                "tenant": In(bits(config.tenants)),
                "alone": In(1),
                "port": Out(OwnerPort(config)),
                "done": Out(1),
                "error": Out(8),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        request, owner = self.port.request, self.port.owner
        tenant, alone = Signal.like(self.tenant), Signal.like(self.alone)
        known = self.number < self._config.pages
        with m.If(request.ready):
            m.d.sync += request.valid.eq(0)
        with m.If(self.start):
            m.d.sync += [
                tenant.eq(self.tenant), alone.eq(self.alone), request.payload.eq(self.number),
                request.valid.eq(known), self.done.eq(~known), self.error.eq(Error.BAD_PAGE),
            ]  # fmt: skip
        mine = owner.tenant == tenant
        with m.If(self.port.valid):
            m.d.sync += [self.done.eq(1), self.error.eq(Error.OK)]
            with m.If(owner.damaged):
                m.d.sync += self.error.eq(Error.TABLE_ERROR)
            with m.Elif(~owner.live | mine & alone & owner.shared):
                m.d.sync += self.error.eq(Error.BAD_PAGE)
            with m.Elif(~mine & (alone | ~owner.public)):
                m.d.sync += self.error.eq(Error.BAD_TENANT)
        return m
