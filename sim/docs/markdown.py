"""Helpers that write Markdown for Sphinx (MyST)."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; `|` in cells is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


def page(*parts: str) -> str:
    """Parts with blank lines between, empty ones left out."""
    return "\n\n".join(p.strip("\n") for p in parts if p.strip()) + "\n"


def escape(text: str) -> str:
    """Prose of a docstring: what Markdown would take for markup stays as it is."""
    out, inside = [], False
    for part in text.split("`"):
        if inside:
            out.append(f"`{part}`")
        else:
            for mark in ("\\", "*", "<", "[", "]", "$"):
                part = part.replace(mark, "\\" + mark)
            out.append(part)
        inside = not inside
    return "".join(out)
