"""Page store: the words of all pages, the free list, and the pages of each tenant."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import Error
from m890.hdl.config import CoreConfig
from m890.hdl.memory.secded import SecdedSram
from m890.hdl.pages.guard import OwnerPort
from m890.hdl.pages.layouts import (
    MOST_PINS,
    MOST_REFERENCES,
    Op,
    count_bits,
    operation_layout,
    outcome_layout,
    page_bits,
    page_layout,
    tenant_layout,
)


class PageStore(wiring.Component):
    """Reference counts, pins and tenants of all pages; free ones are a list in the same words.

    Function
        One operation (Op) after the other on a page's word. After one that fails, the ones behind
        it change nothing until `restart`. A free page's word holds the number of the next free page
        where a live one has its references, so that no page can be both, or twice in the list.
        Pages that were never taken need no word: they are given in order, when the list is empty.
        After reset no tenant holds a page, and each may hold all.
    Members
        i : stream of operation_layout. done, outcome : an operation's end, in order.
        restart : operations change things again. idle : none is under way.
        free : free pages. forget : while idle: all as after reset. ready : the sweep has ended.
        inject : of the next word written, see SecdedSram. corrected, fatal : a word read was wrong.
        owner : a PageGuard's OwnerPort, at any time. It goes before operations, which wait a cycle.
    Latency
        2 cycles from a question of `owner` to its answer; asked while its page's word may be
        written, it waits.
        3 cycles to `done`; COLLECT of an unused page and TAKE 3 more, TENANT and QUOTA too.
    Throughput
        LOOK, PINNED, HOLD, DROP, MARK: one per cycle, 3 cycles apart on the same page. The others
        one at a time. The sweep takes `tenants` cycles.
    Backpressure
        i.ready depends on i.payload and owner, not on i.valid.
    Storage
        pages x page_layout, tenants x tenant_layout, with check bits; 1 read and 1 write port each.
    Errors
        BAD_PAGE: no such page, free, or no reference left. BAD_TENANT: another's, not public.
        TOO_SHARED, NOT_PINNED, OUT_OF_PAGES. TABLE_ERROR: more than one bit of the word was wrong.
    """

    i: stream.Interface
    done: Signal
    outcome: Any
    restart: Signal
    idle: Signal
    free: Signal
    forget: Signal
    ready: Signal
    inject: Signal
    corrected: Signal
    fatal: Signal
    owner: Any

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(operation_layout(config))),
                "done": Out(1),
                "outcome": Out(outcome_layout(config)),
                "restart": In(1),
                "idle": Out(1),
                "free": Out(count_bits(config)),
                "forget": In(1),
                "ready": Out(1),
                "inject": In(2),
                "corrected": Out(1),
                "fatal": Out(1),
                "owner": In(OwnerPort(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.pages = pages = SecdedSram(page_layout(config), config.pages)
        m.submodules.tenants = tenants = SecdedSram(tenant_layout(config), config.tenants)
        operation = operation_layout(config)
        one, two = Signal(operation), Signal(operation)
        one_valid, two_valid = Signal(), Signal()
        word, fatal = Signal(page_layout(config)), Signal()  # of `two`, corrected
        halted = Signal()
        head, listed = Signal(page_bits(config)), Signal(count_bits(config))  # of the free list
        fresh = Signal(count_bits(config))  # pages from here on were never taken
        counting = Signal()  # a tenant's counts are being changed
        sweep = Signal(range(config.tenants + 1))
        m.d.comb += [pages.inject.eq(self.inject), tenants.inject.eq(self.inject)]

        take = self.i.valid & self.i.ready
        ask_owner, asked = self.owner.request, Signal(page_bits(config))
        looks, looked = ask_owner.valid & ask_owner.ready, Signal()
        wanted = Signal.like(one.number)
        m.d.comb += [
            wanted.eq(
                Mux(
                    self.i.payload.op == Op.TAKE,
                    Mux(listed == 0, fresh, head),
                    self.i.payload.number,
                )
            ),
            self.free.eq(listed + config.pages - fresh),
        ]
        alone = Signal()  # an operation that changes the list or a tenant is under way
        m.d.comb += alone.eq(one_valid & _alone(one) | two_valid & _alone(two) | counting)
        hazard = one_valid & (one.number == wanted) | two_valid & (two.number == wanted)
        blocked = Mux(_alone(self.i.payload), one_valid | two_valid, hazard)
        m.d.comb += [
            self.i.ready.eq(self.ready & ~ask_owner.valid & ~alone & ~blocked),
            # The memory says nothing of a word that is read while it is written.
            ask_owner.ready.eq(self.ready & ~(two_valid & (two.number == ask_owner.payload))),
            self.idle.eq(self.ready & ~one_valid & ~two_valid & ~counting),
            pages.read_address[0].eq(Mux(ask_owner.valid, ask_owner.payload, wanted)),
            pages.read_enable[0].eq(take | looks),
        ]
        m.d.sync += [looked.eq(looks), asked.eq(ask_owner.payload)]
        known = looked & (asked < fresh)
        m.d.sync += [
            self.owner.valid.eq(looked),
            self.owner.owner.live.eq(known & pages.read_data[0].live),
            self.owner.owner.public.eq(pages.read_data[0].public),
            self.owner.owner.shared.eq(_shared(pages.read_data[0])),
            self.owner.owner.damaged.eq(known & pages.fatal[0]),
            self.owner.owner.tenant.eq(pages.read_data[0].tenant),
        ]
        m.d.sync += [one_valid.eq(take), two_valid.eq(one_valid)]
        with m.If(take):
            m.d.sync += [one.eq(self.i.payload), one.number.eq(wanted)]
        written = _reads(one) & (one.number < fresh)  # else the memory holds anything
        m.d.sync += [
            two.eq(one), word.eq(Mux(written, Value.cast(pages.read_data[0]), 0)),
            fatal.eq(pages.fatal[0] & written),
        ]  # fmt: skip

        error = self._judge(m, two, word, fatal)
        go = Signal()
        m.d.comb += go.eq(two_valid & ~halted & (error == Error.OK))
        with m.If(two_valid & (error != Error.OK)):
            m.d.sync += halted.eq(1)
        with m.If(self.restart):
            m.d.sync += halted.eq(0)
        unused = word.live & (word.references == 0) & (word.pins == 0)
        frees, takes = Signal(), Signal()
        m.d.comb += [
            frees.eq(go & (two.op == Op.COLLECT) & unused), takes.eq(go & (two.op == Op.TAKE))
        ]  # fmt: skip
        self._write(m, pages, two, word, go, frees, takes, head)
        with m.If(frees):
            m.d.sync += [head.eq(two.number), listed.eq(listed + 1)]
        with m.If(takes):
            with m.If(listed == 0):
                m.d.sync += fresh.eq(fresh + 1)
            with m.Else():
                m.d.sync += [head.eq(word.references), listed.eq(listed - 1)]

        result: Any = Signal(outcome_layout(config))
        m.d.comb += [
            result.error.eq(error),
            result.shared.eq(_shared(word) | (word.tenant != two.tenant)),
            result.number.eq(two.number),
            result.word.eq(Mux(word.live & ~two.bad, Value.cast(word), 0)),
        ]
        ask = frees | takes | two_valid & ((two.op == Op.TENANT) | (two.op == Op.QUOTA))
        counted = self._count(m, tenants, two, word, takes, frees, ask, counting, sweep)
        m.d.sync += self.done.eq(two_valid & ~ask | counted)
        with m.If(two_valid):
            m.d.sync += self.outcome.eq(result)
        with m.If(counted):
            m.d.sync += self.outcome.counts.eq(tenants.read_data[0])
            with m.If(tenants.fatal[0]):
                m.d.sync += self.outcome.error.eq(Error.TABLE_ERROR)
        m.d.comb += [
            self.corrected.eq(
                (one_valid & written | known) & pages.corrected[0] | counted & tenants.corrected[0]
            ),
            self.fatal.eq(two_valid & fatal | known & pages.fatal[0] | counted & tenants.fatal[0]),
        ]
        with m.If(~self.ready):
            m.d.sync += sweep.eq(sweep + 1)
            with m.If(sweep == config.tenants - 1):
                m.d.sync += self.ready.eq(1)
        with m.If(self.forget):
            m.d.sync += [self.ready.eq(0), sweep.eq(0), listed.eq(0), fresh.eq(0)]
        return m

    def _judge(self, m: Module, two: Any, word: Any, fatal: Value) -> Signal:
        """The outcome of the operation `two`, whose page has `word`."""
        error = Signal(8)
        count = Mux(two.pin, word.pins, word.references)
        most = Mux(two.pin, MOST_PINS, MOST_REFERENCES)
        lone = (two.op == Op.TENANT) | (two.op == Op.QUOTA)
        with m.If(lone):
            m.d.comb += error.eq(Error.OK)
        with m.Elif((two.op == Op.TAKE) & (self.free == 0)):
            m.d.comb += error.eq(Error.OUT_OF_PAGES)
        with m.Elif(fatal | (two.op == Op.TAKE) & word.live):
            m.d.comb += error.eq(Error.TABLE_ERROR)
        with m.Elif((two.op == Op.TAKE) | (two.op == Op.COLLECT)):
            m.d.comb += error.eq(Error.OK)
        with m.Elif(two.bad | ~word.live):
            m.d.comb += error.eq(Error.BAD_PAGE)
        with m.Elif((word.tenant != two.tenant) & ~word.public):
            m.d.comb += error.eq(Error.BAD_TENANT)
        with m.Elif((two.op == Op.HOLD) & (count == most)):
            m.d.comb += error.eq(Error.TOO_SHARED)
        with m.Elif((two.op == Op.DROP) & (count == 0)):
            m.d.comb += error.eq(Mux(two.pin, Error.NOT_PINNED, Error.BAD_PAGE))
        with m.Elif((two.op == Op.PINNED) & (word.pins == 0)):
            m.d.comb += error.eq(Error.NOT_PINNED)
        return error

    def _write(
        self, m: Module, pages: SecdedSram, two: Any, word: Any, go: Value, frees: Value,
        takes: Value, head: Value,
    ) -> None:  # fmt: skip
        """The page's new word."""
        new = pages.write_data
        changes = (two.op == Op.HOLD) | (two.op == Op.DROP) | (two.op == Op.MARK)
        m.d.comb += [
            pages.write_address.eq(two.number),
            pages.write_enable.eq(go & changes | frees | takes),
            new.eq(word),
        ]
        step = Mux(two.op == Op.HOLD, 1, -1)
        with m.If(frees):
            m.d.comb += [Value.cast(new).eq(0), new.references.eq(head)]
        with m.Elif(takes):
            m.d.comb += [
                new.live.eq(1), new.public.eq(0), new.tenant.eq(two.tenant),
                new.pins.eq(two.pin), new.references.eq(~two.pin),
            ]  # fmt: skip
        with m.Elif(two.op == Op.MARK):
            m.d.comb += new.public.eq(1)
        with m.Elif(two.pin):
            m.d.comb += new.pins.eq(word.pins + step)
        with m.Else():
            m.d.comb += new.references.eq(word.references + step)

    def _count(
        self, m: Module, tenants: SecdedSram, two: Any, word: Any, takes: Value, frees: Value,
        ask: Value, counting: Signal, sweep: Value,
    ) -> Signal:  # fmt: skip
        """Changes a tenant's counts, if the operation `two` asks; the cycle in which they are read.

        A freed page counts for its own tenant, not for the one that gives it up.
        """
        counted = Signal()
        tenant, quota = Signal.like(two.tenant), Signal()
        more, less = Signal(), Signal()
        value = Signal.like(two.value)
        old, new = tenants.read_data[0], tenants.write_data
        m.d.comb += [
            tenants.read_address[0].eq(tenant), tenants.read_enable[0].eq(0),
            tenants.write_address.eq(tenant), new.eq(old),
        ]  # fmt: skip
        with m.If(more):
            m.d.comb += new.held.eq(old.held + 1)
        with m.If(less):
            m.d.comb += new.held.eq(old.held - 1)
        with m.If(quota):
            m.d.comb += new.quota.eq(value)
        with m.FSM(name="counts"):
            with m.State("IDLE"):
                m.d.sync += [
                    tenant.eq(Mux(frees, word.tenant, two.tenant)), more.eq(takes),
                    less.eq(frees), quota.eq(two.op == Op.QUOTA), value.eq(two.value),
                ]  # fmt: skip
                with m.If(ask):
                    m.d.sync += counting.eq(1)
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += tenants.read_enable[0].eq(1)
                m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += [
                    counted.eq(1),
                    tenants.write_enable.eq((more | less | quota) & ~tenants.fatal[0]),
                ]
                m.d.sync += counting.eq(0)
                m.next = "IDLE"
        with m.If(~self.ready):
            m.d.comb += [
                tenants.write_address.eq(sweep),
                tenants.write_enable.eq(sweep < self._config.tenants),
                new.held.eq(0),
                new.quota.eq(self._config.pages),
            ]
        return counted


def _shared(word: Any) -> Value:
    return word.references + word.pins > 1


def _alone(operation: Any) -> Value:
    op = operation.op
    return (op == Op.COLLECT) | (op == Op.TAKE) | (op == Op.TENANT) | (op == Op.QUOTA)


def _reads(operation: Any) -> Value:
    """The operation's `number` is a page, whose word matters."""
    op = operation.op
    return ~operation.bad & (op != Op.TENANT) & (op != Op.QUOTA)
