"""Plain SVG: text, boxes and arrows, and a picture of boxes in layers with arrows between them."""

from dataclasses import dataclass, field
from html import escape

INK, GREY, ACCENT = "#1f2933", "#64748b", "#b45309"
LINE, FILL, EDGE = "#3b6ea5", "#eef4fb", "#7aa0c8"
FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"
ROW = 17
"""Height of a line of text, and the distance of two ports of a box."""


def text_width(text: str, size: float) -> float:
    """About how wide a text is."""
    narrow, wide = "iljtf.,:;|! ()[]'", "mwMW@"
    return size * sum(0.36 if c in narrow else 0.9 if c in wide else 0.6 for c in text)


class Picture:
    """An SVG that grows: shapes first, then `text()` gives the file."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.items: list[str] = []

    def box(
        self, x: float, y: float, w: float, h: float, fill: str = FILL, line: str = EDGE,
        radius: float = 5,
    ) -> None:  # fmt: skip
        self.items.append(
            f"<rect x='{x:.1f}' y='{y:.1f}' width='{w:.1f}' height='{h:.1f}' rx='{radius}' "
            f"fill='{fill}' stroke='{line}'/>"
        )

    def write(
        self, x: float, y: float, text: str, size: float = 12, color: str = INK,
        anchor: str = "start", bold: bool = False, mono: bool = False, halo: bool = False,
    ) -> None:  # fmt: skip
        font = "font-family='DejaVu Sans Mono, Menlo, monospace'" if mono else FONT
        more = " font-weight='bold'" if bold else ""
        if halo:
            more += " stroke='#fff' stroke-width='3' paint-order='stroke' stroke-linejoin='round'"
        self.items.append(
            f"<text x='{x:.1f}' y='{y:.1f}' {font} font-size='{size}' fill='{color}' "
            f"text-anchor='{anchor}'{more}>{escape(text)}</text>"
        )

    def path(self, d: str, color: str = LINE, width: float = 1.4, arrow: bool = True) -> None:
        head = f" marker-end='url(#{'a' if color == LINE else 'g'})'" if arrow else ""
        self.items.append(
            f"<path d='{d}' fill='none' stroke='{color}' stroke-width='{width}'{head}/>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str = EDGE) -> None:
        self.path(f"M{x1:.1f},{y1:.1f} L{x2:.1f},{y2:.1f}", color, 1, arrow=False)

    def text(self) -> str:
        heads = "".join(
            f"<marker id='{name}' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
            f"markerHeight='7' orient='auto-start-reverse'>"
            f"<path d='M0,0.5 L8,4 L0,7.5 z' fill='{color}'/></marker>"
            for name, color in (("a", LINE), ("g", GREY))
        )
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width:.0f} "
            f"{self.height:.0f}' width='{self.width:.0f}' height='{self.height:.0f}' role='img'>"
            f"<title>{escape(self.title)}</title><defs>{heads}</defs>"
            f"<rect width='100%' height='100%' rx='8' fill='#ffffff'/>" + "\n".join(self.items)
            + "</svg>\n"
        )  # fmt: skip


@dataclass
class Node:
    """A box: a title, a line under it, and small print; `port`: only a name at the border."""

    name: str
    title: str
    subtitle: str = ""
    lines: list[str] = field(default_factory=list)
    port: bool = False
    layer: int = 0
    x: float = 0
    y: float = 0

    @property
    def width(self) -> float:
        if self.port:
            return text_width(self.title, 12) + 16
        texts = [text_width(self.title, 13) * 1.08, text_width(self.subtitle, 10.5)]
        return max(90, *texts, *(text_width(line, 10) for line in self.lines)) + 22

    def text_height(self) -> float:
        if self.port:
            return 20
        return 14 + ROW + (15 if self.subtitle else 0) + 14 * len(self.lines)


@dataclass
class Arrow:
    source: str
    target: str
    label: str = ""
    color: str = LINE


class Layered:
    """Boxes in columns from left to right, arrows as smooth curves, crossings made few."""

    GAP = 26

    def __init__(self, title: str, nodes: list[Node], arrows: list[Arrow]) -> None:
        self.title = title
        self.nodes = {n.name: n for n in nodes}
        self.arrows = [a for a in arrows if a.source in self.nodes and a.target in self.nodes]
        self._rank()
        self._chains()
        self._order()

    def _rank(self) -> None:
        """Columns by the longest way from a source; arrows that close a circle are turned."""
        out: dict[str, list[Arrow]] = {n: [] for n in self.nodes}
        into = dict.fromkeys(self.nodes, 0)
        for a in self.arrows:
            out[a.source].append(a)
            into[a.target] += 1
        state: dict[str, int] = {}
        self.turned: set[int] = set()
        order: list[str] = []

        def visit(name: str) -> None:
            state[name] = 1
            for a in out[name]:
                if state.get(a.target) == 1:
                    self.turned.add(id(a))
                elif a.target not in state:
                    visit(a.target)
            state[name] = 2
            order.append(name)

        for name in sorted(self.nodes, key=lambda n: (not self.nodes[n].port, into[n] != 0)):
            if name not in state:
                visit(name)
        for name in reversed(order):
            self.nodes[name].layer = max(
                (
                    self.nodes[self._ends(a)[0]].layer + 1
                    for a in self.arrows
                    if self._ends(a)[1] == name
                ),
                default=0,
            )
        last = max((n.layer for n in self.nodes.values()), default=0)
        for name, n in self.nodes.items():
            ends = [self._ends(a) for a in self.arrows]
            if n.port and not any(e[0] == name for e in ends):
                n.layer = max(last, 1)
            elif n.port and not any(e[1] == name for e in ends):
                n.layer = min(self.nodes[e[1]].layer for e in ends if e[0] == name) - 1
        least = min((n.layer for n in self.nodes.values()), default=0)
        for n in self.nodes.values():
            n.layer -= least

    def _ends(self, arrow: Arrow) -> tuple[str, str]:
        if id(arrow) in self.turned:
            return arrow.target, arrow.source
        return arrow.source, arrow.target

    def _chains(self) -> None:
        """Arrows over several columns get a place in each."""
        count = max((n.layer for n in self.nodes.values()), default=0) + 1
        self.columns: list[list[str]] = [[] for _ in range(count)]
        for n in self.nodes.values():
            self.columns[n.layer].append(n.name)
        self.chains: list[list[str]] = []
        self.links: list[tuple[str, str]] = []
        for number, a in enumerate(self.arrows):
            left, right = self._ends(a)
            chain = [left]
            for layer in range(self.nodes[left].layer + 1, self.nodes[right].layer):
                name = f"*{number}.{layer}"
                self.columns[layer].append(name)
                chain.append(name)
            chain.append(right)
            self.chains.append(chain)
            self.links += list(zip(chain, chain[1:], strict=False))

    def _order(self) -> None:
        """Barycentres, to and fro."""
        near: dict[str, list[str]] = {}
        for a, b in self.links:
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
        place = {n: float(i) for c in self.columns for i, n in enumerate(c)}
        for sweep in range(24):
            columns = range(len(self.columns))
            for index in columns if sweep % 2 == 0 else reversed(columns):
                beside = {n for i in (index - 1, index + 1) if 0 <= i < len(self.columns)
                          for n in self.columns[i]}  # fmt: skip

                def key(name: str, beside: set[str] = beside) -> float:
                    ends = [place[n] for n in near.get(name, ()) if n in beside]
                    return sum(ends) / len(ends) if ends else place[name]

                self.columns[index].sort(key=key)
                size = len(self.columns[index])
                for i, n in enumerate(self.columns[index]):
                    place[n] = (i + 0.5) / size
        self.near = near

    def _height(self, name: str) -> float:
        if name not in self.nodes:
            return 12
        node = self.nodes[name]
        left = sum(chain[-1] == name for chain in self.chains)
        right = sum(chain[0] == name for chain in self.chains)
        return max(node.text_height(), 12 + ROW * max(left, right))

    def draw(self) -> Picture:
        heights = {n: self._height(n) for c in self.columns for n in c}
        center: dict[str, float] = {}
        for column in self.columns:
            y = 0.0
            for name in column:
                center[name] = y + heights[name] / 2
                y += heights[name] + self.GAP
        for sweep in range(12):  # pull towards the neighbours, keep order and distance
            columns = self.columns if sweep % 2 else self.columns[::-1]
            for column in columns:
                wish = [
                    sum(center[m] for m in self.near.get(n, (n,))) / len(self.near.get(n, (n,)))
                    for n in column
                ]
                self._settle(column, wish, heights, center)
        top = min(center[n] - heights[n] / 2 for n in center)
        widths = [max((self.nodes[n].width for n in c if n in self.nodes), default=10)
                  for c in self.columns]  # fmt: skip
        gaps = [70.0] * len(self.columns)
        for a in self.arrows:
            layer = self.nodes[a.source].layer - (id(a) in self.turned)
            gaps[layer] = max(gaps[layer], text_width(a.label, 10) + 60)
        xs, x = [], 18.0
        for w, gap in zip(widths, gaps, strict=True):
            xs.append(x)
            x += w + gap
        bottom = max(center[n] + heights[n] / 2 for n in center)
        picture = Picture(x - gaps[-1] + 18, bottom - top + 36, self.title)
        for index, column in enumerate(self.columns):
            for name in column:
                if node := self.nodes.get(name):
                    node.x = xs[index] + (widths[index] - node.width) / 2
                    if node.port and index == 0:
                        node.x = xs[index] + widths[index] - node.width
                    if node.port and index == len(self.columns) - 1:
                        node.x = xs[index]
                    node.y = center[name] - heights[name] / 2 - top + 18
        self._arrows(picture, center, heights, xs, widths, top - 18)
        for node in self.nodes.values():
            self._node(picture, node, heights[node.name])
        return picture

    def _settle(
        self, column: list[str], wish: list[float], heights: dict[str, float],
        center: dict[str, float],
    ) -> None:  # fmt: skip
        """As near to the wishes as distances allow: runs that would overlap move together."""
        runs: list[tuple[float, float, list[str]]] = []  # (sum of wished tops, height, names)
        for name, y in zip(column, wish, strict=True):
            size = heights[name] + self.GAP
            runs.append((y - heights[name] / 2, size, [name]))
            while len(runs) > 1:
                (a, ah, an), (b, bh, bn) = runs[-2:]
                if a + ah <= b:
                    break
                joined = (a * len(an) + (b - ah) * len(bn)) / (len(an) + len(bn))
                runs[-2:] = [(joined, ah + bh, an + bn)]
        for y, _, names in runs:
            for name in names:
                center[name] = y + heights[name] / 2
                y += heights[name] + self.GAP

    def _arrows(
        self, picture: Picture, center: dict[str, float], heights: dict[str, float],
        xs: list[float], widths: list[float], top: float,
    ) -> None:  # fmt: skip
        ports: dict[tuple[int, int], float] = {}
        for name in self.nodes:
            for side in (0, -1):
                mine = [i for i, chain in enumerate(self.chains) if chain[side] == name]
                mine.sort(key=lambda i: center[self.chains[i][1 if side == 0 else -2]])
                for k, i in enumerate(mine):
                    y = center[name] - top + (k - (len(mine) - 1) / 2) * ROW
                    ports[i, side] = y
        layer_of = {n: i for i, c in enumerate(self.columns) for n in c}
        for i, (a, chain) in enumerate(zip(self.arrows, self.chains, strict=True)):
            left, right = self.nodes[chain[0]], self.nodes[chain[-1]]
            points = [(left.x + left.width, ports[i, 0])]
            for name in chain[1:-1]:
                layer = layer_of[name]
                y = center[name] - top
                points += [(xs[layer], y), (xs[layer] + widths[layer], y)]
            points.append((right.x, ports[i, -1]))
            if id(a) in self.turned:
                points.reverse()
            picture.path(_curve(points), a.color)
            if a.label:
                x, y = points[0]
                back = id(a) in self.turned
                picture.write(
                    x + (-6 if back else 6), y - 3, a.label, 10, GREY if a.color == GREY else LINE,
                    "end" if back else "start", halo=True,
                )  # fmt: skip

    def _node(self, picture: Picture, node: Node, height: float) -> None:
        if node.port:
            picture.write(node.x + node.width / 2, node.y + height / 2 + 4, node.title, 12, ACCENT,
                          "middle", bold=True)  # fmt: skip
            return
        picture.box(node.x, node.y, node.width, height)
        x = node.x + node.width / 2
        y = node.y + (height - node.text_height()) / 2 + 7 + 13
        picture.write(x, y, node.title, 13, INK, "middle", bold=True)
        if node.subtitle:
            y += 15
            picture.write(x, y, node.subtitle, 10.5, GREY, "middle")
        for line in node.lines:
            y += 14
            picture.write(x, y, line, 10, GREY, "middle")


def _curve(points: list[tuple[float, float]]) -> str:
    out = [f"M{points[0][0]:.1f},{points[0][1]:.1f}"]
    for (x1, y1), (x2, y2) in zip(points, points[1:], strict=False):
        if abs(y1 - y2) < 0.5:
            out.append(f"L{x2:.1f},{y2:.1f}")
        else:
            bend = (x2 - x1) * 0.5
            out.append(f"C{x1 + bend:.1f},{y1:.1f} {x2 - bend:.1f},{y2:.1f} {x2:.1f},{y2:.1f}")
    return " ".join(out)
