"""What the page manager of every device has to do; classes are made of it as of `DeviceSuite`."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from m890.firmware import errors
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.hdl.commands import COMMANDS, SEGMENT, Error, Opcode, Query
from m890.sim.golden.pages import MOST_PINS
from m890.testbench.firmware.page_world import TABLE_PAGES, PageWorld

FAR = 1 << 39
BLANK = {"inward": 1, "blank": 1, "host": 4, "host_stride": 4, "slots": 4}
"""Of a COPY that takes pages only: what it does not look at is wrong."""
Op, Q = Opcode, Query


class PageSuite:
    """Tests of one device; every command goes to the reference model, too. `commands` at random."""

    commands = 400
    checked = 1  # commands from one comparison of memory to the next

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        raise NotImplementedError
        yield

    @pytest.fixture
    def driver(self, device: Device) -> Driver:
        return Driver(device, ring=16, scratch_bytes=1 << 20)

    @pytest.fixture
    def world(self, driver: Driver, rng: np.random.Generator) -> PageWorld:
        return PageWorld(driver, rng)

    # ------------------------------------------------------------------ as the model

    def test_random_commands(self, world: PageWorld, seed: int) -> None:
        traffic = world.traffic(seed)
        for n in range(self.commands):
            world.run(*world.draw(traffic))
            if n % self.checked == 0:
                world.check()
        world.check()

    @pytest.mark.parametrize(
        "opcode,fields,error,field",
        [
            (Op.CREATE, {"sequence": 65535}, Error.BAD_SEQUENCE, "sequence"),
            (Op.CREATE, {"sequence": 5, "tenant": 65535}, Error.BAD_TENANT, "tenant"),
            (Op.CREATE, {"sequence": 0}, Error.SEQUENCE_OPEN, "sequence"),
            (Op.CREATE, {"sequence": 5, "tokens": 1 << 20}, Error.BAD_RANGE, "tokens"),
            (Op.CREATE, {"sequence": 5, "limit": 0}, Error.BAD_RANGE, "limit"),
            (Op.CREATE, {"sequence": 5, "limit": 1 << 24}, Error.BAD_RANGE, "limit"),
            (Op.CREATE, {"sequence": 5, "table": 4}, Error.BAD_ALIGNMENT, "table"),
            (Op.CREATE, {"sequence": 5, "list": 4}, Error.BAD_ALIGNMENT, "list"),
            (Op.CREATE, {"sequence": 5, "table": FAR}, Error.BAD_ADDRESS, "table"),
            (Op.CREATE, {"sequence": 5, "tokens": 1, "list": FAR}, Error.BAD_ADDRESS, "list"),
            (Op.FORK, {"sequence": 7}, Error.BAD_SEQUENCE, "sequence"),
            (Op.FORK, {"tenant": 1}, Error.BAD_TENANT, "tenant"),
            (Op.FORK, {"target": 65535}, Error.BAD_SEQUENCE, "target"),
            (Op.FORK, {"target": 1}, Error.SEQUENCE_OPEN, "target"),
            (Op.FORK, {"target": 5, "tokens": 1 << 20}, Error.BAD_RANGE, "tokens"),
            (Op.FORK, {"target": 5, "tokens": 9, "limit": 8}, Error.BAD_RANGE, "limit"),
            (Op.FORK, {"target": 5, "table": 4}, Error.BAD_ALIGNMENT, "table"),
            (Op.FORK, {"target": 5, "table": FAR}, Error.BAD_ADDRESS, "table"),
            (Op.TRIM, {"sequence": 65535}, Error.BAD_SEQUENCE, "sequence"),
            (Op.TRIM, {"tenant": 2}, Error.BAD_TENANT, "tenant"),
            (Op.TRIM, {"tokens": 1 << 24}, Error.BAD_RANGE, "tokens"),
            (Op.RELEASE, {"sequence": 9}, Error.BAD_SEQUENCE, "sequence"),
            (Op.RELEASE, {"sequence": 1, "tenant": 0}, Error.BAD_TENANT, "tenant"),
            (Op.PIN, {"start": 3, "end": 3}, Error.BAD_RANGE, "start"),
            (Op.PIN, {"end": 1 << 20}, Error.BAD_RANGE, "end"),
            (Op.PIN, {"sequence": 1, "end": 1}, Error.BAD_TENANT, "tenant"),
            (Op.UNPIN, {"end": 1}, Error.NOT_PINNED, "sequence"),
            (Op.UNPIN, {"listed": 1}, Error.BAD_RANGE, "count"),
            (Op.UNPIN, {"listed": 1, "tenant": 65535}, Error.BAD_TENANT, "tenant"),
            (Op.UNPIN, {"listed": 1, "count": 1, "list": 8}, Error.BAD_ALIGNMENT, "list"),
            (Op.UNPIN, {"listed": 1, "count": 1, "list": FAR}, Error.BAD_ADDRESS, "list"),
            (Op.COPY, {"tenant": 65535, "count": 1}, Error.BAD_TENANT, "tenant"),
            (Op.COPY, {"count": 0}, Error.BAD_RANGE, "count"),
            (Op.COPY, {"count": 1, "slots": 4}, Error.BAD_ALIGNMENT, "slots"),
            (Op.COPY, {"count": 1, "host_stride": 64}, Error.BAD_RANGE, "host_stride"),
            (Op.COPY, {"count": 1, "host": FAR}, Error.BAD_ADDRESS, "host"),
            (Op.COPY, {"count": 1, "list": FAR}, Error.BAD_ADDRESS, "list"),
            (Op.COPY, {"count": 1, "slots": FAR}, Error.BAD_ADDRESS, "slots"),
            (Op.COPY, {"count": 1, "host_slots": 0}, Error.BAD_RANGE, "slots"),
            (Op.COPY, {"count": 1}, Error.NOT_PINNED, "list"),
            (Op.COPY, {"count": 65, "inward": 1}, Error.OUT_OF_PAGES, "count"),
            (Op.COPY, {"count": 1, **BLANK, "tenant": 65535}, Error.BAD_TENANT, "tenant"),
            (Op.COPY, {"count": 0, **BLANK}, Error.BAD_RANGE, "count"),
            (Op.COPY, {"count": 1, **BLANK, "list": 4}, Error.BAD_ALIGNMENT, "list"),
            (Op.COPY, {"count": 1, **BLANK, "list": FAR}, Error.BAD_ADDRESS, "list"),
            (Op.COPY, {"count": 65, **BLANK}, Error.OUT_OF_PAGES, "count"),
            (Op.COPY, {"count": 1, "blank": 1}, Error.NOT_PINNED, "list"),  # outward: as without
            (Op.QUERY, {"what": 255}, Error.BAD_RANGE, "what"),
            (Op.QUERY, {"what": Q.LENGTH, "sequence": 9}, Error.BAD_SEQUENCE, "sequence"),
            (Op.QUERY, {"what": Q.PAGE, "page": 1 << 20}, Error.BAD_PAGE, "page"),
            (Op.QUERY, {"what": Q.HELD, "tenant": 65535}, Error.BAD_TENANT, "tenant"),
            (Op.QUOTA, {"tenant": 65535}, Error.BAD_TENANT, "tenant"),
            (Op.QUOTA, {"pages": 1 << 20}, Error.BAD_RANGE, "pages"),
            (Op.APPEND, {"sequence": 9, "tokens": 1}, Error.BAD_SEQUENCE, "sequence"),
            (Op.APPEND, {"tenant": 1, "tokens": 1}, Error.BAD_TENANT, "tenant"),
            (Op.APPEND, {"tokens": 0}, Error.BAD_RANGE, "tokens"),
            (Op.APPEND, {"start": 1 << 20, "tokens": 1}, Error.BAD_RANGE, "start"),
            (Op.APPEND, {"start": 17, "tokens": 1}, Error.BAD_RANGE, "start"),  # leaves a hole
            (Op.APPEND, {"start": 0, "tokens": 14, "repair": 1}, Error.BAD_RANGE, "start"),
        ],
        ids=lambda x: x.name if isinstance(x, Opcode) else None,
    )
    def test_refused(
        self, world: PageWorld, opcode: Opcode, fields: dict[str, int], error: Error, field: str
    ) -> None:
        """Sequence 0 of tenant 0 has 13 tokens of page tokens 8, sequence 1 of tenant 1 two."""
        size = world.size
        world.open(0, 13 * size // 8)
        world.open(1, 2, tenant=1)
        world.put(world.model.block_table(0))
        scaled = {
            n: v * size // 8 if n in ("start", "tokens", "end") and 8 < v < 64 else v
            for n, v in fields.items()
        }
        done = world.do(opcode, **scaled)
        names = [f.name for f in COMMANDS[opcode].fields]
        assert (done["error"], names[done["field"]]) == (error, field)
        world.check()
        world.grow(0, 5)
        world.check()

    def test_page_errors_name_their_place(self, world: PageWorld) -> None:
        """Free, foreign and missing pages in a list; a page that is pinned too often."""
        world.open(0, 2 * world.size)
        world.open(1, world.size, tenant=1)
        mine, others = world.model.block_table(0), world.model.block_table(1)
        assert not world.do(Op.PIN, end=2 * world.size)["error"]
        for wrong, error in (
            (world.config.pages, Error.BAD_PAGE), (world.config.pages - 1, Error.BAD_PAGE),
            (others[0], Error.BAD_TENANT),
        ):  # fmt: skip
            world.put([*mine, wrong])
            done = world.do(Op.CREATE, sequence=2, tokens=3 * world.size)
            assert (done["error"], done["index"]) == (error, 2)
        world.put(mine)
        world.do(Op.UNPIN, start=world.size, end=2 * world.size)
        done = world.do(Op.CREATE, sequence=2, tokens=2 * world.size)
        assert (done["error"], done["index"]) == (Error.NOT_PINNED, 1)
        world.do(Op.UNPIN, end=world.size)
        for _ in range(MOST_PINS):
            assert not world.do(Op.PIN, start=world.size, end=2 * world.size)["error"]
        done = world.do(Op.PIN, end=2 * world.size)
        assert (done["error"], done["index"]) == (Error.TOO_SHARED, 1)
        world.check()

    def test_out_of_pages_and_quota(self, world: PageWorld) -> None:
        """Errors of the command alone: what others have goes on."""
        size, pages = world.size, world.config.pages
        world.open(1, size, tenant=1)
        assert not world.do(Op.QUOTA, tenant=1, pages=2)["error"]
        done = world.do(Op.APPEND, sequence=1, tenant=1, start=size, tokens=2 * size)
        assert done["error"] == Error.QUOTA
        world.grow(1, size - 1)
        left, number = pages - 2, 2
        while left:
            count = min(left, TABLE_PAGES)
            world.open(number, count * size)
            left, number = left - count, number + 1
        assert world.query(Q.FREE) == 0
        fields = {"sequence": 2, "target": 9}
        assert world.do(Op.FORK, tokens=size + 1, **fields)["error"] == Error.OUT_OF_PAGES
        world.open(number)
        assert world.do(Op.APPEND, sequence=number, tokens=1)["error"] == Error.OUT_OF_PAGES
        assert not world.do(Op.FORK, tokens=size, **fields)["error"]
        world.do(Op.RELEASE, sequence=2)
        world.grow(number, 1)
        world.check()

    # ------------------------------------------------------------------ with attention

    def test_branches_see_their_own_tokens(self, world: PageWorld) -> None:
        """Forks inside and at the border of a page, each grown by tokens of its own."""
        size = world.size
        world.open(0, 2 * size + 3)
        for target, tokens in ((1, 2 * size + 3), (2, 2 * size), (3, size + 1)):
            world.fork(0, target, tokens)
        for sequence, tokens in ((1, 2), (0, 7), (3, size), (2, 1)):
            world.grow(sequence, tokens)
        self._attended(world, [[0], [1], [2], [3], [0, 3]])
        world.do(Op.TRIM, sequence=0, tokens=size + 2)  # into a page that 1 and 2 have, too
        world.tokens[0] = world.tokens[0][: size + 2]
        world.grow(0, 2)
        world.do(Op.RELEASE, sequence=3)
        self._attended(world, [[0], [1], [2]])
        world.check()

    def test_host_pool(self, world: PageWorld) -> None:
        """Pages wait in the host pool, and come back into others."""
        size = world.size
        world.open(0, size + 3)
        world.put(world.model.block_table(0))
        world.put([6, 1], world.slots)
        world.do(Op.PIN, end=size + 3)
        assert not world.do(Op.COPY, count=2)["error"]
        world.do(Op.UNPIN, listed=1, count=2)
        world.do(Op.RELEASE)
        world.open(1, 3 * size)  # where they were
        assert not world.do(Op.COPY, count=2, inward=1)["error"]
        assert not world.do(Op.CREATE, sequence=0, tokens=size + 3)["error"]
        self._attended(world, [[0], [1]])
        world.check()

    def test_a_sequence_on_blank_pages(self, world: PageWorld) -> None:
        """KV that is there already, in pages in an order of firmware's choice; then it grows."""
        size = world.size
        world.open(0, 3 * size)
        held = world.model.block_table(0)
        assert not world.do(Op.COPY, count=3, **BLANK)["error"]
        taken = world.model.memory[world.map.lists :][:12].view("<u4").tolist()
        assert not set(taken) & set(held) and not world.model.copied
        world.put(taken[::-1])
        assert not world.do(Op.CREATE, sequence=1, tokens=3 * size - 1)["error"]
        assert world.query(Q.PAGE, page=taken[0]) == 1 << 16 | 1
        world.do(Op.UNPIN, listed=1, count=3)
        for memory in (world.driver.memory, world.model.memory):
            for base, stride, bytes_ in world.map.planes:
                for old, new in zip(held, taken[::-1], strict=True):
                    page = memory[base + old * stride :][:bytes_]
                    memory[base + new * stride :][:bytes_] = page
        world.tokens[1] = world.tokens[0][:-1]
        self._attended(world, [[1]])
        world.grow(1, 2)
        self._attended(world, [[0], [1]])
        world.check()

    def test_commands_under_one_doorbell(self, world: PageWorld) -> None:
        """Each sees what those before it did, whichever unit carries it out."""
        size = world.size
        places = [world.place(0, range(n, n + size + 1)) for n in (0, 100)]
        steps = [
            (Op.CREATE, {"sequence": 4}),
            (Op.APPEND, {"sequence": 4, "tokens": size + 1, "commit": 1, **places[0]}),
            (Op.FORK, {"sequence": 4, "target": 5, "tokens": size + 1}),
            (Op.APPEND, {"sequence": 5, "start": 1, "tokens": size + 1, "commit": 1, **places[1]}),
            (Op.PIN, {"sequence": 5, "end": size}),
            (Op.TRIM, {"sequence": 5, "tokens": 2}),
            (Op.QUERY, {"what": Q.PAGES, "sequence": 5}),
            (Op.RELEASE, {"sequence": 4}),
            (Op.QUERY, {"what": Q.FREE}),
            (Op.RELEASE, {"sequence": 5}),
            (Op.QUERY, {"what": Q.FREE}),
        ]
        packed = [COMMANDS[o].pack(**world.fields(o, **c)) for o, c in steps]
        done = world.driver.wait(world.driver.submit_many(packed))
        pages = world.config.pages
        answers = done["beats"][done["opcode"] == Op.QUERY].tolist()
        # 5 keeps the page that it was given instead of the shared one, and pins it
        assert answers == [1, pages - 1, pages - 1]

    # ------------------------------------------------------------------ tenants

    def test_no_job_reaches_another_tenant(self, world: PageWorld) -> None:
        """Refused by name before any of the other's bytes is read; the next job runs."""
        world.open(0, 9)
        world.open(1, 9, tenant=1)
        driver = world.driver
        before = driver.counters()["KV_BYTES"]
        for sequences, tenant, index in (([0, 1], 0, 1), ([0, 1], 1, 0), ([0], 65535, 0)):
            command = world.attend(0, sequences, tenant)
            world.output(command)[:] = 7
            with pytest.raises(errors.BadTenant) as caught:
                driver.wait(driver.submit_many([COMMANDS[Op.ATTEND].pack(**command)]))
            assert (caught.value.field, caught.value.index) == ("segment.sequence", index)
            assert (world.output(command) == 7).all()
        assert driver.counters()["KV_BYTES"] == before
        self._attended(world, [[0]])
        self._attended(world, [[1]], tenant=1)

    def test_a_block_table_cannot_name_a_page_out_of_reach(self, world: PageWorld) -> None:
        """Entries that something has written over: BAD_TENANT, or BAD_PAGE where it is free."""
        size, driver = world.size, world.driver
        world.open(0, 2 * size)
        world.open(1, 2 * size, tenant=1)
        own, foreign = (world.model.block_table(n) for n in (0, 1))
        table = driver.view(world.model.sequences[0].table, (2,), "<u4")
        for entry in range(2):
            for page, error in (
                (foreign[entry], errors.BadTenant),
                (world.config.pages - 1, errors.BadPage),  # free
            ):
                table[:] = own
                table[entry] = page
                command = world.attend(0, [0])
                world.output(command)[:] = 7
                before = driver.counters()["KV_BYTES"]
                with pytest.raises(error) as caught:
                    driver.wait(driver.submit_many([COMMANDS[Op.ATTEND].pack(**command)]))
                assert (caught.value.field, caught.value.index) == ("segment.sequence", 0)
                assert (world.output(command) == 7).all()
                read = driver.counters()["KV_BYTES"] - before
                assert read <= entry * world.layouts[0].page_bytes
        world.do(Op.PIN, sequence=1, tenant=1, end=2 * size, public=1)
        table[:] = foreign
        world.tokens[0], mine = world.tokens[1], world.tokens[0]
        self._attended(world, [[0]])
        table[:] = own
        world.tokens[0] = mine
        self._attended(world, [[0], [0]])

    def test_an_append_cannot_write_a_page_out_of_reach(self, world: PageWorld) -> None:
        """Whatever something has written over the block table: nothing changes, here or there.

        A repair writes what its tenant reads, for all who share it.
        """
        size, pages = world.size, world.config.pages
        world.open(0, 3 * size)
        world.open(1, 3 * size, tenant=1)
        world.open(2, size)
        world.fork(2, 3, size)
        own, foreign = (world.model.block_table(n) for n in (0, 1))
        public = foreign.pop()
        (shared,) = world.model.block_table(2)
        start, end = 2 * size, 3 * size
        world.do(Op.PIN, sequence=1, tenant=1, start=start, end=end, public=1)
        table = world.model.sequences[0].table
        for entry, (page, error, repaired) in product(
            range(3),
            (
                (foreign[0], Error.BAD_TENANT, Error.BAD_TENANT),
                (foreign[1], Error.BAD_TENANT, Error.BAD_TENANT),
                (public, Error.BAD_TENANT, Error.OK),
                (shared, Error.BAD_PAGE, Error.OK),
                (pages - 1, Error.BAD_PAGE, Error.BAD_PAGE),  # free
                (pages, Error.BAD_PAGE, Error.BAD_PAGE),
            ),
        ):
            world.put([*own[:entry], page, *own[entry + 1 :]], table)
            for repair, wanted in enumerate((error, repaired)):
                done = world.do(Op.APPEND, start=1, tokens=3 * size - 1, repair=repair)
                assert done["error"] == wanted
                assert not wanted or done["index"] == max(0, entry * size - 1)
            world.check()
        world.put(own, table)
        world.grow(0, 2)
        world.check()

    def test_public_pages_are_read_and_never_written(self, world: PageWorld) -> None:
        size = world.size
        world.open(0, 2 * size)
        world.do(Op.PIN, end=2 * size, public=1)
        world.put(world.model.block_table(0))
        assert not world.do(Op.CREATE, sequence=1, tenant=1, tokens=size + 2)["error"]
        world.tokens[1] = world.tokens[0][: size + 2]
        self._attended(world, [[1]], tenant=1)
        world.grow(1, 3)
        assert world.query(Q.HELD, tenant=1) == 1
        self._attended(world, [[1]], tenant=1)
        self._attended(world, [[0]])
        world.check()

    def test_a_segment_ends_inside_its_pages(self, world: PageWorld) -> None:
        world.open(0, world.size + 1)
        command = world.attend(0, [0])
        port = world.config.port_bytes
        entry = command["tables"] + -(-16 // port) * port
        segment = SEGMENT.pack(sequence=0, end=2 * world.size + 1, row_mask=1)
        world.driver.view(entry, (32,), np.uint8)[:] = np.frombuffer(segment, np.uint8)
        with pytest.raises(errors.BadRange) as caught:
            world.driver.wait(world.driver.submit_many([COMMANDS[Op.ATTEND].pack(**command)]))
        assert caught.value.field == "segment.end"

    # ------------------------------------------------------------------ reset

    def test_recover_keeps_pages_and_a_new_driver_does_not(self, world: PageWorld) -> None:
        world.open(3, 4)
        world.do(Op.PIN, sequence=3, end=4)
        world.do(Op.QUOTA, tenant=1, pages=0)
        world.driver.recover()
        assert world.query(Q.LENGTH, sequence=3) == 4
        driver = Driver(world.driver.device, ring=16, scratch_bytes=1 << 20)
        asked = [driver.submit("QUERY", what=int(Q.FREE)),
                 driver.submit("QUERY", what=int(Q.QUOTA), tenant=1)]  # fmt: skip
        assert driver.wait(asked)["beats"].tolist() == [driver.config.pages] * 2
        with pytest.raises(errors.BadSequence):
            driver.wait(driver.submit("QUERY", what=int(Q.LENGTH), sequence=3))

    # ------------------------------------------------------------------ helpers

    def _attended(self, world: PageWorld, jobs: list[list[int]], tenant: int = 0) -> None:
        """Jobs over whole sequences, in every plane, under one doorbell: golden's numbers."""
        planes = range(len(world.layouts))
        commands = [(p, s, world.attend(p, s, tenant)) for p in planes for s in jobs]
        packed = [COMMANDS[Op.ATTEND].pack(**c) for _, _, c in commands]
        world.driver.wait(world.driver.submit_many(packed))
        for plane, sequences, command in commands:
            expected = world.expected(plane, sequences)
            np.testing.assert_array_equal(world.output(command), expected)
        world.recycle()
