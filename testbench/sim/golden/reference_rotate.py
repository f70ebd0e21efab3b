"""The rotation of `docs/numerics.md`, one output at a time: sums over a row of the matrix."""

from fractions import Fraction

from m890.hdl.numerics.formats import Format
from m890.testbench.sim.golden import reference as ref

LOG2 = {8: 3, 16: 4, 32: 5, 64: 6}


def sign(i: int) -> int:
    """The fixed sign of feature i: minus where an odd number of bit pairs are both set."""
    pairs = (i & i >> 1) & 0b010101
    return -1 if pairs.bit_count() & 1 else 1


def entry(i: int, j: int) -> int:
    """Element of the Walsh-Hadamard matrix."""
    return -1 if (i & j).bit_count() & 1 else 1


def _integers(values: list[Fraction], exps: list[int], fraction: int) -> tuple[list[int], int]:
    """Truncated magnitudes on the scale of the largest exponent, which is returned too."""
    live = [e for x, e in zip(values, exps, strict=True) if x]
    top = max(live, default=0)
    unit = ref.power(top - fraction)
    return [int(x / unit) for x in values], top  # int() truncates towards zero


def kv(row: list[int], format: Format, lanes: int) -> list[int]:
    return _rotate(row, format, lanes, (LOG2[lanes] + 1) // 2)


def query(row: list[int], format: Format, lanes: int) -> list[int]:
    return _rotate(row, format, lanes, LOG2[lanes] // 2)


def _rotate(row: list[int], format: Format, lanes: int, shift: int) -> list[int]:
    exp_bits, man_bits, quiet = ref.FLOATS[format.name]
    out = []
    for at in range(0, len(row), lanes):
        block = [ref.decode(c, format) for c in row[at : at + lanes]]
        if any(e.nan for e in block):
            out += [quiet] * lanes
            continue
        signed = [(-1) ** e.sign * e.sig * ref.power(e.exp - 10) for e in block]
        m, top = _integers([Fraction(x) for x in signed], [e.exp for e in block], 18)
        for j in range(lanes):
            total = sum(entry(i, j) * sign(i) * m[i] for i in range(lanes))
            x = total * ref.power(top - 18 - shift)
            out.append(ref.to_float(Fraction(x), exp_bits, man_bits, total < 0))
    return out


def back(o: list[ref.Wide], lanes: int) -> list[ref.Wide]:
    """O of a rotated V, every value a wide float."""
    shift = LOG2[lanes] // 2
    out: list[ref.Wide] = []
    for at in range(0, len(o), lanes):
        block = o[at : at + lanes]
        known = [x for x in block if x is not None]
        if len(known) < lanes:
            out += [None] * lanes
            continue
        exps = [ref.floor_log2(abs(x)) if x else 0 for x in known]
        m, top = _integers(known, exps, 27)
        for j in range(lanes):
            total = sign(j) * sum(entry(i, j) * m[i] for i in range(lanes))
            out.append(ref.wide(total * ref.power(top - 27 - shift)))
    return out
