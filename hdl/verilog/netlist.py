"""Amaranth's intermediate text (RTLIL) as editable modules: parse, tidy, merge identical ones.

Only what Amaranth itself emits is understood; Yosys reads the result.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_KEPT = ("$print", "$check", "$anyconst", "$anyseq")  # cells that do something by themselves
_MEMORY_CONTENTS = "$meminit_v2"
_RANGE = re.compile(r"(\\\S+|\$\S+) \[(?:(\d+):)?(\d+)\]")
_FIELD = re.compile(r"\.(\w+)|\[(\d+)\]")


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


def drop_empty_contents(module: Netlist) -> None:
    """Memories that start with zeros only start with nothing: no `initial` in the Verilog."""

    def contents(item: Item) -> bool:
        data = item.connections().get("\\DATA", "")
        return item.type == _MEMORY_CONTENTS and "1" not in data.partition("'")[2]

    module.items = [item for item in module.items if not contents(item)]


def _plain(name: str) -> str:
    """A name without the marks that Amaranth and Python put around it."""
    return re.sub(r"\$\d+$", "", name).lstrip("\\_$")


def drop_copies(module: Netlist) -> None:
    """Drop wires that only repeat what an instance's input port is given.

    Amaranth names a child's port signal in the parent too, although nothing there reads it, and
    may even name the parent's own signal after it: then the parent's name is restored.
    """
    given = {
        (_plain(port), signal)
        for item in module.instances
        for port, signal in item.connections().items()
    }

    def inner(name: str) -> bool:
        return name in module.wires and not module.wires[name].direction

    dead = {a for a, b in module.connects if (_plain(a), b) in given and inner(a)}
    restored: dict[str, str] = {}
    for own, driver in module.connects:
        if (_plain(driver), driver) in given and inner(own) and inner(driver):
            if own not in dead and driver not in restored:
                restored[driver] = own
    gone = (*dead, *restored)
    dead |= {n for n in module.wires if n.startswith(tuple(f"{g}{c}" for g in gone for c in ".["))}
    module.connects = [(a, b) for a, b in module.connects if a not in dead]
    for name in (*dead, *restored.values()):
        del module.wires[name]
    module.rename(restored)
    module.connects = [(a, b) for a, b in module.connects if a != b]


def drop_elements(module: Netlist) -> None:
    """Drop the wires that show single elements of arrays: they are many, and nothing reads them."""
    dead = {n for n in module.wires if n.startswith("\\") and "[" in n}
    module.connects = [(a, b) for a, b in module.connects if a not in dead]
    for name in dead:
        del module.wires[name]


def name_ports(modules: list[Netlist], keep: set[str]) -> None:
    """Give ports that Amaranth left without a name the name of the wire that copies them.

    Leading underscores go too. Ports of modules in `keep` stay as they are.
    """
    new: dict[str, dict[str, str]] = {}
    for module in modules:
        names: dict[str, str] = {}
        for left, right in module.connects:
            for port, copy in ((left, right), (right, left)):
                if port.startswith("\\port$") and copy in module.wires and port not in names:
                    if not module.wires[copy].direction and port in module.wires:
                        names[port] = copy
        module.wires = {n: w for n, w in module.wires.items() if n not in names.values()}
        for port in module.ports:
            name = names.get(port, port)
            clean = "\\" + name.lstrip("\\_$")
            if module.name not in keep and clean not in module.wires:
                names |= {port: clean, name: clean}
        module.rename(names)
        module.connects = [(a, b) for a, b in module.connects if a != b]
        new[module.name] = names
    for module in modules:
        for item in module.instances:
            ports = new.get(item.type, {})
            item.lines = [_reconnected(line, ports) for line in item.lines]


def drop_unread(module: Netlist) -> None:
    """Drop cells whose result has no name and no reader."""
    while True:
        uses: dict[str, int] = {}
        for text in (*(line for i in module.items for line in i.lines), *sum(module.connects, ())):
            for word in text.split():
                if word.startswith("$"):
                    uses[word] = uses.get(word, 0) + 1
        dead = {n for n in module.wires if n.startswith("$") and uses.get(n, 0) <= 1}
        items = [
            i
            for i in module.items
            if not (i.kind == "cell" and i.type.startswith("$") and i.type not in _KEPT
                    and i.connections().get("\\Y") in dead)
        ]  # fmt: skip
        if len(items) == len(module.items):
            return
        gone = {i.connections()["\\Y"] for i in module.items if i not in items}
        module.items = items
        module.wires = {n: w for n, w in module.wires.items() if n not in gone}


def readable_names(module: Netlist, modules: dict[str, Netlist]) -> None:
    """Names that say what a signal is: `instance__port`, `register__next`, `signal__field`."""
    new: dict[str, str] = {}
    taken = set(module.wires) | {item.name for item in module.items}
    wires = module.wires

    def give(old: str, name: str) -> None:
        if old not in new and name not in taken:
            new[old] = name
            taken.add(name)

    for item in module.instances:
        child = modules.get(item.type)
        for port, signal in item.connections().items():
            plain = signal in wires and not wires[signal].direction
            if child and plain and child.wires[port].direction == "output":
                if signal.startswith("$") or signal.split("$")[0] == port.split("$")[0]:
                    give(signal, f"{item.name}__{port[1:]}".replace("$", "_"))
    for name in [*wires, *(item.name for item in module.items if item.kind != "memory")]:
        if name in new or name.startswith("$") or (name in wires and wires[name].direction):
            continue
        if "." in name:
            give(name, new.get(name.split(".")[0], name.split(".")[0]) + _field_name(name))
        elif "$" in name:
            give(name, "\\" + re.sub(r"\W", "_", name[1:]).strip("_"))
    for item in module.items:
        if item.type in ("$dff", "$adff"):
            ends = item.connections()
            if (
                ends["\\D"].startswith("$")
                and ends["\\Q"].startswith("\\")
                and " " not in ends["\\Q"]
            ):
                give(ends["\\D"], new.get(ends["\\Q"], ends["\\Q"]) + "__next")
    for name in [*wires, *(item.name for item in module.items)]:
        if name.startswith("$"):
            give(name, f"\\_{name[1:]}_")  # the leading underscore keeps it out of waves
    module.rename(new)


def _field_name(name: str) -> str:
    path = name[name.index(".") :]
    return "".join(f"__{a or b}" for a, b in _FIELD.findall(path))


def merge(modules: list[Netlist], keep: set[str]) -> tuple[list[Netlist], dict[str, str]]:
    """Merge identical modules: bodies compared bottom-up, names and attributes left out.

    Returns the modules that are left, in the given order, and for every merged module's name the
    name of the one that stands for it. Modules named in `keep` are never replaced.
    """
    by_name = {m.name: m for m in modules}
    digests: dict[str, str] = {}
    first: dict[str, str] = {}
    replaced: dict[str, str] = {}
    for module in _bottom_up(modules, by_name):
        digest = digests[module.name] = _digest(module, by_name, digests)
        if module.name in keep:
            first.setdefault(digest, module.name)
        elif digest in first:
            replaced[module.name] = first[digest]
        else:
            first[digest] = module.name
    left = [m for m in modules if m.name not in replaced]
    for module in left:
        for item in module.instances:
            if (other := replaced.get(item.type)) is not None:
                ports = dict(zip(by_name[item.type].ports, by_name[other].ports, strict=True))
                item.type = other
                item.lines = [_reconnected(line, ports) for line in item.lines]
    return left, replaced


def _reconnected(line: str, ports: dict[str, str]) -> str:
    words = line.split(None, 2)
    if words[0] != "connect":
        return line
    return f"    connect {ports.get(words[1], words[1])} {words[2]}"


def _bottom_up(modules: list[Netlist], by_name: dict[str, Netlist]) -> list[Netlist]:
    order: dict[str, Netlist] = {}

    def visit(module: Netlist) -> None:
        if module.name in order:
            return
        for item in module.instances:
            if item.type in by_name:
                visit(by_name[item.type])
        order[module.name] = module

    for module in modules:
        visit(module)
    return list(order.values())


def _digest(module: Netlist, by_name: dict[str, Netlist], digests: dict[str, str]) -> str:
    """A hash of the body with local names replaced by the order of their first use."""
    number: dict[str, str] = {}

    def word(text: str) -> str:
        if text[0] in "\\$":
            return number.setdefault(text, f"#{len(number)}")
        return text

    def words(text: str) -> str:
        return " ".join(word(w) for w in text.split())

    out: list[str] = []
    for name, wire in module.wires.items():
        init = [a for a in wire.attributes if a.startswith("attribute \\init ")]
        out.append(f"{word(name)} {wire.width} {wire.signed} {wire.direction} {init}")
    for item in module.items:
        child = by_name.get(item.type)
        out.append(f"{item.kind} {digests[item.type] if child else item.type}")
        for line in item.lines:
            parts = line.split(None, 2)
            if item.kind == "cell" and parts[0] == "connect":
                port = str(child.ports.index(parts[1])) if child else parts[1]
                out.append(f"{port} {words(parts[2])}")
            elif parts[0] == "parameter":
                out.append(line.strip())
            else:
                out.append(words(line))
    out += (f"{words(a)} = {words(b)}" for a, b in module.connects)
    return hashlib.sha256("\n".join(out).encode()).hexdigest()
