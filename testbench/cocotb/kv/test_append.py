"""The append unit in Verilog: pages as golden says, with stalls at every port."""

from collections.abc import Generator
from typing import Any

import cocotb
import numpy as np

from m890.hdl.config import preset
from m890.hdl.control.layouts import APPEND_DONE, append_layout
from m890.hdl.kv.append import Append
from m890.hdl.numerics.formats import Format
from m890.testbench.cocotb.ports import Bytes, ReadServer, Script, WriteServer
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.cocotb.streams import Clocked, fields
from m890.testbench.hdl.kv.test_append import POOL, SIZE, check, make


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.4])
async def every_format(dut: Any, stall: float) -> None:
    """Head sizes, page crossings, both sources, specials."""
    c, rng = config(), np.random.default_rng(seed())
    commands = [make(rng, c, format, gap=16 * n, ident=n) for n, format in enumerate(Format)]
    image = Bytes(SIZE, c.port_bytes, seed())
    pools = [bytes(image.bytes[POOL:])]
    done: list[dict[str, int]] = []

    def finish(payload: int) -> None:
        done.append(fields(APPEND_DONE, payload))
        pools.append(bytes(image.bytes[POOL:]))

    clocked = Clocked(dut)
    command = clocked.source("command", layout=append_layout(c), stall=stall, seed=seed())
    clocked.sink("done", stall=stall, seed=seed(), taken=finish)
    memory = {"port_bytes": c.port_bytes, "address_bits": c.address_bits, "stall": stall}
    ReadServer(clocked, ("read", "table"), image, seed=seed(), **memory)
    WriteServer(clocked, "write", image.bytes, seed=seed(), **memory)

    def feed() -> Generator[None, None, None]:
        for n, one in enumerate(commands):
            one.place_inputs(image.bytes)
            command.put({name: int(value) for name, value in one.payload().items()})
            while len(done) <= n:
                yield

    clocked.add(Script(feed()))
    await clocked.start()
    await clocked.until(lambda: len(done) == len(commands), 30000, after=50)
    assert bytes(image.bytes[POOL:]) == pools[-1], "a write after the completion"
    check(commands, done, pools)


@on_both_simulators
def test_append(bench: Bench) -> None:
    bench.run(Append, preset("tiny"))
