"""Between the fields of RTL structs and the arrays of the golden model."""

from collections.abc import Sequence

import numpy as np

from m890.hdl.numerics.formats import SIG_BITS
from m890.hdl.numerics.types import Wide
from m890.sim.golden import wide
from m890.sim.golden.elements import Elements
from m890.testbench.hdl.numerics.pipelines import bits_of

_NAMES = ("sign", "sig", "exp", "nan")


def _columns(numbers: Sequence[dict]) -> list[np.ndarray]:
    return [np.array([x[name] for x in numbers], np.int64) for name in _NAMES]


def wides(numbers: Sequence[dict]) -> wide.Wide:
    """Wide floats of the golden model from fields."""
    return wide.Wide.from_fields(*_columns(numbers))


def elements(numbers: Sequence[dict]) -> Elements:
    """Operands or elements of the golden model from fields."""
    return Elements.from_fields(*_columns(numbers))


def factors(numbers: Sequence[dict], lanes: int, exp_bits: int) -> list[int]:
    """The bits in which beats of so many lanes enter the dot product, from fields."""
    bits, beats = SIG_BITS + exp_bits + 1, []
    for at in range(0, len(numbers), lanes):
        beat = 0
        for n, x in enumerate(numbers[at : at + lanes]):
            exp = x["exp"] + (1 << exp_bits - 1)
            beat |= (x["sig"] | exp << SIG_BITS | x["sign"] << bits - 1) << n * bits
            beat |= (x["sig"] != 0) << lanes * bits + n | x["nan"] << lanes * (bits + 1) + n
        beats.append(int(beat))
    return beats


def bits(layout: type, array: wide.Wide | Elements) -> list[int]:
    """The RTL's bits of an array of the golden model; zeros have exponent 0."""
    columns = [np.asarray(c).ravel() for c in array.fields()]
    return [
        bits_of(layout, **{n: int(v) for n, v in zip(_NAMES, row, strict=True)})
        for row in zip(*columns, strict=True)
    ]


def scores(values: np.ndarray) -> list[int]:
    """The RTL's bits of float64 scores."""
    return bits(Wide, wide.rounded(values, 0))
