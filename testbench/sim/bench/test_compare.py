"""Figures beside those of a base commit: which commit, which way each is better, the page."""

import json
import subprocess
from pathlib import Path

import pytest

from m890.sim.bench import compare, registry
from m890.sim.bench.compare import Row
from m890.sim.bench.registry import BenchContext, BenchError, Item

FIGURES = {"append.beats_ratio.fp16": 1.5, "stream.useful.decode_2048.small": 0.5}


class Repository:
    """A repository with figures in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "--quiet", "--initial-branch", "main")

    def git(self, *arguments: str) -> str:
        who = ("-c", "user.name=m890", "-c", "user.email=m890@example.org")
        command = ["git", "-C", str(self.root), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def write(self, **values: float) -> None:
        folder = self.root / compare.RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trial.json").write_text(
            json.dumps([Item(n, "1", v, {"seed": 7}).as_dict() for n, v in values.items()])
        )

    def commit(self, **values: float) -> str:
        self.write(**values)
        self.git("add", ".")
        self.git("commit", "--quiet", "--allow-empty", "--message", "figures")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "origin").mkdir()
    return Repository(tmp_path / "origin")


def test_every_committed_figure_has_a_direction() -> None:
    root = compare.checkout()
    assert root is not None
    figures = compare.committed(root)
    assert len(figures) > 60
    assert not [name for name in figures if compare.direction(name) is None]
    ways = {registry.HIGHER, registry.LOWER, registry.FACT}
    assert {compare.direction(name) for name in figures} == ways
    assert compare.direction("nothing.of.this.kind") is None


@pytest.mark.parametrize(
    ("base", "now", "better", "verdict", "change"),
    [
        (2.0, 3.0, registry.HIGHER, "better", "+50.00 %"),
        (2.0, 3.0, registry.LOWER, "worse", "+50.00 %"),
        (4.0, 3.0, registry.LOWER, "better", "-25.00 %"),
        (4.0, 3.0, registry.HIGHER, "worse", "-25.00 %"),
        (4.0, 3.0, registry.FACT, "other", "-25.00 %"),
        (4.0, 3.0, None, "other", "-25.00 %"),
        (4.0, 4.0, registry.LOWER, "same", ""),
        (0.0, 3.0, registry.HIGHER, "better", ""),
        (None, 3.0, registry.HIGHER, "new", ""),
        (3.0, None, registry.HIGHER, "gone", ""),
    ],
)
def test_verdicts(base, now, better, verdict, change) -> None:
    row = Row("a", "1", base, now, better)
    assert (row.verdict, row.change) == (verdict, change)


def test_the_base_is_where_the_branch_left_main(repository: Repository, tmp_path: Path) -> None:
    assert compare.base_commit(tmp_path) is None  # no repository
    first = repository.commit(a=1)
    assert compare.base_commit(repository.root) is None
    second = repository.commit(a=2)
    assert compare.base_commit(repository.root) == first
    repository.git("switch", "--quiet", "--create", "change")
    for value in (3, 4):
        repository.commit(a=value)
    assert compare.base_commit(repository.root) == second
    assert compare.base_commit(repository.root, "HEAD~1") == repository.git("rev-parse", "HEAD~1")
    with pytest.raises(BenchError, match="no commit 'main~9'"):
        compare.base_commit(repository.root, "main~9")
    cloned = tmp_path / "cloned"
    repository.git("clone", "--quiet", "--branch", "change", str(repository.root), str(cloned))
    assert compare.base_commit(cloned) == second  # by the remote's main: there is none of its own


def test_a_clone_of_one_commit_has_nothing_to_compare_with(
    repository: Repository, tmp_path: Path
) -> None:
    for value in (1, 2):
        repository.commit(a=value)
    shallow = tmp_path / "shallow"
    repository.git("clone", "--quiet", "--depth", "1", f"file://{repository.root}", str(shallow))
    assert compare.base_commit(shallow) is None
    assert "history ends here" in compare.compare(shallow)


def test_the_page_has_the_working_trees_figures(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quick benches are measured, with the base's seed; the others' committed figures count."""
    before = {"sharing.read_ratio": 0.25, "stream.useful.prefill_512.small": 0.5}
    base = repository.commit(**FIGURES, **before)
    repository.commit(**{"append.beats_ratio.fp16": 9.0})
    repository.write(**{**FIGURES, "append.beats_ratio.fp16": 8.0, "sharing.read_ratio": 0.25})
    asked = []

    def measure(bench: str, context: BenchContext) -> list[Item]:
        asked.append((bench, context.seed))
        return [Item("append.beats_ratio.fp16", "1", 1.25)] if bench == "append" else []

    monkeypatch.setattr(registry, "run", measure)
    text = compare.compare(repository.root, base)
    assert asked == [("append", 7), ("sharing", 7)]
    assert text.startswith(f"# Figures against {base[:10]}\n\n1 better, 1 gone, 2 same.\n")
    assert [line for line in text.splitlines() if line.startswith("| `")] == [
        "| `append.beats_ratio.fp16` | 1.5 | 1.25 | 1 | -16.67 % | better |",
        "| `stream.useful.prefill_512.small` | 0.5 |  | 1 |  | gone |",
        "| `stream.useful.decode_2048.small` | 0.5 | 0.5 | 1 |  | same |",
        "| `sharing.read_ratio` | 0.25 | 0.25 | 1 |  | same |",
    ]
