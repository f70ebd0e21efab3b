"""Block diagrams, drawn from what graph.py reads in the source."""

from m890.sim.docs.graph import Block
from m890.sim.docs.svg import GREY, LINE, Arrow, Layered, Node, Picture

FEW = 16
"""Up to so many arrows, single signals are drawn too."""


def block_diagram(block: Block, *, inside: bool = True) -> Picture | None:
    """The parts of a block and the streams between them; None where there are fewer than two."""
    if len(block.children) < 2:
        return None
    streams = [e for e in block.edges if e.stream]
    plain = [e for e in block.edges if not e.stream]
    if len(block.edges) > FEW:
        linked = {n for e in streams for n in (e.source, e.target)}
        plain = [e for e in plain if e.source and e.target and not {e.source, e.target} <= linked]
    nodes, arrows = [], []
    for child in block.children:
        parts = list(dict.fromkeys(c.name for c in child.children)) if inside else []
        nodes.append(Node(child.name, child.name, child.kind, _lines(parts)))
    for edge in [*streams, *plain]:
        color = LINE if edge.stream else GREY
        if edge.source and edge.target:
            arrows.append(Arrow(edge.source, edge.target, _label(edge.names), color))
            continue
        name = ", ".join(edge.names) if edge.stream else _label(edge.names)
        end = f"{'>' if edge.source else '<'}{name}"
        if all(n.name != end for n in nodes):
            nodes.append(Node(end, name, port=True))
        arrows.append(Arrow(edge.source or end, edge.target or end, "", color))
    used = {n for a in arrows for n in (a.source, a.target)}
    layered = Layered(f"Inside {block.kind}", [n for n in nodes if n.name in used], arrows)
    return layered.draw() if len(used) > 1 else None


def _label(names: tuple[str, ...]) -> str:
    """As many names as are read at a glance, and the number of the others."""
    names = tuple(n for n in names if n not in ("o", "i"))
    shown: list[str] = []
    for name in names:
        if shown and sum(len(n) + 2 for n in shown) + len(name) > 24:
            break
        shown.append(name)
    return ", ".join(shown) + (f" +{len(names) - len(shown)}" if len(shown) < len(names) else "")


def _lines(parts: list[str]) -> list[str]:
    """Names of parts, a few per line."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) < 24:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines
