"""The page manager's reference model: no page is lost, nothing is shared by mistake."""

import copy
import random
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from m890.hdl.commands import COMMANDS, Error, Opcode, Query
from m890.hdl.config import preset
from m890.sim.golden.pages import MOST_PINS, PageManager
from m890.testbench.hdl.pages.traffic import Traffic, memory_map

TINY = preset("tiny").with_(pages=24, sequences=6, tenants=3)
SIZE = TINY.page_tokens
MAP = memory_map(TINY, 2, tokens=96 * SIZE)
TABLE = MAP.table_bytes


class World:
    """A manager, and what every sequence's tokens should hold in every plane."""

    def __init__(self, config=TINY, map=MAP):
        self.map = map
        memory = np.zeros(map.limit, np.uint8)
        self.model = PageManager(config, memory)
        self.model.planes = dict(enumerate(map.planes))
        self.tokens: dict[int, list[int]] = {}
        self._next = 0

    def do(self, opcode, **fields):
        c = dict.fromkeys((f.name for f in COMMANDS[opcode].fields), 0) | fields
        return self.run(opcode, c)

    def run(self, opcode, c):
        before = self._snapshot()
        result = self.model.run(opcode, c)
        if result.error:
            assert self._snapshot() == before, "a refused command changed something"
        else:
            self._follow(opcode, c)
        self.check()
        return result

    def open(self, sequence, tokens=0, tenant=0):
        at = {"table": self.map.tables + sequence * TABLE, "limit": TABLE // 4 * SIZE}
        assert not self.do(Opcode.CREATE, sequence=sequence, tenant=tenant, **at).error
        if tokens:
            assert not self.append(sequence, tokens, tenant).error

    def append(self, sequence, tokens, tenant=0, **fields):
        start = self.model.sequences[sequence].length
        c = {"sequence": sequence, "start": start, "tokens": tokens, "commit": 1, "tenant": tenant}
        return self.do(Opcode.APPEND, **(c | fields))

    def fork(self, sequence, target, tokens, tenant=0, **fields):
        at = {"table": self.map.tables + target * TABLE, "limit": TABLE // 4 * SIZE}
        c = at | {"sequence": sequence, "target": target, "tokens": tokens, "tenant": tenant}
        return self.do(Opcode.FORK, **(c | fields))

    def put(self, numbers, at=MAP.lists):
        self.model.memory[at : at + 4 * len(numbers)].view("<u4")[:] = numbers

    def query(self, what, **fields):
        return self.do(Opcode.QUERY, what=what, **fields).value

    def _snapshot(self):
        model = self.model
        state = (model.pages, model.free, model.sequences, model.held, model.quotas)
        return copy.deepcopy(state), model.memory.tobytes()

    def _cell(self, plane, page, token):
        """Where the test's mark of a token lies: its bytes in a page are the manager's to keep."""
        base, stride, _ = self.map.planes[plane]
        return base + page * stride + 2 * (token % SIZE)

    def _mark(self, sequence, token, value=None):
        """Marks of a token, one per plane; written first where there is a `value`."""
        table = self.model.block_table(sequence)
        found = []
        for plane in range(len(self.map.planes)):
            at = self._cell(plane, table[token // SIZE], token)
            cell = self.model.memory[at : at + 2].view("<u2")
            if value is not None:
                cell[0] = value
            found.append(int(cell[0]))
        return found

    def _follow(self, opcode, c):
        number, tokens = c.get("sequence", 0), self.tokens
        if opcode == Opcode.CREATE:
            tokens[number] = [self._mark(number, t)[0] for t in range(c["tokens"])]
        elif opcode == Opcode.FORK:
            tokens[c["target"]] = tokens[number][: c["tokens"]]
        elif opcode == Opcode.TRIM:
            del tokens[number][c["tokens"] :]
        elif opcode == Opcode.RELEASE:
            del tokens[number]
        elif opcode == Opcode.APPEND:
            self._appended(c)

    def _appended(self, c):
        number, start, mine = c["sequence"], c["start"], self.tokens[c["sequence"]]
        while len(mine) < start:  # appended before, not committed
            mine.append(self._mark(number, len(mine))[0])
        for token in range(start, start + c["tokens"]):
            if c["repair"]:
                self._mark(number, token, mine[token])
                continue
            self._next = self._next % 65535 + 1
            self._mark(number, token, self._next)
            mine[token : token + 1] = [self._next]
        if not c["repair"]:
            self.model.committed(c)
            del mine[self.model.sequences[number].length :]

    def check(self):
        model = self.model
        references = Counter()
        for number, one in model.sequences.items():
            assert one.length <= one.pages * SIZE <= -(-one.limit // SIZE) * SIZE
            references.update(model.block_table(number))
            for token, mark in enumerate(self.tokens[number]):
                assert self._mark(number, token) == [mark] * len(self.map.planes)
        assert sorted(model.free) == [n for n, p in enumerate(model.pages) if p is None]
        held = [0] * model.config.tenants
        for n, page in enumerate(model.pages):
            assert references[n] == (page.references if page else 0)
            if page:
                assert page.references + page.pins > 0
                held[page.tenant] += 1
        assert held == model.held


@settings(max_examples=40)
@given(st.integers(0, 1 << 32))
def test_random_commands_keep_every_page_and_every_token(seed):
    world = World()
    traffic = Traffic(random.Random(seed), world.model, MAP)
    for _ in range(60):
        opcode, c = traffic.draw()
        world.run(opcode, c)


def test_traffic_meets_every_error_and_every_success(seed):
    """The generator that the RTL's tests use leaves nothing out."""
    model = PageManager(TINY, np.zeros(MAP.limit, np.uint8))
    model.planes = dict(enumerate(MAP.planes))
    traffic = Traffic(random.Random(seed), model, MAP)
    met = Counter()
    for _ in range(20000):
        opcode, c = traffic.draw()
        result = model.run(opcode, c)
        met[opcode, result.error] += 1
        if opcode == Opcode.APPEND and not result.error:
            model.committed(c)
    errors = {error for _, error in met}
    assert errors >= {
        Error.OK, Error.BAD_ADDRESS, Error.BAD_ALIGNMENT, Error.BAD_SEQUENCE, Error.BAD_RANGE,
        Error.BAD_PAGE, Error.BAD_TENANT, Error.OUT_OF_PAGES, Error.QUOTA, Error.SEQUENCE_OPEN,
        Error.NOT_PINNED, Error.TOO_SHARED,
    }  # fmt: skip
    done = {opcode for opcode, error in met if error == Error.OK}
    assert done == set(Opcode) - {Opcode.NOP, Opcode.FENCE, Opcode.PLANE, Opcode.ATTEND}


def test_fork_shares_whole_pages_and_copies_the_tail_only():
    world = World()
    world.open(0, 3 * SIZE + 2)
    assert not world.fork(0, 1, 3 * SIZE + 1).error
    tables = [world.model.block_table(n) for n in (0, 1)]
    assert tables[0][:3] == tables[1][:3] and tables[0][3] != tables[1][3]
    assert world.model.copied == sum(size for _, _, size in MAP.planes)
    assert world.query(Query.FREE) == TINY.pages - 5
    assert world.query(Query.PAGE, page=tables[0][0]) == 2


def test_a_fork_at_a_page_border_copies_nothing():
    world = World()
    world.open(0, 3 * SIZE)
    assert not world.fork(0, 1, 2 * SIZE).error
    assert world.model.copied == 0 and world.query(Query.FREE) == TINY.pages - 3


def test_append_to_a_shared_page_copies_it_whoever_asks():
    world = World()
    world.open(0, 2 * SIZE)
    world.fork(0, 1, 2 * SIZE)
    shared = world.model.block_table(0)
    assert not world.do(Opcode.TRIM, sequence=0, tokens=SIZE + 3).error
    assert not world.append(0, 1).error
    assert world.model.block_table(1) == shared
    assert world.model.block_table(0)[1] != shared[1]
    assert world.model.copied == sum(size for _, _, size in MAP.planes)
    # Page 1 now belongs to sequence 1 alone, so that it needs no copy.
    assert not world.do(Opcode.TRIM, sequence=1, tokens=SIZE + 3).error
    assert not world.append(1, 1).error
    assert world.model.block_table(1) == shared


def test_a_repair_writes_shared_pages_in_place():
    world = World()
    world.open(0, SIZE)
    world.fork(0, 1, SIZE)
    before = world.model.block_table(0)
    assert not world.append(0, 2, start=1, repair=1).error
    assert world.model.block_table(0) == before == world.model.block_table(1)
    result = world.append(0, 2, start=SIZE - 1, repair=1)
    assert result.error == Error.BAD_RANGE  # never beyond what is committed


def test_only_committed_tokens_are_forked():
    world = World()
    world.open(0, 4)
    assert not world.append(0, 3, commit=0).error
    assert world.query(Query.LENGTH) == 4
    assert world.fork(0, 1, 5).error == Error.BAD_RANGE


def test_an_append_leaves_no_gap_in_the_block_table():
    world = World()
    world.open(0, 1)
    assert world.append(0, 1, start=SIZE + 1).error == Error.BAD_RANGE
    assert not world.append(0, 1, start=SIZE).error


def test_pins_outlive_the_sequence_and_are_adopted():
    world = World()
    world.open(0, 2 * SIZE)
    pages = world.model.block_table(0)
    assert not world.do(Opcode.PIN, sequence=0, start=0, end=2 * SIZE).error
    assert not world.do(Opcode.RELEASE, sequence=0).error
    assert world.query(Query.FREE) == TINY.pages - 2
    world.put(pages)
    at = {"table": MAP.tables, "limit": 64, "list": MAP.lists, "tokens": 2 * SIZE - 3}
    assert not world.do(Opcode.CREATE, sequence=3, **at).error
    assert not world.do(Opcode.UNPIN, listed=1, list=MAP.lists, count=2).error
    result = world.do(Opcode.UNPIN, listed=1, list=MAP.lists, count=2)
    assert (result.error, result.index) == (Error.NOT_PINNED, 0)
    assert not world.do(Opcode.RELEASE, sequence=3).error
    assert world.query(Query.FREE) == TINY.pages


def test_a_page_named_twice_counts_twice():
    world = World()
    world.open(0, SIZE)
    (page,) = world.model.block_table(0)
    world.do(Opcode.PIN, sequence=0, start=0, end=1)
    world.put([page, page])
    result = world.do(Opcode.UNPIN, listed=1, list=MAP.lists, count=2)
    assert (result.error, result.index) == (Error.NOT_PINNED, 1)
    at = {"table": MAP.tables + TABLE, "limit": 64, "list": MAP.lists, "tokens": 2 * SIZE}
    assert not world.do(Opcode.CREATE, sequence=1, **at).error
    assert world.query(Query.PAGE, page=page) == 3 | 1 << 16


def test_pins_end_where_they_cannot_be_counted():
    world = World()
    world.open(0, SIZE)
    for _ in range(MOST_PINS):
        assert not world.do(Opcode.PIN, sequence=0, start=0, end=1).error
    assert world.do(Opcode.PIN, sequence=0, start=0, end=1).error == Error.TOO_SHARED


def test_tenants_do_not_meet_but_in_public_pages():
    world = World()
    world.open(0, SIZE, tenant=1)
    (page,) = world.model.block_table(0)
    own = {"sequence": 0, "tenant": 1}
    for opcode in (Opcode.RELEASE, Opcode.TRIM, Opcode.PIN, Opcode.UNPIN):
        assert world.do(opcode, sequence=0, end=1, tenant=2).error == Error.BAD_TENANT
    assert world.append(0, 1, tenant=2).error == Error.BAD_TENANT
    assert world.fork(0, 1, 1, tenant=2).error == Error.BAD_TENANT
    world.put([page])
    other = {"sequence": 1, "table": MAP.tables + TABLE, "limit": 64, "tenant": 2}
    other |= {"list": MAP.lists, "tokens": SIZE - 1}
    assert world.do(Opcode.CREATE, **other).error == Error.BAD_TENANT
    assert not world.do(Opcode.PIN, public=1, end=1, **own).error
    assert not world.do(Opcode.CREATE, **other).error
    # Another tenant's page is never written, even when nobody else holds it any more.
    world.do(Opcode.UNPIN, end=1, **own)
    world.do(Opcode.RELEASE, **own)
    assert world.query(Query.HELD, tenant=1) == 1
    assert not world.append(1, 1, tenant=2).error
    assert world.model.block_table(1) != [page]
    assert world.query(Query.HELD, tenant=1) == 0 and world.query(Query.HELD, tenant=2) == 1


def test_out_of_pages_and_quota_are_errors_of_that_command_alone():
    world = World()
    world.open(0, SIZE)
    world.open(1, SIZE, tenant=1)
    assert not world.do(Opcode.QUOTA, tenant=1, pages=2).error
    assert world.append(1, 2 * SIZE, tenant=1).error == Error.QUOTA
    assert not world.append(1, SIZE, tenant=1).error
    assert world.append(0, TINY.pages * SIZE).error == Error.OUT_OF_PAGES
    assert not world.append(0, (TINY.pages - 3) * SIZE).error
    assert world.query(Query.FREE) == 0
    assert world.fork(0, 2, 3).error == Error.OUT_OF_PAGES
    assert not world.fork(0, 2, SIZE).error


@pytest.mark.parametrize("slots", [[5, 2], [0, 7]])
def test_pages_go_to_the_host_pool_and_come_back(slots):
    world = World()
    world.open(0, SIZE + 3)
    world.do(Opcode.PIN, sequence=0, start=0, end=SIZE + 3)
    pages, marks = world.model.block_table(0), world.tokens[0]
    world.put(pages)
    world.put(slots, MAP.lists + 64)
    copy_ = {
        "host": MAP.host, "host_stride": MAP.host_stride, "host_slots": MAP.host_slots,
        "list": MAP.lists, "slots": MAP.lists + 64, "count": 2,
    }  # fmt: skip
    assert not world.do(Opcode.COPY, **copy_).error
    world.do(Opcode.UNPIN, listed=1, list=MAP.lists, count=2)
    world.do(Opcode.RELEASE, sequence=0)
    for base, stride, size in MAP.planes:  # what was there is gone
        for page in pages:
            world.model.memory[base + page * stride :][:size] = 0xEE
    assert not world.do(Opcode.COPY, inward=1, **copy_).error
    at = {"table": MAP.tables, "limit": 64, "list": MAP.lists, "tokens": SIZE + 3}
    assert not world.do(Opcode.CREATE, sequence=0, **at).error
    assert world.tokens[0] == marks
    assert world.do(Opcode.COPY, **(copy_ | {"host_slots": 3})).error == Error.BAD_RANGE


def test_only_pinned_pages_are_copied_out():
    world = World()
    world.open(0, SIZE)
    world.put(world.model.block_table(0))
    world.put([0], MAP.lists + 64)
    copy_ = {
        "host": MAP.host, "host_stride": MAP.host_stride, "host_slots": 1,
        "list": MAP.lists, "slots": MAP.lists + 64, "count": 1,
    }  # fmt: skip
    assert world.do(Opcode.COPY, **copy_).error == Error.NOT_PINNED
