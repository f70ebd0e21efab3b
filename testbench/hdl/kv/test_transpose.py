"""The transposer: order, sustained rate, latency, stalls."""

import numpy as np
import pytest

from m890.hdl.config import preset
from m890.hdl.kv.transpose import Transposer
from m890.testbench.hdl.kv.support import run, sink, source


def lanes_of(value: int, lanes: int) -> list[int]:
    return [value >> 16 * n & 0xFFFF for n in range(lanes)]


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize(("stall_in", "stall_out"), [(0, 0), (0.4, 0), (0, 0.4), (0.3, 0.3)])
def test_tiles_leave_transposed(name, stall_in, stall_out, rng, seed):
    config = preset(name)
    lanes, tiles = config.lanes, 6
    dut = Transposer(config)
    values = rng.integers(0, 1 << 16, (tiles, lanes, lanes))  # [tile][token][feature]
    out: list[int] = []
    cycles = run(
        dut,
        lambda ctx: source(
            ctx, dut.i, [list(map(int, beat)) for beat in values.reshape(-1, lanes)], seed, stall_in
        ),
        lambda ctx: sink(ctx, dut.o, out.append, seed + 1, stall_out),
        until=lambda: len(out) == tiles * lanes,
        limit=20 * tiles * lanes,
        after=4,
    )
    got = np.array([lanes_of(beat, lanes) for beat in out]).reshape(tiles, lanes, lanes)
    assert np.array_equal(got, values.transpose(0, 2, 1))
    flags = [beat >> 16 * lanes for beat in out]  # bit 0 first, bit 1 last
    assert flags == ([1] + [0] * (lanes - 2) + [2]) * tiles
    if not stall_in and not stall_out:
        assert cycles == tiles * lanes + dut.latency  # one beat per cycle behind the latency
