"""The gearbox in Verilog: every format and part, changes between them."""

import cocotb
import numpy as np

from m890.hdl.config import preset
from m890.hdl.kv.gearbox import Gearbox
from m890.hdl.kv.items import tile_beat_layout
from m890.hdl.numerics.formats import CODINGS, Format
from m890.hdl.numerics.four_bits import CODE_BITS
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.cocotb.streams import Clocked
from m890.testbench.hdl.kv.support import pick


@cocotb.test()
@cocotb.parametrize(stalls=[(0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.3, 0.3)])
async def elements_in_order(dut, stalls):
    c, rng = config(), np.random.default_rng(seed())
    scale = int(rng.choice([1, 120, 127, 254]))  # of every group: it has no handshake of its own
    beats, expected = [], []
    for _ in range(150):
        format = Format(int(rng.integers(len(Format))))
        part = int(rng.integers(CODINGS[format].packed))
        word = int.from_bytes(rng.bytes(c.port_bytes), "little")
        beats.append({"data": word, "part": part, "format": int(format)})
        codes = np.array(pick(c, beats[-1]), np.uint16)
        if CODINGS[format].grouped:
            codes = codes | scale << CODE_BITS
        expected.append(codes.tolist())
    clocked = Clocked(dut)
    clocked.source("i", beats, layout=tile_beat_layout(c), stall=stalls[0], seed=seed())
    out = clocked.sink("o", stall=stalls[1], seed=seed())
    dut.scales.value = scale
    await clocked.start()
    await clocked.until(lambda: out.count >= len(expected), 3000, after=5)
    assert [[x >> 16 * n & 0xFFFF for n in range(c.lanes)] for x in out.taken] == expected


@on_both_simulators
def test_gearbox(bench: Bench) -> None:
    bench.run(Gearbox, preset("tiny"))
