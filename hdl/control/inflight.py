"""Commands in flight: their entries, and which of them a new command must wait for."""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.control.layouts import APPENDS, ATTENDS, ENTRIES, HASH_BITS

PLANE_BITS = 16


class InFlight(wiring.Component):
    """Entries of commands in flight and the interlock between them.

    Function
        An entry is taken by each command and released by its completion. While an ATTEND or APPEND
        runs, its entry holds its plane and its sequences: APPEND one, ATTEND a mask with one bit
        per hash (sequence modulo 64), unknown until its segment table has been read. Commands on
        different planes never meet: the pages of a plane are its own.
    Members
        free, free_ident : an entry can be taken, and which. take : take it.
        mark_append, mark_attend, mark_ident : the entry's command starts, on `plane` (and `hash`).
        mask_valid, mask_ident, mask : an ATTEND's sequences are known.
        release, release_ident : the command has completed.
        plane, hash, ident : of the command that dispatch holds.
        others : a command other than `ident` is in flight. append_room, attend_room : one more of
        its kind may start. meets_attend : an ATTEND in flight may read (plane, hash).
        sequence_used, plane_used : the entry of the sequence or plane table is in use.
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
    sequence_used: Signal
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
            "attend_plane": PLANE_BITS,
        }  # fmt: skip
        outputs = {
            "free": 1, "free_ident": ident, "others": 1, "append_room": 1, "attend_room": 1,
            "meets_attend": 1, "sequence_used": 1, "plane_used": 1, "meets_append": 1,
            "attending": 1, "idle": 1,
        }  # fmt: skip
        super().__init__(
            {n: In(s) for n, s in inputs.items()} | {n: Out(s) for n, s in outputs.items()}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        used = Signal(ENTRIES)
        append, attend = Signal(ENTRIES), Signal(ENTRIES)
        meets_attend, meets_append, plane_used, sequence_used = [], [], [], []
        for n in range(ENTRIES):
            plane = Signal(PLANE_BITS, name=f"plane{n}")
            hashed = Signal(HASH_BITS, name=f"hash{n}")
            mask, known = Signal(1 << HASH_BITS, name=f"mask{n}"), Signal(name=f"known{n}")
            with m.If(self.take & (self.free_ident == n)):
                m.d.sync += used[n].eq(1)
            with m.If(self.release & (self.release_ident == n)):
                m.d.sync += [used[n].eq(0), append[n].eq(0), attend[n].eq(0)]
            with m.If((self.mark_append | self.mark_attend) & (self.mark_ident == n)):
                m.d.sync += [
                    append[n].eq(self.mark_append),
                    attend[n].eq(self.mark_attend),
                    plane.eq(self.plane),
                    hashed.eq(self.hash),
                    known.eq(0),
                ]
            with m.If(self.mask_valid & (self.mask_ident == n)):
                m.d.sync += [mask.eq(self.mask), known.eq(1)]
            same = plane == self.plane
            reads = ~known | mask.bit_select(self.hash, 1)
            writes = append[n] & (hashed == self.hash)
            meets_attend.append(attend[n] & same & reads)
            sequence_used.append(attend[n] & reads | writes)
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
            self.sequence_used.eq(any_of(sequence_used)),
            self.plane_used.eq(any_of(plane_used)),
            self.append_room.eq(sum(append) < APPENDS),
            self.attend_room.eq(sum(attend) < ATTENDS),
        ]
        m.d.comb += [
            self.free.eq(~used.all()),
            self.attending.eq(attend.any()),
            self.idle.eq(~used.any()),
        ]
        for n in reversed(range(ENTRIES)):
            with m.If(~used[n]):
                m.d.comb += self.free_ident.eq(n)
        return m
