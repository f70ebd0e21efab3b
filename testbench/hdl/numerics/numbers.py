"""Random operands of the numeric units, with hard cases more often than chance has them."""

import numpy as np

from m890.hdl.numerics.formats import CODINGS, Format


def _unless(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def wide(rng: np.random.Generator, *, near: int = 0, spread: int = 30, nan: float = 0.01) -> dict:
    """Fields of a wide float with an exponent around `near`; now and then zero, NaN, round sig."""
    if _unless(rng, nan):
        return {"sig": 0, "exp": 0, "sign": 0, "nan": 1}
    if _unless(rng, 0.03):
        return {"sig": 0, "exp": 0, "sign": 0, "nan": 0}
    sig = 1 << 23 | int(rng.integers(1 << 23))
    match rng.integers(8):
        case 0:
            sig = 1 << 23
        case 1:
            sig = (1 << 24) - 1
        case 2:
            sig &= -1 << int(rng.integers(24))
    sig |= 1 << 23
    exp = near + int(rng.integers(-spread, spread + 1))
    return {"sig": sig, "exp": exp, "sign": int(rng.integers(2)), "nan": 0}


def raw16(rng: np.random.Generator, format: Format) -> int:
    """Bits of a stored number: any, or one of the ends of its ranges."""
    c = CODINGS[format]
    if rng.integers(4):
        return int(rng.integers(1 << c.bits))
    man = int(rng.choice([0, 1, (1 << c.man_bits) - 1]))
    exponent = int(rng.choice([0, 1, (1 << c.exp_bits) - 1, max((1 << c.exp_bits) - 2, 0)]))
    return int(rng.integers(2)) << c.bits - 1 | exponent << c.man_bits | man


def bf16_scale(rng: np.random.Generator) -> int:
    """BF16 bits of a scale: mostly near one, sometimes any."""
    if rng.integers(6):
        return int(rng.integers(100, 140)) << 7 | int(rng.integers(128))
    return raw16(rng, Format.BF16)


def operand(
    rng: np.random.Generator, *, near: int = 0, spread: int = 12, nan: float = 0.003
) -> dict:
    """Fields of an Operand or Element: also zero, unnormalised, NaN."""
    if _unless(rng, nan):
        return {"sig": 1024, "exp": 0, "sign": int(rng.integers(2)), "nan": 1}
    some = int(rng.integers(2048))
    sig = int(
        rng.choice([0, 1, 1024, 2047, some, some | 1024], p=[0.1, 0.02, 0.04, 0.04, 0.1, 0.7])
    )
    exp = near + int(rng.integers(-spread, spread + 1))
    return {"sig": sig, "exp": exp, "sign": int(rng.integers(2)), "nan": 0}
