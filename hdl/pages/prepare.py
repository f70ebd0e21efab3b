"""An APPEND's pages: shared ones are copied, missing ones taken."""

from typing import Any

from amaranth.hdl import Cat, Const, Mux, Signal, Value
from amaranth.lib import data

from m890.hdl.commands import Error
from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.control.layouts import bits
from m890.hdl.pages.copier import DIRECT
from m890.hdl.pages.flow import Flow
from m890.hdl.pages.layouts import Op, page_bits, places_bits, sequence_layout
from m890.hdl.pages.rules import least


def prepare_layout(config: CoreConfig) -> data.StructLayout:
    """Tokens [start, start + tokens) of an open sequence, within its limit and without a gap."""
    return data.StructLayout(
        {"sequence": bits(config.sequences), "start": TOKEN_BITS, "tokens": 16}
    )


def prepared_layout(config: CoreConfig) -> data.StructLayout:
    """Outcome: as in the completion. page: the error is of a page, not of room for more."""
    return data.StructLayout({"error": 8, "index": 16, "page": 1})


class Prepare:
    """States "PREPARE" to "PREPARED".

    Members
        i : prepare_layout, steady until `done`. entry, damaged : its sequence, one cycle after
        `look`, when `looked`.
        done, outcome : the end. put ..., drop : as of Commands.
    """

    def __init__(self, flow: Flow, config: CoreConfig, i: Any, entry: Any, damaged: Value) -> None:
        self.f, self.m, self.config, self.i, self.entry = flow, flow.m, config, i, entry
        self._damaged = damaged
        self.look, self.looked, self.done, self.drop = Signal(), Signal(), Signal(), Signal()
        self.outcome: Any = Signal(prepared_layout(config))
        self.put, self.put_index = Signal(), Signal(bits(config.sequences))
        self.put_entry: Any = Signal(sequence_layout(config))

    def states(self, done: str) -> None:
        m, f, i, config = self.m, self.f, self.i, self.config
        inside, places = config.page_tokens.bit_length() - 1, places_bits(config)
        one: Any = Signal(sequence_layout(config), name="prepared_sequence")
        first, past = Signal(places), Signal(places)  # pages of the tokens
        at, old = Signal(places), Signal(page_bits(config))
        existing, shared = Signal(places), Signal(places)
        # A page that the table names twice is the sequence's alone once one place has a copy: then
        # fewer pages are copied than were counted.
        stop = Signal(places)
        outcome = self.outcome
        address = (one.table + (at << 2))[: config.address_bits]

        def refuse(error: Any, page: int, index: Any = 0) -> None:
            m.d.sync += [outcome.error.eq(error), outcome.page.eq(page), outcome.index.eq(index)]
            m.next = "PREPARED"

        def token(place: Any) -> Any:
            """The first token of the command in a page."""
            low = Cat(Const(0, inside), place)
            return Mux(low > i.start, low - i.start, 0)[:16]

        with m.State("PREPARE"):
            m.d.comb += self.look.eq(1)
            m.d.sync += [outcome.eq(0), shared.eq(0)]
            m.next = "PREPARE ENTRY"
        with m.State("PREPARE ENTRY"):
            m.d.sync += [
                one.eq(self.entry),
                first.eq(i.start >> inside),
                past.eq(((i.start + i.tokens - 1) >> inside) + 1),
            ]
            m.d.comb += self.looked.eq(1)
            m.next = "PREPARE PAGES"
            with m.If(self._damaged):
                refuse(Error.TABLE_ERROR, 1)
        with m.State("PREPARE PAGES"):
            there = least(past, one.pages)
            m.d.sync += [existing.eq(there - first), at.eq(first), stop.eq(there)]
            m.next = "PREPARE COUNT"
            with m.If((first >= there) | (first >= one.shared)):
                m.d.sync += existing.eq(0)
        with m.State("PREPARE COUNT"):
            with m.If(existing == 0):
                m.next = "PREPARE ROOM"
            with m.Else():
                f.walk(address, existing, Op.LOOK, one.tenant, "PREPARE COUNTED")
        with m.State("PREPARE COUNTED"):
            m.d.sync += shared.eq(f.walker.shared)
            m.next = "PREPARE ROOM"
            with m.If(f.walker.error != Error.OK):
                refuse(f.walker.error, 1, token((first + f.walker.index)[:places]))
        with m.State("PREPARE ROOM"):
            missing = Mux(past > one.pages, past - one.pages, 0)
            f.room(shared + missing, one.tenant, "PREPARE EACH")
        with m.State("PREPARE EACH"):
            with m.If(f.room_error != Error.OK):
                refuse(f.room_error, 0)
            with m.Elif((shared == 0) | (at == stop)):
                m.next = "PREPARE MORE"
            with m.Else():
                f.walk(address, Const(1), Op.LOOK, one.tenant, "PREPARE LOOKED")
        with m.State("PREPARE LOOKED"):
            m.d.sync += old.eq(f.walker.number)
            with m.If(f.walker.error != Error.OK):
                refuse(f.walker.error, 1, token(at))
            with m.Elif(f.walker.shared != 0):
                f.operate(Op.TAKE, "PREPARE TAKEN", tenant=one.tenant)
            with m.Else():
                m.d.sync += at.eq(at + 1)
                m.next = "PREPARE EACH"
        with m.State("PREPARE TAKEN"):
            with m.If(f.store.outcome.error != Error.OK):
                refuse(f.store.outcome.error, 0)
            with m.Else():
                f.copy_page("PREPARE COPIED", DIRECT, old, f.page)
        with m.State("PREPARE COPIED"):
            m.next = "PREPARE ENTER"
            with m.If(f.mover.error):
                m.next = "PREPARE UNDO"
        with m.State("PREPARE ENTER"):
            f.entry(address, f.page, "PREPARE ENTERED")
        with m.State("PREPARE ENTERED"):
            m.next = "PREPARE REPLACED"
            with m.If(f.refused):
                f.walk(address, Const(1), Op.LOOK, one.tenant, "PREPARE READ")
        # The old number may be there or the new one. The page that is not named goes; one of them
        # is, or it is written again.
        with m.State("PREPARE READ"):
            unknown, number = f.walker.error == Error.BUS_ERROR, f.walker.number
            with m.If(self.drop | ~unknown & (number == old)):
                m.next = "PREPARE UNDO"
            with m.Elif(unknown):
                m.next = "PREPARE ENTERED"
            with m.Elif(number == f.page):
                m.next = "PREPARE REPLACED"
            with m.Else():
                m.next = "PREPARE ENTER"
        with m.State("PREPARE UNDO"):
            m.d.sync += old.eq(f.page)
            f.operate(Op.DROP, "PREPARE GIVE BACK", number=f.page, tenant=one.tenant)
        with m.State("PREPARE GIVE BACK"):
            f.operate(Op.COLLECT, "PREPARE FAILED", number=old, tenant=one.tenant)
        with m.State("PREPARE FAILED"):
            refuse(Error.BUS_ERROR, 0)
            with m.If(at == one.pages):
                m.next = "PREPARE SAVE"  # it keeps the pages that it has been given
        with m.State("PREPARE REPLACED"):
            f.operate(Op.DROP, "PREPARE DROPPED", number=old, tenant=one.tenant)
        with m.State("PREPARE DROPPED"):
            f.operate(Op.COLLECT, "PREPARE NEXT", number=old, tenant=one.tenant)
        with m.State("PREPARE NEXT"):
            m.d.sync += [at.eq(at + 1), shared.eq(shared - 1)]
            m.next = "PREPARE EACH"
        with m.State("PREPARE MORE"):
            m.d.sync += at.eq(one.pages)
            with m.If(one.pages < past):
                f.operate(Op.TAKE, "PREPARE TOOK", tenant=one.tenant)
            with m.Else():
                m.next = "PREPARE SAVE"
        with m.State("PREPARE TOOK"):
            with m.If(f.store.outcome.error != Error.OK):
                refuse(f.store.outcome.error, 0)
                m.next = "PREPARE SAVE"
            with m.Else():
                f.entry(address, f.page, "PREPARE LISTED")
        with m.State("PREPARE LISTED"):
            m.next = "PREPARE MORE"
            with m.If(f.refused):
                m.next = "PREPARE UNDO"
            with m.Else():
                m.d.sync += one.pages.eq(one.pages + 1)
        with m.State("PREPARE SAVE"):
            m.d.comb += [
                self.put.eq(1), self.put_index.eq(i.sequence), self.put_entry.eq(one)
            ]  # fmt: skip
            with m.If(past >= one.shared):  # every page from the first on is the sequence's alone
                m.d.comb += self.put_entry.shared.eq(least(one.shared, first))
            m.next = "PREPARED"
        with m.State("PREPARED"):
            m.d.comb += self.done.eq(1)
            m.next = done
