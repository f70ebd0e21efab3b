"""The append unit in Verilog: pages as golden says, with stalls at every port."""

from collections.abc import Generator
from typing import Any

import cocotb
import numpy as np

from m890.hdl.commands import Error
from m890.hdl.config import preset
from m890.hdl.control.layouts import APPEND_DONE, append_layout
from m890.hdl.kv.append import Append
from m890.hdl.numerics.formats import Format
from m890.hdl.pages.guard import owner_layout
from m890.testbench.cocotb.ports import Bytes, OwnerServer, ReadServer, Script, WriteServer
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.cocotb.streams import Clocked, fields
from m890.testbench.hdl.kv.support import MINE
from m890.testbench.hdl.kv.test_append import POOL, SIZE, SOURCE, Command, check, make


class AppendBench:
    """Commands one after another in one memory."""

    def __init__(self, dut: Any, commands: list[Command], stall: float) -> None:
        c, self.commands = config(), commands
        self.image = Bytes(SIZE, c.port_bytes, seed())
        self.pools = [bytes(self.image.bytes[POOL:])]
        self.done: list[dict[str, int]] = []
        self.clocked = clocked = Clocked(dut)
        self._command = clocked.source("command", layout=append_layout(c), stall=stall, seed=seed())
        clocked.sink("done", stall=stall, seed=seed(), taken=self._finish)
        memory = {"port_bytes": c.port_bytes, "address_bits": c.address_bits, "stall": stall}
        ReadServer(clocked, ("read", "table"), self.image, seed=seed(), **memory)
        WriteServer(clocked, "write", self.image.bytes, seed=seed(), **memory)
        OwnerServer(
            clocked, "owner", self._owner, owner_layout(c), stall=stall, seed=seed()
        )  # fmt: skip
        self.strangers: set[int] = set()  # pages of another tenant
        clocked.add(Script(self._feed()))

    def _owner(self, page: int) -> dict[str, int]:
        return MINE | {"tenant": int(page in self.strangers)}

    def _finish(self, payload: int) -> None:
        self.done.append(fields(APPEND_DONE, payload))
        self.pools.append(bytes(self.image.bytes[POOL:]))

    def _feed(self) -> Generator[None, None, None]:
        for n, one in enumerate(self.commands):
            one.place_inputs(self.image.bytes)
            self._command.put({name: int(value) for name, value in one.payload().items()})
            while len(self.done) <= n:
                yield

    async def run(self) -> None:
        await self.clocked.start()
        await self.clocked.until(lambda: len(self.done) == len(self.commands), 12000, after=50)
        assert bytes(self.image.bytes[POOL:]) == self.pools[-1], "a write after the completion"


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.4])
async def every_format(dut: Any, stall: float) -> None:
    """Head sizes, page crossings, both sources, specials."""
    rng = np.random.default_rng(seed())
    commands = [make(rng, config(), f, gap=16 * n, ident=n) for n, f in enumerate(Format)]
    bench = AppendBench(dut, commands, stall)
    await bench.run()
    check(commands, bench.done, bench.pools)


@cocotb.test()
async def errors_and_after(dut: Any) -> None:
    """A page that is bad or a stranger's changes nothing; a failed source row is named; the command
    after each is right."""
    c, rng = config(), np.random.default_rng(seed())
    bad_page = make(rng, c, Format.E4M3, start=12, tokens=30, tiles=2, error=Error.BAD_PAGE)
    bad_page.pages[3] = c.pages
    bad_page.index = 3 * c.page_tokens - bad_page.start
    bad_row = make(rng, c, Format.E5M2, tokens=12, tiles=3, gap=0, error=Error.BUS_ERROR)
    stranger = make(rng, c, Format.E4M3, start=12, tokens=30, tiles=2, error=Error.BAD_TENANT)
    stranger.index = 2 * c.page_tokens - stranger.start
    good = [make(rng, c, Format.INT8, tokens=3, tiles=2, ident=n) for n in range(2)]
    bench = AppendBench(dut, [bad_page, stranger, good[0], bad_row, good[1]], 0.2)
    number = stranger.pages[2]
    bench.strangers.add(number)
    for one in (bad_page, bad_row, *good):
        one.pages = [(n + 1) % c.pages if n == number else n for n in one.pages]
    bench.image.errors.add(SOURCE + 7 * bad_row.source_stride)  # no other command's rows reach it
    await bench.run()
    check([bad_page, stranger, good[0]], bench.done[:3], bench.pools[:4])
    assert (bench.done[3]["error"], bench.done[3]["index"]) == (Error.BUS_ERROR, 7)
    check([good[1]], bench.done[4:], bench.pools[4:])


@on_both_simulators
def test_append(bench: Bench) -> None:
    bench.run(Append, preset("tiny"))
