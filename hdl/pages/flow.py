"""What the commands of the page manager share: registers, and steps that return to who asked."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

from m890.hdl.commands import COMMANDS, Error, Opcode
from m890.hdl.config import CoreConfig
from m890.hdl.control.checks import field_index
from m890.hdl.control.layouts import bits
from m890.hdl.pages.copier import PageCopier
from m890.hdl.pages.layouts import Op, page_bits, places_bits, sequence_layout
from m890.hdl.pages.mover import Mover
from m890.hdl.pages.store import PageStore
from m890.hdl.pages.walker import PageWalker

STEPS = ("WALK", "OPERATE", "COPY PAGE", "MOVE", "ENTRY", "ROOM")
"""States that end in the state named by who entered them."""


class Flow:
    """Steps of the manager's state machine `m`.

    Function
        A step is begun in a state by its method, which drives what begins it and leaves the state;
        `finish` afterwards makes the steps' own states, each of which ends in the state that the
        call named. Steps do not nest, but for `room`, which is made of others.
    """

    def __init__(
        self, m: Module, config: CoreConfig, store: PageStore, walker: PageWalker,
        copier: PageCopier, mover: Mover,
    ) -> None:  # fmt: skip
        self.m, self.config = m, config
        self.store, self.walker, self.copier, self.mover = store, walker, copier, mover
        self._returns: dict[str, list[str]] = {step: [] for step in STEPS}
        self._back = {step: Signal(6, name=f"back_{step.split()[-1].lower()}") for step in STEPS}
        self.error, self.field, self.index = Signal(8), Signal(8), Signal(16)
        self.need = Signal(places_bits(config))  # pages that ROOM asks for
        self.room_tenant = Signal(bits(config.tenants))
        self.room_error = Signal(8)
        self.entry_address = Signal(config.address_bits)
        self.entry_number = Signal(32)
        self.entry_asked, self.entry_given = Signal(), Signal()
        self.entry_done = Signal()  # memory has answered
        self.refused = Signal()  # the last entry met a bus error
        self.page = Signal(page_bits(config))  # TAKE's
        self.save_entry = Signal(sequence_layout(config))
        self.save_index = Signal(bits(config.sequences))
        self.save_length = Signal(len(self.save_entry.limit))  # type: ignore[attr-defined]
        self._operation = Signal.like(store.i.payload)
        self._operating = Signal()
        self._move = Signal.like(mover.i.payload)

    # ---------------------------------------------------------------- what states call

    def _call(self, step: str, then: str, *, enter: str | None = None) -> None:
        names = self._returns[step]
        if then not in names:
            names.append(then)
        self.m.d.sync += self._back[step].eq(names.index(then))
        self.m.next = enter or step

    def walk(
        self, address: Value, count: Value, op: Op, tenant: Value, then: str, *,
        pin: Value | int = 0, bound: Value | None = None,
    ) -> None:  # fmt: skip
        """`op` on the pages of a list; with `bound` only compares the numbers with it."""
        walk: Any = self.walker.walk
        self.m.d.comb += [
            self.walker.start.eq(1),
            self.store.restart.eq(1),
            walk.address.eq(address),
            walk.count.eq(count),
            walk.op.eq(op),
            walk.pin.eq(pin),
            walk.tenant.eq(tenant),
            walk.plain.eq(bound is not None),
            walk.bound.eq(0 if bound is None else bound),
        ]
        self._call("WALK", then)

    def operate(
        self, op: Op, then: str, *, number: Value | int = 0, tenant: Value | int = 0,
        pin: Value | int = 0, value: Value | int = 0,
    ) -> None:  # fmt: skip
        """One operation; its outcome is the store's."""
        operation: Any = self._operation
        self.m.d.comb += self.store.restart.eq(1)
        self.m.d.sync += [
            operation.op.eq(op), operation.number.eq(number), operation.tenant.eq(tenant),
            operation.pin.eq(pin), operation.value.eq(value), operation.bad.eq(0),
            self._operating.eq(1),
        ]  # fmt: skip
        self._call("OPERATE", then)

    def copy_page(
        self, then: str, way: Value | int, source: Value | int, target: Value | int,
        slot: Value | int = 0, host: Value | int = 0, host_stride: Value | int = 0,
    ) -> None:  # fmt: skip
        """A page in all planes; mover.error tells whether it went well."""
        copy: Any = self.copier.copy
        self.m.d.comb += [
            self.copier.start.eq(1), self.mover.restart.eq(1),
            copy.way.eq(way), copy.source.eq(source), copy.target.eq(target),
            copy.slot.eq(slot), copy.host.eq(host), copy.host_stride.eq(host_stride),
        ]  # fmt: skip
        self._call("COPY PAGE", then)

    def move_table(self, source: Value, target: Value, count: Value, then: str) -> None:
        """`count` page numbers from one table to another; none, where count is 0."""
        port = self.config.port_bytes
        size = count << 2
        move: Any = self._move
        self.m.d.comb += self.mover.restart.eq(1)
        self.m.d.sync += [
            move.source.eq(source), move.target.eq(target),
            move.beats.eq((size + port - 1) >> bits(port)), move.tail.eq(size[: bits(port)]),
        ]  # fmt: skip
        self._call("MOVE", then)

    def entry(self, address: Value, number: Value, then: str) -> None:
        """Writes a page number into a table; `refused`: with a bus error, and nobody knows whether
        it is there."""
        self.m.d.sync += [
            self.entry_address.eq(address), self.entry_number.eq(number),
            self.entry_asked.eq(1), self.entry_given.eq(1),
        ]  # fmt: skip
        self._call("ENTRY", then)

    def room(self, need: Value | int, tenant: Value, then: str) -> None:
        """Whether `need` pages can be taken: room_error is OK, OUT_OF_PAGES or QUOTA."""
        self.m.d.sync += [
            self.need.eq(need), self.room_tenant.eq(tenant), self.room_error.eq(Error.OK)
        ]  # fmt: skip
        self._call("ROOM", then)

    def fail(
        self, error: Value | Error, opcode: Opcode, field: str, index: Value | int = 0,
        then: str = "REPORT",
    ) -> None:  # fmt: skip
        """The command ends with an error (or goes on with `then`, to undo what it did)."""
        self.blame(opcode, field)
        self.m.d.sync += [self.error.eq(error), self.index.eq(index)]
        self.m.next = then

    def blame(self, opcode: Opcode, field: str) -> None:
        self.m.d.sync += self.field.eq(field_index(COMMANDS[opcode], field))

    # ---------------------------------------------------------------- the steps themselves

    def finish(self) -> None:
        """The steps' states; ROOM comes first, as it calls another."""
        m, store, walker, mover = self.m, self.store, self.walker, self.mover
        with m.State("ROOM"):
            with m.If(self.need == 0):
                self._return("ROOM")
            with m.Elif(self.need > store.free):
                m.d.sync += self.room_error.eq(Error.OUT_OF_PAGES)
                self._return("ROOM")
            with m.Else():
                self.operate(Op.TENANT, "ROOM FOUND", tenant=self.room_tenant)
        with m.State("ROOM FOUND"):
            counts = store.outcome.counts
            with m.If(store.outcome.error != Error.OK):
                m.d.sync += self.room_error.eq(store.outcome.error)
            with m.Elif(counts.held + self.need > counts.quota):
                m.d.sync += self.room_error.eq(Error.QUOTA)
            self._return("ROOM")
        with m.State("WALK"):
            with m.If(~walker.busy):
                self._return("WALK")
        with m.State("OPERATE"):
            with m.If(store.i.valid & store.i.ready):
                m.d.sync += self._operating.eq(0)
            with m.If(store.done):
                m.d.sync += self.page.eq(store.outcome.number)
                m.next = "OPERATED"
        with m.State("OPERATED"):
            self._return("OPERATE")
        with m.State("COPY PAGE"):
            with m.If(~self.copier.busy & mover.idle):
                self._return("COPY PAGE")
        with m.State("MOVE"):
            with m.If(self._move.beats == 0):  # type: ignore[attr-defined]
                self._return("MOVE")
            with m.Else():
                m.d.comb += mover.i.valid.eq(1)
                with m.If(mover.i.ready):
                    m.next = "MOVING"
        with m.State("MOVING"):
            with m.If(mover.idle):
                self._return("MOVE")
        with m.State("ENTRY"):
            with m.If(self.entry_done):
                self._return("ENTRY")

    def _return(self, step: str) -> None:
        """To the state that began the step. Lists are complete: `finish` comes last."""
        with self.m.Switch(self._back[step]):
            for n, name in enumerate(self._returns[step]):
                with self.m.Case(n):
                    self.m.next = name

    def connect(self) -> None:
        """The blocks to each other, and whoever uses them at the moment."""
        m, store, walker, mover, copier = (
            self.m, self.store, self.walker, self.mover, self.copier
        )  # fmt: skip
        m.d.comb += [
            store.i.valid.eq(walker.operation.valid | self._operating),
            store.i.payload.eq(Mux(self._operating, self._operation, walker.operation.payload)),
            walker.operation.ready.eq(store.i.ready & ~self._operating),
            walker.done.eq(store.done & walker.busy),
            walker.outcome.eq(store.outcome),
            walker.idle.eq(store.idle),
            mover.i.payload.eq(Mux(copier.busy, copier.move.payload, self._move)),
            copier.move.ready.eq(mover.i.ready & copier.busy),
        ]
        with m.If(copier.busy):
            m.d.comb += mover.i.valid.eq(copier.move.valid)

    def write_port(self, write: Any) -> None:
        """Entries to memory: one number in a beat."""
        m, port = self.m, self.config.port_bytes
        low = bits(port)
        words = port // 4
        place = self.entry_address[2:low]
        m.d.comb += [
            write.request.valid.eq(self.entry_asked),
            write.request.payload.address.eq(Cat(Const(0, low), self.entry_address[low:])),
            write.request.payload.beats.eq(1),
            write.beat.valid.eq(self.entry_given),
            write.beat.payload.data.eq(self.entry_number.replicate(words)),
            write.beat.payload.strobe.eq(Cat(*((place == n).replicate(4) for n in range(words)))),
            self.entry_done.eq(write.done),
        ]
        with m.If(self.entry_asked & write.request.ready):
            m.d.sync += self.entry_asked.eq(0)
        with m.If(self.entry_given & write.beat.ready):
            m.d.sync += self.entry_given.eq(0)
        with m.If(write.done):
            m.d.sync += self.refused.eq(write.error)
