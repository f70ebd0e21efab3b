"""Order of commands: interlock, overlap, FENCE, slots, full completion ring."""

import pytest

from m890.hdl.commands import COMPLETION_BYTES, Opcode
from m890.testbench.hdl.control.machine import COMPLETIONS_AT, Machine
from m890.testbench.hdl.control.test_control import (
    OUTPUT,
    QUERY,
    SEQUENCE_TABLE,
    TABLES,
    attend,
    open_sequence,
    plane,
    rows,
    segment,
)

AREA = 0x80
"""Bytes of the tables of a job with 4 rows and 2 segments."""


def meets(earlier, later):
    """A later command must see the effect of the earlier one: (kind, plane, sequences) each."""
    kinds = {earlier[0], later[0]}
    common = earlier[2] & later[2]
    return kinds == {Opcode.APPEND, Opcode.ATTEND} and earlier[1] == later[1] and bool(common)


def order(machine, commands):
    """(start, end) of each command as places in the machine's log; inf where it never came."""
    places = {event: place for place, event in enumerate(machine.log)}
    names = {Opcode.APPEND: "append", Opcode.ATTEND: "attend"}
    counts = dict.fromkeys(names, 0)
    out = []
    for kind, *_ in commands:
        if kind in names:
            number = counts[kind]
            counts[kind] += 1
            out.append((places[names[kind], number], places[f"{names[kind]} done", number]))
        else:
            out.append(None)
    return out


def test_commands_overlap_except_where_they_must_not(seed):
    machine = Machine(seed, ring=16)
    rng = machine.rng
    commands = []  # (kind, plane, sequences)
    expected = []  # of each job: rows, tables of its segments, first query's address

    async def one(machine, n):
        kind = rng.choice((Opcode.APPEND, Opcode.APPEND, Opcode.ATTEND, Opcode.ATTEND, Opcode.NOP))
        number, seqs = rng.randrange(2), {rng.randrange(4)}
        fields = {}
        if kind == Opcode.APPEND:
            (s,) = seqs
            fields = {
                "plane": number, "sequence": s, "start": 1, "tokens": 2, "k": QUERY, "v": OUTPUT,
                "source_stride": 0x20,
            }  # fmt: skip
        if kind == Opcode.ATTEND:
            first, second = rng.randrange(4), rng.randrange(4)
            seqs = {first, second}
            at = TABLES + n % 32 * AREA
            entries = [segment(sequence=first), segment(sequence=second)]
            table = rows(machine, 4)
            machine.tables(at, table, entries)
            query = QUERY + 16 * rng.randrange(64)
            fields = attend(plane=number, rows=4, tables=at, query=query)
            expected.append((table, [SEQUENCE_TABLE + 32 * s for s in (first, second)], query))
        commands.append((kind, number, seqs))
        machine.place(machine.command(kind, **fields))

    async def test(machine):
        await machine.start()
        for n in range(2):
            await machine.perform(Opcode.PLANE, **plane(machine, n))
        for s in range(4):
            await open_sequence(machine, s, 0)
        first = machine.submitted
        errors = 0
        while machine.submitted < first + 60:
            while machine.submitted - machine.taken < 12:
                await one(machine, machine.submitted - first)
            await machine.ring_bell()
            errors += (await machine.poll())["error"]
        while machine.taken < machine.submitted:
            errors += (await machine.poll())["error"]
        assert errors == 0

    machine.run(test)
    when = order(machine, commands)
    overlaps = {Opcode.APPEND: 0, Opcode.ATTEND: 0, "both": 0}
    for j, later in enumerate(commands):
        for i, earlier in enumerate(commands[:j]):
            if when[i] is None or when[j] is None:
                continue
            if meets(earlier, later):
                assert when[i][1] < when[j][0], (earlier, later)
            elif when[j][0] < when[i][1]:
                overlaps[earlier[0] if earlier[0] == later[0] else "both"] += 1
    print(overlaps)
    assert all(n > 3 for n in overlaps.values()), "commands that do not meet must overlap"
    for n, (job, (table, tables, query)) in enumerate(zip(machine.jobs, expected, strict=True)):
        assert job.job["slot"] == n % 2
        assert [s["table"] for s in job.segments] == tables
        assert [s["first"] for s in job.segments] == [1, 0]
        for r, entry in enumerate(table):
            assert job.rows[r] == {"valid": 1, "slot": n % 2, "row": r, **entry}
            for tile in range(2):
                at = query + 0x40 * r + 16 * tile
                word = int.from_bytes(machine.memory[at : at + 16], "little")
                assert job.queries[r, tile] == word


@pytest.mark.parametrize("kind", [Opcode.FENCE, Opcode.RELEASE, Opcode.PLANE])
def test_a_command_waits_for_what_is_in_flight(seed, kind):
    machine = Machine(seed)
    fields = {
        Opcode.FENCE: {},
        Opcode.RELEASE: {"sequence": 2},
        Opcode.PLANE: plane(machine, 3),
    }[kind]
    other = {
        Opcode.FENCE: (Opcode.NOP, {}),
        Opcode.RELEASE: (Opcode.RELEASE, {"sequence": 5}),
        Opcode.PLANE: (Opcode.PLANE, plane(machine, 4)),
    }[kind]

    async def test(machine):
        await machine.start()
        await machine.perform(Opcode.PLANE, **plane(machine))
        for s in (2, 4, 5):
            await open_sequence(machine, s)
        machine.tables(TABLES, rows(machine), [segment(), segment(sequence=4)])
        machine.hold = True
        tag = await machine.submit(Opcode.ATTEND, **attend())
        # One that does not concern what is in flight goes past; one that does stays.
        await machine.submit(other[0], **other[1])
        found = await machine.next()
        assert (found["opcode"], found["error"]) == (other[0], 0)
        await machine.submit(kind, **fields)
        await machine.tick(300)
        assert await machine.read("COMPLETION_TAIL") == machine.taken
        assert await machine.read("STATUS") == 1
        machine.hold = False
        found = await machine.next()
        assert found["tag"] == tag
        assert (await machine.next())["opcode"] == kind
        await machine.tick(10)
        assert await machine.read("STATUS") == 0
        if kind == Opcode.RELEASE:  # closed: nobody can use it any more
            assert (await machine.perform(Opcode.ATTEND, **attend()))["error"] != 0

    machine.run(test)


@pytest.mark.parametrize("number, sequence", [(3, 2), (4, 2), (3, 5)])
def test_a_job_waits_for_appends_to_what_it_reads(seed, number, sequence):
    machine = Machine(seed)

    async def test(machine):
        await machine.start()
        for n in (3, 4):
            await machine.perform(Opcode.PLANE, **plane(machine, n))
        for s in (2, 5):
            await open_sequence(machine, s)
        machine.tables(TABLES, rows(machine), [segment(sequence=sequence)] * 2)
        machine.hold = True
        append = {"sequence": 2, "start": 1, "tokens": 2, "k": QUERY, "v": OUTPUT}
        await machine.submit(Opcode.APPEND, plane=3, source_stride=0x20, **append)
        await machine.submit(Opcode.ATTEND, **attend(plane=number))
        await machine.tick(500)
        assert len(machine.appends) == 1
        assert len(machine.jobs) == (0 if (number, sequence) == (3, 2) else 1)
        machine.hold = False
        for _ in range(2):
            assert (await machine.next())["error"] == 0

    machine.run(test)
    assert len(machine.jobs) == 1


def test_no_more_than_four_jobs_and_their_tables_are_in_flight(seed):
    machine = Machine(seed, ring=16)

    async def test(machine):
        await machine.start()
        await machine.perform(Opcode.PLANE, **plane(machine))
        await open_sequence(machine, 2)
        machine.tables(TABLES, rows(machine, 4), [segment(), segment()])
        machine.hold = True
        for _ in range(10):
            machine.place(machine.command(Opcode.ATTEND, **attend(rows=4)))
        await machine.ring_bell()
        await machine.tick(1500)
        # Two slots are in the array's hands; two more jobs wait with their tables read.
        assert len(machine.jobs) == 2
        assert [r for r in machine.reads if r[0] == TABLES] == [(TABLES, AREA // 16)] * 4
        machine.hold = False
        for _ in range(10):
            assert (await machine.next())["error"] == 0

    machine.run(test)
    assert len(machine.jobs) == 10


def test_completions_wait_for_room_and_the_ring_goes_round(seed):
    machine = Machine(seed)
    machine.completions = 2

    async def test(machine):
        await machine.start()
        tags = []
        for _ in range(8):
            tags.append(machine.submitted)
            machine.place(machine.command(Opcode.NOP))
        await machine.ring_bell()
        for n in range(8):
            await machine.tick(200)
            assert await machine.read("COMPLETION_TAIL") == min(8, n + 2)
            beyond = COMPLETIONS_AT + 2 * COMPLETION_BYTES
            assert not any(machine.memory[beyond : beyond + COMPLETION_BYTES])
            assert (await machine.next())["tag"] == tags[n]

    machine.run(test)


def test_the_interrupt_comes_after_the_completion_is_in_memory(seed):
    machine = Machine(seed)

    async def test(machine):
        await machine.start()
        for number in range(6):
            await machine.submit(Opcode.NOP)
            await machine.until(lambda: machine.ctx.get(machine.dut.irq))
            assert machine.completion(number)["phase"] == 1
            assert await machine.read("IRQ_STATUS") == 1
            await machine.write("IRQ_STATUS", 3)
            assert not machine.ctx.get(machine.dut.irq)

    machine.run(test)
