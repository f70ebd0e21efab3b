"""Pages: which are free, and how many hold each of the others."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class PagePool:
    """Free list and reference counts of `pages` pages; a page covers the same tokens in all planes.

    A page is free exactly if nobody refers to it. Sequences and the prefix tree hold one reference
    each.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.references: NDArray[np.int32] = np.zeros(pages, np.int32)
        self._free = list(range(pages - 1, -1, -1))  # a stack: page 0 leaves first

    @property
    def free(self) -> int:
        """Pages that nobody refers to."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` free pages, each with one reference; the caller has checked that there are."""
        assert count <= len(self._free)
        taken = [self._free.pop() for _ in range(count)]
        self.references[taken] = 1
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """One more reference to each of the pages (no page twice)."""
        self.references[list(pages)] += 1

    def drop(self, pages: Iterable[int]) -> None:
        """One reference less to each of the pages; the last one frees it."""
        for page in pages:
            assert self.references[page] > 0
            self.references[page] -= 1
            if not self.references[page]:
                self._free.append(page)
