"""V tiles from token order to feature order."""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import elements_layout
from m890.hdl.memory.queue import Queue
from m890.hdl.memory.sram import Sram


def rotated(m: Module, name: str, values: list[Value], amount: Value, *, down: bool) -> list[Value]:
    """`values` rotated by `amount` places: towards higher indices, or `down`. One mux per bit of
    `amount` and value, each a signal of its own (wide shifts are slow to simulate)."""
    count = len(values)
    for bit in range(count.bit_length() - 1):
        step = -(1 << bit) if down else 1 << bit
        after = [Signal(16, name=f"{name}{bit}_{n}") for n in range(count)]
        for n in range(count):
            m.d.comb += after[n].eq(Mux(amount[bit], values[(n - step) % count], values[n]))
        values = list(after)
    return values


class Transposer(wiring.Component):
    """Turns tiles of [token][feature] beats into tiles of [feature][token] beats.

    Function
        Output beat f of a tile holds element f of its input beats 0 ... lanes - 1. Element (t, f)
        lies in bank (t + f) mod lanes at address t, so that a token's elements and a feature's
        elements both meet every bank once.
    Members
        i : stream of element beats. o : stream of element beats `data`, with `first` and `last`
            of the tile.
    Latency
        lanes + 3 cycles from a tile's first beat in to its first beat out.
    Throughput
        One beat per cycle in and out; a tile leaves while the next one comes.
    Backpressure
        Nothing depends on o.ready combinationally; i.ready depends on stored state.
    Storage
        lanes banks of 2 lanes x 16 bits, one write and one read port; three element
        beats.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        shape = data.StructLayout({"data": elements_layout(config), "first": 1, "last": 1})
        super().__init__(
            {
                "i": In(stream.Signature(elements_layout(config))),
                "o": Out(stream.Signature(shape)),
            }
        )

    @property
    def latency(self) -> int:
        return self.config.lanes + 3

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes = self.config.lanes
        bits = lanes.bit_length() - 1
        banks = [Sram(16, 2 * lanes) for _ in range(lanes)]
        for n, bank in enumerate(banks):
            m.submodules[f"bank{n}"] = bank
        full = Signal(2)  # halves that hold a whole tile

        # Write: rotate into a register, write it once the half is free.
        token = Signal(bits)
        skewed = Signal(elements_layout(self.config))
        held, write = Signal(), Signal()
        write_token = Signal(bits)
        write_half = Signal()
        incoming = [self.i.payload[lane] for lane in range(lanes)]
        skew = rotated(m, "skew", incoming, token, down=False)
        m.d.comb += [
            write.eq(held & ~Mux(write_half, full[1], full[0])),
            self.i.ready.eq(~held | write),
        ]
        with m.If(self.i.ready):
            m.d.sync += held.eq(self.i.valid)
            with m.If(self.i.valid):
                m.d.sync += [
                    token.eq(token + 1),
                    write_token.eq(token),
                    *(skewed[n].eq(value) for n, value in enumerate(skew)),
                ]
        with m.If(write & write_token.all()):
            m.d.sync += write_half.eq(~write_half)
            with m.Switch(write_half):
                for half in range(2):
                    with m.Case(half):
                        m.d.sync += full[half].eq(1)
        for n, bank in enumerate(banks):
            m.d.comb += [
                bank.write_address.eq(write_token | write_half << bits),
                bank.write_data.eq(skewed[n]),
                bank.write_enable.eq(write),
            ]

        # Read: address, then rotate back into the output's two places.
        m.submodules.out = out = Queue(self.o.payload.shape(), 2)
        wiring.connect(m, out.o, wiring.flipped(self.o))
        feature = Signal(bits)
        read_half = Signal()
        read, reading = Signal(), Signal()
        read_feature = Signal(bits)
        take = out.i.ready
        m.d.comb += [
            read.eq(Mux(read_half, full[1], full[0]) & (~reading | take)),
        ]
        with m.If(read):
            m.d.sync += [feature.eq(feature + 1), read_feature.eq(feature), reading.eq(1)]
            with m.If(feature.all()):
                m.d.sync += read_half.eq(~read_half)
                with m.Switch(read_half):
                    for half in range(2):
                        with m.Case(half):
                            m.d.sync += full[half].eq(0)
        with m.Elif(take):
            m.d.sync += reading.eq(0)
        for n, bank in enumerate(banks):
            m.d.comb += [
                bank.read_address[0].eq((n - feature)[:bits] | read_half << bits),
                bank.read_enable[0].eq(read),
            ]
        outgoing = rotated(
            m, "turn", [bank.read_data[0] for bank in banks], read_feature, down=True
        )
        m.d.comb += [
            out.i.valid.eq(reading),
            *(out.i.payload.data[n].eq(value) for n, value in enumerate(outgoing)),
            out.i.payload.first.eq(read_feature == 0),
            out.i.payload.last.eq(read_feature.all()),
        ]
        return m
