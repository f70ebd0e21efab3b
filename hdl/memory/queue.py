"""Stream queues."""

from amaranth.hdl import Module, Mux, ShapeLike, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.memory.sram import Sram


class Queue(wiring.Component):
    """First-in, first-out queue of `depth` payloads between two streams.

    Function
        Payloads leave in the order they came; none is lost or repeated.
    Members
        i : stream in. o : stream out (the payload is held until taken). level : payloads stored.
    Latency
        1 cycle where the queue is empty (2 with `sram`).
    Throughput
        One payload per cycle.
    Backpressure
        i.ready depends on stored state only: no combinational path from o to i or back.
    Storage
        depth payloads: registers, or with `sram` a memory and a register at the output; `block` as
        of Sram.
    """

    i: stream.Interface
    o: stream.Interface
    level: Signal

    def __init__(
        self, shape: ShapeLike, depth: int, *, sram: bool | None = None, block: bool = False
    ) -> None:
        if depth < 1:
            raise ValueError(f"a queue holds at least one payload, not {depth}")
        self.depth = depth
        self._shape = shape
        self._sram = depth > 4 if sram is None else sram
        self._block = block
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "level": Out(range(depth + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        take, give = Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(self.level != self.depth),
            take.eq(self.i.valid & self.i.ready),
            give.eq(self.o.valid & self.o.ready),
        ]
        m.d.sync += self.level.eq(self.level + take - give)
        write = Signal(range(self.depth))
        read = Signal(range(self.depth))
        after = Signal(range(self.depth))

        def following(pointer: Signal) -> Value:
            return Mux(pointer == self.depth - 1, 0, pointer + 1)

        m.d.comb += after.eq(Mux(give, following(read), read))
        m.d.sync += read.eq(after)
        with m.If(take):
            m.d.sync += write.eq(following(write))
        if self._sram:
            m.submodules.sram = sram = Sram(
                self._shape, self.depth, collisions=False, block=self._block
            )
            # `level` before this cycle's take: a payload written now can be read next cycle only.
            m.d.sync += self.o.valid.eq(self.level > give)
            m.d.comb += [
                sram.write_address.eq(write),
                sram.write_data.eq(self.i.payload),
                sram.write_enable.eq(take),
                sram.read_address[0].eq(after),
                sram.read_enable[0].eq(1),
                self.o.payload.eq(sram.read_data[0]),
            ]
        else:
            slots = [Signal(self._shape, name=f"slot{n}") for n in range(self.depth)]
            m.d.comb += self.o.valid.eq(self.level != 0)
            for n, slot in enumerate(slots):
                with m.If(take & (write == n)):
                    m.d.sync += slot.eq(self.i.payload)
            with m.Switch(read):
                for n, slot in enumerate(slots):
                    with m.Case(n):
                        m.d.comb += self.o.payload.eq(slot)
        return m
