"""Registers, doorbell, ring set-up, reset and counters, as firmware meets them."""

import pytest

from m890.hdl.commands import Error, Opcode
from m890.hdl.registers import ADDRESS, COUNTERS, IDENT, REGISTERS, VERSION, Stall
from m890.testbench.hdl.control.machine import (
    COMPLETIONS_AT,
    MEMORY,
    RING_AT,
    Machine,
)
from m890.testbench.hdl.control.test_control import (
    OUTPUT,
    QUERY,
    TABLES,
    TOKENS,
    attend,
    rows,
    segment,
    set_up,
)


def test_every_register_reads_what_it_should(seed):
    machine = Machine(seed)
    c = machine.config

    async def test(machine):
        assert await machine.read("IDENT") == IDENT
        assert await machine.read("VERSION") == VERSION
        geometry = c.rows | c.lanes << 8 | c.page_tokens << 16
        assert await machine.read("GEOMETRY") == geometry
        limits = c.max_tiles | c.max_segments << 8 | (c.planes - 1) << 16
        assert await machine.read("LIMITS") == limits
        assert await machine.read("POOL") == (c.pages - 1) | (c.sequences - 1) << 16
        assert await machine.read("TENANTS") == c.tenants - 1
        await machine.start()
        await machine.write("CONTROL", 0)
        narrow = {"IRQ_ENABLE": 2, "COMPLETION_HEAD": 16, "PAGE_INJECT": 2}
        counting = {
            f"{n}_LO" for n in COUNTERS if n.startswith(("CYCLES", "BEATS", "USE", "STALL"))
        }
        for register in REGISTERS:
            if register.name in ("CONTROL", "RING_TAIL") or register.access == "w1c":
                continue
            before = await machine.read(register.name)
            value = machine.rng.getrandbits(narrow.get(register.name, 32))
            assert await machine.write(register.name, value) == 0
            expected = value if register.access == "rw" else before
            if register.name not in counting:
                assert await machine.read(register.name) == expected, register.name
        # Some of a register's bytes only: refused. Beyond the last register: refused.
        before = await machine.read("RING_SIZE")
        assert await machine.write("RING_SIZE", 77, strobe=7) == 2
        assert await machine.read("RING_SIZE") == before
        beyond = REGISTERS[-1].address + 4
        assert await machine.write(beyond, 1) == 2
        assert (await machine.read_raw(beyond))[1] == 2

    machine.run(test)


def test_a_ring_overrun_is_refused_and_the_core_stays_usable(seed):
    machine = Machine(seed)

    async def overrun(machine):
        before = await machine.read("RING_TAIL")
        await machine.write("RING_TAIL", (before + machine.ring + 1) & 0xFFFF)
        assert await machine.read("RING_TAIL") == before
        assert await machine.read("STATUS") & 0xFF02 == Error.RING_OVERRUN << 8 | 2
        assert await machine.read("IRQ_STATUS") & 2 and machine.ctx.get(machine.dut.irq)

    async def test(machine):
        await machine.start()
        await overrun(machine)
        found = await machine.perform(Opcode.NOP)
        assert found["error"] == 0
        await machine.write("IRQ_STATUS", 3)
        assert await machine.read("STATUS") == 0 and not machine.ctx.get(machine.dut.irq)
        # As many as the ring holds are no overrun; backwards is one.
        for _ in range(8):
            machine.place(machine.command(Opcode.NOP))
        await machine.ring_bell()
        for _ in range(8):
            await machine.next()
        await machine.write("RING_TAIL", machine.submitted - 1)
        assert await machine.read("STATUS") & 0xFF02 == Error.RING_OVERRUN << 8 | 2
        await machine.write("CONTROL", 2)
        assert await machine.read("STATUS") == 0

    machine.run(test)


@pytest.mark.parametrize("ring", ["RING", "COMPLETION"])
def test_an_unusable_ring_cannot_be_enabled(seed, ring):
    machine = Machine(seed)
    at = {"RING": RING_AT, "COMPLETION": COMPLETIONS_AT}[ring]
    entry = {"RING": 64, "COMPLETION": 32}[ring]

    async def test(machine):
        await machine.start()
        await machine.write("CONTROL", 0)
        for name, value in (
            ("SIZE", 0), ("SIZE", 3), ("SIZE", 65536), ("SIZE", 0x80000000), ("BASE_LO", at + 64),
            ("BASE_LO", MEMORY - 4 * entry), ("BASE_HI", 1), ("BASE_HI", 1 << 31),
        ):  # fmt: skip
            good = await machine.read(f"{ring}_{name}")
            await machine.write(f"{ring}_{name}", value)
            await machine.write("CONTROL", 1)
            assert await machine.read("CONTROL") == 0
            assert await machine.read("STATUS") == Error.BAD_RING << 8 | 2, (name, value)
            assert await machine.read("IRQ_STATUS") == 2
            await machine.write("IRQ_STATUS", 2)
            await machine.write(f"{ring}_{name}", good)
        machine.place(machine.command(Opcode.NOP))
        await machine.write("RING_TAIL", 1)
        await machine.tick(100)
        assert not machine.reads, "nothing is fetched while disabled"
        await machine.write("CONTROL", 1)
        assert (await machine.next())["error"] == 0
        # While enabled the set-up stays.
        await machine.write(f"{ring}_SIZE", 4)
        assert await machine.read(f"{ring}_SIZE") == machine.ring

    machine.run(test)


def test_a_reset_forgets_what_is_in_flight_and_starts_afresh(seed):
    machine = Machine(seed)

    async def test(machine):
        await machine.start()
        await set_up(machine)
        machine.tables(TABLES, rows(machine), [segment(), segment()])
        await machine.submit(Opcode.ATTEND, **attend())
        await machine.submit(Opcode.FENCE)
        for _ in range(4):
            machine.place(machine.command(Opcode.NOP))
        await machine.ring_bell()
        await machine.tick(70)
        before = bytes(machine.memory[COMPLETIONS_AT : COMPLETIONS_AT + 0x100])
        await machine.write("CONTROL", 2)
        # The write is answered when the job is over and nothing moves any more.
        assert await machine.read("STATUS") == 0
        for name in ("RING_HEAD", "RING_TAIL", "COMPLETION_TAIL", "COMPLETION_HEAD", "JOBS_LO"):
            assert await machine.read(name) == 0
        assert len(machine.jobs) == 1
        after = bytes(machine.memory[COMPLETIONS_AT : COMPLETIONS_AT + 0x100])
        assert after == before, "forgotten commands leave no completion"
        machine.submitted = machine.taken = 0
        machine.memory[COMPLETIONS_AT : COMPLETIONS_AT + 0x100] = bytes(0x100)
        await machine.write("IRQ_STATUS", 3)
        await machine.write("CONTROL", 1)
        # Planes and sequences are still there.
        assert (await machine.perform(Opcode.ATTEND, **attend()))["error"] == 0

    machine.run(test)


def test_cycles_are_beats_or_exactly_one_cause(seed):
    machine = Machine(seed)
    append = {
        "plane": 3, "sequence": 2, "start": 10, "tokens": 7, "source_format": 1, "k": QUERY,
        "v": OUTPUT, "source_stride": 0x20,
    }  # fmt: skip

    async def test(machine):
        await machine.start()
        await set_up(machine)
        machine.tables(TABLES, rows(machine), [segment(), segment()])
        for _ in range(3):
            found = await machine.perform(Opcode.ATTEND, **attend())
            assert found["end"] > found["start"]
            assert (await machine.perform(Opcode.APPEND, **append))["error"] == 0
        await machine.tick(20)
        idle = await machine.read("STALL_IDLE_LO")
        query = await machine.read("STALL_QUERY_LO")
        await machine.tick(50)
        assert await machine.read("STALL_QUERY_LO") == query, "no job: every stall is idle"
        assert await machine.read("STALL_IDLE_LO") > idle + 15
        counters = await machine.counters()
        assert (counters["JOBS"], counters["TOKENS"] - TOKENS) == (3, 21)
        assert all(counters[f"STALL_{s.name}"] > 0 for s in Stall)
        assert 0 < counters["USEFUL_BEATS"] < counters["BEATS"]

    machine.run(test)


def test_a_completion_that_cannot_be_written_is_a_ring_error(seed):
    machine = Machine(seed)

    async def test(machine):
        await machine.start()
        machine.bad_writes = {COMPLETIONS_AT}
        await machine.submit(Opcode.NOP)
        await machine.until(lambda: machine.ctx.get(machine.dut.irq))
        await machine.tick(3)
        assert await machine.read("STATUS") == Error.BUS_ERROR << 8 | 2

    machine.run(test)


def test_counters_are_read_as_pairs(seed):
    machine = Machine(seed)

    async def test(machine):
        names = [r.name for r in REGISTERS if r.address >= ADDRESS["CYCLES_LO"]]
        assert names == [f"{n}_{half}" for n in COUNTERS for half in ("LO", "HI")]
        before = -1
        for _ in range(5):
            now = await machine.read("CYCLES_LO") | await machine.read("CYCLES_HI") << 32
            assert now > before
            before = now

    machine.run(test)
