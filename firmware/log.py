"""What the driver remembers of completed commands, for timelines, waves and costs."""

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m890.hdl.commands import COMPLETION, COMPLETION_BYTES, Error, Opcode

TAGS = 1 << 16
COMPLETION_TYPE = np.dtype(
    {
        "names": [f.name for f in COMPLETION.fields],
        "formats": [f"<u{f.width // 8}" for f in COMPLETION.fields],
        "offsets": [f.lsb // 8 for f in COMPLETION.fields],
        "itemsize": COMPLETION_BYTES,
    }
)
"""numpy's view of a completion record."""


@dataclass(frozen=True)
class LogEntry:
    """A completed command: its name, the label it was submitted under, its cycles and outcome."""

    tag: int
    name: str
    label: str
    start: int
    end: int
    beats: int
    status: int
    error: Error


class CommandLog:
    """The latest completions, each with the label that was in force when it was submitted."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._chunks: deque[tuple[NDArray, NDArray]] = deque()  # label numbers, completions
        self._size = 0
        self._names = [""]
        self._numbers = {"": 0}
        self._current = 0
        self._label_of = np.zeros(TAGS, np.int32)  # by tag

    def submitted(self, tags: NDArray[np.int64]) -> None:
        if self.limit:
            self._label_of[tags] = self._current

    def completed(self, found: NDArray) -> None:
        if not self.limit:
            return
        self._chunks.append((self._label_of[found["tag"]], found))
        self._size += len(found)
        while self._size > self.limit and len(self._chunks) > 1:
            self._size -= len(self._chunks.popleft()[0])

    @contextlib.contextmanager
    def label(self, text: str) -> Iterator[None]:
        """Commands submitted inside carry `text`."""
        outer = self._current
        if text not in self._numbers:
            self._numbers[text] = len(self._names)
            self._names.append(text)
        self._current = self._numbers[text]
        try:
            yield
        finally:
            self._current = outer

    def __iter__(self) -> Iterator[LogEntry]:
        for labels, found in self._chunks:
            for label, row in zip(labels.tolist(), found, strict=True):
                code = int(row["opcode"])
                yield LogEntry(
                    tag=int(row["tag"]),
                    name=Opcode(code).name if code in set(Opcode) else f"opcode {code}",
                    label=self._names[label],
                    start=int(row["start"]),
                    end=int(row["end"]),
                    beats=int(row["beats"]),
                    status=int(row["status"]),
                    error=Error(int(row["error"])),
                )

    def __len__(self) -> int:
        return self._size

    def clear(self) -> None:
        self._chunks.clear()
        self._size = 0
