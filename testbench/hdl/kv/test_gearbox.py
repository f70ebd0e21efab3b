"""The gearbox: both widths, changes between them, no bubble."""

import pytest

from m890.hdl.config import preset
from m890.hdl.kv.gearbox import Gearbox
from m890.testbench.hdl.kv.support import run, sink, source


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize(("stall_in", "stall_out"), [(0, 0), (0.4, 0), (0, 0.4), (0.3, 0.3)])
def test_elements_in_order(name, stall_in, stall_out, rng, seed):
    config = preset(name)
    lanes = config.lanes
    dut = Gearbox(config)
    beats, expected = [], []
    for _ in range(100):
        raw, narrow = rng.bytes(config.port_bytes), int(rng.integers(2))
        beats.append({"data": int.from_bytes(raw, "little"), "first": 0, "tag": narrow})
        if narrow:
            expected += [list(raw[:lanes]), list(raw[lanes:])]
        else:
            expected.append([raw[2 * n] | raw[2 * n + 1] << 8 for n in range(lanes)])
    out: list[int] = []
    cycles = run(
        dut,
        lambda ctx: source(ctx, dut.i, beats, seed, stall_in),
        lambda ctx: sink(ctx, dut.o, out.append, seed + 1, stall_out),
        until=lambda: len(out) == len(expected),
        limit=4000,
        after=4,
    )
    assert [[beat >> 16 * n & 0xFFFF for n in range(lanes)] for beat in out] == expected
    if not stall_in and not stall_out:
        assert cycles == len(expected) + 1
