"""Random commands for the page manager, good and bad, from what its reference model knows."""

import random
from dataclasses import dataclass

from m890.hdl.commands import COMMANDS, Opcode, Query
from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.sim.golden.pages import MOST_PINS, PageManager

FORMATS = (Format.FP16, Format.E4M3, Format.BF16)


@dataclass(frozen=True)
class Map:
    """Where things lie in memory."""

    tables: int
    table_bytes: int
    lists: int
    host: int
    host_stride: int
    host_slots: int
    planes: tuple[tuple[int, int, int], ...]  # base, stride, bytes of a page
    limit: int


def memory_map(
    config: CoreConfig,
    planes: int,
    *,
    tokens: int,
    host_slots: int = 8,
    gap: int = 1,
    tags: bool = True,
) -> Map:
    """Block tables of `tokens` tokens, two lists, planes with padded pages, host slots."""
    port = config.port_bytes

    def beats(size: int) -> int:
        return -(-size // port) * port

    table_bytes = beats(4 * -(-tokens // config.page_tokens))
    at = 4096
    tables, at = at, at + config.sequences * table_bytes
    lists, at = at, at + 2 * beats(4 * config.pages)
    out = []
    for n in range(planes):
        tiles = 1 + n % config.max_tiles
        size = PageLayout(config, FORMATS[n % len(FORMATS)], tiles, tags and bool(n % 2)).page_bytes
        stride = size + gap * port
        out.append((at, stride, size))
        at += config.pages * stride
    host_stride = sum(size for _, _, size in out) + gap * port
    host, at = at, at + host_slots * host_stride
    return Map(tables, table_bytes, lists, host, host_stride, host_slots, tuple(out), at)


class Traffic:
    """Draws commands; most can be carried out, one in `1 / bad` has a field changed.

    Function
        `draw` gives an opcode and all fields of its record. Page lists are written into the
        model's memory, at `lists`: the device must be given them too. APPENDs have up to `longest`
        tokens. Now and then half of all commands are APPENDs as long as that, until some of them
        have met a pool without room: large pools would never be full otherwise.
    """

    FILLS, REFUSED = 1 / 20_000, 50  # how often, and how many APPENDs find no room

    def __init__(
        self, rng: random.Random, model: PageManager, map: Map, *, bad: float = 0.25,
        copies: bool = True, longest: int | None = None,
    ) -> None:  # fmt: skip
        self.rng, self.model, self.map, self.bad = rng, model, map, bad
        self.config = model.config
        self.lists = map.lists
        self.longest = longest or 4 * model.config.page_tokens
        weights = {
            Opcode.APPEND: 30, Opcode.FORK: 14, Opcode.TRIM: 10, Opcode.RELEASE: 8,
            Opcode.CREATE: 10, Opcode.PIN: 6, Opcode.UNPIN: 8, Opcode.QUERY: 8, Opcode.QUOTA: 2,
            Opcode.COPY: 4 * copies,
        }  # fmt: skip
        self._pins: list[dict[str, int]] = []  # one PIN again and again, until it cannot be counted
        self._fills = 0  # APPENDs that must yet find the pool full
        self._opcodes, self._weights = list(weights), list(weights.values())

    def draw(self) -> tuple[Opcode, dict[str, int]]:
        if self._pins:
            return Opcode.PIN, self._pins.pop()
        if self.rng.random() < self.FILLS:
            self._fills = self.REFUSED
        if self._fills and self.rng.random() < 0.5:
            return self._fill()
        opcode = self.rng.choices(self._opcodes, self._weights)[0]
        opens = opcode in (Opcode.CREATE, Opcode.FORK)
        if opens and len(self.model.sequences) == self.config.sequences:
            opcode = self.rng.choice((opcode, Opcode.RELEASE, Opcode.RELEASE, Opcode.RELEASE))
        c = self._blank(opcode)
        getattr(self, f"_{opcode.name.lower()}")(c)
        if self.rng.random() < self.bad:
            self._spoil(opcode, c)
        elif opcode == Opcode.PIN and self.rng.random() < 0.05:
            self._pins = [c] * (MOST_PINS + 1)
        return opcode, c

    def _blank(self, opcode: Opcode) -> dict[str, int]:
        c = dict.fromkeys((f.name for f in COMMANDS[opcode].fields), 0)
        return c | {"opcode": int(opcode), "tag": self.rng.randrange(1 << 16)}

    def _fill(self) -> tuple[Opcode, dict[str, int]]:
        """An APPEND to the shorter of two sequences."""
        c = self._blank(Opcode.APPEND)
        c["sequence"] = min(self._some(), self._some(), key=self._length)
        one = self.model.sequences.get(c["sequence"])
        c["tenant"], c["start"] = (one.tenant, one.length) if one else (0, 0)
        c["tokens"], c["commit"] = self.longest, 1
        self._fills -= len(self.model.free) * self.config.page_tokens < self.longest
        return Opcode.APPEND, c

    # ---------------------------------------------------------------- good ones

    def _some(self) -> int:
        """An open sequence; any, where none is."""
        if self.model.sequences:
            return self.rng.choice(list(self.model.sequences))
        return self.rng.randrange(self.config.sequences)

    def _bind(self, c: dict[str, int]) -> None:
        c["sequence"] = self._some()
        one = self.model.sequences.get(c["sequence"])
        c["tenant"] = one.tenant if one else 0

    def _closed(self) -> int:
        closed = [n for n in range(self.config.sequences) if n not in self.model.sequences]
        return self.rng.choice(closed or [0])

    def _table(self, c: dict[str, int], sequence: int) -> None:
        c["table"] = self.map.tables + sequence * self.map.table_bytes
        c["limit"] = self.map.table_bytes // 4 * self.config.page_tokens

    def _length(self, sequence: int) -> int:
        one = self.model.sequences.get(sequence)
        return one.length if one else 0

    def _create(self, c: dict[str, int]) -> None:
        c["sequence"], c["tenant"] = self._closed(), self.rng.randrange(self.config.tenants)
        self._table(c, c["sequence"])
        c["list"] = self.lists
        if self.rng.random() < 0.5:
            return
        pinned = [n for n, p in enumerate(self.model.pages) if p and p.pins]
        if not pinned:
            return
        count = self.rng.randint(1, min(len(pinned), 9))
        first = self.rng.choice(pinned)
        page = self.model.pages[first]
        assert page is not None
        c["tenant"] = page.tenant
        chosen = [first, *self.rng.choices(pinned, k=count - 1)]
        self._list(self.lists, chosen)
        c["tokens"] = count * self.config.page_tokens - self.rng.choice((0, 0, 1))

    def _append(self, c: dict[str, int]) -> None:
        self._bind(c)
        one = self.model.sequences.get(c["sequence"])
        length = one.length if one else 0
        size = self.config.page_tokens
        c["commit"] = int(self.rng.random() < 0.8)
        c["start"] = length if self.rng.random() < 0.8 else self.rng.randint(0, length)
        c["tokens"] = self.rng.choice((1, 1, 1, size, self.rng.randint(1, self.longest)))
        if self.rng.random() < 0.1 and length:
            c["repair"] = 1
            c["start"] = self.rng.randrange(length)
            c["tokens"] = self.rng.randint(1, min(self.longest, length - c["start"]))

    def _fork(self, c: dict[str, int]) -> None:
        self._bind(c)
        c["target"] = self._closed()
        self._table(c, c["target"])
        length = self._length(c["sequence"])
        c["tokens"] = length if self.rng.random() < 0.6 else self.rng.randint(0, length)

    def _trim(self, c: dict[str, int]) -> None:
        self._bind(c)
        length = self._length(c["sequence"])
        c["tokens"] = max(0, length - self.rng.choice((0, 1, 2, self.rng.randint(0, length))))

    def _release(self, c: dict[str, int]) -> None:
        self._bind(c)

    def _pin(self, c: dict[str, int]) -> None:
        self._bind(c)
        c["public"] = int(self.rng.random() < 0.2)
        self._range(c)

    def _range(self, c: dict[str, int]) -> None:
        length = self._length(c["sequence"])
        c["start"] = self.rng.randint(0, max(0, length - 1))
        c["end"] = self.rng.randint(c["start"] + 1, max(length, c["start"] + 1))

    def _unpin(self, c: dict[str, int]) -> None:
        self._bind(c)
        self._range(c)
        c["list"] = self.lists
        if self.rng.random() < 0.5:
            return
        c["listed"] = 1
        pinned = [n for n, p in enumerate(self.model.pages) if p and p.pins]
        if pinned:
            first = self.model.pages[self.rng.choice(pinned)]
            assert first is not None
            c["tenant"] = first.tenant
            own = [n for n in pinned if self.model.pages[n].tenant == first.tenant]  # type: ignore[union-attr]
            c["count"] = self.rng.randint(1, len(own))
            self._list(self.lists, self.rng.sample(own, c["count"]))

    def _copy(self, c: dict[str, int]) -> None:
        c["host"], c["host_stride"] = self.map.host, self.map.host_stride
        c["host_slots"] = self.map.host_slots
        c["list"] = self.lists
        c["slots"] = self.lists + self._list_bytes
        c["inward"] = int(self.rng.random() < 0.4)
        c["blank"] = int(self.rng.random() < 0.3)
        c["tenant"] = self.rng.randrange(self.config.tenants)
        pinned = [n for n, p in enumerate(self.model.pages) if p and p.pins]
        c["count"] = self.rng.randint(1, 3)
        if pinned and not c["inward"]:
            chosen = self.rng.choices(pinned, k=c["count"])
            page = self.model.pages[chosen[0]]
            assert page is not None
            c["tenant"] = page.tenant
            self._list(c["list"], chosen)
        slots = [self.rng.randrange(self.map.host_slots) for _ in range(c["count"])]
        if self.rng.random() < 0.1:
            slots[-1] = self.map.host_slots + self.rng.randrange(3)
        self._list(c["slots"], slots)

    @property
    def _list_bytes(self) -> int:
        port = self.config.port_bytes
        return -(-4 * self.config.pages // port) * port

    def _query(self, c: dict[str, int]) -> None:
        self._bind(c)
        c["what"] = self.rng.randrange(len(Query))
        c["page"] = self.rng.randrange(self.config.pages)

    def _quota(self, c: dict[str, int]) -> None:
        c["tenant"] = self.rng.randrange(self.config.tenants)
        pages = self.config.pages
        c["pages"] = pages if self.rng.random() < 0.7 else self.rng.randint(0, pages)

    def _list(self, address: int, numbers: list[int]) -> None:
        self.model.memory[address : address + 4 * len(numbers)].view("<u4")[:] = numbers

    # ---------------------------------------------------------------- bad ones

    def _spoil(self, opcode: Opcode, c: dict[str, int]) -> None:
        """Changes one field so that it is probably wrong, or one number of the list."""
        if c.get("list") and self.rng.random() < 0.3:
            count = c.get("count") or -(-c.get("tokens", 0) // self.config.page_tokens)
            at = c["list"] + 4 * self.rng.randrange(max(1, count))
            wrong = self.rng.choice((self.rng.randrange(self.config.pages), self.config.pages))
            self._list(at, [wrong])
            return
        names = [n for n in c if n not in ("opcode", "tag")]
        name = self.rng.choice(names)
        field = COMMANDS[opcode].field(name)
        address = name in ("table", "list", "host", "slots")
        values = {
            "sequence": (self._closed(), self.config.sequences, self._some()),
            "target": (self._some(), self.config.sequences, c.get("sequence", 0)),
            "tenant": (self.rng.randrange(self.config.tenants), self.config.tenants),
            "limit": (0, 1 << TOKEN_BITS, 1),
            "host_stride": (c.get("host_stride", 0) + 4, self.config.port_bytes),
            "host_slots": (0, (1 << 24) - 1),
            "page": (self.config.pages,),
            "pages": (self.config.pages + 1,),
            "what": (len(Query), 255),
        }.get(name, (c[name] + 1, 0, (1 << field.width) - 1, c[name] + 2 * self.config.page_tokens))
        if address:
            port = self.config.port_bytes
            values = (c[name] + 4, self.map.limit - port, self.map.limit, 1 << 50)
        c[name] = self.rng.choice(values) & ((1 << field.width) - 1)
        if (opcode, name) in ((Opcode.CREATE, "sequence"), (Opcode.FORK, "target")):
            self._table(c, c[name])  # no two sequences share a block table
