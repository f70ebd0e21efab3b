"""The page manager: who holds which page, and what each command changes; docs/pages.md in words."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m890.hdl.commands import COMMANDS, Error, Opcode, Query
from m890.hdl.config import PIN_BITS, REFERENCE_BITS, TOKEN_BITS, CoreConfig

MOST_REFERENCES = (1 << REFERENCE_BITS) - 1
MOST_PINS = (1 << PIN_BITS) - 1


@dataclass
class Page:
    """A page that is not free. references: block table entries; pins: firmware's own holds."""

    tenant: int
    references: int = 0
    pins: int = 0
    public: bool = False


@dataclass
class Sequence:
    """An open sequence; its block table names `pages` pages, which hold `length` tokens or more.

    From page `shared` on they are known to be its alone: an APPEND there asks no further.
    """

    table: int
    limit: int
    tenant: int
    length: int = 0
    pages: int = 0
    shared: int = 0


@dataclass(frozen=True)
class Result:
    """Of a command: as in its completion (`field`: number in the record)."""

    error: Error = Error.OK
    field: int = 0
    index: int = 0
    value: int = 0  # QUERY's answer


class Refused(Exception):
    """A command that changes nothing. index: page number's place, or the token's."""

    def __init__(self, error: Error, field: str, index: int = 0) -> None:
        super().__init__(f"{error.name} for {field}, index {index}")
        self.error, self.field, self.index = error, field, index


class PageManager:
    """State and commands of the page manager.

    Function
        `run` carries out one command, or refuses it and changes nothing. Block tables, page lists
        and pages lie in `memory`; new pages come from the free list, the one freed last first
        (after reset page 0 first).
    Members
        pages : by number, None: free. free : stack of free pages. sequences : those that are open.
        planes : (base, stride, bytes of a page) by number, kept by the owner as PLANE commands say.
        quotas, held : pages by tenant. limit : MEMORY_LIMIT. copied : bytes copied so far.
        refuses : whether memory answers an APPEND's or COPY's write of a page number, by address,
        with a bus error, and does not carry it out.
    """

    def __init__(self, config: CoreConfig, memory: NDArray[np.uint8]) -> None:
        self.config, self.memory, self.limit = config, memory, len(memory)
        self.planes: dict[int, tuple[int, int, int]] = {}
        self.refuses: Callable[[int], bool] = lambda address: False
        self.reset()

    def reset(self) -> None:
        """All pages free, all sequences closed, no quotas."""
        config = self.config
        self.pages: list[Page | None] = [None] * config.pages
        self.free = list(range(config.pages - 1, -1, -1))
        self.sequences: dict[int, Sequence] = {}
        self.held = [0] * config.tenants
        self.quotas = [config.pages] * config.tenants
        self.copied = 0

    def run(self, opcode: Opcode, c: dict[str, int]) -> Result:
        """The command with fields `c`; of APPEND, what must be before its tokens are written."""
        commands: dict[Opcode, Callable[[dict[str, int]], Any]] = {
            Opcode.CREATE: self._create, Opcode.FORK: self._fork, Opcode.TRIM: self._trim,
            Opcode.RELEASE: self._release, Opcode.PIN: self._pin, Opcode.UNPIN: self._unpin,
            Opcode.COPY: self._copy, Opcode.QUERY: self._query, Opcode.QUOTA: self._quota,
            Opcode.APPEND: self._append,
        }  # fmt: skip
        try:
            return commands[opcode](c) or Result()
        except Refused as refused:
            names = [f.name for f in COMMANDS[opcode].fields]
            return Result(refused.error, names.index(refused.field), refused.index)

    # ---------------------------------------------------------------- APPEND

    def _append(self, c: dict[str, int]) -> None:
        self.prepare(c)
        self._check_places(c)

    def check_append(self, c: dict[str, int]) -> None:
        """What an APPEND needs of its sequence; its plane and its source are not looked at here."""
        one = self._open(c)
        end = c["start"] + c["tokens"]
        self._need(c["tokens"] > 0, Error.BAD_RANGE, "tokens")
        self._need(end <= one.limit, Error.BAD_RANGE, "start")
        self._need(
            end <= one.length if c["repair"] else c["start"] <= one.pages * self._size,
            Error.BAD_RANGE,
            "start",
        )

    def prepare(self, c: dict[str, int]) -> None:
        """Gives an APPEND its pages, each for the sequence alone (a repair takes them as they are).

        Ascending: a page that others hold too is replaced by a copy, a missing one is taken; until
        one of them cannot be entered.
        """
        self.check_append(c)
        if c["repair"]:
            return
        one = self.sequences[c["sequence"]]
        first, last = c["start"] // self._size, (c["start"] + c["tokens"] - 1) // self._size
        table = self.block_table(c["sequence"])
        shared = []
        for n in range(first, min(last + 1, one.pages) if first < one.shared else first):
            at = max(0, n * self._size - c["start"])
            page = self._reach(table[n], one.tenant, "sequence", at)
            if page.references + page.pins > 1 or page.tenant != one.tenant:
                shared.append(n)
        self._room(len(shared) + max(0, last + 1 - one.pages), one.tenant, "tokens")
        for n in shared:
            page = self._page(table[n])
            if page.references + page.pins == 1 and page.tenant == one.tenant:
                continue  # the table named it twice, and the other place has its copy
            new = self._take(one.tenant, references=1)
            self._copy_page(table[n], new)
            self._enter(one.table + 4 * n, new, "references", "tokens")
            self._drop([table[n]], "references")
        try:
            while one.pages <= last:
                new = self._take(one.tenant, references=1)
                self._enter(one.table + 4 * one.pages, new, "references", "tokens")
                one.pages += 1
        finally:  # it keeps the pages that it was given before one could not be entered
            if last + 1 >= one.shared:
                one.shared = min(one.shared, first)

    def _check_places(self, c: dict[str, int]) -> None:
        """What the append unit asks of every page before the first byte is written.

        They are the sequence's alone, unless something has written over its block table; a repair
        writes in any that its tenant may read.
        """
        one = self.sequences[c["sequence"]]
        first, last = c["start"] // self._size, (c["start"] + c["tokens"] - 1) // self._size
        for n, number in enumerate(self._read(one.table + 4 * first, last + 1 - first), first):
            at = max(0, n * self._size - c["start"])
            page = self._reach(number, one.tenant, "sequence", at)
            if not c["repair"]:
                self._need(page.tenant == one.tenant, Error.BAD_TENANT, "sequence", at)
                self._need(page.references + page.pins == 1, Error.BAD_PAGE, "sequence", at)

    def committed(self, c: dict[str, int]) -> None:
        """An APPEND has been carried out: with `commit`, its end is the sequence's length."""
        if c["commit"] and not c["repair"]:
            self.sequences[c["sequence"]].length = c["start"] + c["tokens"]

    # ---------------------------------------------------------------- ATTEND

    def reach(self, number: int, tenant: int) -> Error:
        """Whether a tenant may read a page; every one that a job reads, before it does."""
        page = self.pages[number] if number < self.config.pages else None
        if page is None:
            return Error.BAD_PAGE
        return Error.OK if page.tenant == tenant or page.public else Error.BAD_TENANT

    # ---------------------------------------------------------------- sequences

    def _create(self, c: dict[str, int]) -> None:
        config = self.config
        self._need(c["sequence"] < config.sequences, Error.BAD_SEQUENCE, "sequence")
        self._need(c["tenant"] < config.tenants, Error.BAD_TENANT, "tenant")
        self._closed(c["sequence"], "sequence")
        self._need(c["tokens"] <= c["limit"], Error.BAD_RANGE, "tokens")
        count = -(-c["tokens"] // self._size)
        self._check_table(c, "list")
        self._inside(c, "list", 4 * count)
        pages = self._read(c["list"], count)
        for n, page in enumerate(pages):
            pinned = self._reach(page, c["tenant"], "list", n).pins > 0
            self._need(pinned, Error.NOT_PINNED, "list", n)
        self._hold(pages, c["tenant"], "references", "list")
        self._write(c["table"], pages)
        self.sequences[c["sequence"]] = Sequence(
            c["table"], c["limit"], c["tenant"], c["tokens"], count, count
        )

    def _fork(self, c: dict[str, int]) -> None:
        one = self._open(c)
        self._need(c["target"] < self.config.sequences, Error.BAD_SEQUENCE, "target")
        self._closed(c["target"], "target")
        self._need(c["tokens"] <= one.length, Error.BAD_RANGE, "tokens")
        self._need(c["tokens"] <= c["limit"], Error.BAD_RANGE, "limit")
        self._check_table(c)
        whole, rest = divmod(c["tokens"], self._size)
        pages = self._read(one.table, whole + (rest > 0))
        if rest:
            self._room(1, one.tenant, "tokens")
            self._reach(pages[whole], one.tenant, "sequence", whole)
        self._hold(pages[:whole], one.tenant, "references", "sequence")
        if rest:
            tail = self._take(one.tenant, references=1)
            self._copy_page(pages[whole], tail)
            pages[whole] = tail
        self._write(c["table"], pages)
        self.sequences[c["target"]] = Sequence(
            c["table"], c["limit"], one.tenant, c["tokens"], len(pages), whole
        )
        one.shared = max(one.shared, whole)

    def _trim(self, c: dict[str, int]) -> None:
        one = self._open(c)
        self._need(c["tokens"] <= one.length, Error.BAD_RANGE, "tokens")
        keep = -(-c["tokens"] // self._size)
        self._give_up(c["sequence"], keep)
        one.length, one.pages, one.shared = c["tokens"], keep, min(one.shared, keep)

    def _release(self, c: dict[str, int]) -> None:
        self._open(c)
        self._give_up(c["sequence"], 0)
        del self.sequences[c["sequence"]]

    def _give_up(self, sequence: int, keep: int) -> None:
        gone = self.block_table(sequence)[keep:]
        self._drop(gone, "references", self.sequences[sequence].tenant, "sequence", keep)

    # ---------------------------------------------------------------- pins

    def _pin(self, c: dict[str, int]) -> None:
        pages, tenant, first = self._pages_of_range(c)
        self._hold(pages, tenant, "pins", "sequence", first)
        one = self.sequences[c["sequence"]]
        one.shared = max(one.shared, first + len(pages))
        if c["public"]:
            for number in pages:
                self._page(number).public = True

    def _unpin(self, c: dict[str, int]) -> None:
        if not c["listed"]:
            pages, tenant, first = self._pages_of_range(c)
            self._drop(pages, "pins", tenant, "sequence", first)
            return
        self._need(c["tenant"] < self.config.tenants, Error.BAD_TENANT, "tenant")
        self._need(c["count"] > 0, Error.BAD_RANGE, "count")
        self._aligned(c, "list")
        self._inside(c, "list", 4 * c["count"])
        self._drop(self._read(c["list"], c["count"]), "pins", c["tenant"], "list")

    def _pages_of_range(self, c: dict[str, int]) -> tuple[list[int], int, int]:
        """Pages that hold tokens [start, end) of a sequence, its tenant, place of the first."""
        one = self._open(c)
        self._need(c["start"] < c["end"], Error.BAD_RANGE, "start")
        self._need(c["end"] <= one.length, Error.BAD_RANGE, "end")
        first, past = c["start"] // self._size, -(-c["end"] // self._size)
        return self._read(one.table + 4 * first, past - first), one.tenant, first

    # ---------------------------------------------------------------- COPY, QUERY, QUOTA

    def _copy(self, c: dict[str, int]) -> None:
        self._need(c["tenant"] < self.config.tenants, Error.BAD_TENANT, "tenant")
        self._need(c["count"] > 0, Error.BAD_RANGE, "count")
        if c["inward"] and c["blank"]:
            self._aligned(c, "list")
            self._inside(c, "list", 4 * c["count"])
            self._room(c["count"], c["tenant"], "count")
            self._take_listed(c)
            return
        self._aligned(c, "host", "host_stride", "list", "slots")
        size = sum(plane[2] for plane in self.planes.values())
        self._need(c["host_stride"] >= size, Error.BAD_RANGE, "host_stride")
        self._inside(c, "host", c["host_slots"] * c["host_stride"])
        self._inside(c, "list", 4 * c["count"])
        self._inside(c, "slots", 4 * c["count"])
        if c["inward"]:
            self._room(c["count"], c["tenant"], "count")
        slots = self._read(c["slots"], c["count"])
        for n, slot in enumerate(slots):
            self._need(slot < c["host_slots"], Error.BAD_RANGE, "slots", n)
        at = [c["host"] + slot * c["host_stride"] for slot in slots]
        if c["inward"]:
            for page, start in zip(self._take_listed(c), at, strict=True):
                for inside, host, count in self._parts(page, start):
                    self._move(host, inside, count)
            return
        pages = self._read(c["list"], c["count"])
        for n, number in enumerate(pages):
            pinned = self._reach(number, c["tenant"], "list", n).pins > 0
            self._need(pinned, Error.NOT_PINNED, "list", n)
        for number, start in zip(pages, at, strict=True):
            for inside, host, count in self._parts(number, start):
                self._move(inside, host, count)

    def _take_listed(self, c: dict[str, int]) -> list[int]:
        """New pages with a pin each, in `list`: all of them or none."""
        taken: list[int] = []
        try:
            for n in range(c["count"]):
                new = self._take(c["tenant"], pins=1)
                self._enter(c["list"] + 4 * n, new, "pins", "list", n)
                taken.append(new)
        except Refused:
            self._drop(taken, "pins")
            raise
        return taken

    def _query(self, c: dict[str, int]) -> Result:
        config, what = self.config, c["what"]
        self._need(what <= max(Query), Error.BAD_RANGE, "what")
        if what == Query.FREE:
            return Result(value=len(self.free))
        if what in (Query.HELD, Query.QUOTA):
            self._need(c["tenant"] < config.tenants, Error.BAD_TENANT, "tenant")
            counts = self.held if what == Query.HELD else self.quotas
            return Result(index=c["tenant"], value=counts[c["tenant"]])
        if what == Query.PAGE:
            self._need(c["page"] < config.pages, Error.BAD_PAGE, "page")
            page = self.pages[c["page"]] or Page(0)
            value = page.references | page.pins << 16 | page.public << 24
            return Result(index=page.tenant, value=value)
        one = self.sequences.get(c["sequence"])
        if one is None:
            raise Refused(Error.BAD_SEQUENCE, "sequence")
        return Result(index=one.tenant, value=one.length if what == Query.LENGTH else one.pages)

    def _quota(self, c: dict[str, int]) -> None:
        self._need(c["tenant"] < self.config.tenants, Error.BAD_TENANT, "tenant")
        self._need(c["pages"] <= self.config.pages, Error.BAD_RANGE, "pages")
        self.quotas[c["tenant"]] = c["pages"]

    # ---------------------------------------------------------------- checks

    @property
    def _size(self) -> int:
        return self.config.page_tokens

    def _need(self, ok: bool, error: Error, field: str, index: int = 0) -> None:
        if not ok:
            raise Refused(error, field, index)

    def _open(self, c: dict[str, int]) -> Sequence:
        one = self.sequences.get(c["sequence"])
        if one is None:
            raise Refused(Error.BAD_SEQUENCE, "sequence")
        self._need(c["tenant"] == one.tenant, Error.BAD_TENANT, "tenant")
        return one

    def _closed(self, sequence: int, field: str) -> None:
        self._need(sequence not in self.sequences, Error.SEQUENCE_OPEN, field)

    def _check_table(self, c: dict[str, int], *aligned: str) -> None:
        self._need(0 < c["limit"] < 1 << TOKEN_BITS, Error.BAD_RANGE, "limit")
        self._aligned(c, "table", *aligned)
        self._inside(c, "table", 4 * -(-c["limit"] // self._size))

    def _aligned(self, c: dict[str, int], *names: str) -> None:
        for name in names:
            self._need(c[name] % self.config.port_bytes == 0, Error.BAD_ALIGNMENT, name)

    def _inside(self, c: dict[str, int], name: str, size: int) -> None:
        """Arrays in memory take whole beats of the port."""
        port = self.config.port_bytes
        end = c[name] + -(-size // port) * port
        ok = c[name] < 1 << self.config.address_bits and end <= self.limit
        self._need(ok, Error.BAD_ADDRESS, name)

    def _room(self, count: int, tenant: int, field: str) -> None:
        """Whether `count` pages can be taken."""
        self._need(count <= len(self.free), Error.OUT_OF_PAGES, field)
        ok = not count or self.held[tenant] + count <= self.quotas[tenant]
        self._need(ok, Error.QUOTA, field)

    def _reach(self, number: int, tenant: int, field: str, index: int) -> Page:
        """A page that a block table or list names, if it is one and the tenant may use it."""
        error = self.reach(number, tenant)
        self._need(error == Error.OK, error, field, index)
        return self._page(number)

    # ---------------------------------------------------------------- pages

    def _page(self, number: int) -> Page:
        page = self.pages[number]
        assert page is not None
        return page

    def _take(self, tenant: int, references: int = 0, pins: int = 0) -> int:
        number = self.free.pop()
        self.pages[number] = Page(tenant, references, pins)
        self.held[tenant] += 1
        return number

    def _hold(self, pages: list[int], tenant: int, what: str, field: str, first: int = 0) -> None:
        """One more reference or pin to each; a page may be named several times."""
        most = MOST_REFERENCES if what == "references" else MOST_PINS
        more: Counter[int] = Counter()
        for n, number in enumerate(pages, first):
            page = self._reach(number, tenant, field, n)
            more[number] += 1
            self._need(getattr(page, what) + more[number] <= most, Error.TOO_SHARED, field, n)
        for number, count in more.items():
            page = self._page(number)
            setattr(page, what, getattr(page, what) + count)

    def _drop(
        self, pages: Iterable[int], what: str, tenant: int | None = None, field: str = "",
        first: int = 0,
    ) -> None:  # fmt: skip
        """One reference or pin less to each; pages that nobody holds are freed in this order."""
        numbers, fewer = list(pages), Counter[int]()
        if tenant is not None:
            error = Error.NOT_PINNED if what == "pins" else Error.BAD_PAGE
            for n, number in enumerate(numbers, first):
                page = self._reach(number, tenant, field, n)
                fewer[number] += 1
                self._need(fewer[number] <= getattr(page, what), error, field, n)
        for number in numbers:
            page = self._page(number)
            setattr(page, what, getattr(page, what) - 1)
        for number in numbers:
            page = self.pages[number]
            if page is not None and not page.references + page.pins:
                self.held[page.tenant] -= 1
                self.pages[number] = None
                self.free.append(number)

    def _parts(self, page: int, host: int) -> Iterable[tuple[int, int, int]]:
        """Of a page and its slot: (address in the plane, in the slot, bytes), plane by plane."""
        for _, (base, stride, size) in sorted(self.planes.items()):
            yield base + page * stride, host, size
            host += size

    def _copy_page(self, source: int, target: int) -> None:
        for base, stride, size in self.planes.values():
            self._move(base + source * stride, base + target * stride, size)

    # ---------------------------------------------------------------- memory

    def block_table(self, sequence: int) -> list[int]:
        """Page numbers of an open sequence."""
        one = self.sequences[sequence]
        return self._read(one.table, one.pages)

    def _read(self, address: int, count: int) -> list[int]:
        return self.memory[address : address + 4 * count].view("<u4").tolist()

    def _write(self, address: int, numbers: list[int]) -> None:
        self.memory[address : address + 4 * len(numbers)].view("<u4")[:] = numbers

    def _enter(self, address: int, page: int, what: str, field: str, index: int = 0) -> None:
        """The number of a page just taken into a table or list; without that it goes back."""
        if self.refuses(address):
            self._drop([page], what)
            raise Refused(Error.BUS_ERROR, field, index)
        self._write(address, [page])

    def _move(self, source: int, target: int, count: int) -> None:
        self.memory[target : target + count] = self.memory[source : source + count]
        self.copied += count
