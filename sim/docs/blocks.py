"""One page per hardware block, from its docstring, its ports and its place in the core."""

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from amaranth.hdl import Shape
from amaranth.lib import data, wiring

from m890.sim.docs.diagram import block_diagram
from m890.sim.docs.graph import ROOT, Block, classes, every, first_of, hierarchy, members
from m890.sim.docs.markdown import code, escape, page, table

SECTIONS = (
    "Function", "Members", "Latency", "Throughput", "Backpressure", "Storage", "Errors",
    "Parameters", "Source",
)  # fmt: skip
"""Sections of a block's docstring, in this order."""
FOLDERS = {
    "": "Core and cluster",
    "control": "Control",
    "kv": "KV read path and append",
    "pages": "Page manager",
    "attention": "Row array",
    "numerics": "Numeric units",
    "memory": "Memory and queues",
}
"""Folders of hdl/, in the order in which the list of blocks shows them."""


def slug(name: str) -> str:
    """File name of a block's page."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def sections(kind: type) -> dict[str, str]:
    """A docstring's summary (under "") and its sections."""
    found, name = {"": ""}, ""
    for line in (kind.__dict__.get("__doc__") or "").expandtabs().split("\n"):
        if (word := line.strip()) in SECTIONS and len(line) - len(line.lstrip()) <= 4:
            name = word
            found[name] = ""
        else:
            found[name] += line + "\n"
    return {n: inspect.cleandoc(text).strip() for n, text in found.items() if text.strip()}


def write(folder: Path, presets: Sequence[str]) -> None:
    """Pages, pictures and the list of blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    tests = _tests()
    groups: dict[str, list[tuple[str, type]]] = {}
    for name, kind in classes().items():
        path = _file(kind)
        group = path.parent.name if path.parent.name != "hdl" else ""
        groups.setdefault(group, []).append((name, kind))
        _write_page(folder, name, kind, presets, tests.get(kind.__module__, []))
    parts = ["# Blocks", _INTRO, _tree(hierarchy(presets[0]))]
    order = [*FOLDERS, *(g for g in groups if g not in FOLDERS)]
    for group in (g for g in order if g in groups):
        parts.append(f"## {FOLDERS.get(group, group)}")
        rows = [
            (f"[{name}]({slug(name)}.md)", escape(" ".join(sections(kind).get("", "").split())))
            for name, kind in groups[group]
        ]
        parts.append(table(("block", "what it does"), rows))
    names = "\n".join(slug(n) for g in order for n, _ in groups.get(g, []))
    parts.append("```{toctree}\n:hidden:\n\n" + names + "\n```")
    (folder / "index.md").write_text(page(*parts), "utf-8")


_INTRO = """Every page here is made from the source: the text from the block's docstring, the ports
from its signature, the picture from its submodules and the wires between them. Blue arrows are
streams and memory ports, with their names; grey ones are single signals; names at the border are
the block's own ports."""


def _tree(top: Block) -> str:
    """The hierarchy by instance names."""
    lines: list[str] = []

    def show(block: Block, depth: int) -> None:
        mark = "  " * depth
        lines.append(f"{mark}{block.name:<{max(1, 34 - 2 * depth)}} {block.kind}")
        for child in block.children:
            if child.kind not in ("Queue", "Sram"):
                show(child, depth + 1)

    show(top, 0)
    return "```text\n" + "\n".join(lines) + "\n```\n\nQueues and memories are left out."


def _write_page(
    folder: Path, name: str, kind: type, presets: Sequence[str], tests: list[Path]
) -> None:
    said = sections(kind)
    blocks = {p: first_of(p)[name] for p in presets if name in first_of(p)}
    parts = [f"# {name}", escape(said.get("", ""))]
    source = _file(kind)
    links = [_download(source)] + [_download(t) for t in tests]
    parts.append(f"Source: {links[0]}." + (f" Tests: {', '.join(links[1:])}." if tests else ""))
    for section in SECTIONS:
        if section not in said:
            continue
        parts.append(f"## {section}")
        if section in ("Members", "Parameters"):
            parts.append(_definitions(said[section]))
        else:
            parts.append(escape(said[section]))
        if section == "Latency":
            parts.append(_latencies(blocks))
    if blocks:
        block = next(iter(blocks.values()))
        parts += ["## Ports", _ports({p: b.component for p, b in blocks.items()})]
        if picture := block_diagram(block):
            (folder / f"{slug(name)}.svg").write_text(picture.text(), "utf-8")
            parts += ["## Inside", f"![The parts of {name}]({slug(name)}.svg)"]
        if block.children:
            parts += ["## Parts", _children(block)]
        parts += ["## Used by", _users(name, presets[0])]
    (folder / f"{slug(name)}.md").write_text(page(*parts), "utf-8")


def _latencies(blocks: dict[str, Block]) -> str:
    values = {p: getattr(b.component, "latency", None) for p, b in blocks.items()}
    if not all(isinstance(v, int) for v in values.values()) or not values:
        return ""
    return table(("preset", *values), [("`latency`, cycles", *values.values())])


def _children(block: Block) -> str:
    rows = []
    for child in block.children:
        known = child.kind in classes()
        link = f"[{child.kind}]({slug(child.kind)}.md)" if known else child.kind
        rows.append((code(child.name), link))
    return table(("part", "block"), rows)


def _users(name: str, preset: str) -> str:
    rows = [
        (f"[{b.kind}]({slug(b.kind)}.md)", ", ".join(code(c.name) for c in mine))
        for b in {b.kind: b for b in every(preset)}.values()
        if (mine := [c for c in b.children if c.kind == name])
    ]
    return table(("block", "as"), rows) if rows else "The top of the design."


_NAME = r"\w[\w\[\]]*"
_NAMES = re.compile(rf"(?:(?<=^)|(?<=[.;)] ))({_NAME}(?:(?:, | \.\.\. | and ){_NAME})*) : ")


def _definitions(text: str) -> str:
    """`a, b : what they are. c : ...` as a table; text before the first name stays in front."""
    flat = " ".join(text.split())
    parts = _NAMES.split(flat)
    rows = [(code(parts[i]), escape(parts[i + 1].strip())) for i in range(1, len(parts) - 1, 2)]
    return page(escape(parts[0]), table(("name", "meaning"), rows) if rows else "")


def _ports(components: dict[str, Any]) -> str:
    """Direction and width of every wire of the signature, for each preset."""
    listed: dict[str, dict[str, tuple[str, str, int, str]]] = {}
    for preset, component in components.items():
        for path, direction, kind, width, fields in _wires(component):
            listed.setdefault(path, {})[preset] = (direction, kind, width, fields)
    if not listed:
        first = next(iter(components.values()))
        return "" if isinstance(first, wiring.Component) else "Plain attributes, see Members."
    rows = []
    for path, per in listed.items():
        direction, kind, _, fields = next(iter(per.values()))
        widths = [per[p][2] if p in per else "" for p in components]
        rows.append((code(path), direction, kind, *widths, fields))
    first = next(iter(components))
    head = ("port", "direction", "kind", *(f"{p}, bits" for p in components), f"fields ({first})")
    return table(head, rows)


def _wires(component: Any) -> Iterator[tuple[str, str, str, int, str]]:
    for name, member in members(component):
        label = name + "".join(f"[{d}]" for d in member.dimensions)
        flow = "in" if member.flow == wiring.In else "out"
        if not member.is_signature:
            yield label, flow, "signal", _width(member.shape), _fields(member.shape)
            continue
        signature = member.signature
        if isinstance(signature, wiring.FlippedSignature):
            signature = signature.flip()
        inner: Any = signature.members
        if set(inner) == {"payload", "valid", "ready"}:
            shape = inner["payload"].shape
            yield label, flow, "stream", _width(shape), _fields(shape)
            continue
        for part, leaf in inner.items():
            way = "out" if leaf.flow == member.flow else "in"
            if leaf.is_signature:
                shape = leaf.signature.members["payload"].shape
                yield f"{label}.{part}", way, "stream", _width(shape), _fields(shape)
            else:
                yield f"{label}.{part}", way, type(signature).__name__, _width(leaf.shape), ""


def _width(shape: Any) -> int:
    return Shape.cast(shape).width


def _fields(shape: Any) -> str:
    layout = shape
    if inspect.isclass(shape) and issubclass(shape, data.Struct):
        layout = data.Layout.cast(shape)
    if isinstance(layout, data.StructLayout):
        parts = [f"{n} {_width(f)}" for n, f in layout.members.items()]
        return ", ".join(parts)
    if isinstance(layout, data.ArrayLayout):
        return f"{layout.length} x {_width(layout.elem_shape)}"
    return ""


def _file(kind: type) -> Path:
    return Path(inspect.getfile(kind)).resolve().relative_to(ROOT)


def _download(path: Path) -> str:
    return f"{{download}}`{path} <../../../{path}>`"


def _tests() -> dict[str, list[Path]]:
    """Test files by the modules of hdl/ that they are about: of the same name, or imported."""
    by_name: dict[str, list[Path]] = {}
    imports: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "testbench").rglob("test_*.py")):
        file = path.relative_to(ROOT)
        stem = path.stem.removeprefix("test_")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("m890.hdl."):
                same = str(node.module).rsplit(".", 1)[-1] == stem
                into = by_name if same else imports
                if file not in into.setdefault(str(node.module), []):
                    into[str(node.module)].append(file)
    found = {}
    for module in dict.fromkeys(k.__module__ for k in classes().values()):
        name, area = module.rsplit(".", 1)[-1], module.rsplit(".", 2)[-2]
        named = [
            p.relative_to(ROOT)
            for p in sorted((ROOT / "testbench").rglob(f"test_{name}.py"))
            if p.parent.name == area
        ]
        direct = list(dict.fromkeys([*named, *by_name.get(module, []), *imports.get(module, [])]))
        if not direct:  # through the block around it
            around = sorted((ROOT / "testbench/hdl" / area).glob("test_*.py"))
            direct = [p.relative_to(ROOT) for p in around[:4]]
        found[module] = direct[:6]
    return found
