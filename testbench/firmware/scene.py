"""Random planes, sequences and jobs on any device, with what the golden model expects of them.

Pages are written here element by element through `PageLayout`, beside the firmware's and the
devices' own ways of finding bytes.
"""

import binascii
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from m890.firmware.driver import Driver
from m890.firmware.kv import placed
from m890.firmware.memory_map import PlaneShape, pool_bytes
from m890.firmware.records import pack
from m890.hdl.commands import ROW, SEGMENT, SegmentKind
from m890.hdl.layout import PageLayout, raw_stride
from m890.hdl.numerics.formats import CODINGS, Format, OutputFormat
from m890.sim import golden

FLOATS = {
    Format.BF16: ml_dtypes.bfloat16,
    Format.FP16: np.float16,
    Format.E4M3: ml_dtypes.float8_e4m3fn,
    Format.E5M2: ml_dtypes.float8_e5m2,
    Format.INT8: np.int8,
}


@dataclass
class Sequence:
    """A sequence's pages and what lies in them: codes [planes, 2, N, d], scales [planes, 2, N]
    (BF16 bits) or [planes, 2, N, groups] (E8M0)."""

    number: int
    table: int
    pages: NDArray[np.int64]
    codes: NDArray[np.uint16]
    scales: NDArray[np.uint16] | NDArray[np.uint8] | None

    @property
    def capacity(self) -> int:
        return self.codes.shape[2]


@dataclass
class JobSpec:
    """A job as submitted, and the golden model's result."""

    command: dict[str, int]
    expected: golden.Result
    output: int  # address
    output_bytes: int
    golden: golden.Job
    note: str = ""
    rows: int = 1
    buffers: list[int] = field(default_factory=list)


class Scene:
    """Planes of one format and head size, every second one rotated; sequences of random tokens."""

    def __init__(
        self,
        driver: Driver,
        rng: np.random.Generator,
        format: Format,
        tiles: int,
        *,
        planes: int = 2,
        sequences: int = 3,
        pages: int = 5,
        tags: bool = False,
    ) -> None:
        """`pages` per sequence; pages of the pool are handed out in random order."""
        self.driver, self.rng, self.config = driver, rng, driver.config
        self.format, self.tiles, self.planes = format, tiles, planes
        self.rotated = [plane % 2 == 1 and self.config.rotation for plane in range(planes)]
        self.layout = PageLayout(self.config, format, tiles, tags)
        shape = PlaneShape(planes, format, tiles * self.config.lanes, tags=tags)
        self.stride = shape.stride(self.config)
        count = sequences * pages
        self.region = driver.map.allocate("scene", pool_bytes(self.config, shape, count), 4096)
        self.base = self.region.start + np.arange(planes) * count * self.stride
        # The planes' pages. Behind them lies what the core wants of the last plane; of a large core
        # that is gigabytes, of which the first pages are watched only.
        used = (planes + 1) * count * self.stride
        self.pool = slice(self.region.start, min(self.region.start + used, self.region.end))
        for plane in range(planes):
            driver.wait(
                driver.submit(
                    "PLANE", plane=plane, format=int(format), head=tiles, tags=int(tags),
                    rotate=int(self.rotated[plane]), base=int(self.base[plane]), stride=self.stride,
                )
            )  # fmt: skip
        order = rng.permutation(placed.take(driver, count))
        self.sequences = [
            self._sequence(number, order[number * pages : (number + 1) * pages])
            for number in range(sequences)
        ]

    # ---------------------------------------------------------------- contents

    def random_codes(self, shape: tuple[int, ...], format: Format) -> NDArray[np.uint16]:
        """Codes of normal variables; some are large, subnormal or zero."""
        x = self.rng.normal(size=shape) * 2.0 ** self.rng.choice([-9, -1, 0, 0, 0, 1], shape)
        x = np.where(self.rng.random(shape) < 0.03, 0, x)
        if CODINGS[format].grouped:
            return self.rng.integers(0, 16, shape).astype(np.uint16)
        if format == Format.INT8:
            x = np.clip(x * 40, -128, 127)
        return x.astype(FLOATS[format]).view(f"u{CODINGS[format].bytes}").astype(np.uint16)

    def random_scales(self, shape: tuple[int, ...]) -> NDArray | None:
        """Of rows, as the format has them; E8M0 with some that are far off, or NaN."""
        if CODINGS[self.format].grouped:
            shape = (*shape, self.layout.scale_bytes)
            near = self.rng.integers(120, 128, shape)
            return np.where(self.rng.random(shape) < 0.01, self.rng.integers(0, 256, shape), near
                            ).astype(np.uint8)  # fmt: skip
        if not CODINGS[self.format].scaled:
            return None
        x = 2.0 ** self.rng.uniform(-4, 1, shape)
        if self.format == Format.INT8:
            x = x / 40
        return x.astype(ml_dtypes.bfloat16).view(np.uint16)

    def _sequence(self, number: int, pages: NDArray[np.int64]) -> Sequence:
        config = self.config
        tokens, head = len(pages) * config.page_tokens, self.tiles * config.lanes
        codes = self.random_codes((self.planes, 2, tokens, head), self.format)
        scales = self.random_scales((self.planes, 2, tokens))
        table = self.driver.map.allocate(
            f"table {number}", 4 * len(pages), max(config.port_bytes, 64)
        ).start
        new = Sequence(number, table, pages, codes, scales)
        for plane in range(self.planes):
            for token in range(tokens):
                self.write_token(new, plane, token)
        placed.adopt(self.driver, number, pages, table)
        return new

    def close(self) -> None:
        """Gives all pages back, whatever a test has made of the block tables."""
        for s in self.sequences:
            self.driver.view(s.table, (len(s.pages),), "<u4")[:] = s.pages
            self.driver.wait(self.driver.submit("RELEASE", sequence=s.number))

    def page_address(self, sequence: Sequence, plane: int, token: int) -> int:
        page = int(sequence.pages[token // self.config.page_tokens])
        return int(self.base[plane]) + page * self.stride

    def write_token(self, sequence: Sequence, plane: int, token: int) -> None:
        """Puts one token's codes and scales where the layout wants them."""
        memory, inside = self.driver.memory, token % self.config.page_tokens
        page = self.page_address(sequence, plane, token)
        bits = CODINGS[self.format].bits
        for value in (False, True):
            for feature, code in enumerate(sequence.codes[plane, int(value), token].tolist()):
                at = page + self.layout.element(inside, feature, value=value)
                if bits == 4:
                    kept = int(memory[at]) & 0xF0 >> 4 * (feature % 2)
                    memory[at] = kept | code << 4 * (feature % 2)
                else:
                    memory[at : at + bits // 8] = list(code.to_bytes(bits // 8, "little"))
            at = page + self.layout.scale(inside, value=value)
            half = np.zeros(self.layout.half_bytes, np.uint8)
            if sequence.scales is not None:
                raw = np.ascontiguousarray(sequence.scales[plane, int(value), token, ...])
                half[: self.layout.scale_bytes] = np.atleast_1d(raw).view(np.uint8)
            memory[at : at + len(half)] = half

        self.write_tags(sequence, plane, token)

    def write_tags(self, sequence: Sequence, plane: int, token: int) -> None:
        """Makes the tags of a token's K and V those of what lies in memory."""
        if not self.layout.tags:
            return
        memory, inside = self.driver.memory, token % self.config.page_tokens
        page = self.page_address(sequence, plane, token)
        for value in (False, True):
            row = bytes(memory[page + at] for at in self.row_bytes(inside, value))
            at = page + self.layout.tag(inside, value=value)
            memory[at : at + 2] = list(binascii.crc_hqx(row, 0xFFFF).to_bytes(2, "little"))

    def row_bytes(self, inside: int, value: bool) -> list[int]:
        """Where the bytes that a token's K (or V) tag protects lie in its page, in their order."""
        layout, bits = self.layout, self.layout.coding.bits
        starts = [
            layout.element(inside, feature, value=value)
            for feature in range(0, self.tiles * self.config.lanes, max(1, 8 // bits))
        ]
        codes = [at + n for at in starts for n in range(max(1, bits // 8))]
        return codes + list(
            range(layout.scale(inside, value=value), layout.tag(inside, value=value))
        )

    def read_token(self, sequence: Sequence, plane: int, token: int, value: bool) -> tuple:
        """(codes, scale or scales) of a token as they lie in memory."""
        memory, inside = self.driver.memory, token % self.config.page_tokens
        page = self.page_address(sequence, plane, token)
        bits, codes = CODINGS[self.format].bits, []
        for feature in range(self.tiles * self.config.lanes):
            at = page + self.layout.element(inside, feature, value=value)
            word = int.from_bytes(memory[at : at + max(1, bits // 8)].tobytes(), "little")
            codes.append(word >> 4 * (feature % 2) & 15 if bits == 4 else word)
        if sequence.scales is None:
            return np.array(codes, np.uint16), None
        at = page + self.layout.scale(inside, value=value)
        raw = memory[at : at + self.layout.scale_bytes].copy()
        return np.array(codes, np.uint16), raw.view(sequence.scales.dtype).tolist()

    # ---------------------------------------------------------------- jobs

    def segments(self, job: "JobSpec") -> list[dict[str, int]]:
        """A job's segment table."""
        rows, port = len(pack(ROW, job.rows, {}).tobytes()), self.config.port_bytes
        at = job.command["tables"] + -(-rows // port) * port
        raw = self.driver.view(at, (job.command["segments"], SEGMENT.bytes), np.uint8)
        return [SEGMENT.unpack(entry.tobytes()) for entry in raw]

    def job(self, **fixed: object) -> JobSpec:
        """A random job; `fixed` sets some of its properties (see the first lines)."""
        rng, config = self.rng, self.config

        def choose(name: str, value: object) -> object:
            return fixed.get(name, value)

        rows = int(choose("rows", rng.integers(1, config.rows + 1)))  # type: ignore[call-overload]
        plane = int(choose("plane", rng.integers(self.planes)))  # type: ignore[call-overload]
        kinds = list(choose("kinds", self._kinds()))  # type: ignore[call-overload]
        output = OutputFormat(choose("output", rng.integers(4)))
        query_format = Format(choose("query_format", rng.integers(2)))
        causal, bias = (
            bool(choose("causal", rng.random() < 0.6)),
            bool(choose("bias", rng.random() < 0.25)),
        )
        window = int(choose("window", rng.choice([0, 0, 1, 7, 20])))  # type: ignore[call-overload]
        sinks = int(choose("sinks", rng.choice([0, 0, 1, 5])))  # type: ignore[call-overload]
        sink = bool(choose("sink", rng.random() < 0.3))
        softcap = float(choose("softcap", rng.choice([0.0, 0.0, 8.0, 30.0])))  # type: ignore[arg-type]
        gain = float(choose("gain", rng.choice([0.3, 0.3, 1.0, 40.0])))  # type: ignore[arg-type]
        head = self.tiles * config.lanes
        query = self.random_floats((rows, head), query_format, gain)
        longest = max(s.capacity for s in self.sequences)
        position = rng.integers(0, longest, rows)
        draft = rng.integers(0, 1 << 32, rows, dtype=np.uint64).astype(np.int64)
        logits = rng.normal(0, 4, rows).astype(np.float32)
        buffers: list[int] = []
        segments, entries = [], []
        for kind in kinds:
            segment, entry = self._segment(kind, plane, rows, query_format, bias, buffers)
            segments.append(segment)
            entries.append(entry)
        cap = np.float32(softcap)
        inverse = np.float32(1) / cap if softcap else np.float32(0)
        wanted = golden.Job(
            config, self.format, query, segments, query_format, position, draft,
            logits if sink else None, causal, window, sinks, float(cap), float(inverse), output,
            self.rotated[plane],
        )  # fmt: skip
        tables = self._tables(position, draft, logits, entries)
        spare = config.port_bytes * int(rng.integers(0, 3))
        query_stride = head * 2 + spare
        placed = np.zeros((rows, query_stride // 2), np.uint16)
        placed[:, :head] = query
        element = 4 if output == OutputFormat.FP32 else 2
        row_bytes = raw_stride(config, self.tiles) if output == OutputFormat.RAW else head * element
        output_bytes = rows * (row_bytes + spare)
        at = self.driver.buffer(output_bytes)
        command = {
            "causal": int(causal), "sink": int(sink), "bias": int(bias),
            "query_format": int(query_format), "output_format": int(output), "plane": plane,
            "rows": rows, "segments": len(entries), "tables": self.driver.place(tables),
            "query": self.driver.place(placed), "output": at, "query_stride": query_stride,
            "output_stride": row_bytes + spare, "window": window, "sinks": sinks,
            "softcap": int(cap.view(np.uint32)), "softcap_inverse": int(inverse.view(np.uint32)),
        }  # fmt: skip
        buffers += [command["tables"], command["query"], at]
        note = (
            f"{self.format.name} rows {rows} kinds {[SegmentKind(k).name for k in kinds]} output"
            f" {output.name} causal {causal} window {window} sinks {sinks} bias {bias} sink {sink}"
            f" softcap {softcap} gain {gain} rotated {self.rotated[plane]}"
        )
        return JobSpec(
            command, golden.attend(wanted), at, output_bytes, wanted, note, rows, buffers
        )

    def check(self, job: JobSpec, status: int | None = None) -> None:
        """The output in memory, and the completion's status, are the golden model's."""
        config, c = self.config, job.command
        raw = self.driver.memory[job.output : job.output + job.output_bytes]
        raw = raw.reshape(job.rows, c["output_stride"])
        head = self.tiles * config.lanes
        if job.expected.raw is not None:
            exponent, l_value, o = job.expected.raw
            words = raw[:, : raw_stride(config, self.tiles)].copy().view("<u4")
            np.testing.assert_array_equal(words[:, 0], exponent.astype("<i4").view("<u4"), job.note)
            np.testing.assert_array_equal(words[:, 1], l_value.view("<u4"), job.note)
            found = words[:, config.port_bytes // 4 :]
            np.testing.assert_array_equal(found, np.ascontiguousarray(o).view("<u4"), job.note)
        else:
            bits = job.expected.output
            assert bits is not None
            size = bits.dtype.itemsize
            found = raw[:, : head * size].copy().view(f"<u{size}")
            np.testing.assert_array_equal(found, bits, job.note)
        if status is not None:
            assert status == int(job.expected.status), job.note

    def free(self, job: JobSpec) -> None:
        self.driver.free(*job.buffers)

    def random_floats(
        self, shape: tuple[int, ...], format: Format, gain: float = 1.0
    ) -> NDArray[np.uint16]:
        x = self.rng.normal(0, gain, shape)
        with np.errstate(over="ignore"):  # Inf is as good an input as any
            return x.astype(FLOATS[format]).view(np.uint16)

    def _kinds(self) -> list[int]:
        count = int(self.rng.integers(1, min(4, self.config.max_segments) + 1))
        return self.rng.choice([0, 0, 0, 1, 2], count).tolist()

    def _segment(
        self, kind: int, plane: int, rows: int, query_format: Format, bias: bool, buffers: list[int]
    ) -> tuple[golden.KvSegment | golden.RawSegment, dict[str, int]]:
        """A random segment for golden, and its table entry."""
        rng, config = self.rng, self.config
        mask = rng.random(rows) < 0.7
        word = sum(1 << i for i, on in enumerate(mask) if on)
        word |= int(rng.integers(0, 2)) << 63 if config.rows < 64 else 0  # no row: ignored
        if kind == SegmentKind.RAW:
            address, raw = self._raw_states(rows)
            buffers.append(address)
            return golden.RawSegment(*raw, mask), {"kind": kind, "address": address,
                                                   "row_mask": word}  # fmt: skip
        s = self.sequences[int(rng.integers(len(self.sequences)))]
        start = int(rng.integers(0, s.capacity))
        end = int(rng.integers(start, min(s.capacity, start + 5 * config.lanes))) + 1
        entry = {"kind": kind, "sequence": s.number, "start": start, "end": end, "row_mask": word}
        biases = None
        if bias:
            first, last = start // config.lanes, -(-end // config.lanes)
            shape = (last - first, rows, config.lanes)
            some = self.random_floats(shape, query_format)
            minus_infinity = 0xFC00 if query_format == Format.FP16 else 0xFF80
            some = np.where(rng.random(shape) < 0.1, np.uint16(minus_infinity), some)
            entry["address"] = self.driver.place(some)
            buffers.append(entry["address"])
            biases = np.zeros((rows, s.capacity), np.uint16)
            span = some.transpose(1, 0, 2).reshape(rows, -1)
            biases[:, first * config.lanes : last * config.lanes] = span
        scales = s.scales[plane] if s.scales is not None else (None, None)
        return golden.KvSegment(
            s.codes[plane, 0], s.codes[plane, 1], end, start, 0, scales[0], scales[1], mask,
            kind == SegmentKind.DRAFT, biases,
        ), entry  # fmt: skip

    def _raw_states(self, rows: int) -> tuple[int, tuple[NDArray, NDArray, NDArray]]:
        """Stored states at a new buffer: its address, and (E, l, O)."""
        head = self.tiles * self.config.lanes
        exponent = self.rng.integers(-60, 60, rows).astype(np.int32)
        l_value = self.rng.uniform(1, 2, rows).astype(np.float32)
        o = self.rng.normal(size=(rows, head)).astype(np.float32)
        words = np.zeros((rows, raw_stride(self.config, self.tiles) // 4), np.uint32)
        words[:, 0], words[:, 1] = exponent.view(np.uint32), l_value.view(np.uint32)
        words[:, self.config.port_bytes // 4 :] = o.view(np.uint32)
        return self.driver.place(words), (exponent, l_value, o)

    def _tables(
        self, position: NDArray, draft: NDArray, sink: NDArray, entries: list[dict[str, int]]
    ) -> NDArray[np.uint8]:
        """Row table, then segment table, each padded to the port."""
        port = self.config.port_bytes
        values = {"position": position, "draft": draft, "sink": sink.view(np.uint32)}
        rows = pack(ROW, len(position), values).tobytes()
        segments = b"".join(SEGMENT.pack(**entry) for entry in entries)
        return np.frombuffer(
            rows + bytes(-len(rows) % port) + segments + bytes(-len(segments) % port), np.uint8
        )
