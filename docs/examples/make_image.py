"""Writes memory.hex and expected.hex for testbench.v: commands, tables, queries and pages.

`python make_image.py FOLDER`. Preset tiny, FP16, head size 16, four rows, 20 tokens in three pages.
"""

import sys
from pathlib import Path

import numpy as np

from m890.hdl.commands import (
    ATTEND,
    COPY,
    CREATE,
    NOP,
    PLANE,
    ROW,
    SEGMENT,
    Opcode,
    SegmentKind,
)
from m890.hdl.config import preset
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim.golden.attend import Job, KvSegment, attend

CONFIG = preset("tiny")
SIZE = 128 << 10
RING, TABLES, QUERIES, OUTPUT, BLOCKS, PAGES = 0x0000, 0x2000, 0x3000, 0x4000, 0x5000, 0x8000
TAKEN, LIST = 0x5100, 0x5200
ROWS, TOKENS, HEAD = 4, 20, 16
BLOCK_TABLE = [5, 2, 7]
"""Physical pages of the sequence, in no order at all."""


def main(folder: Path) -> None:
    rng = np.random.default_rng(1)
    tiles = HEAD // CONFIG.lanes
    layout = PageLayout(CONFIG, Format.FP16, tiles)
    query, k, v = (
        rng.standard_normal((n, HEAD)).astype(np.float16).view(np.uint16)
        for n in (ROWS, *[len(BLOCK_TABLE) * CONFIG.page_tokens] * 2)
    )
    memory = np.zeros(SIZE, np.uint8)

    def put(address: int, data: bytes) -> None:
        memory[address : address + len(data)] = np.frombuffer(data, np.uint8)

    commands = [
        NOP.pack(opcode=Opcode.NOP, tag=10),
        PLANE.pack(
            opcode=Opcode.PLANE, tag=11, plane=0, format=Format.FP16, head=tiles, base=PAGES,
            stride=layout.page_bytes,
        ),
        COPY.pack(opcode=Opcode.COPY, tag=12, inward=1, blank=1, list=TAKEN, count=8),
        CREATE.pack(
            opcode=Opcode.CREATE, tag=13, sequence=0, table=BLOCKS, list=LIST, tokens=TOKENS,
            limit=len(BLOCK_TABLE) * CONFIG.page_tokens,
        ),
        ATTEND.pack(
            opcode=Opcode.ATTEND, tag=14, plane=0, rows=ROWS, segments=1, query_format=1,
            output_format=OutputFormat.FP16, tables=TABLES, query=QUERIES, query_stride=2 * HEAD,
            output=OUTPUT, output_stride=2 * HEAD,
        ),
    ]  # fmt: skip
    put(RING, b"".join(commands))
    rows = b"".join(ROW.pack(position=TOKENS - 1) for _ in range(ROWS))
    put(TABLES, rows)  # 4 x 16 bytes: port-aligned already
    segment = SEGMENT.pack(kind=SegmentKind.KV, sequence=0, start=0, end=TOKENS, row_mask=15)
    put(TABLES + len(rows), segment)
    put(QUERIES, query.tobytes())
    put(LIST, np.array(BLOCK_TABLE, "<u4").tobytes())
    for token in range(len(BLOCK_TABLE) * CONFIG.page_tokens):
        page, inside = divmod(token, CONFIG.page_tokens)
        start = PAGES + BLOCK_TABLE[page] * layout.page_bytes
        for feature in range(HEAD):
            for value, codes in ((False, k), (True, v)):
                at = start + layout.element(inside, feature, value=value)
                put(at, codes[token, feature].tobytes())

    job = Job(
        CONFIG, Format.FP16, query, [KvSegment(k, v, end=TOKENS)],
        query_format=Format.FP16, position=np.full(ROWS, TOKENS - 1),
        output_format=OutputFormat.FP16,
    )  # fmt: skip
    output = np.asarray(attend(job).output).astype("<u2").tobytes()
    write(folder / "memory.hex", memory.tobytes())
    write(folder / "expected.hex", output)


def write(path: Path, data: bytes) -> None:
    """A line per beat, the highest byte first, as $readmemh wants it."""
    size = CONFIG.port_bytes
    lines = [data[i : i + size][::-1].hex() for i in range(0, len(data), size)]
    path.write_text("\n".join(lines) + "\n", "ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
