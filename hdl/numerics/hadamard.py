"""Walsh-Hadamard transforms: the parts that rotation and its inverse share.

Both work on a block of `lanes` features as words of a few of them, one word per cycle: they are
aligned to the block's largest exponent and transformed within the word, then across the words.
"""

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed

from m890.hdl.numerics.pipeline import bundle, delay, largest, register, wire

ALIGN_STAGES = 2
"""Cycles that `aligned` takes."""


def level_stages(values: int) -> int:
    """Cycles of a tree or a transform of `values` (a power of two): two levels in each."""
    return values.bit_length() // 2


def largest_key(m: Module, keys: Sequence[Value], *, name: str) -> Value:
    """The largest of some values, level_stages(len(keys)) cycles later."""
    level = 0
    while len(keys) > 1:
        level += 1
        keys = [
            register(m, largest(m, keys[n : n + 4], name=f"{name}{level}_{n // 4}_of"),
                     name=f"{name}{level}_{n // 4}")
            for n in range(0, len(keys), 4)
        ]  # fmt: skip
    return keys[0]


def transform(m: Module, values: Sequence[Value], *, name: str) -> list[Value]:
    """The transform of signed integers, unnormalised, level_stages(len(values)) cycles later."""
    values, step = list(values), 1
    for level in range(len(values).bit_length() - 1):
        following: list[Value] = []
        for n, value in enumerate(values):
            other = values[n ^ step]
            total = other - value if n & step else value + other
            stored = level % 2 == 1 or 2 * step == len(values)
            place = register if stored else wire
            following.append(place(m, total, name=f"{name}{level}_{n}"))
        values, step = following, 2 * step
    return values


def aligned(m: Module, sig: Value, distance: Value, sign: Value, more: int, *, name: str) -> Signal:
    """+-floor(sig 2^more / 2^distance), ALIGN_STAGES cycles later; negative where `sign` is set."""
    widest = len(sig) + more
    far = widest.bit_length()
    amount = Mux(distance[far:].any(), (1 << far) - 1, distance[:far])
    amount = register(m, amount, name=f"{name}_amount")
    sig, sign = register(m, sig, name=f"{name}_sig"), register(m, sign, name=f"{name}_sign")
    magnitude = wire(m, Cat(C(0, more), sig) >> amount, name=f"{name}_magnitude")
    negated = Mux(sign, -magnitude, magnitude)
    return register(m, negated, signed(widest + 1), name=f"{name}_value")


def magnitude_of(m: Module, value: Value, *, name: str) -> tuple[Signal, Signal]:
    """Magnitude and sign of a signed value, one cycle later."""
    negative = value[-1]
    size = Mux(negative, -value, value)[: len(value) - 1]
    return register(m, size, name=name), register(m, negative, name=f"{name}_sign")


def word_flips(m: Module, word: Value, negated: Sequence[int], width: int) -> Signal:
    """Which features of a word of the block have their sign changed, of `negated` for them all."""
    flips = Signal(width)
    with m.Switch(word):
        for w in range(len(negated) // width):
            with m.Case(w):
                own = negated[w * width : (w + 1) * width]
                m.d.comb += flips.eq(sum(s << n for n, s in enumerate(own)))
    return flips


def across_stages(words: int) -> int:
    """Cycles from a word of a block to the word of sums in its place."""
    return words - 1 + words.bit_length() - 1


def across(
    m: Module, values: Sequence[Value], tag: Any, words: int, *, name: str
) -> tuple[list[Value], Any]:
    """The levels of a transform between the words of a block, and the tag of the words of sums.

    The words of a block come in order, in cycles that follow each other; `tag` says `valid` and
    which `word`. Each level keeps the first word of a pair until the second one is there, sends
    their sum on, and keeps the difference in the first one's place.
    """
    values = list(values)
    for level in reversed(range(words.bit_length() - 1)):
        step = 1 << level
        second = wire(m, tag.valid & tag.word[level], name=f"{name}{level}_second")
        following: list[Value] = []
        for n, value in enumerate(values):
            shape = signed(len(value) + 1)
            kept = Signal(shape, name=f"{name}{level}_{n}_in")
            first = delay(m, kept, step, name=f"{name}{level}_{n}_kept")
            m.d.comb += kept.eq(Mux(second, first - value, value))
            total = Mux(second, first + value, first)
            following.append(register(m, total, shape, name=f"{name}{level}_{n}"))
        values = following
        tag = delayed(m, tag, step + 1, name=f"{name}{level}")
    return values, tag


def delayed(m: Module, tag: Any, cycles: int, *, name: str) -> Any:
    """A tag some cycles later; its valid bit has a reset."""
    late = bundle(tag.shape(), name=f"{name}_tag")
    m.d.comb += [
        late.eq(delay(m, tag, cycles, name=name)),
        late.valid.eq(delay(m, tag.valid, cycles, name=f"{name}_valid", reset=True)),
    ]
    return late
