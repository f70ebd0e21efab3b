"""What holds of the page manager's state between two commands, in a small instance."""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Value
from amaranth.lib import data

from m890.hdl.config import CoreConfig
from m890.hdl.pages.layouts import page_layout
from m890.testbench.formal.page_words import chosen, total
from m890.testbench.formal.small import SEQUENCES

PAGES, REFERENCE_BITS, PIN_BITS = 3, 2, 1
PLACES = 2
"""Page numbers of a block table or list, the first of a port beat."""
NUMBER = 2
"""Bits of a page number in memory; one of them names no page."""
LIST, SLOTS = SEQUENCES, SEQUENCES + 1
"""Places in memory behind the block tables, in port beats."""
REFERENCES = "a page has as many references as block tables name it"
REACHED = "block tables name pages in use, of the sequence's tenant or public"
KEPT = "a page in use is held by somebody"
ALONE = "pages from `shared` on are the sequence's alone"
SIZES = "a sequence is within its limit and has pages for its tokens"


class PageState:
    """Pages' words, sequences, and block tables as they lie in memory, all in plain view.

    `words` are of page_layout, zero where a page is free; `sequences` and `lengths` the words of
    the sequence table; `memory` are lines of page numbers, that of sequence s its block table.
    """

    def __init__(
        self, config: CoreConfig, words: list[Any], sequences: list[Any], lengths: list[Any],
        memory: list[list[Any]],
    ) -> None:  # fmt: skip
        self.config, self.words, self.memory = config, words, memory
        self.sequences, self.lengths = sequences, lengths

    def names(self, s: int, n: int) -> Value:
        """Whether the n-th entry of a sequence's table counts."""
        return self.sequences[s].open & (self.sequences[s].pages > n)

    def live(self) -> Value:
        """How many pages are in use."""
        return total(word.live for word in self.words)

    def held(self, tenant: Value | int) -> Value:
        """How many pages are in use and the tenant's."""
        return total(word.live & (word.tenant == tenant) for word in self.words)

    def reaches(self, s: int, n: int) -> Value:
        """Whether the n-th entry, if it counts, names a page that the sequence may read."""
        one, number = self.sequences[s], self.memory[s][n]
        word = data.View(page_layout(self.config), chosen(self.words, number[:2]))
        mine = (word.tenant == one.tenant) | word.public
        return ~self.names(s, n) | (number < PAGES) & word.live & mine

    def everything(self) -> Value:
        """All that a command may change and somebody can see."""
        state = [Value.cast(w) for w in (*self.sequences, *self.lengths)]
        for word in self.words:
            state.append(Mux(word.live, word.as_value(), 0))
        for s in range(SEQUENCES):
            for n in range(PLACES):
                state.append(Mux(self.names(s, n), self.memory[s][n], 0))
        return Cat(*state)

    def hold(self, m: Module, when: Value, check: Callable[..., Any]) -> None:
        """What holds between two commands; one a line, as lines are their names."""
        every = [(s, n) for s in range(SEQUENCES) for n in range(PLACES)]
        named = [
            total(self.names(s, n) & (self.memory[s][n] == p) for s, n in every)
            for p in range(PAGES)
        ]
        counted = [~w.live | (w.references == n) for w, n in zip(self.words, named, strict=True)]
        reached = [self.reaches(s, n) for s, n in every]
        kept = [~w.live | (w.references != 0) | (w.pins != 0) for w in self.words]
        with m.If(when):
            m.d.comb += [
                check(Cat(*counted).all(), REFERENCES),
                check(Cat(*reached).all(), REACHED),
                check(Cat(*kept).all(), KEPT),
                check(Cat(*(self._alone(s, n) for s, n in every)).all(), ALONE),
                check(Cat(*(self._size(s) for s in range(SEQUENCES))).all(), SIZES),
            ]

    def _alone(self, s: int, n: int) -> Value:
        one, number = self.sequences[s], self.memory[s][n]
        word = data.View(page_layout(self.config), chosen(self.words, number[:2]))
        mine = (word.references == 1) & (word.pins == 0) & (word.tenant == one.tenant)
        return ~self.names(s, n) | (one.shared > n) | mine

    def _size(self, s: int) -> Value:
        one, length = self.sequences[s], self.lengths[s]
        room = one.pages << 3
        fits = (one.pages <= PLACES) & (one.shared <= one.pages) & (room < one.limit + 8)
        within = (length <= room) & (length <= one.limit)
        return ~one.open | fits & within & (one.table == s << 4)
