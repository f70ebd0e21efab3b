"""The registers in Verilog under cocotbext-axi's master, against a model of the register map."""

import random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiResp

from m890.hdl.commands import COMMAND_BYTES, COMPLETION_BYTES, Error
from m890.hdl.config import CoreConfig, preset
from m890.hdl.control.csr import Csr
from m890.hdl.registers import ADDRESS, COUNTERS, IDENT, REGISTERS, VERSION
from m890.sim.cocotb.axi import register_master
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.cocotb.streams import Clocked

SETUP = (
    "MEMORY_LIMIT_LO", "MEMORY_LIMIT_HI", "RING_BASE_LO", "RING_BASE_HI", "RING_SIZE",
    "COMPLETION_BASE_LO", "COMPLETION_BASE_HI", "COMPLETION_SIZE",
)  # fmt: skip


class Model:
    """What the register map promises."""

    def __init__(self, config: CoreConfig) -> None:
        self.config, self.enabled, self.head = config, False, 0
        self.irq, self.error = 0, 0
        names: tuple[str, ...] = ("IRQ_ENABLE", "COMPLETION_HEAD", "RING_TAIL", *SETUP)
        self.values: dict[str, int] = dict.fromkeys(names, 0)

    def _wide(self, name: str) -> int:
        return self.values[f"{name}_LO"] | self.values[f"{name}_HI"] << 32

    def _usable(self) -> bool:
        limit = min(self._wide("MEMORY_LIMIT"), 1 << self.config.address_bits)
        limit -= limit % self.config.port_bytes
        for name, entry in (("RING", COMMAND_BYTES), ("COMPLETION", COMPLETION_BYTES)):
            base, size = self._wide(f"{name}_BASE"), self.values[f"{name}_SIZE"]
            if size < 1 or size > 32768 or size & (size - 1) or base % 128:
                return False
            if base + size * entry > limit:
                return False
        return True

    def _refuse(self, error: Error) -> None:
        self.irq, self.error = self.irq | 2, int(error)

    def write(self, name: str, value: int) -> None:
        if name == "CONTROL":
            if value & 2:
                self.enabled, self.error, self.irq = False, 0, self.irq & ~2
                self.values["RING_TAIL"] = self.values["COMPLETION_HEAD"] = 0
            if value & 1 and not self.enabled and not self._usable():
                self._refuse(Error.BAD_RING)
            else:
                self.enabled = bool(value & 1)
        elif name == "RING_TAIL":
            if (value - self.head) % 65536 > self.values["RING_SIZE"]:
                self._refuse(Error.RING_OVERRUN)
            else:
                self.values[name] = value % 65536
        elif name == "IRQ_STATUS":
            self.irq &= ~value
            self.error = 0 if value & 2 else self.error
        elif name in self.values and not (name in SETUP and self.enabled):
            narrow = {"IRQ_ENABLE": 3, "COMPLETION_HEAD": 65535, "PAGE_INJECT": 3}
            mask = narrow.get(name, 0xFFFFFFFF)
            self.values[name] = value & mask

    def read(self, name: str) -> int | None:
        """None: nothing that the map fixes."""
        c = self.config
        fixed = {
            "IDENT": IDENT, "VERSION": VERSION, "CONTROL": int(self.enabled),
            "GEOMETRY": c.rows | c.lanes << 8 | c.page_tokens << 16,
            "LIMITS": c.max_tiles | c.max_segments << 8 | (c.planes - 1) << 16,
            "POOL": c.pages - 1 | (c.sequences - 1) << 16, "IRQ_STATUS": self.irq,
            "STATUS": bool(self.error) << 1 | self.error << 8, "RING_HEAD": self.head,
            "TENANTS": c.tenants - 1, "PAGE_ERRORS": 0,
        }  # fmt: skip
        return self.values.get(name, fixed.get(name))


async def begin(dut: Any, stall: float) -> tuple[Clocked, Any]:
    """Resets; a master with pauses on all five channels."""
    clocked = Clocked(dut)
    master = register_master(dut, prefix="bus_", seed=seed(), stall=stall)
    zeros = ("busy", "ring_head", "completion_tail", "completed", "failed", "counter_low",
             "counter_high", "page_corrected", "page_fatal")  # fmt: skip
    await clocked.start(**dict.fromkeys(zeros, 0))
    return clocked, master


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.5])
async def random_accesses(dut: Any, stall: float) -> None:
    """Mostly sensible set-ups, so that rings are enabled as often as refused."""
    _, master = await begin(dut, stall)
    chance, model = random.Random(seed()), Model(config())
    names = [r.name for r in REGISTERS]
    sensible = {
        "MEMORY_LIMIT_LO": [0x100000, 0x100010], "MEMORY_LIMIT_HI": [0, 0, 1],
        "RING_BASE_LO": [0x400, 0x4000, 0x440, 0xFFE00], "COMPLETION_BASE_LO": [0x800, 0xFFF80],
        "RING_BASE_HI": [0], "COMPLETION_BASE_HI": [0, 0, 1 << 20], "RING_SIZE": [8, 64, 9],
        "COMPLETION_SIZE": [2, 8, 4, 65536], "CONTROL": [0, 1, 1, 1, 2, 3],
    }  # fmt: skip
    usable = {
        "CONTROL": 0, "MEMORY_LIMIT_LO": 0x100000, "MEMORY_LIMIT_HI": 0, "RING_BASE_HI": 0,
        "COMPLETION_BASE_LO": 0xFFF80, "COMPLETION_BASE_HI": 0, "COMPLETION_SIZE": 4,
        "RING_SIZE": 8,
    }  # fmt: skip
    enabled = 0
    for n in range(200):
        if n % 10 == 0:  # both rings may end just where memory ends
            base = chance.choice([0xFFE00, 0x400, 0xFFE80])
            for name, value in (*usable.items(), ("RING_BASE_LO", base), ("CONTROL", 1)):
                await master.write(ADDRESS[name], value.to_bytes(4, "little"))
                model.write(name, value)
        name = chance.choice([*sensible, *sensible, "RING_TAIL", *names])
        if name == "RING_TAIL":  # the head moves, and the tail goes just as far as it may, or not
            model.head = chance.randrange(65536)
            dut.ring_head.value = model.head
            ahead = chance.choice([0, 1, 65535, chance.randrange(70)])
            ahead = chance.choice([ahead, model.values["RING_SIZE"], model.values["RING_SIZE"] + 1])
            sensible["RING_TAIL"] = [(model.head + ahead) % 65536]
        if chance.randrange(4):
            value = chance.choice([chance.getrandbits(32), chance.randrange(70)])
            value = chance.choice(sensible.get(name, [value]))
            answer = await master.write(ADDRESS[name], value.to_bytes(4, "little"))
            assert answer.resp == AxiResp.OKAY, name
            model.write(name, value)
        name = chance.choice(["CONTROL", "STATUS", "IRQ_STATUS", name, chance.choice(names)])
        answer = await master.read(ADDRESS[name], 4)
        assert answer.resp == AxiResp.OKAY, name
        want = model.read(name)
        got = int.from_bytes(answer.data, "little")
        assert want is None or got == want, f"{name} is {got:#x}, not {want:#x}"
        assert int(dut.enable.value) == model.enabled
        assert int(dut.irq.value) == bool(model.irq & model.values["IRQ_ENABLE"])
        assert int(dut.ring_tail.value) == model.values["RING_TAIL"]
        enabled += model.enabled
    assert 0 < enabled < 200, "the accesses were not mixed"


@cocotb.test()
async def refusals(dut: Any) -> None:
    """No register, or some strobes only: SLVERR, and nothing is changed."""
    _, master = await begin(dut, 0.3)
    for address in (4 * len(REGISTERS), 0xFFC):
        assert (await master.read(address, 4)).resp == AxiResp.SLVERR
        assert (await master.write(address, bytes(4))).resp == AxiResp.SLVERR
    assert (await master.write(ADDRESS["RING_SIZE"], b"\x40\0\0\0")).resp == AxiResp.OKAY
    assert (await master.write(ADDRESS["RING_SIZE"] + 1, b"\x01")).resp == AxiResp.SLVERR
    assert (await master.read(ADDRESS["RING_SIZE"], 4)).data == b"\x40\0\0\0"


@cocotb.test()
async def counters_are_latched(dut: Any) -> None:
    """The upper word is that of the moment in which the lower one was read."""
    clocked, master = await begin(dut, 0.3)

    class Counters:
        now = 0xFFFFFFF0

        def step(self) -> None:
            self.now += 3
            dut.counter_low.value = self.now & 0xFFFFFFFF
            dut.counter_high.value = self.now >> 32

    clocked.add(Counters())
    ticking = cocotb.start_soon(clocked.tick(2000))
    last = 0
    for _ in range(20):
        name = COUNTERS[0]
        low = (await master.read(ADDRESS[f"{name}_LO"], 4)).data
        high = (await master.read(ADDRESS[f"{name}_HI"], 4)).data
        value = int.from_bytes(low + high, "little")
        assert last < value <= last + 300 or not last, f"{last:#x}, then {value:#x}"
        last = value
    ticking.cancel()


@cocotb.test()
async def reset_waits_for_the_core(dut: Any) -> None:
    """Commands stop at once; the answer, and the ring, come when the core is idle."""
    _, master = await begin(dut, 0.0)
    values = {"MEMORY_LIMIT_LO": 0x10000, "RING_SIZE": 8, "COMPLETION_SIZE": 8, "CONTROL": 1}
    for name, value in values.items():
        await master.write(ADDRESS[name], value.to_bytes(4, "little"))
    assert int(dut.enable.value) == 1
    dut.busy.value = 1
    answer = cocotb.start_soon(master.write(ADDRESS["CONTROL"], b"\3\0\0\0"))
    await ClockCycles(dut.clk, 40)
    assert not answer.done()
    assert int(dut.reset.value) == 1 and int(dut.enable.value) == 0
    dut.busy.value = 0
    assert (await answer).resp == AxiResp.OKAY
    assert int(dut.reset.value) == 0 and int(dut.enable.value) == 1


@on_both_simulators
def test_csr(bench: Bench) -> None:
    bench.run(Csr, preset("tiny"))
