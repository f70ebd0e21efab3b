"""The gearbox in Verilog: every format and part, changes between them."""

import cocotb
import numpy as np

from m890.hdl.config import preset
from m890.hdl.kv.gearbox import Gearbox
from m890.hdl.kv.items import tile_beat_layout
from m890.hdl.numerics.formats import CODINGS, Format
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.cocotb.streams import Clocked


@cocotb.test()
@cocotb.parametrize(stalls=[(0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.3, 0.3)])
async def elements_in_order(dut, stalls):
    c, rng = config(), np.random.default_rng(seed())
    lanes = c.lanes
    beats, expected = [], []
    for _ in range(150):
        raw, format = rng.bytes(c.port_bytes), Format(int(rng.integers(len(Format))))
        packed = CODINGS[format].packed
        part = int(rng.integers(packed))
        word = int.from_bytes(raw, "little")
        beats.append({"data": word, "part": part, "format": int(format)})
        bits = 16 // packed
        expected.append(
            [word >> (part * lanes + n) * bits & (1 << bits) - 1 for n in range(lanes)]
        )
    clocked = Clocked(dut)
    clocked.source("i", beats, layout=tile_beat_layout(c), stall=stalls[0], seed=seed())
    out = clocked.sink("o", stall=stalls[1], seed=seed())
    await clocked.start()
    await clocked.until(lambda: out.count >= len(expected), 3000, after=5)
    assert [[x >> 16 * n & 0xFFFF for n in range(lanes)] for x in out.taken] == expected


@on_both_simulators
def test_gearbox(bench: Bench) -> None:
    bench.run(Gearbox, preset("tiny"))
