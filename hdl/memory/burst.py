"""What both arbiters share: halves of the AXI port, cutting requests into bursts, choosing one."""

from collections.abc import Collection

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.memory.ports import BEATS_BITS, Axi4, request_layout
from m890.hdl.wake import Gated, sleeps

BOUNDARY = 4096
"""No AXI burst crosses a multiple of this many bytes."""
INCR = 1
"""AXI burst type: addresses count up."""
BULK_TURN = 4
"""Bursts of the control class in a row, after which a waiting bulk burst goes first."""


def read_half(config: CoreConfig) -> wiring.Signature:
    """The AR and R members of the AXI4 port."""
    return wiring.Signature(
        {n: m for n, m in Axi4(config).members.items() if n.startswith(("ar", "r"))}
    )


def write_half(config: CoreConfig) -> wiring.Signature:
    """The AW, W and B members of the AXI4 port."""
    return wiring.Signature(
        {n: m for n, m in Axi4(config).members.items() if n.startswith(("aw", "w", "b"))}
    )


def beat_bits(config: CoreConfig) -> int:
    """Address bits below a port beat."""
    return (config.port_bytes - 1).bit_length()


def burst_layout(config: CoreConfig) -> data.StructLayout:
    """A burst: byte address, beats - 1, and whether it is the last of its request."""
    return data.StructLayout({"address": config.address_bits, "length": 8, "final": 1})


def channel_layout(config: CoreConfig) -> data.StructLayout:
    """What AR and AW carry."""
    return data.StructLayout({"id": 4, "address": config.address_bits, "length": 8})


class Splitter(wiring.Component):
    """Cuts one requester's requests into bursts.

    Function
        A request becomes the fewest bursts that do not cross 4 KiB; as a beat is at least 16 bytes,
        no burst is longer than AXI's 256 beats. The last one is marked `final`.
    Members
        i : stream of request_layout. o : stream of burst_layout.
    Latency
        1 cycle.
    Throughput
        One burst per cycle.
    Backpressure
        i.ready depends on o.ready combinationally; o.valid and o.payload are registers.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self._low = beat_bits(config)
        self._page = (BOUNDARY - 1).bit_length()
        super().__init__(
            {
                "i": In(stream.Signature(request_layout(config))),
                "o": Out(stream.Signature(burst_layout(config))),
            }
        )
        self._address_bits = config.address_bits

    def elaborate(self, platform: object) -> Gated:
        m = Module()
        low, page = self._low, self._page
        offset = Signal(page - low)  # beat within 4 KiB
        upper = Signal(self._address_bits - page)
        beats = Signal(BEATS_BITS)
        room = Signal(page - low + 1)
        m.d.comb += [
            room.eq((BOUNDARY >> low) - offset),
            self.o.payload.final.eq(beats <= room),
            self.o.payload.length.eq(Mux(self.o.payload.final, beats, room) - 1),
            self.o.payload.address.eq(Cat(Const(0, low), offset, upper)),
            self.i.ready.eq(~self.o.valid | (self.o.ready & self.o.payload.final)),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += [offset.eq(0), upper.eq(upper + 1), beats.eq(beats - room)]
        with m.If(self.i.ready):
            m.d.sync += [
                self.o.valid.eq(self.i.valid),
                offset.eq(self.i.payload.address[low:page]),
                upper.eq(self.i.payload.address[page:]),
                beats.eq(self.i.payload.beats),
            ]
        return sleeps(m, self.i.valid, self.o.valid, linger=0)


def lowest(bits: Value) -> Value:
    """The lowest set bit alone (one-hot, or zero)."""
    return (bits & -bits)[: len(bits)]


class Picker(wiring.Component):
    """Chooses one of several requests: two classes, round robin within each.

    Function
        The control class goes first; but after BULK_TURN of its bursts in a row while bulk waits,
        one of bulk goes first. Within a class the one after the last chosen goes first. So a
        request that stays is granted within `bound` grants.
    Members
        request : one bit per requester. grant : one-hot choice, zero without a request.
        take : the choice is carried out in this cycle.
    Latency
        0: grant depends on request combinationally.
    """

    request: Signal
    grant: Signal
    take: Signal

    def __init__(self, requesters: int, control: Collection[int] = ()) -> None:
        for n in control:
            if not 0 <= n < requesters:
                raise ValueError(f"control names requester {n}, but there are {requesters}")
        self.control = tuple(sorted(control))
        self.bulk = tuple(n for n in range(requesters) if n not in self.control)
        super().__init__({"request": In(requesters), "grant": Out(requesters), "take": In(1)})

    def bound(self, requester: int) -> int:
        """Grants, its own included, within which a request that stays is granted.

        Bulk gets at least one grant in BULK_TURN + 1, control at least BULK_TURN in BULK_TURN + 1.
        """
        if requester in self.bulk:
            return len(self.bulk) * (BULK_TURN + 1 if self.control else 1)
        waits = len(self.control)
        return waits + (-(-waits // BULK_TURN) if self.bulk else 0)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count = len(self.request)
        chosen, waits = {}, {}
        for name, members in (("control", self.control), ("bulk", self.bulk)):
            inside = Const(sum(1 << n for n in members), count)
            after = Signal(count, name=f"{name}_after")  # members behind the last one chosen
            wants = Signal(count, name=f"{name}_wants")
            choice = Signal(count, name=f"{name}_choice")
            m.d.comb += [
                wants.eq(self.request & inside),
                choice.eq(Mux((wants & after).any(), lowest(wants & after), lowest(wants))),
            ]
            with m.If(self.take & (self.grant & inside).any()):
                m.d.sync += after.eq(~(self.grant | (self.grant - 1)))
            chosen[name], waits[name] = choice, wants.any()
        streak = Signal(range(BULK_TURN + 1))
        bulk = Signal()
        m.d.comb += [
            bulk.eq(waits["bulk"] & (~waits["control"] | (streak >= BULK_TURN))),
            self.grant.eq(Mux(bulk, chosen["bulk"], chosen["control"])),
        ]
        with m.If(bulk & self.take | ~waits["bulk"]):
            m.d.sync += streak.eq(0)
        with m.Elif(self.take):
            m.d.sync += streak.eq(streak + 1)
        return m


def one_hot_mux(select: Value, values: list[Value]) -> Value:
    """The value whose select bit is set; zero if none is."""
    result: Value = Const(0, len(values[0]))
    for bit, value in zip(select, values, strict=True):
        result = result | Mux(bit, value, 0)
    return result
