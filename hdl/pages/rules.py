"""What must hold of a command of the page manager before any page is looked at, in order."""

from typing import Any

from amaranth.hdl import Const, Mux, Value

from m890.hdl.commands import Error, Opcode, Query
from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.control.checks import Check, Range, table_beats
from m890.hdl.control.layouts import bits
from m890.hdl.memory.burst import beat_bits


class PageRules:
    """Checks of one command.

    `commands` are its views by opcode, `one` and `length` the sequence that it names (`damaged`:
    its words are wrong), `target_open` and `target_damaged` those of FORK's target, `copied` the
    port beats of a page in all defined planes.
    """

    def __init__(
        self, config: CoreConfig, commands: dict[Opcode, Any], one: Any, length: Value,
        damaged: Value, target_open: Value, target_damaged: Value, copied: Value,
    ) -> None:  # fmt: skip
        self._config, self._low, self._commands = config, beat_bits(config), commands
        self._one, self._length, self._target_open = one, length, target_open
        self._damaged, self._target_damaged, self._copied = damaged, target_damaged, copied

    def checks(self) -> dict[Opcode, list[Check]]:
        """Per opcode, first failure wins."""
        config, c = self._config, self._commands
        create, fork, trim = c[Opcode.CREATE], c[Opcode.FORK], c[Opcode.TRIM]
        unpin, query, quota = c[Opcode.UNPIN], c[Opcode.QUERY], c[Opcode.QUOTA]
        beyond = Check("tokens", Error.BAD_RANGE, fork.tokens > self._length)
        return {
            Opcode.CREATE: [
                self._known(create),
                self._tenant(create),
                Check("sequence", Error.TABLE_ERROR, self._damaged),
                Check("sequence", Error.SEQUENCE_OPEN, self._one.open),
                Check("tokens", Error.BAD_RANGE, create.tokens > create.limit),
                *self._table(create),
                *self._aligned(create, "list"),
            ],
            Opcode.FORK: [
                *self._bound(fork),
                Check("target", Error.BAD_SEQUENCE, fork.target >= config.sequences),
                Check("target", Error.TABLE_ERROR, self._target_damaged),
                Check("target", Error.SEQUENCE_OPEN, self._target_open),
                beyond,
                Check("limit", Error.BAD_RANGE, fork.tokens > fork.limit),
                *self._table(fork),
            ],
            Opcode.TRIM: [
                *self._bound(trim),
                Check("tokens", Error.BAD_RANGE, trim.tokens > self._length),
            ],
            Opcode.RELEASE: self._bound(c[Opcode.RELEASE]),
            Opcode.PIN: [*self._bound(c[Opcode.PIN]), *self._span(c[Opcode.PIN])],
            Opcode.UNPIN: [
                *(self._unless(unpin.listed, x) for x in self._bound(unpin)),
                *(self._unless(unpin.listed, x) for x in self._span(unpin)),
                self._unless(~unpin.listed, self._tenant(unpin)),
                Check("count", Error.BAD_RANGE, unpin.listed & (unpin.count == 0)),
                *(self._unless(~unpin.listed, x) for x in self._aligned(unpin, "list")),
            ],
            Opcode.COPY: self._copy(c[Opcode.COPY]),
            Opcode.QUERY: [
                Check("what", Error.BAD_RANGE, query.what > max(Query)),
                *(
                    self._unless(~_one_of(query.what, Query.LENGTH, Query.PAGES), x)
                    for x in self._bound(query)[:2]
                ),
                Check(
                    "page",
                    Error.BAD_PAGE,
                    (query.what == Query.PAGE) & (query.page >= config.pages),
                ),
                self._unless(
                    ~_one_of(query.what, Query.HELD, Query.QUOTA), self._tenant(query)
                ),
            ],
            Opcode.QUOTA: [
                self._tenant(quota),
                Check("pages", Error.BAD_RANGE, quota.pages > config.pages),
            ],
        }  # fmt: skip

    def ranges(self) -> dict[Opcode, list[tuple[Range, Value]]]:
        """Per opcode, with whether it applies; tried in order after all checks."""
        config, c, none, always = self._config, self._commands, Const(0, 1), Const(1, 1)

        def array(command: Any, name: str, count: Value) -> Range:
            return Range(name, command[name], none, none, list_beats(config, count))

        def table(command: Any, name: str, tokens: Value) -> Range:
            size = table_beats(config, tokens[:TOKEN_BITS])
            return Range(name, command[name], none, none, size)

        create, fork, unpin, copy = (
            c[o] for o in (Opcode.CREATE, Opcode.FORK, Opcode.UNPIN, Opcode.COPY)
        )
        moved = ~blank(copy)
        return {
            Opcode.CREATE: [
                (table(create, "table", create.limit), always),
                (table(create, "list", create.tokens), always),
            ],
            Opcode.FORK: [(table(fork, "table", fork.limit), always)],
            Opcode.UNPIN: [(array(unpin, "list", unpin.count), unpin.listed)],
            Opcode.COPY: [
                (
                    Range(
                        "host", copy.host, copy.host_slots, copy.host_stride[self._low :], none
                    ),
                    moved,
                ),
                (array(copy, "list", copy.count), always),
                (array(copy, "slots", copy.count), moved),
            ],
        }  # fmt: skip

    def _copy(self, copy: Any) -> list[Check]:
        few = Check("host_stride", Error.BAD_RANGE, copy.host_stride[self._low :] < self._copied)
        return [
            self._tenant(copy),
            Check("count", Error.BAD_RANGE, copy.count == 0),
            *(self._unless(blank(copy), x) for x in self._aligned(copy, "host", "host_stride")),
            *self._aligned(copy, "list"),
            *(self._unless(blank(copy), x) for x in (*self._aligned(copy, "slots"), few)),
        ]

    def _known(self, command: Any) -> Check:
        many = command.sequence >= self._config.sequences
        return Check("sequence", Error.BAD_SEQUENCE, many)

    def _closed(self, command: Any) -> Value:
        return (command.sequence >= self._config.sequences) | ~self._one.open

    def _bound(self, command: Any) -> list[Check]:
        """The sequence is open and the command's tenant its own."""
        return [
            Check(
                "sequence",
                Error.TABLE_ERROR,
                self._damaged & (command.sequence < self._config.sequences),
            ),
            Check("sequence", Error.BAD_SEQUENCE, self._closed(command)),
            Check("tenant", Error.BAD_TENANT, command.tenant != self._one.tenant),
        ]

    def _tenant(self, command: Any) -> Check:
        return Check("tenant", Error.BAD_TENANT, command.tenant >= self._config.tenants)

    def _table(self, command: Any) -> list[Check]:
        limit = command.limit
        return [
            Check("limit", Error.BAD_RANGE, (limit == 0) | limit[TOKEN_BITS:].any()),
            *self._aligned(command, "table"),
        ]

    def _span(self, command: Any) -> list[Check]:
        return [
            Check("start", Error.BAD_RANGE, command.start >= command.end),
            Check("end", Error.BAD_RANGE, command.end > self._length),
        ]

    def _aligned(self, command: Any, *names: str) -> list[Check]:
        return [Check(n, Error.BAD_ALIGNMENT, command[n][: self._low].any()) for n in names]

    @staticmethod
    def _unless(condition: Value, check: Check) -> Check:
        return Check(check.field, check.error, check.bad & ~condition)


def blank(copy: Any) -> Value:
    """A COPY that takes pages and moves nothing."""
    return copy.inward & copy.blank


def list_beats(config: CoreConfig, count: Value) -> Value:
    """Port beats of `count` u32."""
    each = config.port_bytes // 4
    return (count + each - 1) >> bits(each)


def least(one: Value, two: Value) -> Value:
    return Mux(one < two, one, two)


def _one_of(value: Value, *codes: Query) -> Value:
    result: Value = Const(0, 1)
    for code in codes:
        result = result | (value == code)
    return result


def pages_of(config: CoreConfig, tokens: Value) -> Value:
    """Pages that hold `tokens` tokens."""
    size = config.page_tokens.bit_length() - 1
    return (tokens + (config.page_tokens - 1)) >> size
