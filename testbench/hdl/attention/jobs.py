"""Random ATTEND jobs in a byte-addressed memory, and what golden says of them."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from m890.hdl.commands import SegmentKind
from m890.hdl.config import CoreConfig
from m890.hdl.layout import PageLayout, raw_stride
from m890.hdl.numerics.formats import CODINGS, Format, OutputFormat
from m890.sim.golden import Job, KvSegment, RawSegment, Result, append, attend, rotate_kv
from m890.sim.golden.rotate import rotate_query


class Memory:
    """A flat memory that read ports see as beats; anything not written is random."""

    def __init__(self, config: CoreConfig, size: int, seed: int) -> None:
        self.config = config
        self.bytes = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
        self.errors: set[int] = set()
        self.read_beats: list[tuple[str, int]] = []
        self.top = 0

    def beat(self, address: int) -> int:
        return int.from_bytes(self.bytes[address : address + self.config.port_bytes], "little")

    def place(self, size: int) -> int:
        """Room for `size` bytes, port-aligned."""
        at = self.top
        self.top += -(-size // self.config.port_bytes) * self.config.port_bytes
        assert self.top <= len(self.bytes), "the test's memory is too small"
        return at

    def write(self, address: int, values: np.ndarray) -> None:
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        self.bytes[address : address + len(raw)] = raw

    def put(self, values: np.ndarray) -> int:
        at = self.place(values.nbytes)
        self.write(at, values)
        return at


@dataclass
class Plane:
    """A plane of quantised KV: one sequence's tokens in random pages."""

    config: CoreConfig
    memory: Memory
    format: Format
    tiles: int
    tokens: int
    rng: np.random.Generator
    scale: float = 1.0
    rotate: bool = False
    k: np.ndarray = field(init=False)
    v: np.ndarray = field(init=False)
    k_scale: np.ndarray | None = field(init=False)
    v_scale: np.ndarray | None = field(init=False)

    def __post_init__(self) -> None:
        c, rng = self.config, self.rng
        layout = PageLayout(c, self.format, self.tiles)
        self.stride = layout.page_bytes
        pages = -(-self.tokens // c.page_tokens)
        pool = min(c.pages, pages + 3)
        self.base = self.memory.place(pool * self.stride)
        self.numbers = rng.permutation(pool)[:pages].astype(np.uint32)
        self.table = self.memory.put(self.numbers)
        full = pages * c.page_tokens
        d = self.tiles * c.lanes
        coding = CODINGS[self.format]
        codes = []
        for value in (False, True):
            rows = (rng.standard_normal((full, d)) * self.scale).astype(np.float16)
            source = rows.view(np.uint16)
            if self.rotate:
                source = rotate_kv(source, Format.FP16, c.lanes)
            code, scale, _ = append(self.format, source, Format.FP16)
            codes.append((code, scale))
            token = np.arange(full)[:, None]
            page, inside = token // c.page_tokens, token % c.page_tokens
            start = self.base + self.numbers[page].astype(np.int64) * self.stride
            feature = np.arange(d)[None]
            at = start + layout.element(inside, feature, value=value)  # type: ignore[arg-type]
            for byte in range(coding.bits // 8):
                self.memory.bytes[at + byte] = (code >> 8 * byte) & 0xFF
            if coding.bits == 4:
                self.memory.bytes[at[:, ::2]] = code[:, ::2] | code[:, 1::2] << 4
            if scale is not None:
                at = start[:, 0] + layout.scale(inside[:, 0], value=value)  # type: ignore[arg-type]
                for byte in range(layout.scale_bytes):
                    part = scale[:, byte] if coding.grouped else scale >> 8 * byte
                    self.memory.bytes[at + byte] = part & 0xFF
        (self.k, self.k_scale), (self.v, self.v_scale) = codes


@dataclass
class TestJob:
    """A job as the engine gets it, and as golden does."""

    golden: Job
    plane: Plane
    segments: list[dict[str, int]]
    payload: dict[str, int]
    rows: list[dict[str, int]]
    expected: Result

    __test__ = False

    @property
    def query(self) -> np.ndarray:
        """Queries as the job loader hands them to the rows."""
        job = self.golden
        if not job.rotate:
            return job.query
        return rotate_query(job.query, job.query_format, job.config.lanes)


def make_job(
    config: CoreConfig, memory: Memory, seed: int, number: int, **fixed: object
) -> TestJob:
    """A random job; `fixed` overrides choices (format, tiles, tokens, rows, kinds, ...)."""
    chance = random.Random(seed * 1000 + number)
    rng = np.random.default_rng(seed * 1000 + number)
    pick: dict[str, Any] = {
        "format": chance.choice(list(Format)),
        "tiles": 1 << chance.randrange(config.max_tiles.bit_length()),
        "tokens": chance.randint(1, 5 * config.lanes),
        "rows": chance.randint(1, config.rows),
        "segments": chance.randint(1, 3),
        "kinds": list(SegmentKind),
        "causal": chance.randrange(2),
        "window": chance.choice([0, 0, chance.randint(1, 40)]),
        "sinks": chance.choice([0, chance.randint(1, 8)]),
        "bias": chance.randrange(2),
        "sink": chance.randrange(2),
        "softcap": chance.choice([0.0, 20.0]),
        "query_format": chance.choice([Format.BF16, Format.FP16]),
        "output_format": chance.choice(list(OutputFormat)),
        "scale": 1.0,
        "rotate": chance.randrange(3) == 0,
    } | fixed
    rows, tiles, d = pick["rows"], pick["tiles"], pick["tiles"] * config.lanes
    plane = Plane(config, memory, pick["format"], tiles, pick["tokens"], rng, pick["scale"],
                  pick["rotate"])  # fmt: skip
    q16 = rng.standard_normal((rows, d)).astype(np.float32) * 0.5
    if pick["query_format"] == Format.FP16:
        query = q16.astype(np.float16).view(np.uint16)
    else:
        query = (q16.view(np.uint32) >> 16).astype(np.uint16)
    position = np.array([chance.randrange(pick["tokens"] + 8) for _ in range(rows)])
    draft = np.array([chance.getrandbits(32) for _ in range(rows)], np.uint32)
    sink = rng.standard_normal(rows).astype(np.float32)
    segments, golden = [], []
    for n in range(pick["segments"]):
        kind = chance.choice(pick["kinds"])
        mask = chance.getrandbits(rows) | (chance.randrange(2) * ((1 << rows) - 1))
        start = chance.choice([0, chance.randrange(pick["tokens"])])
        end = chance.randint(start + 1, pick["tokens"])
        bits = np.array([mask >> r & 1 for r in range(rows)], bool)
        address = 0
        if kind == SegmentKind.RAW:
            exponent = rng.integers(-60, 60, rows).astype(np.int32)
            l = rng.random(rows).astype(np.float32) + 1  # noqa: E741
            o = rng.standard_normal((rows, d)).astype(np.float32)
            words = raw_stride(config, tiles) // 4
            states = np.zeros((rows, words), np.uint32)
            states[:, 0] = exponent.view(np.uint32)
            states[:, 1] = l.view(np.uint32)
            states[:, config.port_bytes // 4 :] = o.view(np.uint32)
            address = memory.put(states)
            golden.append(RawSegment(exponent, l, o, bits))
        else:
            bias = None
            if pick["bias"]:
                first = start // config.lanes
                chunks = (end - 1) // config.lanes - first + 1
                raw = rng.standard_normal((chunks, rows, config.lanes)).astype(np.float32)
                if pick["query_format"] == Format.FP16:
                    code = raw.astype(np.float16).view(np.uint16)
                else:
                    code = (raw.view(np.uint32) >> 16).astype(np.uint16)
                code[rng.random(code.shape) < 0.1] = (
                    0xFC00 if pick["query_format"] == Format.FP16 else 0xFF80
                )
                address = memory.put(code)
                full = np.zeros((rows, len(plane.k)), np.uint16)
                span = slice(first * config.lanes, (first + chunks) * config.lanes)
                full[:, span] = code.transpose(1, 0, 2).reshape(rows, -1)
                bias = full
            golden.append(
                KvSegment(
                    plane.k,
                    plane.v,
                    end,
                    start,
                    0,
                    plane.k_scale,
                    plane.v_scale,
                    bits,
                    kind == SegmentKind.DRAFT,
                    bias,
                )  # fmt: skip
            )
        segments.append(
            {
                "kind": int(kind), "start": start, "end": end, "row_mask": mask,
                "table": plane.table, "address": address, "index": n,
                "first": int(n == 0), "last": int(n == pick["segments"] - 1),
            }
        )  # fmt: skip
    job = Job(
        config, pick["format"], query, golden, pick["query_format"], position, draft,
        sink if pick["sink"] else None, bool(pick["causal"]), pick["window"], pick["sinks"],
        pick["softcap"], None, pick["output_format"], pick["rotate"],
    )  # fmt: skip
    out = pick["output_format"]
    if out == OutputFormat.RAW:
        stride = raw_stride(config, tiles)
    else:
        stride = d * (4 if out == OutputFormat.FP32 else 2)
    cap = np.float32(pick["softcap"])
    inverse = np.float32(1) / cap if cap else np.float32(0)
    payload = {
        "slot": number & 1, "base": plane.base, "stride": plane.stride, "tiles": tiles,
        "format": int(pick["format"]), "rotate": int(pick["rotate"]), "causal": pick["causal"],
        "sink": pick["sink"], "bias": pick["bias"],
        "query_format": int(pick["query_format"] == Format.FP16),
        "output_format": int(out), "rows": rows, "segments": len(segments),
        "output": memory.place(rows * stride), "output_stride": stride,
        "window": pick["window"], "sinks": pick["sinks"], "softcap": int(cap.view(np.uint32)),
        "softcap_inverse": int(inverse.view(np.uint32)), "ident": number,
    }  # fmt: skip
    setup = [
        {
            "slot": number & 1, "row": r, "position": int(position[r]), "draft": int(draft[r]),
            "sink": int(sink[r].view(np.uint32)),
        }
        for r in range(rows)
    ]  # fmt: skip
    return TestJob(job, plane, segments, payload, setup, attend(job))


def output_bits(config: CoreConfig, memory: Memory, job: TestJob) -> np.ndarray:
    """What the job left in memory: [rows, d] codes, or [rows, 2 + d] words of raw states."""
    p = job.payload
    rows = []
    for r in range(p["rows"]):
        at = p["output"] + r * p["output_stride"]
        raw = memory.bytes[at : at + p["output_stride"]]
        wide = p["output_format"] in (OutputFormat.FP32, OutputFormat.RAW)
        words = raw.view(np.uint32 if wide else np.uint16)
        if p["output_format"] == OutputFormat.RAW:
            words = np.concatenate([words[:2], words[config.port_bytes // 4 :]])
        rows.append(words)
    return np.array(rows)


def expected_bits(job: TestJob) -> np.ndarray:
    """The same of golden's result."""
    result = job.expected
    if job.golden.output_format != OutputFormat.RAW:
        assert result.output is not None
        return result.output
    exponent, l, o = result.raw  # type: ignore[misc]  # noqa: E741
    parts = [exponent[:, None].view(np.uint32), l[:, None].view(np.uint32), o.view(np.uint32)]
    return np.concatenate(parts, axis=1)
