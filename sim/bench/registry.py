"""What a bench is given and gives back, and how the benches are found."""

import ast
import functools
import importlib
import math
import pkgutil
import secrets
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from m890.sim import toolchain

T = TypeVar("T")
Plain = str | int | float | bool | None
"""What a value of an item's `config` may be."""


HIGHER, LOWER, FACT = "higher", "lower", "fact"
"""Which way a figure gets better; FACT: it says what was measured, and is neither."""


class BenchError(ValueError):
    """A bench that does not exist, or an option that it does not know."""


@dataclass(frozen=True)
class Item:
    """One measured figure: a unique name, a unit (`1` for ratios), a number, what it holds for."""

    name: str
    unit: str
    value: float
    config: Mapping[str, Plain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"the figure {self.name} is {self.value}")
        for key, value in self.config.items():
            if not isinstance(value, Plain):
                raise TypeError(f"{self.name}: config[{key!r}] is a {type(value).__name__}")

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "value": self.value,
            "config": dict(self.config),
        }


class Progress(Protocol):
    """How a bench shows that it lives; `m890.sim.cli.output.Progress` is one."""

    def say(self, text: str) -> None:
        """One line on standard error."""

    def track(self, items: Iterable[T], text: str = "", total: int | None = None) -> Iterator[T]:
        """Yields the items and shows how far it has come."""
        ...


class Silent:
    """A `Progress` that shows nothing."""

    def say(self, text: str) -> None:
        """Says nothing."""

    def track(self, items: Iterable[T], text: str = "", total: int | None = None) -> Iterator[T]:
        """Only yields the items."""
        yield from items


@dataclass(frozen=True)
class BenchContext:
    """What a bench runs with. `preset` None: the bench's own choice of presets."""

    seed: int
    preset: str | None = None
    progress: Progress = field(default_factory=Silent)
    options: Mapping[str, str] = field(default_factory=dict)

    def option(self, name: str, default: T) -> T:
        """An option of the command line, as the type of its default."""
        if name not in self.options:
            return default
        text = self.options[name]
        if isinstance(default, bool):
            if text.lower() not in ("yes", "no", "true", "false", "1", "0"):
                raise BenchError(f"the option {name} is yes or no, not {text!r}")
            return text.lower() in ("yes", "true", "1")  # type: ignore[return-value]
        try:
            return type(default)(text)  # type: ignore[call-arg]
        except ValueError:
            kind = type(default).__name__
            message = f"the option {name} needs a value of type {kind}, not {text!r}"
            raise BenchError(message) from None

    def item(self, name: str, unit: str, value: float, /, **config: Plain) -> Item:
        """A figure; its config has preset and options of the command line, seed and commit too."""
        chosen: dict[str, Plain] = {} if self.preset is None else {"preset": self.preset}
        chosen |= {**self.options, **config, "seed": self.seed, "commit": commit()}
        return Item(name, unit, float(value), chosen)


def names() -> dict[str, str]:
    """Every bench with the first sentence of its docstring; none of them is imported."""
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        tree = ast.parse((Path(__file__).parent / f"{module.name}.py").read_text("utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if module.name != "registry" and "run" in defined:
            found[module.name] = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    return dict(sorted(found.items()))


def run(name: str, context: BenchContext) -> list[Item]:
    """Runs one bench; its figures have unique names."""
    if name not in names():
        raise BenchError(f"no bench {name!r}: the benches are {', '.join(names()) or 'not here'}")
    module = importlib.import_module(f"m890.sim.bench.{name}")
    known: Mapping[str, str] = getattr(module, "OPTIONS", {})
    for option in context.options:
        if option not in known:
            has = f"has {', '.join(known)}" if known else "has none"
            raise BenchError(f"the bench {name} has no option {option!r}: it {has}")
    items: list[Item] = module.run(context)
    twice = {item.name for item in items if sum(other.name == item.name for other in items) > 1}
    if twice:
        raise RuntimeError(f"the bench {name} gives {', '.join(sorted(twice))} more than once")
    return items


def fresh_seed() -> int:
    """A seed that no run had before, short enough to be typed."""
    return secrets.randbelow(10**9)


@functools.cache
def commit() -> str:
    """The commit that is measured, `+` for changes on top; the version where there is none."""
    folder = Path(__file__).resolve().parent
    try:
        head = _git(folder, "rev-parse", "--short=10", "HEAD").strip()
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ":/").strip()
    except (OSError, subprocess.SubprocessError):
        return toolchain.package_version("m890") or "unknown"
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
