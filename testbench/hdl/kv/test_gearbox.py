"""The gearbox: element beats out of port beats, every format and part."""

import random
from typing import Any

import numpy as np
import pytest

from m890.hdl.config import preset
from m890.hdl.kv.gearbox import Gearbox
from m890.hdl.numerics.formats import CODINGS, GROUP, Format
from m890.hdl.numerics.four_bits import CODE_BITS
from m890.hdl.numerics.quantise import beat_groups
from m890.testbench.hdl.kv.support import pick, run, sink, source


@pytest.mark.parametrize("name", ["tiny", "small", "m890"])
@pytest.mark.parametrize("stalls", [(0, 0), (0.4, 0), (0, 0.4), (0.3, 0.3)])
def test_elements_in_order(name: str, stalls: tuple[float, float], seed: int) -> None:
    config, chance = preset(name), random.Random(seed)
    dut, beats, got, expected = Gearbox(config), [], [], []
    groups = beat_groups(config.lanes)
    for _ in range(100 if name != "m890" else 30):
        format = chance.choice(list(Format))
        beat = {
            "data": chance.getrandbits(config.port_bits),
            "part": chance.randrange(CODINGS[format].packed),
            "format": int(format),
        }
        scales = chance.choices([0, 1, 2, 126, 127, 251, 252, 253, 254, 255], k=groups)
        codes = np.array(pick(config, beat), np.uint16)
        if CODINGS[format].grouped:
            beside = np.repeat(np.array(scales, np.uint16), GROUP)[: config.lanes]
            codes = codes | beside << CODE_BITS
        beats.append((beat, scales))
        expected.append(codes.tolist())

    async def feed(ctx: Any) -> None:
        """The scales come with the beat that is offered."""
        for n, (beat, scales) in enumerate(beats):
            ctx.set(dut.scales, sum(scale << 8 * n for n, scale in enumerate(scales)))
            await source(ctx, dut.i, [beat], seed + n, stalls[0])

    def taken(value: int) -> None:
        got.append([value >> 16 * n & 0xFFFF for n in range(config.lanes)])

    cycles = run(
        dut,
        feed,
        lambda ctx: sink(ctx, dut.o, taken, seed + 1, stalls[1]),
        until=lambda: len(got) == len(beats),
        limit=1000,
        after=5,
    )
    assert got == expected
    if not any(stalls):
        assert cycles <= len(beats) + 3
