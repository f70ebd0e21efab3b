"""The page manager against its reference model: outcomes, memory and state, memory stalling."""

from collections import Counter

import pytest

from m890.hdl.commands import COMMANDS, Error, Opcode
from m890.hdl.config import preset
from m890.testbench.hdl.pages.machine import PageMachine
from m890.testbench.hdl.pages.traffic import Traffic, memory_map

TINY = preset("tiny").with_(pages=24, sequences=6, tenants=3, planes=3)
SIZE = TINY.page_tokens


def command(opcode, **fields):
    names = (f.name for f in COMMANDS[opcode].fields)
    return opcode, dict.fromkeys(names, 0) | {"opcode": int(opcode)} | fields


@pytest.mark.parametrize("turn", range(2))
def test_random_commands_end_as_in_the_model(seed, turn):
    map = memory_map(TINY, 2, tokens=16 * SIZE)
    machine = PageMachine(TINY, map, seed + turn, ask=True)
    traffic = Traffic(machine.rng, machine.model, map)
    met = Counter()

    async def test(machine):
        for _ in range(120):
            opcode, c = traffic.draw()
            result = await machine.both(opcode, c)
            met[Error(result.error)] += 1
        await machine.same_state()

    machine.run(test)
    assert met[Error.OK] > 40 and len(met) > 4, met
    assert machine.asked > 400, "owners of pages were asked for all the time"


def opened(machine, sequence, tokens, tenant=0):
    """CREATE and APPEND of a sequence."""
    at = machine.map.tables + sequence * machine.map.table_bytes
    limit = machine.map.table_bytes // 4 * SIZE
    c = {"sequence": sequence, "tenant": tenant}
    return [
        command(Opcode.CREATE, table=at, limit=limit, **c),
        command(Opcode.APPEND, tokens=tokens, commit=1, **c),
    ]


def forked(machine, source, target, tokens):
    at = machine.map.tables + target * machine.map.table_bytes
    limit = machine.map.table_bytes // 4 * SIZE
    return command(
        Opcode.FORK, sequence=source, target=target, tokens=tokens, table=at, limit=limit
    )


def test_wrong_bits_in_the_tables_are_corrected(seed):
    """Every word that is written has a wrong bit; nobody notices but the counter."""
    map = memory_map(TINY, 1, tokens=16 * SIZE)
    machine = PageMachine(TINY, map, seed)
    traffic = Traffic(machine.rng, machine.model, map)

    async def test(machine):
        machine.ctx.set(machine.unit.inject, 1)
        for _ in range(60):
            await machine.both(*traffic.draw())
        await machine.same_state()

    machine.run(test)
    assert machine.corrected > 60


def test_two_wrong_bits_end_the_command_and_change_nothing(seed):
    map = memory_map(TINY, 1, tokens=16 * SIZE)
    machine = PageMachine(TINY, map, seed)

    async def test(machine):
        ctx, unit = machine.ctx, machine.unit
        for c in opened(machine, 0, 3 * SIZE):
            await machine.both(*c)
        pin = command(Opcode.PIN, sequence=0, start=SIZE, end=2 * SIZE)
        ctx.set(unit.inject, 3)
        await machine.perform(*pin)
        ctx.set(unit.inject, 0)
        # The sequence's entry is damaged, too, as PIN wrote it; the page is reached by its number.
        lists = machine.model.block_table(0)
        found = await machine.perform(*pin)
        assert Error(found.error) == Error.TABLE_ERROR
        query = command(Opcode.QUERY, what=3, page=lists[1])
        assert Error((await machine.perform(*query)).error) == Error.TABLE_ERROR
        query = command(Opcode.QUERY, what=3, page=lists[0])
        assert (await machine.perform(*query)).value == 1

    machine.run(test)


@pytest.mark.parametrize("where", ["table", "source page", "target page", "target table"])
def test_a_fork_that_meets_a_bus_error_is_undone(seed, where):
    map = memory_map(TINY, 2, tokens=16 * SIZE)
    base, stride, size = map.planes[1]
    target = map.tables + map.table_bytes
    bad = {
        "table": range(map.tables + 16, map.tables + 32),
        "source page": range(base + 6 * stride, base + 6 * stride + size),
        "target page": range(base + 7 * stride, base + 7 * stride + 16),
        "target table": range(target, target + 32),
    }[where]
    armed = []
    machine = PageMachine(TINY, map, seed, bad=lambda address: bool(armed) and address in bad)

    async def test(machine):
        for c in opened(machine, 0, 6 * SIZE + 1):
            await machine.both(*c)
        armed.append(True)
        found = await machine.perform(*forked(machine, 0, 1, 6 * SIZE + 1))
        assert Error(found.error) == Error.BUS_ERROR
        armed.clear()
        machine.memory[:] = machine.model.memory.tobytes()  # of closed tables and free pages
        await machine.same_state()
        await machine.both(*forked(machine, 0, 1, 6 * SIZE + 1))

    machine.run(test)


def among_others(machine, case):
    """Commands that open and pin, then the one that meets bus errors: pages shared and not."""
    lists = machine.map.lists
    table = {"table": machine.map.tables + 2 * machine.map.table_bytes, "limit": 8 * SIZE}
    setup = [
        *opened(machine, 0, 6 * SIZE + 1),
        forked(machine, 0, 1, 4 * SIZE),
        command(Opcode.PIN, sequence=0, end=5 * SIZE),
    ]
    last = {
        "CREATE": command(Opcode.CREATE, sequence=2, tokens=5 * SIZE, list=lists, **table),
        "FORK": forked(machine, 0, 2, 5 * SIZE + 1),
        "TRIM": command(Opcode.TRIM, tokens=SIZE + 1),
        "RELEASE": command(Opcode.RELEASE),
        "PIN": command(Opcode.PIN, end=6 * SIZE + 1, public=1),
        "UNPIN": command(Opcode.UNPIN, end=5 * SIZE),
        "UNPIN listed": command(Opcode.UNPIN, listed=1, list=lists, count=5),
        "APPEND": command(Opcode.APPEND, sequence=1, start=2 * SIZE + 1, tokens=4 * SIZE),
    }[case]
    if case.startswith("UNPIN"):
        setup.append(command(Opcode.TRIM, tokens=5 * SIZE))
    if case == "UNPIN listed":
        setup.append(command(Opcode.RELEASE))
    return setup, last


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(
    "case", ["CREATE", "FORK", "TRIM", "RELEASE", "PIN", "UNPIN", "UNPIN listed", "APPEND"]
)
def test_a_bus_error_at_any_beat_loses_nothing(seed, case, twice):
    """Of tables and lists, read or written; `twice`: the next beat, too, and memory does not keep
    what it refuses. A command that fails has changed nothing, and can be given again; any other is
    carried out. An APPEND goes on with the pages that it was given."""
    config = TINY.with_(pages=12, sequences=3, tenants=2)
    map = memory_map(config, 1, tokens=8 * SIZE)
    here = range(map.tables, map.planes[0][0])
    failing, seen = set(), []

    def bad(address):
        if address not in here:
            return False
        seen.append(address)
        return len(seen) - 1 in failing

    machine = PageMachine(config, map, seed, bad=bad, fault="drops" if twice else "keeps")
    outcomes = Counter()

    async def prepare(setup):
        for c in setup:
            await machine.both(*c)
            if c[0] == Opcode.APPEND:
                pages = machine.model.block_table(0)[:5]
                machine.model.memory[map.lists :][:20].view("<u4")[:] = pages

    def forget_closed():
        """Tables of closed sequences, lists and free pages may hold anything: the model's."""
        model, (base, stride, _) = machine.model, map.planes[0]
        free = (range(base + n * stride, base + (n + 1) * stride) for n in model.free)
        tables = (map.tables + n * map.table_bytes for n in range(config.sequences))
        closed = (
            range(at, at + map.table_bytes)
            for n, at in enumerate(tables)
            if n not in model.sequences
        )
        for part in (range(map.lists, base), *free, *closed):
            machine.memory[part.start : part.stop] = model.memory[part].tobytes()

    async def give_back():
        model = machine.model
        for number in list(model.sequences):
            await machine.both(*command(Opcode.RELEASE, sequence=number))
        for number, page in enumerate(model.pages):
            for _ in range(page.pins if page else 0):
                model.memory[map.lists :][:4].view("<u4")[:] = number
                await machine.both(*command(Opcode.UNPIN, listed=1, list=map.lists, count=1))
        assert len(model.free) == config.pages

    async def test(machine):
        setup, last = among_others(machine, case)
        await prepare(setup)
        beat, met = 0, True
        while met:
            seen.clear()
            failing.update((beat, beat + 1) if twice else (beat,))
            forget_closed()
            found = await machine.perform(*last)
            met = len(seen) > beat
            failing.clear()
            outcomes[Error(found.error)] += met
            again = case == "APPEND" and found.error
            if found.error:
                assert Error(found.error) == Error.BUS_ERROR
                forget_closed()
            if again:
                assert not (await machine.both(*last)).error
            elif not found.error:
                assert not machine.model.run(*last).error
            await machine.same_state()
            if again or not found.error:
                await give_back()
                await prepare(setup)
            beat += 1
        assert not found.error, "the last time no beat failed"

    machine.run(test)
    assert outcomes[Error.BUS_ERROR] >= 2
    assert case in ("CREATE", "FORK", "APPEND") or outcomes[Error.OK] >= 2, outcomes


@pytest.mark.parametrize("fault", ["drops", "keeps", "spoils"])
@pytest.mark.parametrize("place", [1, 3, 4], ids=["copied", "new", "newer"])
def test_an_append_does_not_trust_an_entry_that_memory_refused(seed, place, fault):
    """A new page whose entry was refused is given back; a copied one, too, if the old one is still
    named: then the command fails. Pages before it stay. Given again, it is carried out."""
    map = memory_map(TINY, 2, tokens=16 * SIZE)
    entry = map.tables + map.table_bytes + 4 * place
    beat = entry & -TINY.port_bytes
    writes = {1: [True], 3: [False, True], 4: [True]}[place]  # of the entry's beat, in order
    unread = []  # what is refused once when it is read

    def bad(address):
        return address in unread and not unread.remove(address)

    def refused(address):
        fails = address == beat and bool(writes) and writes.pop(0)
        unread.extend([beat] * fails)
        return fails

    machine = PageMachine(TINY, map, seed, bad=bad, refused=refused, fault=fault)
    append = command(Opcode.APPEND, sequence=1, start=SIZE + 1, tokens=4 * SIZE - 1, commit=1)

    async def test(machine):
        model = machine.model
        waiting, writes[:] = list(writes), []
        for c in [*opened(machine, 0, 3 * SIZE), forked(machine, 0, 1, 3 * SIZE - 1)]:
            await machine.both(*c)
        writes[:] = waiting
        fails = place > 1 or fault == "drops"
        model.refuses = lambda address: fails and address == entry
        found = await machine.perform(*append)
        assert Error(found.error) == (Error.BUS_ERROR if fails else Error.OK)
        assert model.run(*append) == found
        if place > 1:  # behind the sequence's pages: nobody reads it
            assert unread.pop() == beat
            machine.memory[entry : entry + 4] = model.memory[entry : entry + 4].tobytes()
        if not fails:
            model.committed(append[1])
        assert bytes(machine.memory) == model.memory.tobytes() and not unread and not writes
        await machine.same_state()
        model.refuses = lambda address: False
        await machine.both(*append)
        await machine.same_state()

    machine.run(test)


def copied_in(machine, blank=0):
    """An inward COPY of six pages; its slots are in the model's memory."""
    map, model = machine.map, machine.model
    slots = map.lists + 2 * TINY.port_bytes
    model.memory[slots : slots + 24].view("<u4")[:] = range(6)
    return command(
        Opcode.COPY, inward=1, blank=blank, host=map.host, host_stride=map.host_stride,
        host_slots=8, list=map.lists, slots=slots, count=6,
    )  # fmt: skip


@pytest.mark.parametrize("blank", [0, 1])
@pytest.mark.parametrize("place", [0, 2, 5])
def test_a_copy_takes_no_page_if_it_cannot_list_one(seed, place, blank):
    map = memory_map(TINY, 2, tokens=16 * SIZE)
    each = TINY.port_bytes // 4
    beat, earlier = map.lists + place // each * TINY.port_bytes, place % each
    unread, writes = [], []

    def bad(address):
        return address in unread and not unread.remove(address)

    def refused(address):
        fails = address == beat and bool(writes) and writes.pop(0)
        unread.extend([map.lists] * (fails and place > 0))  # where those before it are named
        return fails

    machine = PageMachine(TINY, map, seed, bad=bad, refused=refused, fault="drops")

    async def test(machine):
        model = machine.model
        for c in opened(machine, 0, 3 * SIZE):
            await machine.both(*c)
        copy = copied_in(machine, blank)
        writes[:] = [False] * earlier + [True]
        model.refuses = lambda address: address == map.lists + 4 * place
        found = await machine.both(*copy)
        assert (Error(found.error), found.index) == (Error.BUS_ERROR, place)
        assert not writes and not unread and len(model.free) == TINY.pages - 3
        await machine.same_state()
        model.refuses = lambda address: False
        assert not (await machine.both(*copy)).error
        await machine.same_state()

    machine.run(test)


@pytest.mark.parametrize("where", ["slot", "page", "list of slots"])
def test_a_copy_that_meets_a_bus_error_gives_its_pages_back(seed, where):
    map = memory_map(TINY, 2, tokens=16 * SIZE)
    base, stride, _ = map.planes[1]
    slots = map.lists + 2 * TINY.port_bytes
    bad = {"slot": map.host + 4 * map.host_stride, "page": base + 7 * stride}.get(where, slots)
    armed = []

    def fails(address):
        armed.extend([address] * (address == bad))
        return address == bad and len(armed) == (2 if where == "list of slots" else 1)

    machine = PageMachine(TINY, map, seed, bad=fails)

    async def test(machine):
        for c in opened(machine, 0, 3 * SIZE):
            await machine.both(*c)
        copy = copied_in(machine)
        machine.memory[:] = machine.model.memory.tobytes()
        found = await machine.perform(*copy)
        page = {"slot": 4, "page": 4}.get(where, 0)  # the fifth page taken is number 7
        assert (Error(found.error), found.index) == (Error.BUS_ERROR, page)
        machine.memory[:] = machine.model.memory.tobytes()  # of free pages and the list
        await machine.same_state()
        assert not (await machine.perform(*copy)).error

    machine.run(test)


def test_a_reset_ends_what_memory_refuses_for_good(seed):
    map = memory_map(TINY, 1, tokens=16 * SIZE)
    armed, seen = [], []

    def bad(address):
        seen.extend(armed)
        return len(seen) > 2  # pages are given up: two beats; freed: never

    machine = PageMachine(TINY, map, seed, bad=bad)

    async def test(machine):
        ctx, unit = machine.ctx, machine.unit
        for c in opened(machine, 0, 8 * SIZE):
            await machine.both(*c)
        armed.append(True)
        opcode, c = command(Opcode.RELEASE)
        word = int.from_bytes(COMMANDS[opcode].pack(**c), "little")
        ctx.set(unit.i.payload, {"data": word, "ident": 1})
        ctx.set(unit.i.valid, 1)
        await ctx.tick().until(unit.i.ready)
        ctx.set(unit.i.valid, 0)
        for _ in range(500):
            await ctx.tick()
            assert not ctx.get(unit.event.valid)
        assert len(seen) > 20, "it is tried again and again"
        ctx.set(unit.drop, 1)
        await ctx.tick().until(unit.event.valid)
        assert Error(ctx.get(unit.event.payload).error) == Error.BUS_ERROR

    machine.run(test)


@pytest.mark.parametrize("latency", [5, 40])
def test_a_fork_takes_a_cycle_and_a_table_entry_per_page(seed, latency):
    config = TINY.with_(pages=400, planes=3)
    map = memory_map(config, 2, tokens=390 * SIZE)
    machine = PageMachine(config, map, seed, latency=latency, steady=True)
    cycles = {}

    async def test(machine):
        pages = 300
        for c in opened(machine, 0, pages * SIZE):
            await machine.both(*c)
        for target, whole in ((1, pages), (2, 100), (3, 0)):
            await machine.both(*forked(machine, 0, target, whole * SIZE))
            cycles[whole] = machine.cycles

    machine.run(test)
    entries = config.port_bytes // 4
    if latency == 5:  # memory keeps up
        each = (cycles[300] - cycles[100]) / 200
        assert each <= 1.1 + 1 / entries
    assert cycles[0] < 100 + 2 * latency


def test_an_append_passes_a_copy_and_sees_what_was_before_it(seed):
    """COPY of many pages; an APPEND that needs a page is served before its end."""
    map = memory_map(TINY, 2, tokens=16 * SIZE)
    machine = PageMachine(TINY, map, seed, latency=20)

    async def test(machine):
        ctx, unit, model = machine.ctx, machine.unit, machine.model
        for c in [*opened(machine, 0, 6 * SIZE), *opened(machine, 1, SIZE)]:
            await machine.both(*c)
        await machine.both(*command(Opcode.PIN, sequence=0, start=0, end=6 * SIZE))
        pages, slots = map.lists, map.lists + 96
        model.memory[pages : pages + 24].view("<u4")[:] = model.block_table(0)
        model.memory[slots : slots + 24].view("<u4")[:] = range(6)
        machine.memory[pages : slots + 24] = model.memory[pages : slots + 24].tobytes()
        opcode, c = command(
            Opcode.COPY, host=map.host, host_stride=map.host_stride, host_slots=8, list=pages,
            slots=slots, count=6,
        )  # fmt: skip
        word = int.from_bytes(COMMANDS[opcode].pack(**c), "little")
        ctx.set(unit.i.payload, {"data": word, "ident": 1})
        ctx.set(unit.i.valid, 1)
        await ctx.tick().until(unit.i.ready)
        ctx.set(unit.i.valid, 0)
        append = command(Opcode.APPEND, sequence=1, start=SIZE, tokens=1, commit=1)[1]
        found = await machine._append(append)
        assert not found.error and not ctx.get(unit.event.valid)
        model.run(opcode, c)
        model.run(Opcode.APPEND, append)
        model.committed(append)
        await ctx.tick().until(unit.event.valid)
        ctx.set(unit.event.ready, 1)
        await ctx.tick()
        ctx.set(unit.event.ready, 0)
        await machine.same_state()

    machine.run(test)
