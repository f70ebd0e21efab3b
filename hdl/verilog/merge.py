"""Merging of identical modules: Amaranth writes one module per instance."""

import hashlib

from m890.hdl.verilog.netlist import Netlist


def merge_identical(modules: list[Netlist], keep: set[str]) -> tuple[list[Netlist], dict[str, str]]:
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
                item.reconnect(ports)
    return left, replaced


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
