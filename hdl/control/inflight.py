"""Commands in flight: their entries, and which of them a new command must wait for."""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.control.layouts import APPENDS, ATTENDS, ENTRIES, HASH_BITS
from m890.hdl.wake import Gated, sleeps

PLANE_BITS = 16


class InFlight(wiring.Component):
    """Entries of commands in flight and the interlock between them.

    Function
        An entry is taken by each command and released by its completion. While an ATTEND or APPEND
        runs, its entry holds its plane and its sequences: APPEND one, ATTEND a mask with one bit
        per hash (sequence modulo 64), unknown until its segment table has been read. ATTEND and
        APPEND on different planes never meet: the pages of a plane are its own. A command of the
        page manager concerns all planes; its entry holds one sequence, or two (FORK).
    Members
        free, free_ident : an entry can be taken, and which. take : take it.
        mark_append, mark_attend, mark_manage, mark_ident : the entry's command starts, on `plane`
        (and `hash`, or on `hash` and `second`).
        mask_valid, mask_ident, mask : an ATTEND's sequences are known.
        release, release_ident : the command has completed.
        plane, hash, second, ident : of the command that dispatch holds.
        others : a command other than `ident` is in flight. append_room, attend_room : one more of
        its kind may start. meets_attend : an ATTEND in flight may read (plane, hash).
        attended, appended : one in flight may read `hash` on any plane; writes it. second_used :
        either, of `second`. plane_used : the entry of the plane table is in use.
        meets_manage : a command of the page manager in flight names `hash`; segment_meets : it
        names segment_hash. managing, appending, repairing : there is one; an APPEND; one that was
        marked with `repair`.
        attend_mask, attend_plane : of the ATTEND that the loader holds; meets_append : an APPEND in
        flight writes one of its sequences.
        attending : an ATTEND is in flight. idle : nothing is.
    Latency
        Answers follow their operands, marks and releases after 1 cycle.
    Storage
        Per entry 64 mask bits, a plane and a hash.
    """

    free: Signal
    free_ident: Signal
    take: Signal
    mark_append: Signal
    mark_attend: Signal
    mark_ident: Signal
    mask_valid: Signal
    mask_ident: Signal
    mask: Signal
    release: Signal
    release_ident: Signal
    plane: Signal
    hash: Signal
    ident: Signal
    others: Signal
    append_room: Signal
    attend_room: Signal
    meets_attend: Signal
    mark_manage: Signal
    repair: Signal
    repairing: Signal
    second: Signal
    segment_hash: Signal
    attended: Signal
    appended: Signal
    second_used: Signal
    meets_manage: Signal
    segment_meets: Signal
    managing: Signal
    appending: Signal
    plane_used: Signal
    attend_mask: Signal
    attend_plane: Signal
    meets_append: Signal
    attending: Signal
    idle: Signal

    def __init__(self) -> None:
        ident, hashes = range(ENTRIES), 1 << HASH_BITS
        inputs = {
            "take": 1, "mark_append": 1, "mark_attend": 1, "mark_ident": ident, "mask_valid": 1,
            "mask_ident": ident, "mask": hashes, "release": 1, "release_ident": ident,
            "plane": PLANE_BITS, "hash": HASH_BITS, "ident": ident, "attend_mask": hashes,
            "attend_plane": PLANE_BITS, "mark_manage": 1, "repair": 1, "second": HASH_BITS,
            "segment_hash": HASH_BITS,
        }  # fmt: skip
        outputs = {
            "free": 1, "free_ident": ident, "others": 1, "append_room": 1, "attend_room": 1,
            "meets_attend": 1, "attended": 1, "appended": 1, "second_used": 1, "meets_manage": 1,
            "segment_meets": 1, "plane_used": 1, "meets_append": 1, "managing": 1, "appending": 1,
            "repairing": 1,
            "attending": 1, "idle": 1,
        }  # fmt: skip
        super().__init__(
            {n: In(s) for n, s in inputs.items()} | {n: Out(s) for n, s in outputs.items()}
        )

    def elaborate(self, platform: object) -> Gated:
        m = Module()
        used = Signal(ENTRIES)
        append, attend, manage = Signal(ENTRIES), Signal(ENTRIES), Signal(ENTRIES)
        repair = Signal(ENTRIES)
        meets_attend, meets_append, plane_used = [], [], []
        attended, appended, second_used, meets_manage, segment_meets = [], [], [], [], []
        marks = self.mark_append | self.mark_attend | self.mark_manage
        for n in range(ENTRIES):
            plane = Signal(PLANE_BITS, name=f"plane{n}")
            hashed = Signal(HASH_BITS, name=f"hash{n}")
            second = Signal(HASH_BITS, name=f"second{n}")
            mask, known = Signal(1 << HASH_BITS, name=f"mask{n}"), Signal(name=f"known{n}")
            with m.If(self.take & (self.free_ident == n)):
                m.d.sync += used[n].eq(1)
            with m.If(self.release & (self.release_ident == n)):
                m.d.sync += [used[n].eq(0), append[n].eq(0), attend[n].eq(0), manage[n].eq(0)]
            with m.If(marks & (self.mark_ident == n)):
                m.d.sync += [
                    append[n].eq(self.mark_append),
                    attend[n].eq(self.mark_attend),
                    manage[n].eq(self.mark_manage),
                    repair[n].eq(self.repair),
                    second.eq(self.second),
                    plane.eq(self.plane),
                    hashed.eq(self.hash),
                    known.eq(0),
                ]
            with m.If(self.mask_valid & (self.mask_ident == n)):
                m.d.sync += [mask.eq(self.mask), known.eq(1)]
            same = plane == self.plane
            reads = ~known | mask.bit_select(self.hash, 1)
            meets_attend.append(attend[n] & same & reads)
            attended.append(attend[n] & reads)
            appended.append(append[n] & (hashed == self.hash))
            second_used.append(
                attend[n] & (~known | mask.bit_select(self.second, 1))
                | append[n] & (hashed == self.second)
            )
            for answer, wanted in (
                (meets_manage, self.hash), (segment_meets, self.segment_hash)
            ):  # fmt: skip
                answer.append(manage[n] & ((hashed == wanted) | (second == wanted)))
            plane_used.append((attend[n] | append[n]) & same)
            meets_append.append(
                append[n] & (plane == self.attend_plane) & self.attend_mask.bit_select(hashed, 1)
            )
        others = [used[n] & (self.ident != n) for n in range(ENTRIES)]

        def any_of(values: list[Value]) -> Value:
            return Cat(*values).any()

        m.d.sync += [
            self.others.eq(any_of(others)),
            self.meets_attend.eq(any_of(meets_attend)),
            self.meets_append.eq(any_of(meets_append)),
            self.attended.eq(any_of(attended)),
            self.appended.eq(any_of(appended)),
            self.second_used.eq(any_of(second_used)),
            self.meets_manage.eq(any_of(meets_manage)),
            self.segment_meets.eq(any_of(segment_meets)),
            self.plane_used.eq(any_of(plane_used)),
            self.append_room.eq(sum(append) < APPENDS),
            self.attend_room.eq(sum(attend) < ATTENDS),
        ]
        m.d.comb += [
            self.free.eq(~used.all()),
            self.attending.eq(attend.any()),
            self.managing.eq(manage.any()),
            self.appending.eq(append.any()),
            self.repairing.eq((append & repair).any()),
            self.idle.eq(~used.any()),
        ]
        for n in reversed(range(ENTRIES)):
            with m.If(~used[n]):
                m.d.comb += self.free_ident.eq(n)
        asked = Cat(
            self.ident, self.plane, self.hash, self.second, self.segment_hash, self.attend_plane,
            self.attend_mask,
        )  # fmt: skip
        before = Signal.like(asked)
        m.d.sync += before.eq(asked)
        return sleeps(
            m, self.take, self.release, marks, self.mask_valid, asked != before
        )
