"""Rotation of 16-bit rows on their way in: queries, and K and V of new tokens."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.memory.queue import Queue
from m890.hdl.numerics.decode import decode16
from m890.hdl.numerics.formats import CODINGS, ELEMENT_EXP_BITS, SIG_BITS, Format
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
from m890.hdl.numerics.pipeline import bundle, delay, register, shift_left_to_top, wire
from m890.hdl.numerics.rotation import ROTATE_FRACTION_BITS, signs
from m890.hdl.numerics.rounding import STAGES, round_to, target
from m890.hdl.numerics.types import Element
from m890.hdl.wake import Gated, sleeps

ROUNDING_BITS = 13
"""Significand ahead of rounding: FP16's 11 bits, a guard bit and a sticky one."""
BUFFERED = 64
"""Beats that wait to be rotated, or are asked for: memory gives them faster."""


class RotateRound(wiring.Component):
    """One rotated element from its sum; Rotate has one per element of a word.

    Function
        total x 2^(exp - ROTATE_FRACTION_BITS - shift), RNE to BF16 or FP16, overflow to Inf.
    Members
        total : In(signed). Sum of `lanes` aligned elements. is_fp16, nan : In, with it.
        exp : In(signed). Exponent that the elements are aligned to, one cycle after `total`.
        code : Out(16), `latency` cycles after `total`.
    Latency
        7: magnitude | normalise, twice | distance | align | round | pack.
    """

    total: Signal
    is_fp16: Signal
    nan: Signal
    exp: Signal
    code: Signal
    latency = 4 + STAGES

    def __init__(self, lanes: int, shift: int) -> None:
        self._more = lanes.bit_length() - 1 - shift
        bits = signed(ROTATE_FRACTION_BITS + 1 + lanes.bit_length())
        exp = signed(ELEMENT_EXP_BITS)
        super().__init__(
            {"total": In(bits), "is_fp16": In(1), "nan": In(1), "exp": In(exp), "code": Out(16)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size, sign = magnitude_of(m, self.total, name="size")
        coarse, high = shift_left_to_top(m, size, (16, 8, 4), name="coarse")
        coarse = register(m, coarse, name="normal_coarse")
        high, exp = register(m, high, name="shift_coarse"), register(m, self.exp, name="exp")
        fine, low = shift_left_to_top(m, coarse, (2, 1), name="fine")
        kept = ROUNDING_BITS - 1
        sig = register(m, Cat(fine[:-kept].any(), fine[-kept:]), name="sig")
        # An aligned element's top bit weighs 2^exp; the sum has log2(lanes) bits more.
        exp = register(
            m, exp + self._more - Cat(low, high), signed(ELEMENT_EXP_BITS + 1), name="exp_normal"
        )
        is_fp16 = delay(m, self.is_fp16, 3, name="is_fp16")
        code, _ = round_to(
            m, sig, exp, is_fp16, {1: target(Format.FP16), 0: target(Format.BF16)}
        )  # fmt: skip
        is_fp16 = delay(m, is_fp16, STAGES, name="is_fp16_late")
        nan = delay(m, self.nan, 3 + STAGES, name="nan")
        sign = delay(m, sign, 2 + STAGES, name="sign")
        infinity = wire(m, Mux(is_fp16, _infinity(Format.FP16), _infinity(Format.BF16)), name="inf")
        quiet = Mux(is_fp16, _quiet(Format.FP16), _quiet(Format.BF16))
        limited = Mux(code > infinity, infinity, code)[:15]
        m.d.sync += self.code.eq(Mux(nan, quiet, Cat(limited, sign)))
        return m


class Rotate(wiring.Component):
    """Rotates blocks of `lanes` features, a word of `width` of them per cycle.

    Function
        docs/numerics.md, "Rotation": signs, alignment to the block's largest exponent, butterflies
        of integers, 2^-shift, RNE to the format that the block came in.
    Members
        valid, i : In. A word, elements as BF16 or FP16 bits; the words of a block in order, without
            gaps. is_fp16 : In, with them.
        o_valid, o : Out. The rotated words, in the same order, `latency` cycles later.
    Latency
        11 + 2 ceil(log2(width) / 2) + 2 (words - 1) + log2(words), words = lanes / width: decode |
        largest exponent, two levels at a time | that of all words | distance | align | butterflies
        within a word, two levels at a time | across words | RotateRound.
    Throughput
        One word per cycle.
    Storage
        Registers: about twice `lanes` elements.
    Parameters
        shift : `rotation.kv_shift` or `query_shift`.
    Source
        The fast Walsh-Hadamard transform: log2(lanes) levels of butterflies; across words with a
        delay line per level, as in pipelined Fourier transforms (He and Torkelson, "A new approach
        to pipeline FFT processor", IPPS 1996).
    """

    valid: Signal
    i: data.View
    is_fp16: Signal
    o_valid: Signal
    o: data.View

    def __init__(self, lanes: int, width: int, shift: int) -> None:
        self._lanes, self._width, self._shift = lanes, width, shift
        self.words = lanes // width
        layout = data.ArrayLayout(16, width)
        super().__init__(
            {"valid": In(1), "i": In(layout), "is_fp16": In(1), "o_valid": Out(1), "o": Out(layout)}
        )

    @property
    def _wait(self) -> int:
        """Cycles from a decoded word until its block's largest exponent is known."""
        return level_stages(self._width) + self.words

    @staticmethod
    def latency_of(lanes: int, width: int) -> int:
        """The latency for blocks of `lanes` in words of `width`."""
        levels, words = level_stages(width), lanes // width
        collect, within = 1 + levels + words, ALIGN_STAGES + levels
        return collect + within + across_stages(words) + RotateRound.latency

    @property
    def latency(self) -> int:
        return self.latency_of(self._lanes, self._width)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width, words = self._width, self.words
        elements = []
        for n in range(width):
            element = bundle(Element, name=f"element{n}")
            m.d.sync += element.eq(decode16(m, self.i[n], self.is_fp16, name=f"decoded{n}"))
            elements.append(element)
        tag = self._tag(m, elements)

        bias = 1 << ELEMENT_EXP_BITS - 2
        flips = word_flips(m, tag.word, signs(self._lanes), width)
        values = []
        for n, element in enumerate(elements):
            # Its NaN goes with the tag.
            fields = Cat(element.sig, element.exp, element.sign)
            late = bundle(Element, name=f"late{n}")
            m.d.comb += Cat(late.sig, late.exp, late.sign).eq(
                delay(m, fields, self._wait, name=f"waits{n}")
            )
            distance = (tag.top - bias - late.exp)[: ELEMENT_EXP_BITS - 1]
            values.append(
                aligned(
                    m, late.sig, wire(m, distance, name=f"distance{n}"), late.sign ^ flips[n],
                    ROTATE_FRACTION_BITS + 1 - SIG_BITS, name=f"lane{n}",
                )
            )  # fmt: skip
        parts = transform(m, values, name="level")
        tag = delayed(m, tag, ALIGN_STAGES + level_stages(width), name="aligned")
        sums, tag = across(m, parts, tag, words, name="across")

        exp = register(m, tag.top - bias, signed(ELEMENT_EXP_BITS), name="exp")
        for n, total in enumerate(sums):
            m.submodules[f"round{n}"] = unit = RotateRound(self._lanes, self._shift)
            m.d.comb += [
                unit.total.eq(total),
                unit.is_fp16.eq(tag.is_fp16),
                unit.nan.eq(tag.nan),
                unit.exp.eq(exp),
                self.o[n].eq(unit.code),
            ]
        m.d.comb += self.o_valid.eq(
            delay(m, tag.valid, RotateRound.latency, name="o_valid", reset=True)
        )
        return m

    def _tag(self, m: Module, elements: list[Any]) -> Any:
        """What goes with a word when it is aligned: its place in the block, the block's largest
        exponent (biased, at least 0), whether any of it is NaN, and its format."""
        width, words = self._width, self.words
        bias = 1 << ELEMENT_EXP_BITS - 2
        # Zeros have the format's least exponent, so they never are the largest beside others.
        keys = [(element.exp + bias)[: ELEMENT_EXP_BITS - 1] for element in elements]
        nan = Cat(element.nan for element in elements).any()
        late = level_stages(width)
        top = largest_key(m, keys, name="top")
        nan = delay(m, nan, late, name="nan")
        word = Signal(range(words))
        with m.If(self.valid):
            m.d.sync += word.eq(word + 1)
        here = bundle(
            data.StructLayout(
                {"valid": 1, "word": len(word), "top": len(top), "nan": 1, "is_fp16": 1}
            ),
            name="here",
        )
        m.d.comb += [here.valid.eq(self.valid), here.word.eq(word), here.is_fp16.eq(self.is_fp16)]
        here = delayed(m, here, 1 + late, name="here")

        top_so_far, nan_so_far = Signal.like(top), Signal()
        begins = here.word == 0
        top_now = wire(m, Mux(~begins & (top_so_far > top), top_so_far, top), name="top_now")
        nan_now = nan | (~begins & nan_so_far)
        block_top, block_nan = Signal.like(top), Signal()
        with m.If(here.valid):
            m.d.sync += [top_so_far.eq(top_now), nan_so_far.eq(nan_now)]
            with m.If(here.word == words - 1):
                m.d.sync += [block_top.eq(top_now), block_nan.eq(nan_now)]
        tag = bundle(here.shape(), name="tag")
        m.d.comb += tag.eq(delayed(m, here, words, name="waits"))
        m.d.comb += [tag.top.eq(block_top), tag.nan.eq(block_nan)]
        return tag


def _infinity(format: Format) -> int:
    coding = CODINGS[format]
    return (1 << coding.exp_bits) - 1 << coding.man_bits


def _quiet(format: Format) -> int:
    return _infinity(format) | 1 << CODINGS[format].man_bits - 1


BEAT = ("data_valid", "data", "last", "error")
"""What a ReadPort brings, in every cycle."""


class RotateBeats(wiring.Component):
    """Read data on their way to a requester, rotated where `enable` is set.

    Function
        Rotate per beat; its companions go with it. Without `enable` everything passes.
    Members
        enable, is_fp16 : In. Steady while beats are under way.
        ask : In. A row is asked for. may_ask : Out. There is room for one more; steady until `ask`.
        data_valid, data, last, error : In, as of a ReadPort.
        o_valid, o_data, o_last, o_error : Out. The same, later.
    Latency
        `latency_of(config)` where no other beat is ahead, or 0 without `enable`.
    Throughput
        `load_lanes` elements per cycle, or a beat without `enable`.
    Backpressure
        None on beats: room is reserved with `ask`.
    Storage
        BUFFERED port beats.
    Parameters
        A configuration without `rotation` has no Rotate; `enable` is then ignored.
    """

    enable: Signal
    is_fp16: Signal
    ask: Signal
    may_ask: Signal
    data_valid: Signal
    data: Signal
    last: Signal
    error: Signal
    o_valid: Signal
    o_data: Signal
    o_last: Signal
    o_error: Signal

    def __init__(self, config: CoreConfig, shift: int) -> None:
        self._config, self._shift = config, shift
        beat = {"valid": 1, "data": config.port_bits, "last": 1, "error": 1}
        super().__init__(
            {
                "enable": In(1),
                "is_fp16": In(1),
                "ask": In(1),
                "may_ask": Out(1),
                **{"data_valid" if n == "valid" else n: In(s) for n, s in beat.items()},
                **{f"o_{n}": Out(s) for n, s in beat.items()},
            }
        )

    @staticmethod
    def latency_of(config: CoreConfig) -> int:
        """Cycles that rotation takes in a core of this configuration: through the queue, all words
        of the beat, and the register in which they meet."""
        lanes, width = config.lanes, config.load_lanes
        return 2 + Rotate.latency_of(lanes, width) + lanes // width

    def elaborate(self, platform: object) -> Gated | Module:
        m = Module()
        m.d.comb += [
            self.o_valid.eq(self.data_valid),
            self.o_data.eq(self.data),
            self.o_last.eq(self.last),
            self.o_error.eq(self.error),
            self.may_ask.eq(1),
        ]
        config = self._config
        if not config.rotation:
            return m
        rows = BUFFERED // config.max_tiles
        under_way = Signal(range(rows + 1))
        with m.If(self.enable):
            m.d.sync += under_way.eq(under_way + self.ask - (self.o_valid & self.o_last))

        shape = data.StructLayout({"data": config.port_bits, "last": 1, "error": 1})
        m.submodules.beats = beats = Queue(shape, BUFFERED, block=True)
        m.submodules.rotate = rotate = Rotate(config.lanes, config.load_lanes, self._shift)
        words, width = rotate.words, 16 * config.load_lanes
        word, beat = Signal(range(words)), beats.o.payload
        m.d.comb += [
            beats.i.valid.eq(self.data_valid & self.enable),
            beats.i.payload.data.eq(self.data),
            beats.i.payload.last.eq(self.last),
            beats.i.payload.error.eq(self.error),
            beats.o.ready.eq(word == words - 1),
            rotate.valid.eq(beats.o.valid),
            rotate.i.eq(beat.data.word_select(word, width)),
            rotate.is_fp16.eq(self.is_fp16),
        ]
        with m.If(beats.o.valid):
            m.d.sync += word.eq(word + 1)

        turned, at, valid = Signal(config.port_bits), Signal(range(words)), Signal()
        m.d.sync += valid.eq(rotate.o_valid & (at == words - 1))
        with m.If(rotate.o_valid):
            m.d.sync += [at.eq(at + 1), turned.word_select(at, width).eq(rotate.o)]
        flags = delay(m, Cat(beat.last, beat.error), rotate.latency + 1, name="flags")
        with m.If(self.enable):
            m.d.comb += [
                self.o_valid.eq(valid),
                self.o_data.eq(turned),
                self.o_last.eq(flags[0]),
                self.o_error.eq(flags[1]),
                self.may_ask.eq(under_way != rows),
            ]
        moves = (self.enable & (self.ask | self.data_valid)) | beats.o.valid | beats.level.any()
        return sleeps(m, moves, linger=rotate.latency + 3)
