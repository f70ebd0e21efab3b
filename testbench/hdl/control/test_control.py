"""The whole of control with engines and memory played in Python."""

import itertools

import numpy as np
import pytest

from m890.hdl.commands import Opcode
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.sim.golden.rotate import rotate_query
from m890.testbench.hdl.control.machine import Machine

SEQUENCE_TABLE = 0x2000
QUERY, OUTPUT, TABLES = 0x3000, 0x3800, 0x4000
TOKENS = 64
"""Of a sequence that `open_sequence` opens."""


def plane(machine, number=3, base=0x8000):
    return {"plane": number, "format": Format.E4M3, "head": 2, "base": base, "stride": 0x140}


async def set_up(machine, sequences=(2,), rotate=0):
    """A plane and some sequences."""
    found = await machine.perform(Opcode.PLANE, **plane(machine), rotate=rotate)
    assert found["error"] == 0
    for s in sequences:
        await open_sequence(machine, s)


async def open_sequence(machine, number, plane=3):
    """A sequence in pages of its own."""
    await machine.open(number, SEQUENCE_TABLE + 32 * number, TOKENS, plane, QUERY)


def attend(**changes):
    return {
        "plane": 3, "rows": 3, "segments": 2, "tables": TABLES, "query": QUERY, "output": OUTPUT,
        "query_stride": 0x40, "output_stride": 0x50, "window": 9, "sinks": 2, "causal": 1,
        "query_format": 1, "output_format": 1, "softcap": 0x3F800000, "softcap_inverse": 5,
        **changes,
    }  # fmt: skip


def rows(machine, count=3):
    return [
        {
            "position": machine.rng.randrange(1 << 24),
            "draft": machine.rng.getrandbits(32),
            "sink": machine.rng.getrandbits(32),
        }
        for _ in range(count)
    ]


def segment(**changes):
    return {"kind": 0, "sequence": 2, "start": 3, "end": 60, "row_mask": 5, **changes}


def beat(machine, at, *, fp16, rotate):
    """A port beat of a query as it reaches the rows."""
    raw = bytes(machine.memory[at : at + machine.config.port_bytes])
    if rotate:
        codes = np.frombuffer(raw, "<u2")
        source = Format.FP16 if fp16 else Format.BF16
        raw = rotate_query(codes, source, machine.config.lanes).astype("<u2").tobytes()
    return int.from_bytes(raw, "little")


@pytest.mark.parametrize("rotate", [0, 1])
@pytest.mark.parametrize("fp16", [0, 1])
def test_every_command_reaches_its_engine_and_completes(seed, fp16, rotate):
    machine = Machine(seed)
    table = rows(machine)
    segments = [segment(), segment(kind=1, start=60, end=64, row_mask=2)]

    async def test(machine):
        await machine.start()
        assert (await machine.perform(Opcode.NOP))["error"] == 0
        await set_up(machine, rotate=rotate)
        found = await machine.perform(
            Opcode.APPEND, plane=3, sequence=2, start=10, tokens=7, source_format=1, k=QUERY,
            v=OUTPUT, source_stride=0x20,
        )  # fmt: skip
        assert (found["error"], found["status"]) == (0, 8)
        machine.tables(TABLES, table, segments)
        found = await machine.perform(Opcode.ATTEND, **attend(query_format=fp16))
        assert (found["error"], found["status"], found["beats"]) == (0, 3, 77)
        assert (await machine.perform(Opcode.FENCE))["error"] == 0

    machine.run(test)
    (append,) = machine.appends
    ident = append.pop("ident")
    assert ident < 8
    assert append == {
        "base": 0x8000, "stride": 0x140, "tiles": 2, "format": Format.E4M3, "rotate": rotate,
        "tags": 0, "start": 10, "table": SEQUENCE_TABLE + 64, "tokens": 7, "source_format": 1,
        "k": QUERY, "v": OUTPUT, "source_stride": 0x20, "tenant": 0, "repair": 0,
    }  # fmt: skip
    (job,) = machine.jobs
    fields = attend(query_format=fp16)
    assert job.job.pop("ident") < 8
    assert job.job == {
        "slot": 0, "base": 0x8000, "stride": 0x140, "tiles": 2, "format": Format.E4M3,
        "rotate": rotate, "tags": 0, "tenant": 0, "sink": 0, "bias": 0,
        **{
            n: fields[n]
            for n in (
                "rows", "segments", "output", "output_stride", "window", "sinks", "causal",
                "query_format", "output_format", "softcap", "softcap_inverse",
            )
        },
    }  # fmt: skip
    for r, row in enumerate(table):
        assert job.rows[r] == {"valid": 1, "slot": 0, "row": r, **row}
    for r, tile in itertools.product(range(3), range(2)):
        at = QUERY + 0x40 * r + 16 * tile
        assert job.queries[r, tile] == beat(machine, at, fp16=fp16, rotate=rotate)
    for n, (seen, asked) in enumerate(zip(job.segments, segments, strict=True)):
        assert seen == {
            "kind": asked["kind"], "start": asked["start"], "end": asked["end"], "address": 0,
            "row_mask": asked["row_mask"], "table": SEQUENCE_TABLE + 64, "first": n == 0,
            "last": n == 1, "index": n, "sequence": asked["sequence"],
        }  # fmt: skip


def test_the_largest_job_of_the_largest_core(seed):
    config = preset("m890").with_(pages=1, planes=4, sequences=8)
    machine = Machine(seed, config)
    table = rows(machine, 64)
    segments = [segment(start=n, end=64, row_mask=machine.rng.getrandbits(64)) for n in range(64)]
    job = attend(
        plane=1, rows=64, segments=64, query=0x5000, query_stride=128, output=0x8000,
        output_stride=128,
    )  # fmt: skip

    async def test(machine):
        await machine.start()
        stride = 128 * (2 * 64 + 2)
        fields = {"plane": 1, "format": Format.INT8, "head": 1, "base": 0xB000, "stride": stride}
        assert (await machine.perform(Opcode.PLANE, **fields))["error"] == 0
        await machine.open(2, SEQUENCE_TABLE, TOKENS, 1, QUERY)
        machine.tables(TABLES, table, segments)
        assert (await machine.perform(Opcode.ATTEND, **job))["error"] == 0

    machine.run(test)
    (seen,) = machine.jobs
    assert [s["row_mask"] for s in seen.segments] == [s["row_mask"] for s in segments]
    assert [s["index"] for s in seen.segments] == list(range(64))
    for r, row in enumerate(table):
        assert seen.rows[r] == {"valid": 1, "slot": 0, "row": r, **row}
        at = 0x5000 + 128 * r
        assert seen.queries[r, 0] == int.from_bytes(machine.memory[at : at + 128], "little")
