"""Commands, tables, registers, page layout, presets: pages and pictures of the data in hdl/."""

import inspect
from dataclasses import fields
from enum import IntEnum
from pathlib import Path

from m890.hdl import commands, registers
from m890.hdl.commands import RECORDS, Record
from m890.hdl.config import PRESETS, CoreConfig
from m890.hdl.layout import Group, PageLayout
from m890.hdl.numerics.formats import CODINGS, Format, OutputFormat
from m890.sim.docs.markdown import code, page, table
from m890.sim.docs.svg import EDGE, FILL, GREY, INK, Picture, text_width

CELL = 25.0
"""Width of a bit in a record's picture."""
WORD = 32
RESERVED = "#f6f7f9"


def write(folder: Path) -> None:
    """The reference pages."""
    _commands(folder)
    _registers(folder)
    _layout(folder)
    _presets(folder)


def record_picture(record: Record) -> Picture:
    """Words of 32 bits, bit 31 left, a box per field; words that are wholly reserved left out."""
    rows: list[tuple[int, list[tuple[int, int, str, int]]]] = []
    for word in range(record.bytes * 8 // WORD):
        low = WORD * word
        parts = []
        for number, f in enumerate(record.fields):
            a, b = max(f.lsb, low), min(f.lsb + f.width, low + WORD)
            if a < b:
                whole = f.width <= WORD and f.lsb >= low and f.lsb + f.width <= low + WORD
                part = "" if whole else f" [{b - f.lsb - 1}:{a - f.lsb}]"
                parts.append((a - low, b - low, f.name + part, number))
        if parts:
            rows.append((word, parts))
    height = 30.0
    left = 62.0
    picture = Picture(left + WORD * CELL + 14, 40 + len(rows) * (height + 4), record.name)
    for bit in range(WORD):
        if bit % 8 in (0, 7):
            x = left + (WORD - 1 - bit + 0.5) * CELL
            picture.write(x, 24, str(bit), 9.5, GREY, "middle")
    for n, (word, parts) in enumerate(rows):
        y = 32 + n * (height + 4)
        picture.write(left - 10, y + 19, f"0x{4 * word:02X}", 11, GREY, "end", mono=True)
        picture.box(left, y, WORD * CELL, height, RESERVED, EDGE, 2)
        for a, b, text, number in parts:
            x, w = left + (WORD - b) * CELL, (b - a) * CELL
            picture.box(x, y, w, height, FILL, EDGE, 2)
            size = min(12.0, 12 * (w - 2) / max(1.0, text_width(text, 12)))
            if size >= 7:
                picture.write(x + w / 2, y + 19, text, size, INK, "middle")
            else:  # too narrow for its name
                picture.write(x + w / 2, y + 19, f"({number})", 10, INK, "middle")
    return picture


def _record(folder: Path, record: Record) -> str:
    name = f"record-{record.name.lower()}.svg"
    (folder / name).write_text(record_picture(record).text(), "utf-8")
    rows = [
        (n, code(f.name), f"{f.lsb + f.width - 1}:{f.lsb}" if f.width > 1 else f.lsb,
         f"0x{f.lsb // 8:02X}", "signed" if f.signed else "", f.doc)
        for n, f in enumerate(record.fields)
    ]  # fmt: skip
    text = " ".join(record.doc.split())
    return page(
        f"### {record.name}",
        f"{text} {record.bytes} bytes.",
        f"![Fields of {record.name}]({name})",
        table(("field", "name", "bits", "byte", "", "meaning"), rows),
    )


def _comments(kind: type[IntEnum], source: str) -> dict[str, str]:
    """What the source says of a member in the comment behind it."""
    found = {}
    for line in source.split("\n"):
        head, _, text = line.partition("#")
        name = head.split("=")[0].strip()
        if name in kind.__members__ and text:
            found[name] = text.strip()
    return found


def _enum(kind: type[IntEnum], title: str, anchor: str) -> str:
    said = _comments(kind, inspect.getsource(kind))
    doc = " ".join((inspect.getdoc(kind) or "").split())
    rows = [(m.value, code(m.name), said.get(m.name, "")) for m in kind]
    head = ("code", "name", "meaning")
    if not said:
        rows, head = [r[:2] for r in rows], head[:2]
    return page(f"({anchor})=\n## {title}", doc, table(head, rows))


def _commands(folder: Path) -> None:
    ring = [r for r in RECORDS if r in commands.COMMANDS.values()]
    tables = [r for r in RECORDS if r not in ring]
    parts = [
        "# Commands and records",
        "Made from `hdl/commands.py`, which RTL, firmware and the C header read too. Records are "
        "little-endian; bits that no field names (light grey) are reserved and written as zero. "
        "A field's number is what a completion's `field` holds; in the pictures it stands, in "
        "parentheses, for a name that does not fit.",
        _enum(commands.Opcode, "Opcodes", "opcodes"),
        "## Commands",
        *(_record(folder, r) for r in ring),
        "## Job tables and completions",
        *(_record(folder, r) for r in tables),
        _enum(commands.Error, "Error codes", "error-codes"),
        _enum(commands.SegmentKind, "Segment kinds", "segment-kinds"),
        _enum(commands.Query, "Queries", "queries"),
        _enum(commands.Status, "Status bits", "status-bits"),
        "## Formats",
        table(
            ("code", "name", "bytes per element", "per-token scale"),
            [(f.value, code(f.name), CODINGS[f].bytes, "yes" if CODINGS[f].scaled else "no")
             for f in Format],
        ),
        "Output formats:",
        table(("code", "name"), [(f.value, code(f.name)) for f in OutputFormat]),
    ]  # fmt: skip
    (folder / "commands.md").write_text(page(*parts), "utf-8")


def _registers(folder: Path) -> None:
    rows = [(f"0x{r.address:03X}", code(r.name), r.access, r.doc) for r in registers.REGISTERS]
    stall = _comments(registers.Stall, inspect.getsource(registers.Stall))
    parts = [
        "# Registers",
        "AXI4-Lite, 32 bits, byte addresses. Made from `hdl/registers.py`. `ro`: read only; "
        "`rw`: read and write; `w1c`: write one to clear. A 64-bit counter is read low word first: "
        "that latches its upper word.",
        table(("address", "name", "access", "meaning"), rows),
        "(stall-causes)=\n## Stall causes",
        " ".join((inspect.getdoc(registers.Stall) or "").split())
        + " So CYCLES = BEATS + the sum of all STALL counters.",
        table(("code", "name", "when"),
              [(s.value, code(s.name), stall.get(s.name, "")) for s in registers.Stall]),
    ]  # fmt: skip
    (folder / "registers.md").write_text(page(*parts), "utf-8")


def page_picture(layout: PageLayout) -> Picture:
    """A chunk of a page: header, groups of K and V, with byte offsets; one group opened."""
    config, groups = layout.config, list(layout.groups)
    width, left, top = 96.0, 20.0, 58.0
    parts: list[tuple[str, str, int, float]] = []
    if layout.header_beats:
        parts.append(("header", f"{config.lanes} x {2 * layout.half_bytes} B", 0, 78))
    for kind, start in (("K", layout.k_offset), ("V", layout.v_offset)):
        shown = groups if len(groups) <= 3 else [*groups[:2], groups[-1]]
        for group in shown:
            if group is groups[-1] and len(groups) > 3:
                parts.append(("...", "", -1, 34))
            parts.append((_tiles(kind, group), f"{config.lanes * group.row:,} B",
                          start + group.start, width))  # fmt: skip
    total = sum(p[3] for p in parts)
    picture = Picture(max(left + total + 70, 760), 330, "Page layout")
    picture.write(left, 26, f"One chunk of {config.lanes} tokens: {layout.chunk_bytes:,} bytes "
                  f"({config.chunks_per_page} chunk per page)", 13, bold=True)  # fmt: skip
    x = left
    opened = None
    for name, text, offset, w in parts:
        if offset < 0:
            picture.write(x + w / 2, top + 30, name, 14, GREY, "middle")
        else:
            fill = "#fdf3e4" if name == "header" else FILL if name[0] == "K" else "#eaf6ee"
            picture.box(x, top, w, 52, fill, EDGE, 2)
            picture.write(x + w / 2, top + 23, name, 11.5, INK, "middle", bold=True)
            picture.write(x + w / 2, top + 40, text, 10, GREY, "middle")
            picture.write(x, top - 6, f"{offset:,}", 9.5, GREY, mono=True)
            if opened is None and name[0] == "K":
                opened = (x, w)
        x += w
    picture.write(x, top - 6, f"{layout.chunk_bytes:,}", 9.5, GREY, mono=True)
    if opened:
        _opened_group(picture, layout, opened, top + 52)
    return picture


def _tiles(kind: str, group: Group) -> str:
    last = group.first + group.tiles - 1
    return f"{kind} tile {last}" if group.tiles == 1 else f"{kind} tiles {group.first}-{last}"


def _opened_group(
    picture: Picture, layout: PageLayout, opened: tuple[float, float], y: float
) -> None:
    lanes, group = layout.config.lanes, next(iter(layout.groups))
    left, top, cell = 150.0, y + 46, 20.0
    w, h = cell * 16, cell * 6
    picture.line(opened[0], y, left, top)
    picture.line(opened[0] + opened[1], y, left + w, top)
    picture.box(left, top, w, h, "#ffffff", EDGE, 2)
    for row in range(6):
        last = row == 5
        token = "..." if row == 4 else str(lanes - 1) if last else str(row)
        yy = top + row * cell
        picture.write(left - 10, yy + 14, f"token {token}" if row != 4 else token, 10, GREY, "end")
        if row != 4:
            picture.box(left, yy, w, cell, FILL, EDGE, 1)
            picture.write(
                left + w / 2,
                yy + 14,
                f"features 0 ... {group.tiles * lanes - 1}",
                10,
                INK,
                "middle",
            )
    picture.write(left + w + 12, top + 14, f"{group.row} bytes per token and group:", 10.5)
    picture.write(left + w + 12, top + 30, "appending a token writes one such line of", 10.5)
    picture.write(left + w + 12, top + 46, "every group, and its entry of the header", 10.5)


def _layout(folder: Path) -> None:
    example = PageLayout(PRESETS["small"], Format.E4M3, 8)
    (folder / "page-layout.svg").write_text(page_picture(example).text(), "utf-8")
    rows = []
    for name, config in PRESETS.items():
        for f in Format:
            lay = PageLayout(config, f, config.max_tiles)
            tagged = PageLayout(config, f, config.max_tiles, tags=True)
            rows.append((name, f.name, config.max_head, f"{lay.page_bytes:,}",
                         f"{tagged.page_bytes:,}", lay.header_beats,
                         2 * len(list(lay.groups)) + (lay.header_beats > 0)))  # fmt: skip
    doc = inspect.getdoc(PageLayout) or ""
    parts = [
        "# Page layout",
        "Made from `hdl/layout.py`. " + doc,
        "The picture: preset small, E4M3, head size 128.",
        "![Layout of a page](page-layout.svg)",
        "Address of a page: `base` + page number x `stride` of its plane ([PLANE](commands.md)). "
        "The number is the same in all planes, so block tables, owners and reference counts exist "
        "once per page.",
        "## Sizes",
        table(
            (
                "preset",
                "format",
                "head",
                "page bytes",
                "with tags",
                "header beats",
                "writes per token",
            ),
            rows,
        ),
        "## Raw states and outputs",
        "A row's raw state is one port beat with E (32 bits) and l (FP32), then O as FP32: "
        "`port_bytes` x (1 + 2 x tiles) bytes. A normalised output row is tiles x lanes elements.",
    ]
    (folder / "layout.md").write_text(page(*parts), "utf-8")


def _presets(folder: Path) -> None:
    said = _field_comments()
    names = [f.name for f in fields(CoreConfig) if f.name != "name"]
    rows = [
        (code(n), *(_value(getattr(c, n)) for c in PRESETS.values()), said.get(n, ""))
        for n in names
    ]
    derived = [
        (code(n), *(f"{getattr(c, n):,}" for c in PRESETS.values()))
        for n in ("port_bytes", "port_bits", "max_tiles", "chunks_per_page")
    ]
    multipliers = ("multipliers", *(f"{c.rows * c.lanes:,}" for c in PRESETS.values()))
    parts = [
        "# Presets and parameters",
        "Made from `hdl/config.py`: one frozen dataclass, checked when it is made.",
        table(("parameter", *PRESETS, "meaning"), rows),
        "Derived:",
        table(("value", *PRESETS), [*derived, multipliers]),
        "`m890 verilog small --rows 4 -o build/verilog` builds a core of your own parameters "
        "([command line](command-line.md)). What of the preset m890 is public and what is assumed: "
        "[the M890](../m890.md).",
    ]
    (folder / "presets.md").write_text(page(*parts), "utf-8")


def _value(value: int) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:,}"


def _field_comments() -> dict[str, str]:
    found = {}
    for line in inspect.getsource(CoreConfig).split("\n"):
        head, _, text = line.partition("#")
        if ":" in head and text:
            found[head.split(":")[0].strip()] = text.strip()
    return found
