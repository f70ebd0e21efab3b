"""The transposer in Verilog: order, first and last, both halves under stalls."""

from typing import Any

import cocotb
import numpy as np

from m890.hdl.config import preset
from m890.hdl.kv.transpose import Transposer
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.cocotb.streams import Clocked


@cocotb.test()
@cocotb.parametrize(stalls=[(0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.3, 0.3)])
async def tiles_leave_transposed(dut: Any, stalls: tuple[float, float]) -> None:
    lanes, tiles = config().lanes, 12
    values = np.random.default_rng(seed()).integers(0, 1 << 16, (tiles, lanes, lanes), np.uint16)
    beats = [int.from_bytes(row.tobytes(), "little") for row in values.reshape(-1, lanes)]
    clocked = Clocked(dut)
    clocked.source("i", beats, stall=stalls[0], seed=seed())
    out = clocked.sink("o", stall=stalls[1], seed=seed())
    await clocked.start()
    await clocked.until(lambda: out.count >= tiles * lanes, 2000, after=3 * lanes)
    mask = (1 << 16 * lanes) - 1
    raw = b"".join((x & mask).to_bytes(2 * lanes, "little") for x in out.taken)
    got = np.frombuffer(raw, "<u2").reshape(-1, lanes, lanes)
    assert np.array_equal(got, values.transpose(0, 2, 1))
    flags = [x >> 16 * lanes for x in out.taken]  # bit 0 first, bit 1 last
    assert flags == ([1] + [0] * (lanes - 2) + [2]) * tiles


@on_both_simulators
def test_transpose(bench: Bench) -> None:
    bench.run(Transposer, preset("tiny"))
