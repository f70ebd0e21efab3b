"""Figures of the working tree beside those of a base commit: better, worse or the same, each.

Both sides are the committed results (docs/results), but for the benches in QUICK: these count beats
and bytes, which repeat exactly, and are measured anew with the seed of the base commit's results.
"""

import fnmatch
import functools
import importlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from m890.sim.bench import registry, report
from m890.sim.bench.registry import BenchContext, BenchError, Progress, Silent

RESULTS = "docs/results"
QUICK = ("append", "sharing")
"""Benches that are measured anew: exact, and over in seconds."""
AUTO = "auto"
"""The commit that the branch left main at; on main, the commit before."""
MAINS = ("origin/HEAD", "origin/main", "main")


@dataclass(frozen=True)
class Row:
    """A figure on both sides; None where it is missing."""

    name: str
    unit: str
    base: float | None
    now: float | None
    better: str | None  # as the bench's BETTER says; None: it says nothing

    @property
    def verdict(self) -> str:
        if self.base is None or self.now is None:
            return "new" if self.base is None else "gone"
        if self.base == self.now:
            return "same"
        if self.better not in (registry.HIGHER, registry.LOWER):
            return "other"
        return "better" if (self.now > self.base) == (self.better == registry.HIGHER) else "worse"

    @property
    def change(self) -> str:
        """In percent of the base."""
        if not self.base or self.now is None or self.now == self.base:
            return ""
        return f"{100 * (self.now / self.base - 1):+.2f} %"


def checkout() -> Path | None:
    """The root of the repository that this file lies in; None where it is installed."""
    found = _git(Path(__file__).resolve().parent, "rev-parse", "--show-toplevel")
    root = Path(found.strip()) if found else None
    return root if root and (root / RESULTS).is_dir() else None


def direction(name: str) -> str | None:
    """Which way a figure gets better, from its bench's BETTER; None: the bench does not say."""
    known = _better(name.split(".")[0])
    return next((way for pattern, way in known.items() if fnmatch.fnmatch(name, pattern)), None)


@functools.cache
def _better(bench: str) -> Mapping[str, str]:
    if bench not in registry.names():
        return {}
    return getattr(importlib.import_module(f"m890.sim.bench.{bench}"), "BETTER", {})


def base_commit(root: Path, base: str = AUTO) -> str | None:
    """The full name of the commit to compare with; AUTO: None where there is none.

    There is none in a clone that holds one commit only, or outside a repository.
    """
    if base != AUTO:
        found = _git(root, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
        if found is None:
            raise BenchError(f"no commit {base!r} to compare with")
        return found.strip()
    head = _git(root, "rev-parse", "HEAD")
    for main in MAINS:
        found = _git(root, "merge-base", "HEAD", main)
        if found and found != head:
            return found.strip()
    before = _git(root, "rev-parse", "--verify", "--quiet", "HEAD~1")
    return before.strip() if before else None


def committed(root: Path, commit: str | None = None) -> dict[str, dict]:
    """Figures by name, as JSON: of a commit, or of the working tree."""
    if commit is None:
        texts = [path.read_text("utf-8") for path in sorted((root / RESULTS).glob("*.json"))]
    else:
        listed = _git(root, "ls-tree", "--name-only", commit, f"{RESULTS}/") or ""
        paths = [path for path in listed.splitlines() if path.endswith(".json")]
        texts = [_git(root, "show", f"{commit}:{path}") or "[]" for path in paths]
    return {item["name"]: item for text in texts for item in json.loads(text)}


def measured(base: Mapping[str, dict], progress: Progress | None = None) -> dict[str, dict]:
    """The quick benches' figures, each bench with the seed that the base commit used."""
    out = {}
    for bench in QUICK:
        seeds = [i["config"]["seed"] for n, i in base.items() if n.split(".")[0] == bench]
        for seed in seeds[:1]:
            items = registry.run(bench, BenchContext(seed, progress=progress or Silent()))
            out |= {item.name: item.as_dict() for item in items}
    return out


def rows(base: Mapping[str, dict], now: Mapping[str, dict]) -> list[Row]:
    """Every figure of either side, in the order of the working tree."""
    out = []
    for name in dict.fromkeys([*now, *base]):
        old, new = base.get(name), now.get(name)
        unit = (new or old or {})["unit"]
        before, after = (None if item is None else float(item["value"]) for item in (old, new))
        out.append(Row(name, unit, before, after, direction(name)))
    return out


def page(found: Iterable[Row], base: str) -> str:
    """The comparison as Markdown; figures that are the same come last."""
    found = list(found)
    counts = {
        verdict: sum(row.verdict == verdict for row in found)
        for verdict in ("better", "worse", "other", "new", "gone", "same")
    }
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    lines = [f"# Figures against {base[:10]}", "", f"{said or 'no figures'}.", ""]
    lines += ["| figure | base | now | unit | change | verdict |", "|---|---:|---:|---|---:|---|"]
    for row in sorted(found, key=lambda row: row.verdict == "same"):
        old, new = ("" if v is None else report.number(v) for v in (row.base, row.now))
        cells = [f"`{row.name}`", old, new, row.unit, row.change, row.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def compare(root: Path, base: str = AUTO, progress: Progress | None = None) -> str:
    """The page of the comparison, or a sentence where there is nothing to compare with."""
    commit = base_commit(root, base)
    if commit is None:
        return "No commit to compare figures with: the history ends here.\n"
    old = committed(root, commit)
    return page(rows(old, committed(root) | measured(old, progress)), commit)


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None where it fails."""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
