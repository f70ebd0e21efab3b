"""GTKWave save files: signals grouped by block, names instead of numbers, floats, markers."""

import re
import string
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

from vcd.gtkw import GTKWSave

from m890.hdl.commands import Error, Opcode, SegmentKind
from m890.hdl.kv.items import ItemKind
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.hdl.registers import Stall
from m890.hdl.verilog import ModuleInfo, VerilogDesign
from m890.sim.rtl.float_filter import write_filter

TICKS = 10
"""Time units of the FST per cycle."""
SCALE = 100
"""Picoseconds, in which GTKWave counts, per time unit of the FST."""
ZOOM = -14.5
"""About 130 cycles in a window of usual size."""
MARKERS = len(string.ascii_lowercase)
"""Markers that GTKWave has."""
BLOCKS = {
    "control": ("Control",),
    "kv": ("KvPath",),
    "attention": ("AttentionEngine",),
    "append": ("Append",),
    "memory": ("ReadArbiter", "WriteArbiter"),
    "rows": ("Row", "RowArray"),
}
"""Groups of the save file and the classes whose instances, with all below, belong to them."""
PINS = {
    "memory port: read": r"m_axi_(ar|r)\w+",
    "memory port: write": r"m_axi_(aw|w|b)\w+",
    "registers": r"s_axil_\w+",
}
_NAMES: tuple[tuple[str, int, type[IntEnum]], ...] = (
    (r"opcode$", 8, Opcode),
    (r"(^|_)error(_code)?$", 8, Error),
    (r"item(__payload)?(\.|__|_)kind$", 2, ItemKind),
    (r"(^|_)kind$", 2, SegmentKind),
    (r"(^|_)(cause|stall)$", 3, Stall),
    (r"output_format$", 2, OutputFormat),
    (r"(^|_)format$", 4, Format),
)
"""Signals that carry codes of commands: pattern of the name, width, what the codes mean."""
_FLOATS = ((r"(^|_)[kv]?_?scale$", 16, "bf16"), (r"(softcap(_inverse)?|sink)$", 32, "fp32"))
_DULL = ("Sram", "Memory")


def write(
    design: VerilogDesign, fst: Path, markers: Sequence[tuple[str, int]] = (), start: int = 0
) -> Path:
    """The save file beside an FST file, with its filter files in a folder.

    `markers` are names and cycles; GTKWave has 26, so the first of them are taken. `start` is the
    cycle at which the view begins. Returns the save file's path.
    """
    fst = fst.resolve()
    path = fst.with_suffix(".gtkw")
    filters = _Filters(fst.with_suffix(".filters"))
    marks = list(markers)[:MARKERS]
    with path.open("w", encoding="utf-8") as file:
        save = GTKWSave(file)
        save.comment("Written by m890. One nanosecond is one clock cycle.")
        save.dumpfile(str(fst))
        save.savefile(str(path))
        save.timestart(SCALE * TICKS * start)
        times = (SCALE * TICKS * cycle for _, cycle in marks)
        letters: Any = dict(zip(string.ascii_lowercase, times, strict=False))
        first = marks[0][1] if marks else start
        save.zoom_markers(ZOOM, SCALE * TICKS * first, **letters)
        for letter, (name, _) in zip(string.ascii_uppercase, marks, strict=False):
            file.write(f"[markername] {letter}{name}\n")
        save.size(1600, 1000)
        save.treeopen(f"{design.name}.")
        save.signals_width(320)
        save.sst_expanded(True)
        _signals(save, design, filters)
    return path


def _signals(save: GTKWSave, design: VerilogDesign, filters: "_Filters") -> None:
    top = design.modules[design.name]
    for name in ("clk", "rst", "irq"):
        if name in top.signals:
            save.trace(f"{design.name}.{name}")
    for title, pattern in PINS.items():
        with save.group(title, closed=True):
            for name in (n for n in top.signals if re.fullmatch(pattern, n)):
                _trace(save, design.name, top, name, filters)
    groups: dict[str, list[tuple[str, ModuleInfo]]] = {"core": [(design.name, top)]}
    groups |= {name: [] for name in BLOCKS}
    for path, info, block in _walk(design, design.name, top, ""):
        groups.setdefault(block, []).append((path, info))
    for block, members in groups.items():
        shown = [(p, i, names) for p, i in members if (names := _chosen(i))]
        if not shown:
            continue
        with save.group(block, closed=block == "rows"):
            for n, (path, info, names) in enumerate(shown):
                with save.group(path.removeprefix(f"{design.name}.") or path, closed=n > 0):
                    for name in names:
                        _trace(save, path, info, name, filters)


def _walk(
    design: VerilogDesign, path: str, info: ModuleInfo, block: str
) -> Iterator[tuple[str, ModuleInfo, str]]:
    """All instances below one, each with its path and the group it belongs to."""
    for name, module in info.instances:
        if (child := design.modules.get(module)) is None or child.source in _DULL:
            continue
        own = next((b for b, classes in BLOCKS.items() if child.source in classes), block or name)
        yield f"{path}.{name}", child, own
        yield from _walk(design, f"{path}.{name}", child, own)


def _chosen(info: ModuleInfo) -> list[str]:
    """What is worth a line: states and codes, floats, handshakes with their payloads, counters."""
    named = [n for n in info.signals if n in info.enums or _code(n, info.signals[n])]
    floats = [n for n in info.signals if n in info.floats]
    stream = [n for n in info.signals if re.search(r"(_valid|_ready|^valid|^ready|_last)$", n)]
    level = [n for n in info.signals if re.search(r"(^|_)(level|count|done|busy)$", n)]
    pins = "|".join(PINS.values())
    order = dict.fromkeys([*named, *stream, *level, *floats])
    return [name for name in order if not re.fullmatch(pins, name)]


def _code(name: str, width: int) -> type[IntEnum] | None:
    return next((e for pattern, w, e in _NAMES if w == width and re.search(pattern, name)), None)


def _trace(save: GTKWSave, path: str, info: ModuleInfo, name: str, filters: "_Filters") -> None:
    width = info.signals[name]
    full = f"{path}.{name}" + (f"[{width - 1}:0]" if width > 1 else "")
    enum = info.enums.get(name)
    if enum is None and (codes := _code(name, width)):
        enum = {code.value: code.name for code in codes}
    kind = info.floats.get(name)
    kind = kind or next((k for p, w, k in _FLOATS if w == width and re.search(p, name)), None)
    if enum:
        save.trace(full, datafmt="hex", translate_filter_file=str(filters.names(enum, width)))
    elif kind:
        save.trace(full, datafmt="hex", translate_filter_proc=str(filters.floats(kind)))
    else:
        save.trace(full, datafmt="hex" if width > 1 else "bin")


class _Filters:
    """The folder of filter files; equal ones are written once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Path] = {}

    def names(self, enum: dict[int, str], width: int) -> Path:
        digits = (width + 3) // 4
        body = "".join(f"{value:0{digits}X} {name}\n" for value, name in sorted(enum.items()))
        if body not in self._known:
            path = self._path(f"names{len(self._known)}.txt")
            path.write_text(body, encoding="utf-8")
            self._known[body] = path
        return self._known[body]

    def floats(self, kind: str) -> Path:
        if kind not in self._known:
            path = self._path(f"{kind}.py")
            write_filter(kind, path)
            self._known[kind] = path
        return self._known[kind]

    def _path(self, name: str) -> Path:
        self._folder.mkdir(exist_ok=True)
        return self._folder / name
