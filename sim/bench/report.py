"""Writes docs/performance.md: a table per bench, with the command that measures it again.

The figures lie beside the page as `results/NAME.json`, so that one bench can be measured anew. What
people write between the tables stays: only the lines between a bench's two marks are replaced.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from m890.sim.bench.registry import Item, names

TITLE = """# Performance

Every table is written by the command above it; `make bench` measures them all again. Seeds are
fresh each time, `--seed` repeats a run. The same figures as JSON are in the folder `results`.
"""


def save(page: Path, bench: str, items: Iterable[Item]) -> None:
    """Keeps the figures of one bench beside the page."""
    folder = page.parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([item.as_dict() for item in items], indent=1, allow_nan=False)
    (folder / f"{bench}.json").write_text(text + "\n", "utf-8")


def write(page: Path) -> None:
    """Renews the tables of the page from the figures beside it."""
    text = page.read_text("utf-8") if page.exists() else TITLE
    for file in sorted((page.parent / "results").glob("*.json")):
        items = [Item(**entry) for entry in json.loads(file.read_text("utf-8"))]
        text = _replace(text, file.stem, _section(file.stem, items))
    page.write_text(text, "utf-8")


def _replace(text: str, bench: str, section: str) -> str:
    first, last = f"<!-- bench {bench} -->", f"<!-- end {bench} -->"
    block = f"{first}\n{section}\n{last}"
    if first not in text:
        about = names().get(bench, "").rstrip(".")
        return f"{text.rstrip()}\n\n## {bench}\n\n{about + '.' if about else ''}\n\n{block}\n"
    return re.sub(f"{re.escape(first)}.*?{re.escape(last)}", lambda _: block, text, flags=re.DOTALL)


def _section(bench: str, items: list[Item]) -> str:
    """The command, what all figures share, and a table with what differs."""
    keys = list(dict.fromkeys(key for item in items for key in item.config))
    shared = {
        key: items[0].config[key]
        for key in keys
        if all(key in i.config and i.config[key] == items[0].config[key] for i in items)
    }
    seed = f" --seed {shared['seed']}" if "seed" in shared else ""
    lines = ["", "```sh", f"m890 bench {bench}{seed}", "```", ""]
    if shared:
        lines += [f"Measured with {_config(shared)}.", ""]
    lines += ["| figure | value | unit | with |", "|---|---:|---|---|"]
    for item in items:
        own = {key: value for key, value in item.config.items() if key not in shared}
        lines.append(f"| `{item.name}` | {number(item.value)} | {item.unit} | {_config(own)} |")
    return "\n".join([*lines, ""])


def _config(config: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in config.items())


def number(value: float) -> str:
    """Four significant digits, whole numbers in full."""
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"
