"""Amaranth's intermediate text (RTLIL) as editable modules.

Only what Amaranth itself emits is understood; Yosys reads the result.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_RANGE = re.compile(r"(\\\S+|\$\S+) \[(?:(\d+):)?(\d+)\]")


@dataclass
class Wire:
    """A declared wire: its declaration's words after the name's removal, and attribute lines."""

    width: int
    signed: bool = False
    direction: str = ""  # input, output or nothing
    attributes: list[str] = field(default_factory=list)


@dataclass
class Item:
    """A cell, memory or process: `kind`, the cell's `type`, `name` and the lines in between."""

    kind: str
    type: str
    name: str
    lines: list[str]
    attributes: list[str] = field(default_factory=list)

    @property
    def instance(self) -> bool:
        return self.kind == "cell" and self.type.startswith("\\")

    def reconnect(self, ports: dict[str, str]) -> None:
        """Rename the ports that a cell's connections go to."""

        def line(text: str) -> str:
            words = text.split(None, 2)
            if words[0] != "connect":
                return text
            return f"    connect {ports.get(words[1], words[1])} {words[2]}"

        self.lines = [line(text) for text in self.lines]

    def parameter(self, name: str) -> str:
        """The value of a cell's parameter, as written."""
        start = f"parameter \\{name} "
        return next(x.strip()[len(start) :] for x in self.lines if x.strip().startswith(start))

    def connections(self) -> dict[str, str]:
        """A cell's connections, port to signal, both as written."""
        return dict(
            line.split(None, 2)[1:]  # type: ignore[misc]
            for line in self.lines
            if line.lstrip().startswith("connect ")
        )


@dataclass
class Netlist:
    """One module."""

    name: str
    wires: dict[str, Wire] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    connects: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ports(self) -> list[str]:
        """Names of the ports, in order."""
        return [name for name, wire in self.wires.items() if wire.direction]

    @property
    def instances(self) -> list[Item]:
        return [item for item in self.items if item.instance]

    def text(self) -> str:
        """The module as RTLIL."""
        out = [f"module {self.name}\n"]
        port = 1  # Yosys takes 0 for no position
        for name, wire in self.wires.items():
            out += (f"  {a}\n" for a in wire.attributes)
            words = f"width {wire.width}"
            if wire.direction:
                words += f" {wire.direction} {port}"
                port += 1
            out.append(f"  wire {words}{' signed' if wire.signed else ''} {name}\n")
        for item in self.items:
            out += (f"  {a}\n" for a in item.attributes)
            if item.kind == "memory":
                out.append(f"  memory {item.type} {item.name}\n")
                continue
            out.append(f"  {' '.join(filter(None, (item.kind, item.type, item.name)))}\n")
            out += (f"{line}\n" for line in item.lines)
            out.append("  end\n")
        out += (f"  connect {left} {right}\n" for left, right in self.connects)
        return "".join(out) + "end\n"

    def rename(self, names: dict[str, str]) -> None:
        """Rename wires and items (not memories, which parameters name)."""
        if not names:
            return
        self.wires = {names.get(n, n): w for n, w in self.wires.items()}
        for item in self.items:
            item.name = names.get(item.name, item.name)
            item.lines = [_renamed(line, names, cell=item.kind == "cell") for line in item.lines]
        self.connects = [(_words(a, names), _words(b, names)) for a, b in self.connects]


def parse(text: str) -> list[Netlist]:
    """All modules of an RTLIL text that Amaranth wrote."""
    modules: list[Netlist] = []
    lines = iter(text.splitlines())
    attributes: list[str] = []
    for line in lines:
        words = line.split()
        if not words:
            continue
        if words[0] == "attribute":
            attributes.append(line.strip())
            continue
        if words[0] == "module":
            modules.append(Netlist(words[1]))
        elif words[0] == "wire":
            modules[-1].wires[words[-1]] = _wire(words, attributes)
        elif words[0] == "memory":
            kind = " ".join(words[1:-1])
            modules[-1].items.append(Item("memory", kind, words[-1], [], attributes))
        elif words[0] in ("cell", "process"):
            kind = words[1] if words[0] == "cell" else ""
            item = Item(words[0], kind, words[-1], list(_body(lines)), attributes)
            modules[-1].items.append(item)
        elif words[0] == "connect":
            modules[-1].connects.append(_split(line.strip().removeprefix("connect ")))
        attributes = []
    for module in modules:
        _drop_full_ranges(module)
    return modules


def _drop_full_ranges(module: Netlist) -> None:
    """`name [7:0]` of an 8-bit wire becomes `name`."""

    def whole(match: re.Match[str]) -> str:
        wire = module.wires.get(match[1])
        full = wire is not None and match[3] == "0" and int(match[2] or 0) == wire.width - 1
        return match[1] if full else match[0]

    def tidy(text: str) -> str:
        return _RANGE.sub(whole, text)

    for item in module.items:
        item.lines = [tidy(line) for line in item.lines]
    module.connects = [(tidy(a), tidy(b)) for a, b in module.connects]


def _wire(words: list[str], attributes: list[str]) -> Wire:
    direction = next((w for w in words[3:-1] if w in ("input", "output")), "")
    keep = [a for a in attributes if not a.startswith("attribute \\src ")]
    return Wire(int(words[2]), "signed" in words[3:-1], direction, keep)


def _body(lines: Iterator[str]) -> Iterator[str]:
    """The lines up to the `end` that closes a cell or process."""
    depth = 0
    for line in lines:
        word = line.split(None, 1)[0] if line.strip() else ""
        if word == "end":
            if not depth:
                return
            depth -= 1
        elif word == "switch":
            depth += 1
        if word and word != "attribute":
            yield line


def _split(text: str) -> tuple[str, str]:
    """The two signals of a connection: a name, a name with a range, or a list in braces."""
    words, depth = text.split(), 0
    for n, word in enumerate(words):
        depth += (word == "{") - (word == "}")
        if not depth and not (n + 1 < len(words) and words[n + 1].startswith("[")):
            return " ".join(words[: n + 1]), " ".join(words[n + 1 :])
    raise ValueError(f"no connection: {text}")


def _words(text: str, names: dict[str, str]) -> str:
    return " ".join(names.get(word, word) for word in text.split())


def _renamed(line: str, names: dict[str, str], *, cell: bool) -> str:
    words = line.split()
    if words[0] == "parameter":
        return line
    start = 2 if cell else 0  # a cell's port names stay
    indent = line[: len(line) - len(line.lstrip())]
    return indent + " ".join([*words[:start], *(names.get(w, w) for w in words[start:])])
