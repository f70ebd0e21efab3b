"""The gearbox: element beats out of port beats, every format and part."""

import random

import pytest

from m890.hdl.config import preset
from m890.hdl.kv.gearbox import Gearbox
from m890.hdl.numerics.formats import CODINGS, Format
from m890.testbench.hdl.kv.support import pick, run, sink, source


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize("stalls", [(0, 0), (0.4, 0), (0, 0.4), (0.3, 0.3)])
def test_elements_in_order(name: str, stalls: tuple[float, float], seed: int) -> None:
    config, chance = preset(name), random.Random(seed)
    dut, beats, got = Gearbox(config), [], []
    for _ in range(100):
        format = chance.choice(list(Format))
        beats.append(
            {
                "data": chance.getrandbits(config.port_bits),
                "part": chance.randrange(CODINGS[format].packed),
                "format": int(format),
            }
        )

    def taken(value: int) -> None:
        got.append([value >> 16 * n & 0xFFFF for n in range(config.lanes)])

    cycles = run(
        dut,
        lambda ctx: source(ctx, dut.i, beats, seed, stalls[0]),
        lambda ctx: sink(ctx, dut.o, taken, seed + 1, stalls[1]),
        until=lambda: len(got) == len(beats),
        limit=1000,
        after=5,
    )
    assert got == [pick(config, beat) for beat in beats]
    if not any(stalls):
        assert cycles <= len(beats) + 3
