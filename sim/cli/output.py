"""Results go to standard output, everything else to standard error.

    with Progress("conformance") as progress:
        for case in progress.track(cases, "cases"):
            progress.say(f"{case.name} skipped")
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from types import TracebackType
from typing import Any, TypeVar

from rich import progress as bars
from rich.console import Console

T = TypeVar("T")


def console() -> Console:
    """Where results for people go."""
    return Console(highlight=False)


def stderr() -> Console:
    """Where progress and remarks go."""
    return Console(stderr=True, highlight=False)


def utilisation(cores: Sequence[float]) -> str:
    """The array's, or the arrays' of several cores in the middle and one by one."""
    text = f"array utilisation {sum(cores) / len(cores):.3f}"
    if len(cores) > 1:
        text += f" ({len(cores)} cores: {', '.join(f'{core:.3f}' for core in cores)})"
    return text


def write_json(value: Any) -> None:
    """One JSON value on standard output; numpy's numbers and arrays are plain there."""
    print(json.dumps(value, indent=1, allow_nan=False, default=_plain), flush=True)


def _plain(value: Any) -> Any:
    for method in ("tolist", "as_dict"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} has no JSON form")


class Progress:
    """A live bar on a terminal; elsewhere nothing but what is said. Always on standard error."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            console=stderr(),
            transient=True,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """One line, above the bars."""
        if self._bars.disable:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bars.console.print(text, markup=False)

    def track(self, items: Iterable[T], text: str = "", total: int | None = None) -> Iterator[T]:
        """Yields the items and moves a bar of its own by one for each."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        task = self._bars.add_task(f"{self._title}: {text}" if text else self._title, total=total)
        for item in items:
            yield item
            self._bars.advance(task)
        self._bars.remove_task(task)
