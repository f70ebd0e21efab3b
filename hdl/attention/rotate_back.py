"""Rotates finished accumulators back, on their way from the array to the normalisers."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import bits
from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import WIDE_EXP_BITS, WIDE_SIG_BITS
from m890.hdl.numerics.hadamard import (
    ALIGN_STAGES,
    across,
    across_stages,
    aligned,
    delayed,
    largest_key,
    level_stages,
    magnitude_of,
    transform,
    word_flips,
)
from m890.hdl.numerics.pipeline import (
    bundle,
    delay,
    nearest_even,
    register,
    shift_left_to_top,
    wire,
)
from m890.hdl.numerics.rotation import ROTATE_BACK_FRACTION_BITS, kv_shift, signs
from m890.hdl.numerics.types import Wide
from m890.hdl.numerics.wide import LEAST_EXP, pack_wide

RESULT_STAGES = 4
"""Cycles from a sum to its wide float: magnitude | normalise, twice | round."""


class RotateBack(wiring.Component):
    """Inverse rotation of O, `drain_lanes` features (a word) at a time.

    Function
        docs/numerics.md, "Rotation". The `lanes` features of a tile are collected, as their largest
        exponent must be known. Then, word by word, they are aligned, and transformed within the
        word and across words. The sums leave word by word as wide floats.
    Members
        valid, i : In. A word of O; the words of a tile in order, with any gaps. row : In, with it.
        o_valid, o : Out. The rotated words, in order, those of a tile without gaps.
        o_row : Out. Row of `o`, one cycle before it.
    Latency
        `latency`: last word of a tile to its last one on `o`. All earlier ones are then out.
    Throughput
        One word per cycle.
    Storage
        Registers: `lanes` wide floats, and as many sums of 29 + log2(lanes) bits.
    """

    valid: Signal
    i: Any
    row: Signal
    o_valid: Signal
    o: Any
    o_row: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        word = data.ArrayLayout(Wide, config.drain_lanes)
        super().__init__(
            {
                "valid": In(1),
                "i": In(word),
                "row": In(bits(config.rows)),
                "o_valid": Out(1),
                "o": Out(word),
                "o_row": Out(bits(config.rows)),
            }
        )

    @property
    def latency(self) -> int:
        c = self._config
        words, within = c.lanes // c.drain_lanes, level_stages(c.drain_lanes)
        collect = 1 + within + 1 + words
        return collect + ALIGN_STAGES + within + across_stages(words) + RESULT_STAGES

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width = self._config.drain_lanes
        word, tag = self._collect(m)
        lanes = []
        for n in range(width):
            distance = wire(m, (tag.top - _key(word[n]))[:WIDE_EXP_BITS], name=f"distance{n}")
            more = ROTATE_BACK_FRACTION_BITS + 1 - WIDE_SIG_BITS
            lanes.append(aligned(m, word[n].sig, distance, word[n].sign, more, name=f"lane{n}"))
        parts = transform(m, lanes, name="level")
        since = ALIGN_STAGES + level_stages(width)
        tag = delayed(m, tag, since, name="aligned")
        sums, tag = across(m, parts, tag, self._config.lanes // width, name="across")
        self._results(m, sums, tag)
        return m

    def _tag(self) -> data.StructLayout:
        """What goes with a word: its place in the tile, what holds for the tile, and its row."""
        c = self._config
        return data.StructLayout(
            {"valid": 1, "word": bits(c.lanes // c.drain_lanes), "top": WIDE_EXP_BITS, "nan": 1,
             "row": bits(c.rows)}
        )  # fmt: skip

    def _collect(self, m: Module) -> tuple[Any, Any]:
        """A tile's words one after the other, once all of them are there.

        Words of the next tile may come meanwhile: each takes the place of one that has left.
        """
        c = self._config
        words = c.lanes // c.drain_lanes
        shape = self.i.shape()
        late = 1 + level_stages(c.drain_lanes)
        first = register(m, self.i, name="first")
        top = largest_key(m, [_key(first[n]) for n in range(c.drain_lanes)], name="top")
        nan = Cat(self.i[n].nan for n in range(c.drain_lanes)).any()
        nan = delay(m, nan, late, name="nan")
        word = delay(m, first, late - 1, name="word")
        row = delay(m, self.row, late, name="row")
        valid = delay(m, self.valid, late, name="valid", reset=True)

        held = [Signal(shape, name=f"held{n}", reset_less=True) for n in range(words)]
        place = Signal(range(words))
        so_far = bundle(self._tag(), name="so_far")
        begins, ends = place == 0, place == words - 1
        top = wire(m, Mux(begins | (top > so_far.top), top, so_far.top), name="top_so_far")
        nan = nan | (~begins & so_far.nan)
        with m.If(valid):
            m.d.sync += [place.eq(place + 1), so_far.top.eq(top), so_far.nan.eq(nan)]
        for n in range(words):
            with m.If(valid & (place == n)):
                m.d.sync += held[n].eq(word)

        full = bundle(self._tag(), name="full")
        with m.If(full.valid):
            m.d.sync += [full.word.eq(full.word + 1), full.valid.eq(full.word != words - 1)]
        with m.If(valid & ends):
            m.d.sync += [
                full.valid.eq(1), full.word.eq(0), full.top.eq(top), full.nan.eq(nan),
                full.row.eq(row),
            ]  # fmt: skip
        out = Signal(shape, reset_less=True)
        with m.Switch(full.word):
            for n in range(words):
                with m.Case(n):
                    m.d.sync += out.eq(held[n])
        return out, delayed(m, full, 1, name="out")

    def _results(self, m: Module, sums: list[Value], tag: Any) -> None:
        """Sums as wide floats, with the features' signs."""
        c = self._config
        size = len(sums[0]) - 1
        flips = word_flips(m, tag.word, signs(c.lanes), len(sums))
        late = delayed(m, tag, RESULT_STAGES - 1, name="result")
        # An aligned value's top bit weighs 2^top; the sum has log2(lanes) bits more, of which
        # query_shift are the factor.
        top = delay(m, tag.top + (LEAST_EXP + kv_shift(c.lanes)), 1, name="top_exp")
        for n, total in enumerate(sums):
            magnitude, sign = magnitude_of(m, total, name=f"magnitude{n}")
            coarse, high = shift_left_to_top(m, magnitude, (32, 16, 8), name=f"coarse{n}")
            coarse = register(m, coarse, name=f"normal{n}")
            exp = register(m, top - (high << 3), signed(WIDE_EXP_BITS), name=f"exp{n}")
            fine, low = shift_left_to_top(m, coarse, (4, 2, 1), name=f"fine{n}")
            fine = register(m, fine, name=f"fine{n}_late")
            exp = register(m, exp - low, signed(WIDE_EXP_BITS), name=f"exp{n}_late")
            sign = delay(m, sign ^ delay(m, flips[n], 1, name=f"flip{n}"), 2, name=f"sign{n}_late")
            rounded = nearest_even(m, fine, size - WIDE_SIG_BITS, name=f"rounded{n}")
            packed = pack_wide(m, sign=sign, exp=exp, sig=rounded, nan=late.nan, name=f"packed{n}")
            m.d.sync += self.o[n].eq(packed)
        m.d.comb += self.o_row.eq(late.row)
        m.d.sync += self.o_valid.eq(late.valid)


def _key(value: Any) -> Value:
    """Order of exponents as that of integers; zeros are below all."""
    return Mux(value.sig[-1], value.exp.as_unsigned() ^ -LEAST_EXP, 0)[:WIDE_EXP_BITS]
