"""GTKWave's process filter for floats: reads hexadecimal words, writes numbers.

GTKWave starts an executable that reads one value per line and answers with one line. `write_filter`
makes one for a format.
"""

import math
import struct
import sys
from pathlib import Path
from typing import TextIO

_INTERNAL = {"wide": (24, 13), "operand": (11, 13), "element": (11, 9)}
"""Internal floats: bits of significand and exponent; then come sign and NaN."""
KINDS = ("bf16", "fp16", "fp32", *_INTERNAL)


def text(kind: str, word: int) -> str:
    """The number that a word of a format stands for, as people write it."""
    if kind in _INTERNAL:
        sig_bits, exp_bits = _INTERNAL[kind]
        sig = word & ((1 << sig_bits) - 1)
        exp = word >> sig_bits & ((1 << exp_bits) - 1)
        exp -= (exp >> (exp_bits - 1)) << exp_bits
        sign = "-" if word >> (sig_bits + exp_bits) & 1 else ""
        if word >> (sig_bits + exp_bits + 1) & 1:
            return "NaN"
        if not sig:
            return "0"
        power = exp - (sig_bits - 1)
        if -1000 < power < 990:
            return f"{sign}{math.ldexp(sig, power):.6g}"
        return f"{sign}{sig / (1 << sig_bits - 1):.6g}*2^{exp}"  # beyond a double
    if kind == "bf16":
        value = struct.unpack("<f", struct.pack("<I", word << 16))[0]
    elif kind == "fp16":
        value = struct.unpack("<e", struct.pack("<H", word))[0]
    else:
        value = struct.unpack("<f", struct.pack("<I", word))[0]
    return f"{value:.6g}"


def serve(kind: str, lines: TextIO = sys.stdin, out: TextIO = sys.stdout) -> None:
    """Answer every line until the input ends; what is no number comes back as it is."""
    while line := lines.readline():
        word = line.strip()
        try:
            answer = text(kind, int(word, 16))
        except (ValueError, OverflowError, struct.error):
            answer = word
        out.write(answer + "\n")
        out.flush()


def write_filter(kind: str, path: Path) -> None:
    """An executable file that serves a format with this Python."""
    folder = Path(__file__).resolve().parent
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(folder)!r})\n"
        f"from float_filter import serve\nserve({kind!r})\n"
    )
    path.chmod(0o755)
