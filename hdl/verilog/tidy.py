"""Changes of single modules that leave their function as it is: less noise, better names."""

import re

from m890.hdl.verilog.netlist import Item, Netlist, Wire

_KEPT = ("$print", "$check", "$anyconst", "$anyseq")  # cells that do something by themselves
_MEMORY_CONTENTS = "$meminit_v2"
_FIELD = re.compile(r"\.(\w+)|\[(\d+)\]")


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
            if own not in dead and driver not in restored and not _FIELD.search(own):
                restored[driver] = own
    # A child shows the fields of its ports itself.
    gone = {*dead, *restored, *(signal for port, signal in given if port == _plain(signal))}
    dead |= {n for n in module.wires if n.startswith(tuple(f"{g}{c}" for g in gone for c in ".["))}
    module.connects = [(a, b) for a, b in module.connects if a not in dead]
    for name in dead | set(restored.values()):
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
        first = {n: module.wires[n] for n in ("\\clk", "\\rst") if n in module.ports}
        module.wires = first | module.wires
        for port in module.ports:
            name = names.get(port, port)
            clean = "\\" + name.lstrip("\\_$").replace("$", "_")
            if clean[1:2].isdigit():  # an unnamed intermediate value
                clean = "\\value_" + clean[1:]
            if module.name not in keep and clean not in module.wires:
                names |= {port: clean, name: clean}
        module.rename(names)
        module.connects = [(a, b) for a, b in module.connects if a != b]
        new[module.name] = names
    for module in modules:
        for item in module.instances:
            ports = new.get(item.type, {})
            item.reconnect(ports)


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
        connects = [(a, b) for a, b in module.connects if a not in dead]
        if len(items) == len(module.items) and len(connects) == len(module.connects):
            return
        gone = {a for a, _ in module.connects} - {a for a, _ in connects}
        gone |= {i.connections()["\\Y"] for i in module.items if i not in items}
        module.items, module.connects = items, connects
        module.wires = {n: w for n, w in module.wires.items() if n not in gone}


def readable_names(module: Netlist, modules: dict[str, Netlist]) -> None:
    """Names that say what a signal is: `instance__port`, `_register__next`, `signal__field`.

    What starts with an underscore is left out of waves by Verilator.
    """
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
            if not child or signal not in wires or wires[signal].direction:
                continue
            drives = child.wires[port].direction == "output"
            if (drives and signal.startswith("$")) or (
                _plain(signal) == _plain(port) and (drives or "$" in signal)
            ):
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
            q = "\\Q"
            ends = item.connections()
            if (
                ends["\\D"].startswith("$")
                and ends["\\Q"].startswith("\\")
                and " " not in ends["\\Q"]
            ):
                give(ends["\\D"], f"\\_{new.get(ends[q], ends[q])[1:]}__next")
    for name in [*wires, *(item.name for item in module.items)]:
        if name.startswith("$"):
            give(name, f"\\_{name[1:]}_")
    module.rename(new)


def _field_name(name: str) -> str:
    path = name[name.index(".") :]
    return "".join(f"__{a or b}" for a, b in _FIELD.findall(path))


def select_parts(module: Netlist) -> None:
    """Rewrite variable part selects, which Amaranth writes as shifts of the whole vector.

    A shift of a wide vector is slow to simulate, hides the multiplexer from a reader and cuts its
    result without saying so. Where the offset cannot leave the vector (widened with zeros), it is
    an indexed part select.
    """
    products = {i.connections()["\\Y"]: i for i in module.items if i.type == "$mul"}
    for item in list(module.items):
        if item.type != "$shift":
            continue
        ends = item.connections()
        widths = [int(item.parameter(f"{p}_WIDTH")) for p in "ABY"]
        source, offset, result = (ends[f"\\{p}"] for p in "ABY")
        most = (1 << widths[1]) - 1
        product = products.get(offset)
        if product is not None and re.fullmatch(r"\d+'0*1(0*)", product.connections()["\\B"]):
            index, stride = (product.connections()[f"\\{p}"] for p in "AB")
            zeros = len(stride) - stride.rindex("1") - 1
            index = index.removeprefix("{ ").removesuffix(" }")
            offset = f"{{ {index} {zeros}'{'0' * zeros} }}" if zeros else index
            widths[1] = int(product.parameter("A_WIDTH")) + zeros
            most = (1 << widths[1]) - (1 << zeros)
        needed = most + widths[2]
        signed = item.parameter("A_SIGNED") != "0"
        if needed > 4 * widths[0]:
            _widen(module, item, result, widths)
            continue
        if source not in module.wires:
            source = _new_wire(module, widths[0], source)
        if (more := needed - widths[0]) > 0:
            sign = f"{source} [{widths[0] - 1}]"
            fill = " ".join([sign] * more) if signed else f"{more}'{'0' * more}"
            source, widths[0] = _new_wire(module, needed, f"{{ {fill} {source} }}"), needed
        item.type = "$shiftx"
        item.lines = [
            "    parameter \\A_SIGNED 0",
            "    parameter \\B_SIGNED 0",
            *(f"    parameter \\{p}_WIDTH {w}" for p, w in zip("ABY", widths, strict=True)),
            f"    connect \\A {source}",
            f"    connect \\B {offset}",
            f"    connect \\Y {result}",
        ]


def _new_wire(module: Netlist, width: int, value: str = "") -> str:
    name = f"$select{len(module.wires)}"
    module.wires[name] = Wire(width)
    if value:
        module.connects.append((name, value))
    return name


def _widen(module: Netlist, item: Item, result: str, widths: list[int]) -> None:
    """Let a shift give its whole result, of which the low part is taken."""
    if widths[2] >= widths[0]:
        return
    name = _new_wire(module, widths[0])
    old, new = f"parameter \\Y_WIDTH {widths[2]}", f"parameter \\Y_WIDTH {widths[0]}"
    item.lines = [line.replace(old, new) for line in item.lines if "connect \\Y " not in line]
    item.lines.append(f"    connect \\Y {name}")
    module.connects.append((result, f"{name} [{widths[2] - 1}:0]"))


_MIRRORED = {"$lt": "$gt", "$gt": "$lt", "$le": "$ge", "$ge": "$le"}


def fold_comparisons(module: Netlist) -> None:
    """Comparisons of an unsigned number with a constant that its width decides: no comparator."""
    for item in [i for i in module.items if i.type in _MIRRORED]:
        if item.parameter("A_SIGNED") != "0":
            continue
        ends = item.connections()
        kind, width, bound = item.type, int(item.parameter("A_WIDTH")), _constant(ends["\\B"])
        if bound is None:
            kind, bound = _MIRRORED[kind], _constant(ends["\\A"])
            width = int(item.parameter("B_WIDTH"))
        if bound is None:
            continue
        most = (1 << width) - 1
        always = {"$lt": bound > most, "$le": bound >= most, "$gt": False, "$ge": bound == 0}[kind]
        never = {"$lt": bound == 0, "$le": False, "$gt": bound >= most, "$ge": bound > most}[kind]
        if always or never:
            module.items.remove(item)
            module.connects.append((ends["\\Y"], f"1'{int(always)}"))


def _constant(signal: str) -> int | None:
    if re.fullmatch(r"\{\s*\}", signal):
        return 0
    match = re.fullmatch(r"\d+'([01]+)", signal)
    return int(match[1], 2) if match else None


def separate_names(module: Netlist, modules: dict[str, Netlist]) -> None:
    """An instance is not called like a signal in it, which would hide one from the other."""
    for item in module.instances:
        child = modules.get(item.type)
        if child and item.name in child.wires:
            item.name = f"\\u_{item.name[1:]}"
