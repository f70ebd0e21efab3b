"""Every refusal, once by hand with its field and many times at random against the reference."""

import pytest

from m890.hdl.commands import ATTEND, COMMANDS, PLANE, SEGMENT, Error, Opcode
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.testbench.hdl.control.machine import MEMORY, Machine
from m890.testbench.hdl.control.reference import Reference
from m890.testbench.hdl.control.test_control import (
    OUTPUT,
    QUERY,
    SEQUENCE_TABLE,
    TABLES,
    TOKENS,
    attend,
    plane,
    rows,
    segment,
    set_up,
)

APPEND = {
    "plane": 3, "sequence": 2, "start": 10, "tokens": 7, "source_format": 1, "k": QUERY,
    "v": OUTPUT, "source_stride": 0x20,
}  # fmt: skip
HUGE = 1 << 40

# opcode, changed field(s), error, field named
BAD = [
    (Opcode.PLANE, {"plane": 16}, Error.BAD_PLANE, "plane"),
    (Opcode.PLANE, {"format": len(Format)}, Error.BAD_FORMAT, "format"),
    (Opcode.PLANE, {"head": 0}, Error.BAD_HEAD_SIZE, "head"),
    (Opcode.PLANE, {"head": 5}, Error.BAD_HEAD_SIZE, "head"),
    (Opcode.PLANE, {"base": 0x8008}, Error.BAD_ALIGNMENT, "base"),
    (Opcode.PLANE, {"stride": 0x144}, Error.BAD_ALIGNMENT, "stride"),
    (Opcode.PLANE, {"stride": 0x110}, Error.BAD_RANGE, "stride"),
    (Opcode.PLANE, {"base": MEMORY}, Error.BAD_ADDRESS, "base"),
    (Opcode.PLANE, {"base": HUGE}, Error.BAD_ADDRESS, "base"),
    (Opcode.PLANE, {"stride": 0xFFFFFFF0}, Error.BAD_ADDRESS, "base"),
    (Opcode.APPEND, {"plane": 4}, Error.BAD_PLANE, "plane"),
    (Opcode.APPEND, {"plane": 19}, Error.BAD_PLANE, "plane"),
    (Opcode.APPEND, {"sequence": 4}, Error.BAD_SEQUENCE, "sequence"),
    (Opcode.APPEND, {"sequence": 18}, Error.BAD_SEQUENCE, "sequence"),
    (Opcode.APPEND, {"tokens": 0}, Error.BAD_RANGE, "tokens"),
    (Opcode.APPEND, {"start": 58}, Error.BAD_RANGE, "start"),
    (Opcode.APPEND, {"start": 0xFFFFFFFF}, Error.BAD_RANGE, "start"),
    (Opcode.APPEND, {"source_format": 2}, Error.BAD_FORMAT, "source_format"),
    (Opcode.APPEND, {"k": QUERY + 2}, Error.BAD_ALIGNMENT, "k"),
    (Opcode.APPEND, {"v": QUERY + 8}, Error.BAD_ALIGNMENT, "v"),
    (Opcode.APPEND, {"source_stride": 0x28}, Error.BAD_ALIGNMENT, "source_stride"),
    (Opcode.APPEND, {"source_stride": 0x10}, Error.BAD_RANGE, "source_stride"),
    (Opcode.APPEND, {"k": MEMORY - 6 * 0x20}, Error.BAD_ADDRESS, "k"),
    (Opcode.APPEND, {"v": MEMORY - 6 * 0x20}, Error.BAD_ADDRESS, "v"),
    (Opcode.ATTEND, {"plane": 4}, Error.BAD_PLANE, "plane"),
    (Opcode.ATTEND, {"rows": 0}, Error.BAD_ROWS, "rows"),
    (Opcode.ATTEND, {"rows": 5}, Error.BAD_ROWS, "rows"),
    (Opcode.ATTEND, {"segments": 0}, Error.BAD_SEGMENTS, "segments"),
    (Opcode.ATTEND, {"segments": 9}, Error.BAD_SEGMENTS, "segments"),
    (Opcode.ATTEND, {"tables": TABLES + 8}, Error.BAD_ALIGNMENT, "tables"),
    (Opcode.ATTEND, {"query": QUERY + 1}, Error.BAD_ALIGNMENT, "query"),
    (Opcode.ATTEND, {"output": OUTPUT + 8}, Error.BAD_ALIGNMENT, "output"),
    (Opcode.ATTEND, {"query_stride": 0x48}, Error.BAD_ALIGNMENT, "query_stride"),
    (Opcode.ATTEND, {"output_stride": 0x58}, Error.BAD_ALIGNMENT, "output_stride"),
    (Opcode.ATTEND, {"query_stride": 0x10}, Error.BAD_RANGE, "query_stride"),
    (Opcode.ATTEND, {"output_stride": 0x10}, Error.BAD_RANGE, "output_stride"),
    (
        Opcode.ATTEND,
        {"output_format": 2, "output_stride": 0x30},
        Error.BAD_RANGE,
        "output_stride",
    ),
    (
        Opcode.ATTEND,
        {"output_format": 3, "output_stride": 0x40},
        Error.BAD_RANGE,
        "output_stride",
    ),
    (Opcode.ATTEND, {"tables": MEMORY - 0x60}, Error.BAD_ADDRESS, "tables"),
    (Opcode.ATTEND, {"query": MEMORY - 0x90}, Error.BAD_ADDRESS, "query"),
    (Opcode.ATTEND, {"output": MEMORY - 0xB0}, Error.BAD_ADDRESS, "output"),
    (Opcode.ATTEND, {"output": HUGE + OUTPUT}, Error.BAD_ADDRESS, "output"),
]
GOOD = {
    Opcode.PLANE: plane(None),
    Opcode.APPEND: APPEND,
    Opcode.ATTEND: attend(),
}

# opcode of the job, changes of the job, of the second segment, error, field
BAD_SEGMENTS = [
    ({}, {"kind": 3}, Error.BAD_SEGMENT_KIND, "kind"),
    ({}, {"kind": 0x80}, Error.BAD_SEGMENT_KIND, "kind"),
    ({}, {"sequence": 7}, Error.BAD_SEQUENCE, "sequence"),
    ({}, {"sequence": 0x102}, Error.BAD_SEQUENCE, "sequence"),
    ({}, {"start": 60}, Error.BAD_RANGE, "start"),
    ({}, {"end": 65}, Error.BAD_RANGE, "end"),
    ({}, {"end": 0xFFFFFFFF}, Error.BAD_RANGE, "end"),
    ({}, {"kind": 2, "address": 0x2004}, Error.BAD_ALIGNMENT, "address"),
    ({}, {"kind": 2, "address": MEMORY - 0xE0}, Error.BAD_ADDRESS, "address"),
    ({}, {"kind": 2, "address": HUGE}, Error.BAD_ADDRESS, "address"),
    ({"bias": 1}, {"address": 0x2008}, Error.BAD_ALIGNMENT, "address"),
    ({"bias": 1}, {"address": MEMORY - 23 * 0x10}, Error.BAD_ADDRESS, "address"),
]


def test_each_field_is_refused_by_name_and_the_core_goes_on(seed):
    machine = Machine(seed)

    async def test(machine):
        await machine.start()
        await set_up(machine)
        for opcode, changes, error, name in BAD:
            found = await machine.perform(opcode, **{**GOOD[opcode], **changes})
            field = [f.name for f in COMMANDS[opcode].fields].index(name)
            assert (Error(found["error"]), found["field"]) == (error, field), (opcode, changes)
        found = await machine.perform(Opcode.APPEND, **APPEND)
        assert found["error"] == 0

    machine.run(test)
    assert len(machine.appends) == 1 and not machine.jobs


def test_bad_table_entries_name_their_segment_or_row(seed):
    machine = Machine(seed)
    entries = rows(machine)

    async def test(machine):
        await machine.start()
        await set_up(machine)
        for job, changes, error, name in BAD_SEGMENTS:
            first = segment(kind=2, address=0x2000)
            machine.tables(TABLES, entries, [first, segment(**{"address": 0x2000, **changes})])
            found = await machine.perform(Opcode.ATTEND, **attend(**job))
            field = len(ATTEND.fields) + [f.name for f in SEGMENT.fields].index(name)
            assert (Error(found["error"]), found["field"], found["index"]) == (error, field, 1)
        far = [*entries[:2], {**entries[2], "position": 1 << 24}]
        machine.tables(TABLES, far, [segment(), segment()])
        found = await machine.perform(Opcode.ATTEND, **attend())
        tables = [f.name for f in ATTEND.fields].index("tables")
        assert (found["error"], found["field"], found["index"]) == (Error.BAD_RANGE, tables, 2)
        # The very last bytes of memory may be used.
        machine.tables(TABLES, entries, [segment(address=MEMORY - 24 * 0x10)])
        found = await machine.perform(
            Opcode.ATTEND, **attend(bias=1, segments=1, query=MEMORY - 0xA0, output=MEMORY - 0xC0)
        )
        assert found["error"] == 0

    machine.run(test)
    assert len(machine.jobs) == 1


@pytest.mark.parametrize("opcode", [len(Opcode), 0x80, 0xFF])
def test_an_unknown_opcode_is_refused(seed, opcode):
    machine = Machine(seed)

    async def test(machine):
        await machine.start()
        raw = bytearray(machine.rng.randbytes(64))
        raw[0] = opcode
        machine.place(bytes(raw))
        await machine.ring_bell()
        found = await machine.next()
        assert (found["error"], found["field"]) == (Error.BAD_OPCODE, 0)
        assert found["opcode"] == opcode and found["tag"] == int.from_bytes(raw[2:4], "little")
        assert (await machine.perform(Opcode.NOP))["error"] == 0

    machine.run(test)


def test_bus_errors_name_what_was_read(seed):
    machine = Machine(seed)
    names = [f.name for f in ATTEND.fields]

    async def test(machine):
        await machine.start()
        await set_up(machine)
        machine.tables(TABLES, rows(machine), [segment(), segment()])
        for address, name, index in (
            (TABLES + 0x40, "tables", 0),
            (TABLES, "tables", 0),
            (QUERY + 0x50, "query", 1),
        ):
            machine.bad_reads = {address}
            found = await machine.perform(Opcode.ATTEND, **attend())
            assert found["error"] == Error.BUS_ERROR
            assert (names[found["field"]], found["index"]) == (name, index)
        ring_entry = machine.submitted % machine.ring
        machine.bad_reads = {0x400 + 64 * ring_entry + 32}
        found = await machine.perform(Opcode.NOP)
        assert found["error"] == Error.BUS_ERROR
        machine.bad_reads = set()
        for _ in range(2):
            assert (await machine.perform(Opcode.ATTEND, **attend()))["error"] == 0
        machine.append_error = Error.BAD_PAGE
        found = await machine.perform(Opcode.APPEND, **APPEND)
        assert (found["error"], found["field"], found["index"]) == (Error.BAD_PAGE, 3, 5)
        machine.append_error = Error.BUS_ERROR
        found = await machine.perform(Opcode.APPEND, **APPEND)
        assert (found["error"], found["field"]) == (Error.BUS_ERROR, 7)
        machine.attend_error = {"error": Error.BAD_PAGE, "field": 20, "index": 1}
        found = await machine.perform(Opcode.ATTEND, **attend())
        assert (found["error"], found["field"], found["index"]) == (Error.BAD_PAGE, 20, 1)
        counters = await machine.counters()
        assert counters["JOBS"] == 2 and counters["TOKENS"] == TOKENS, "those of `set_up`"

    machine.run(test)
    assert [j.job["slot"] for j in machine.jobs] == [0, 1, 0]


def test_a_core_without_the_unit_refuses_a_soft_cap(seed):
    machine = Machine(seed, preset("tiny").with_(softcap=False))

    async def test(machine):
        await machine.start()
        await set_up(machine)
        found = await machine.perform(Opcode.ATTEND, **attend())
        field = [f.name for f in ATTEND.fields].index("softcap")
        assert (found["error"], found["field"]) == (Error.BAD_FORMAT, field)

    machine.run(test)


def test_a_core_without_the_units_refuses_a_rotated_plane(seed):
    machine = Machine(seed, preset("tiny").with_(rotation=False))

    async def test(machine):
        await machine.start()
        found = await machine.perform(Opcode.PLANE, **plane(machine), rotate=1)
        field = [f.name for f in PLANE.fields].index("rotate")
        assert (found["error"], found["field"]) == (Error.BAD_FORMAT, field)
        assert (await machine.perform(Opcode.PLANE, **plane(machine)))["error"] == 0

    machine.run(test)


def _mutate(rng, record, fields, limit):
    """Changes up to two fields to values that lie near limits."""
    for f in rng.sample(record.fields, rng.choice((0, 1, 1, 2))):
        if f.name in ("opcode", "tag"):
            continue
        value = rng.choice(
            (
                rng.getrandbits(f.width),
                rng.getrandbits(f.width) & ~15,
                rng.randrange(70),
                16 * rng.randrange(40),
                limit - 16 * rng.randrange(60),
                (1 << f.width) - 1,
                (1 << f.width) - 16,
                fields.get(f.name, 0) + rng.choice((-16, 1, 16)),
            )
        )
        fields[f.name] = max(0, value) & ((1 << f.width) - 1)
    return fields


@pytest.mark.parametrize("name, lanes", [("tiny", 8), ("small", 16), ("edge", 32), ("m890", 64)])
def test_random_commands_end_as_the_reference_says(seed, name, lanes):
    # Tables of every port width: entries are wider than a beat, as wide, or share one.
    config = preset("tiny").with_(
        lanes=lanes, page_tokens=lanes, max_head=4 * lanes, rows=5, fifo_beats=2 * lanes
    )
    machine = Machine(seed, config.with_(pages=8), memory=1 << 18)
    port, rng = machine.config.port_bytes, machine.rng
    limit = len(machine.memory)
    reference = Reference(machine.config, limit)
    outcomes: dict[int, int] = {}

    async def test(machine):
        await machine.start()
        for n in range(120):
            known = [o for o in Opcode if o <= Opcode.ATTEND]  # the page manager has its own
            opcode = rng.choice((Opcode.ATTEND, Opcode.ATTEND, Opcode.APPEND, *known))
            if n == 0:
                opcode = Opcode.PLANE
            if n in (1, 60):
                s = 3 - n // 60
                await machine.open(s, SEQUENCE_TABLE + 2 * port * s, 4 * lanes, 2, QUERY)
                reference.open(s, 4 * lanes)
            tiles = rng.randrange(1, 5)
            count, segments = rng.randrange(1, 6), rng.randrange(1, 9)
            number = rng.choice((2, 3)) if n else 2
            good = {
                Opcode.PLANE: {
                    "plane": number, "format": rng.choice(list(Format)), "head": tiles,
                    "base": 0x8000,
                    "stride": port * (2 * tiles * lanes + 4), "tags": rng.randrange(2),
                },
                Opcode.APPEND: {
                    **APPEND, "plane": rng.choice((2, 3)), "sequence": rng.choice((2, 3)),
                    "source_stride": 4 * port,
                },
                Opcode.ATTEND: attend(
                    plane=rng.choice((2, 3)), rows=count, segments=segments, query_stride=4 * port,
                    output_stride=9 * port, output_format=rng.randrange(4),
                    bias=rng.randrange(2),
                ),
            }.get(opcode, {})  # fmt: skip
            if good.get("base", 0) + machine.config.pages * good.get("stride", 0) > limit:
                good["head"], good["stride"] = 1, port * (2 * lanes + 4)
            fields = _mutate(rng, COMMANDS[opcode], good, limit) if n else good
            table = rows(machine, 64)
            if rng.random() < 0.05:
                table[rng.randrange(5)]["position"] = 1 << rng.randrange(24, 32)
            entries = [
                segment(
                    kind=rng.randrange(3), sequence=rng.choice((2, 3)), end=4 * lanes,
                    address=0x2000,
                )
                for _ in range(64)
            ]  # fmt: skip
            if rng.random() < 0.4:
                which = rng.randrange(8)
                entries[which] = _mutate(rng, SEGMENT, entries[which], limit)
            if opcode == Opcode.ATTEND and fields["tables"] == TABLES:
                # `rows` may be out of range here: then the tables are never looked at.
                used = table[: fields["rows"]] if fields["rows"] <= 64 else table
                machine.tables(TABLES, used, entries[: min(64, fields["segments"])])
            raw = machine.command(opcode, **fields)
            expected = reference.outcome(raw, machine.memory)
            machine.place(raw)
            await machine.ring_bell()
            found = await machine.poll()
            got = (found["error"], found["field"], found["index"])
            assert got == expected, (opcode, fields, entries[got[2] % 8])
            outcomes[got[0]] = outcomes.get(got[0], 0) + 1

    machine.run(test)
    print(name, outcomes)
    assert outcomes[0] > 15 and len(outcomes) > 5
