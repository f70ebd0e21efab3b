"""Port beats to element beats."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.kv.items import elements_layout, is_grouped, packing, tile_beat_layout
from m890.hdl.memory.queue import Queue
from m890.hdl.numerics.formats import GROUP, Format
from m890.hdl.numerics.quantise import beat_groups

EXPS = range(-1, 4)
"""Exponents of the nonzero 4-bit codes: 0.5 to 6, and 1 to 8."""
QUIET = 0x7FC0
"""BF16's NaN."""


def _numbers(halves: list[int]) -> list[tuple[int, int, int] | None]:
    """Per code, in units of 1/2: exponent, BF16 mantissa bits and sign; None for zero."""
    out: list[tuple[int, int, int] | None] = []
    for x in halves:
        exp = abs(x).bit_length() - 2
        out.append((exp, (abs(x) << 6 - exp) - 128, int(x < 0)) if x else None)
    return out


INT4 = _numbers([2 * x for x in (*range(8), *range(-8, 0))])
MXFP4 = _numbers([sign * x for sign in (1, -1) for x in (0, 1, 2, 3, 4, 6, 8, 12)])


class Gearbox(wiring.Component):
    """Picks an element beat out of its port beat: `lanes` raw codes of 16 bits.

    Function
        Codes of part `part`, zero-extended. 4-bit codes become BF16, the E8M0 scale of their group
        added to the exponent: docs/numerics.md, "Element".
    Members
        i : stream of port beats (Regroup). scales : In, with `i`. E8M0 scales of the beat's groups
            of lanes. o : stream of element beats.
    Latency
        1 cycle.
    Throughput
        One element beat per cycle, across changes of format too.
    Backpressure
        i.ready depends on stored state only.
    Storage
        Two element beats with their scales.
    """

    i: stream.Interface
    scales: Signal
    o: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(tile_beat_layout(config))),
                "scales": In(8 * beat_groups(config.lanes)),
                "o": Out(stream.Signature(elements_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes, beat = self.config.lanes, self.i.payload

        def codes(bits: int, part: int) -> Value:
            """Part `part` of a beat of elements of `bits` bits."""
            start = part * lanes * bits
            return Cat(
                Cat(beat.data[start + n * bits :][:bits], Const(0, 16 - bits)) for n in range(lanes)
            )

        # Two places, so that the array's ready ends here and does not reach the buffer's memory.
        # 4-bit codes get their scales behind it, far from the memories' outputs.
        kept = data.StructLayout({"codes": 16 * lanes, "scales": len(self.scales), "format": 4})
        m.submodules.out = out = Queue(kept, 2)
        payload, packed = out.i.payload, packing(beat.format)
        m.d.comb += [
            self.i.ready.eq(out.i.ready),
            out.i.valid.eq(self.i.valid),
            payload.scales.eq(self.scales),
            payload.format.eq(beat.format),
            payload.codes.eq(beat.data),
        ]
        for n in (1, 2):
            with m.If(packed == n):
                with m.Switch(beat.part[:n]):
                    for part in range(1 << n):
                        with m.Case(part):
                            m.d.comb += payload.codes.eq(codes(16 >> n, part))
        o = out.o.payload
        m.d.comb += [
            self.o.valid.eq(out.o.valid),
            out.o.ready.eq(self.o.ready),
            self.o.payload.as_value().eq(o.codes),
        ]
        with m.If(is_grouped(o.format)):
            for group in range(beat_groups(lanes)):
                fields, nan = self._fields(m, o.scales.word_select(group, 8), group)
                for lane in range(group * GROUP, min(lanes, (group + 1) * GROUP)):
                    code = o.codes[16 * lane :][:4]
                    m.d.comb += self.o.payload[lane].eq(self._bf16(m, code, o.format, fields, nan))
        return m

    @staticmethod
    def _fields(m: Module, scale: Value, group: int) -> tuple[dict[int, Signal], Value]:
        """Of each exponent of a code: the BF16 exponent field, 0 where it is none, all ones where
        that is beyond; and whether the scale is NaN."""
        fields = {}
        for exp in EXPS:
            total = Signal(9, name=f"total{group}_{exp + 1}")  # of field + 1: never negative
            fields[exp] = Signal(8, name=f"field{group}_{exp + 1}")
            m.d.comb += [
                total.eq(scale + (exp + 1)),
                fields[exp].eq(Mux(total == 0, 0, Mux(total > 255, 255, (total - 1)[:8]))),
            ]
        return fields, scale.all()

    @staticmethod
    def _bf16(
        m: Module, code: Value, format: Value, fields: dict[int, Signal], nan: Value
    ) -> Value:
        """BF16 bits of a code under its scale."""
        field, man, sign = Signal(8), Signal(7), Signal()
        with m.Switch(Cat(code, format == Format.MXFP4)):
            for mx, table in enumerate((INT4, MXFP4)):
                for n, number in enumerate(table):
                    if number is not None:
                        exp, rest, negative = number
                        with m.Case(16 * mx + n):
                            m.d.comb += [field.eq(fields[exp]), man.eq(rest), sign.eq(negative)]
        word = Signal(16)
        m.d.comb += word.eq(Cat(man, field, sign))
        return Mux(nan | field.all(), QUIET, Mux(field.any(), word, 0))
