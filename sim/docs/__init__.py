"""Pages and pictures of the documentation that are made from the code; docs/conf.py calls it."""

from collections.abc import Sequence
from pathlib import Path

README_PICTURE = "docs/pictures/core.svg"
"""A copy of the core's diagram: README.md is read where nothing has been generated."""
PRESETS = ("tiny", "small", "m890")
"""Presets whose widths the tables of ports show."""


def generate(folder: Path, presets: Sequence[str] = PRESETS) -> None:
    """Writes every generated page into `folder` (docs/_generated); what is the same stays."""
    from m890.sim.docs import blocks, diagram, graph, memory, records, reference

    folder.mkdir(parents=True, exist_ok=True)
    records.write(folder)
    reference.write(folder)
    memory.write(folder)
    blocks.write(folder / "blocks", presets)
    top = graph.first_of(presets[0])
    for name, kind in (("core", "Core"), ("engine", "AttentionEngine"), ("kv-path", "KvPath")):
        if picture := diagram.block_diagram(top[kind]):
            (folder / f"diagram-{name}.svg").write_text(picture.text(), "utf-8")
