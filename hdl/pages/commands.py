"""The page manager's commands, as states of its machine."""

from typing import Any

from amaranth.hdl import Cat, Const, Mux, Signal, Value

from m890.hdl.commands import Error, Opcode, Query
from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import bits
from m890.hdl.pages.copier import DIRECT, INWARD, OUTWARD
from m890.hdl.pages.flow import Flow
from m890.hdl.pages.layouts import Op, page_bits, places_bits, sequence_layout
from m890.hdl.pages.rules import blank, least, pages_of


class Commands:
    """States of each command, from the first ("CREATE", "FORK", ...) to "SAVE", "FINISH" or
    "REPORT".

    Members
        one, length : the command's sequence as the table has it. tenant : whom it acts for.
        answer, answer_tenant : QUERY's. waiting : an APPEND is to be prepared; a COPY lets it pass
        between two pages. put, put_index, put_entry : write this entry of the sequence table.
        drop : do not try again what memory refuses to have finished.
    """

    def __init__(
        self, flow: Flow, config: CoreConfig, commands: dict[Opcode, Any], one: Any, length: Any
    ) -> None:
        self.f, self.m, self.config, self.c = flow, flow.m, config, commands
        self.one, self.length = one, length
        self.tenant = Signal(bits(config.tenants))  # whom the command acts for
        self.answer, self.answer_tenant = Signal(32), Signal(16)
        places = places_bits(config)
        # A walk that may have to be undone, or done again
        self._address, self._count = Signal(config.address_bits), Signal(places)
        self._first = Signal(places)  # of its entries: the place in the block table
        self._undo, self._pin, self._listed = Signal(Op), Signal(), Signal()
        # FORK: page of the last tokens; a page that goes back
        self._tail = Signal(page_bits(config))
        self._place = Signal(16)  # COPY: page under way, or how many go back
        self._slot = Signal(32)
        self.waiting = Signal()  # an APPEND would like to pass a COPY
        self.drop = Signal()
        # Write of a sequence's entry besides SAVE's
        self.put, self.put_index = Signal(), Signal(bits(config.sequences))
        self.put_entry: Any = Signal(sequence_layout(config))

    def states(self) -> None:
        self._create()
        self._fork()
        self._give_up()
        self._pins()
        self._queries()
        self._copies()
        self._undoing()

    # ---------------------------------------------------------------- steps of several commands

    def _remember(
        self, address: Value, count: Value, undo: Op, *, first: Value | int = 0,
        pin: Value | int = 0, listed: Value | int = 0,
    ) -> None:  # fmt: skip
        self.m.d.sync += [
            self._address.eq(address), self._count.eq(count), self._first.eq(first),
            self._undo.eq(undo), self._pin.eq(pin), self._listed.eq(listed),
        ]  # fmt: skip

    def _again(self, op: Op, then: str) -> None:
        """The remembered walk."""
        f = self.f
        f.walk(self._address, self._count, op, self.tenant, then, pin=self._pin)

    def _failed(self, opcode: Opcode, field: str, listed: str | None = None) -> None:
        """The remembered walk has met an error: what it did is undone."""
        walker = self.f.walker
        self.f.fail(walker.error, opcode, field, (self._first + walker.index)[:16], "UNDO")
        if listed:
            with self.m.If(self._listed):
                self.f.blame(opcode, listed)
        self.m.d.sync += self._count.eq(walker.index)

    def _insist(self, op: Op, state: str, then: str, opcode: Opcode | None = None) -> None:
        """State `state`: the remembered walk to its very end; with `opcode`, errors are told.

        All its entries have been read before. One that memory refuses now is read until it comes,
        or the command would neither be carried out nor undone. A page whose word is damaged is
        passed over.
        """
        m, f = self.m, self.f
        walked = f"{state} WALKED"
        with m.State(state):
            m.next = then
            with m.If(self._count != 0):
                self._again(op, walked)
        with m.State(walked):
            refused = f.walker.error == Error.BUS_ERROR
            past = (f.walker.index + ~refused)[: len(self._count)]
            m.next = then
            with m.If(f.walker.error != Error.OK):
                m.d.sync += [
                    self._address.eq(self._address + (past << 2)),
                    self._count.eq(self._count - past),
                ]
                with m.If(~refused | ~self.drop):
                    m.next = state
                if opcode is not None:
                    with m.If(~refused | self.drop):
                        f.blame(opcode, "sequence")
                        m.d.sync += f.error.eq(f.walker.error)

    def _undoing(self) -> None:
        m, f = self.m, self.f
        with m.State("UNDO"):
            m.next = "UNDO DROP"
            with m.If(self._undo == Op.HOLD):
                m.next = "UNDO HOLD"
        self._insist(Op.HOLD, "UNDO HOLD", "REPORT")
        self._insist(Op.DROP, "UNDO DROP", "UNDONE")
        with m.State("UNDONE"):
            m.next = "REPORT"
            c = self.c[Opcode.COPY]
            with m.If(c.opcode == Opcode.COPY):  # its pages are nobody's now
                self._give_back(self._place)
                m.next = "UNDO COLLECT"
        self._insist(Op.COLLECT, "UNDO COLLECT", "REPORT")
        with m.State("UNDO TAKE"):  # the page taken last goes back to the free list first
            m.d.sync += self._tail.eq(f.page)
            f.operate(Op.DROP, "UNDO TAKEN", number=f.page, tenant=self.tenant, pin=self._pin)
        with m.State("UNDO TAKEN"):
            f.operate(Op.COLLECT, "UNDO", number=self._tail, tenant=self.tenant)

    def _give_back(self, count: Value) -> None:
        """Remembers the first pages that a COPY has taken."""
        self._remember(self.c[Opcode.COPY].list, count, Op.DROP, pin=1)
        self.m.d.sync += self._place.eq(count)

    def _open(self, index: Value, table: Value, limit: Value, pages: Value, shared: Value) -> None:
        """What SAVE writes: a new sequence."""
        m, entry, f = self.m, Signal(sequence_layout(self.config)), self.f
        entry_: Any = entry
        m.d.comb += [
            entry_.open.eq(1), entry_.table.eq(table), entry_.limit.eq(limit),
            entry_.tenant.eq(self.tenant), entry_.pages.eq(pages), entry_.shared.eq(shared),
        ]  # fmt: skip
        m.d.sync += [f.save_index.eq(index), f.save_entry.eq(entry)]

    def _change(self, pages: Value, shared: Value, still_open: Value | int = 1) -> None:
        """What SAVE writes: the command's sequence with other pages."""
        entry: Any = self.f.save_entry
        self.m.d.sync += [
            entry.eq(self.one), entry.pages.eq(pages), entry.shared.eq(shared),
            entry.open.eq(still_open),
        ]  # fmt: skip
        self.m.d.sync += self.f.save_index.eq(self.c[Opcode.TRIM].sequence)

    # ---------------------------------------------------------------- CREATE, FORK

    def _create(self) -> None:
        m, f, c = self.m, self.f, self.c[Opcode.CREATE]
        count = pages_of(self.config, c.tokens)
        me = Opcode.CREATE
        with m.State("CREATE"):
            self._remember(c.list, count, Op.DROP)
            self._open(c.sequence, c.table, c.limit, count, count)
            m.d.sync += f.save_length.eq(c.tokens)
            m.next = "SAVE"
            with m.If(c.tokens != 0):
                f.walk(c.list, count, Op.PINNED, self.tenant, "CREATE PINNED")
        # Pages that firmware holds only: a sequence's own would be shared without its knowledge.
        with m.State("CREATE PINNED"):
            with m.If(f.walker.error != Error.OK):
                f.fail(f.walker.error, me, "list", f.walker.index[:16])
            with m.Else():
                self._again(Op.HOLD, "CREATE HELD")
        with m.State("CREATE HELD"):
            with m.If(f.walker.error != Error.OK):
                self._failed(me, "list")
            with m.Else():
                f.move_table(c.list, c.table, self._count, "CREATE DONE")
        with m.State("CREATE DONE"):
            m.next = "SAVE"
            with m.If(f.mover.error):
                f.fail(Error.BUS_ERROR, me, "list", 0, "UNDO")

    def _fork(self) -> None:
        m, f, c, one = self.m, self.f, self.c[Opcode.FORK], self.one
        inside = self.config.page_tokens.bit_length() - 1
        whole, rest = c.tokens >> inside, c.tokens[:inside] != 0
        me = Opcode.FORK
        with m.State("FORK"):
            self._remember(one.table, whole, Op.DROP)
            self._open(c.target, c.table, c.limit, whole + rest, whole)
            m.d.sync += f.save_length.eq(c.tokens)
            f.room(Mux(rest, 1, 0), self.tenant, "FORK ROOM")
        with m.State("FORK ROOM"):
            with m.If(f.room_error != Error.OK):
                f.fail(f.room_error, me, "tokens")
            with m.Elif(rest):
                at = (one.table + (whole << 2))[: self.config.address_bits]
                f.walk(at, Const(1), Op.LOOK, self.tenant, "FORK TAIL")
            with m.Else():
                self._again(Op.HOLD, "FORK HELD")
        with m.State("FORK TAIL"):
            m.d.sync += self._tail.eq(f.walker.number)
            with m.If(f.walker.error != Error.OK):
                f.fail(f.walker.error, me, "sequence", whole[:16])
            with m.Else():
                self._again(Op.HOLD, "FORK HELD")
        with m.State("FORK HELD"):
            with m.If(f.walker.error != Error.OK):
                self._failed(me, "sequence")
            with m.Elif(rest):
                f.operate(Op.TAKE, "FORK TAKEN", tenant=self.tenant)
            with m.Else():
                f.move_table(one.table, c.table, self._count, "FORK LINKED")
        with m.State("FORK TAKEN"):
            with m.If(f.store.outcome.error != Error.OK):
                f.fail(f.store.outcome.error, me, "tokens", 0, "UNDO")
            with m.Else():
                f.copy_page("FORK COPIED", DIRECT, self._tail, f.page)
        with m.State("FORK COPIED"):
            with m.If(f.mover.error):
                f.fail(Error.BUS_ERROR, me, "sequence", 0, "UNDO TAKE")
            with m.Else():
                f.move_table(one.table, c.table, self._count, "FORK LINKED")
        with m.State("FORK LINKED"):
            with m.If(f.mover.error):
                f.fail(Error.BUS_ERROR, me, "table", 0, "UNDO")
                with m.If(rest):
                    m.next = "UNDO TAKE"
            with m.Elif(rest):
                at = (c.table + (self._count << 2))[: self.config.address_bits]
                f.entry(at, f.page, "FORK ENTERED")
            with m.Else():
                m.next = "FORK SHARED"
        with m.State("FORK ENTERED"):
            m.next = "FORK SHARED"
            with m.If(f.refused):
                f.fail(Error.BUS_ERROR, me, "table", 0, "UNDO TAKE")
        with m.State("FORK SHARED"):
            # SAVE writes the target; the source's shared pages are written here.
            m.d.comb += [
                self.put.eq(1), self.put_index.eq(c.sequence), self.put_entry.eq(one),
                self.put_entry.shared.eq(Mux(one.shared < self._count, self._count, one.shared)),
            ]  # fmt: skip
            m.next = "SAVE"

    # ---------------------------------------------------------------- TRIM, RELEASE

    def _give_up(self) -> None:
        m, f, one = self.m, self.f, self.one
        trim = self.c[Opcode.TRIM]
        with m.State("TRIM"):
            keep = pages_of(self.config, trim.tokens)[: places_bits(self.config)]
            self._change(keep, least(one.shared, keep))
            m.d.sync += f.save_length.eq(trim.tokens)
            self._drop_behind(keep)
        with m.State("RELEASE"):
            self._change(Const(0, 1), Const(0, 1), still_open=0)
            m.d.sync += f.save_length.eq(0)
            self._drop_behind(Const(0, places_bits(self.config)))
        with m.State("GIVE UP"):
            m.next = "SAVE"
            with m.If(self._count != 0):
                self._again(Op.DROP, "GIVEN UP")
        with m.State("GIVEN UP"):
            with m.If(f.walker.error != Error.OK):
                self._failed(Opcode.TRIM, "sequence")
            with m.Else():
                m.next = "COLLECT"
        self._insist(Op.COLLECT, "COLLECT", "SAVE", Opcode.TRIM)

    def _drop_behind(self, keep: Value) -> None:
        at = (self.one.table + (keep << 2))[: self.config.address_bits]
        self._remember(at, self.one.pages - keep, Op.HOLD, first=keep)
        self.m.next = "GIVE UP"

    # ---------------------------------------------------------------- PIN, UNPIN

    def _pins(self) -> None:
        m, f, one = self.m, self.f, self.one
        pin, unpin = self.c[Opcode.PIN], self.c[Opcode.UNPIN]
        inside = self.config.page_tokens.bit_length() - 1
        places = places_bits(self.config)
        first, past = (pin.start >> inside)[:places], pages_of(self.config, pin.end)[:places]
        at = (one.table + (first << 2))[: self.config.address_bits]
        with m.State("PIN"):
            self._remember(at, past - first, Op.DROP, first=first, pin=1)
            self._change(one.pages, Mux(one.shared < past, past, one.shared))
            m.d.sync += f.save_length.eq(self.length)
            m.next = "PIN HOLD"
        with m.State("PIN HOLD"):
            self._again(Op.HOLD, "PIN HELD")
        with m.State("PIN HELD"):
            m.next = "SAVE"
            with m.If(f.walker.error != Error.OK):
                self._failed(Opcode.PIN, "sequence")
            with m.Elif(pin.public):
                m.next = "PIN MARK"
        self._insist(Op.MARK, "PIN MARK", "SAVE", Opcode.PIN)
        with m.State("UNPIN"):
            self._remember(at, past - first, Op.HOLD, first=first, pin=1)
            with m.If(unpin.listed):
                self._remember(unpin.list, unpin.count, Op.HOLD, pin=1, listed=1)
            m.next = "UNPIN DROP"
        with m.State("UNPIN DROP"):
            self._again(Op.DROP, "UNPIN DROPPED")
        with m.State("UNPIN DROPPED"):
            with m.If(f.walker.error != Error.OK):
                self._failed(Opcode.UNPIN, "sequence", "list")
            with m.Else():
                m.next = "UNPIN COLLECT"
        self._insist(Op.COLLECT, "UNPIN COLLECT", "FINISH", Opcode.UNPIN)

    # ---------------------------------------------------------------- QUERY, QUOTA

    def _queries(self) -> None:
        m, f, outcome = self.m, self.f, self.f.store.outcome
        query, quota = self.c[Opcode.QUERY], self.c[Opcode.QUOTA]
        with m.State("QUERY"):
            m.d.sync += self.answer_tenant.eq(self.one.tenant)
            m.next = "FINISH"
            with m.Switch(query.what):
                with m.Case(Query.LENGTH):
                    m.d.sync += self.answer.eq(self.length)
                with m.Case(Query.PAGES):
                    m.d.sync += self.answer.eq(self.one.pages)
                with m.Case(Query.FREE):
                    m.d.sync += [self.answer.eq(f.store.free), self.answer_tenant.eq(0)]
                with m.Case(Query.PAGE):
                    f.operate(Op.LOOK, "QUERY ANSWER", number=query.page)
                with m.Default():
                    f.operate(Op.TENANT, "QUERY ANSWER", tenant=query.tenant)
        with m.State("QUERY ANSWER"):
            word, counts = outcome.word, outcome.counts
            m.next = "FINISH"
            with m.If(outcome.error == Error.TABLE_ERROR):
                f.fail(Error.TABLE_ERROR, Opcode.QUERY, "what")
            with m.Elif(query.what == Query.PAGE):
                m.d.sync += [
                    self.answer.eq(Cat(word.references, word.pins, Const(0, 4), word.public)),
                    self.answer_tenant.eq(word.tenant),
                ]
            with m.Else():
                m.d.sync += [
                    self.answer.eq(Mux(query.what == Query.HELD, counts.held, counts.quota)),
                    self.answer_tenant.eq(query.tenant),
                ]
        with m.State("QUOTA"):
            f.operate(Op.QUOTA, "QUOTA SET", tenant=quota.tenant, value=quota.pages)
        with m.State("QUOTA SET"):
            m.next = "FINISH"
            with m.If(outcome.error != Error.OK):
                f.fail(outcome.error, Opcode.QUOTA, "tenant")

    # ---------------------------------------------------------------- COPY

    def _copies(self) -> None:
        m, f, c, me = self.m, self.f, self.c[Opcode.COPY], Opcode.COPY
        here = (c.list + (self._place << 2))[: self.config.address_bits]
        there = (c.slots + (self._place << 2))[: self.config.address_bits]

        def broken(error: Any, field: str) -> None:
            """A page cannot be copied: all that were taken go back."""
            f.fail(error, me, field, self._place)
            with m.If(c.inward):
                self._give_back(c.count)
                m.next = "UNDO"

        with m.State("COPY"):
            m.d.sync += self._place.eq(0)
            f.room(Mux(c.inward, c.count, 0), self.tenant, "COPY ROOM")
        with m.State("COPY ROOM"):
            with m.If(f.room_error != Error.OK):
                f.fail(f.room_error, me, "count")
            with m.Elif(blank(c)):
                m.next = "COPY TAKE"
            with m.Else():
                f.walk(c.slots, c.count, Op.LOOK, self.tenant, "COPY SLOTS", bound=c.host_slots)
        with m.State("COPY SLOTS"):
            with m.If(f.walker.error != Error.OK):
                f.fail(f.walker.error, me, "slots", f.walker.index[:16])
            with m.Elif(c.inward):
                m.next = "COPY TAKE"
            with m.Else():
                f.walk(c.list, c.count, Op.PINNED, self.tenant, "COPY PAGES")
        with m.State("COPY PAGES"):
            m.next = "COPY NEXT"
            with m.If(f.walker.error != Error.OK):
                f.fail(f.walker.error, me, "list", f.walker.index[:16])
        with m.State("COPY TAKE"):  # all of them first: an APPEND may pass later
            with m.If(self._place == c.count):
                m.d.sync += self._place.eq(0)
                m.next = "COPY NEXT"
                with m.If(blank(c)):
                    m.next = "FINISH"
            with m.Else():
                f.operate(Op.TAKE, "COPY TAKEN", tenant=self.tenant, pin=1)
        with m.State("COPY TAKEN"):
            with m.If(f.store.outcome.error != Error.OK):
                f.fail(f.store.outcome.error, me, "count", 0, "UNDO")
                self._give_back(self._place)
            with m.Else():
                f.entry(here, f.page, "COPY LISTED")
        with m.State("COPY LISTED"):
            m.d.sync += self._place.eq(self._place + 1)
            m.next = "COPY TAKE"
            with m.If(f.refused):
                f.fail(Error.BUS_ERROR, me, "list", self._place, "UNDO TAKE")
                self._give_back(self._place)
        with m.State("COPY NEXT"):
            with m.If(self.waiting):
                m.next = "PREPARE"
            with m.Elif(self._place == c.count):
                m.next = "FINISH"
            with m.Else():
                f.walk(there, Const(1), Op.LOOK, self.tenant, "COPY SLOT", bound=c.host_slots)
        with m.State("COPY SLOT"):
            m.d.sync += self._slot.eq(f.walker.number)
            with m.If(f.walker.error != Error.OK):
                broken(f.walker.error, "slots")
            with m.Else():
                f.walk(here, Const(1), Op.LOOK, self.tenant, "COPY PAGE FOUND")
        with m.State("COPY PAGE FOUND"):
            page = f.walker.number
            way = Mux(c.inward, INWARD, OUTWARD)
            with m.If(f.walker.error != Error.OK):
                broken(f.walker.error, "list")
            with m.Else():
                f.copy_page("COPY DONE", way, page, page, self._slot, c.host, c.host_stride)
        with m.State("COPY DONE"):
            m.d.sync += self._place.eq(self._place + 1)
            m.next = "COPY NEXT"
            with m.If(f.mover.error):
                broken(Error.BUS_ERROR, "host")
