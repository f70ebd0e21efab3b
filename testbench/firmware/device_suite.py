"""What every device has to do: bad input refused by name, random jobs equal to the golden model.

A test file makes a class of its own from `DeviceSuite` and says how to get a device:

    class TestTiny(DeviceSuite):
        @pytest.fixture(scope="class")
        @classmethod
        def device(cls) -> Iterator[Device]:
            yield ModelDevice(preset("tiny"), MEMORY)
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from m890.firmware import errors
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.hdl.commands import SEGMENT, Opcode, SegmentKind, Status
from m890.hdl.config import TOKEN_BITS
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.hdl.registers import ADDRESS
from m890.sim import golden
from m890.testbench.firmware.scene import JobSpec, Scene

MEMORY = 16 << 20
"""Device memory that the suite needs: all of a pool's pages for two planes, and more."""
FAR = 1 << 39


class DeviceSuite:
    """Tests of one device; `jobs` is how many random jobs each format gets."""

    jobs = 25
    batch = 5

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        raise NotImplementedError
        yield

    @pytest.fixture
    def driver(self, device: Device) -> Driver:
        return Driver(device, ring=16, scratch_bytes=1 << 20, log=1000)

    # ------------------------------------------------------------------ numbers

    @pytest.mark.parametrize("format", list(Format), ids=lambda f: f.name)
    def test_random_jobs(self, driver: Driver, rng: np.random.Generator, format: Format) -> None:
        """All masks, segments, outputs and extras, several jobs at once, bit for bit."""
        tiles = int(rng.choice([1, 2, driver.config.max_tiles]))
        scene = Scene(driver, rng, format, min(tiles, driver.config.max_tiles))
        for _ in range(self.jobs // self.batch):
            self._run(scene, [scene.job() for _ in range(self.batch)])

    def test_full_rows_and_segments(self, driver: Driver, rng: np.random.Generator) -> None:
        scene = Scene(driver, rng, Format.FP16, 1)
        kinds = [SegmentKind.KV] * driver.config.max_segments
        self._run(scene, [scene.job(rows=driver.config.rows, kinds=kinds, bias=False)])

    @pytest.mark.parametrize("tiles", [1, 2, 3, 4])
    def test_head_sizes(self, driver: Driver, rng: np.random.Generator, tiles: int) -> None:
        """Every multiple of lanes, three tiles included."""
        if tiles > driver.config.max_tiles:
            pytest.skip("beyond the preset's largest head")
        scene = Scene(driver, rng, Format.E4M3, tiles)
        self._run(scene, [scene.job() for _ in range(3)])

    @pytest.mark.parametrize("kind", ["nan", "overflow", "underflow"])
    def test_status(self, driver: Driver, rng: np.random.Generator, kind: str) -> None:
        """Events of visible tokens are flagged; the output is the golden model's even then."""
        scene = Scene(driver, rng, Format.FP16, 1)
        gain = {"nan": 0.3, "overflow": 3e4, "underflow": 3e4}[kind]
        if kind == "nan":
            s = scene.sequences[0]
            for token in range(0, s.capacity, 3):
                s.codes[:, 0, token, 2] = 0x7E01
                for plane in range(scene.planes):
                    scene.write_token(s, plane, token)
        jobs = [
            scene.job(kinds=[0, 0], gain=gain, softcap=0.0, window=0, bias=False, causal=False)
            for _ in range(6)
        ]
        self._run(scene, jobs)
        wanted = {"nan": Status.INVALID, "overflow": Status.OVERFLOW}.get(kind, Status.UNDERFLOW)
        assert any(int(job.expected.status) >> wanted & 1 for job in jobs), "the case never came up"

    def test_nothing_visible_gives_zero(self, driver: Driver, rng: np.random.Generator) -> None:
        scene = Scene(driver, rng, Format.FP16, 1)
        job = scene.job(kinds=[0], output=OutputFormat.FP32, sink=False, causal=True, window=1)
        driver.view(self._entry(scene, job, 0), (32,), np.uint8)[16:24] = 0  # row mask: nobody
        self._submit(driver, [job])
        found = driver.view(job.output, (job.output_bytes,), np.uint8)
        stride, used = job.command["output_stride"], 4 * scene.tiles * driver.config.lanes
        assert not found.reshape(job.rows, stride)[:, :used].any()

    def test_raw_states_merge(self, driver: Driver, rng: np.random.Generator) -> None:
        """Two halves of a context, the second started from the first's raw state."""
        scene = Scene(driver, rng, Format.FP16, 2)
        one = scene.job(kinds=[0], output=OutputFormat.RAW, causal=False, window=0, sink=True,
                        softcap=0.0, gain=0.3)  # fmt: skip
        self._submit(driver, [one])
        scene.check(one)
        assert one.expected.raw is not None
        rows = one.rows
        two = scene.job(kinds=[0, 2], rows=rows, output=OutputFormat.FP32, bias=False)
        # the second job's stored states are the first job's output
        port = driver.config.port_bytes
        entry = driver.view(self._entry(scene, two, 1), (32,), np.uint8)
        stride = one.command["output_stride"]
        states = driver.view(one.output, (rows, stride), np.uint8)
        raw_bytes = port * (1 + 2 * scene.tiles)
        packed = driver.place(states[:, :raw_bytes])
        entry[24:32] = np.array([packed], "<u8").view(np.uint8)
        two.expected = self._again(two, one)
        self._submit(driver, [two])
        scene.check(two)

    # ------------------------------------------------------------------ append

    @pytest.mark.parametrize("format", list(Format), ids=lambda f: f.name)
    def test_append(self, driver: Driver, rng: np.random.Generator, format: Format) -> None:
        """Codes and scales lie where the layout wants them; no other byte of the pool changes."""
        scene = Scene(driver, rng, format, min(2, driver.config.max_tiles))
        for source in (Format.FP16, Format.BF16):
            self._append(scene, source, specials=False)
            self._append(scene, source, specials=True)

    def test_append_then_attend(self, driver: Driver, rng: np.random.Generator) -> None:
        """A job under the same doorbell sees the tokens that the APPEND before it wrote."""
        scene = Scene(driver, rng, Format.FP16, 1)
        sequence, head = scene.sequences[0], driver.config.lanes
        source = scene.random_floats((2, 3, head), Format.FP16)
        sequence.codes[0, :, 4:7] = source
        job = scene.job(kinds=[0, 0, 0], plane=0)
        address = driver.place(source)
        append = driver.pack(
            "APPEND", 1,
            {"plane": 0, "sequence": 0, "start": 4, "tokens": 3, "source_format": 1, "k": address,
             "v": address + 6 * head, "source_stride": 2 * head},
        )  # fmt: skip
        attend = driver.pack("ATTEND", 1, job.command)
        done = driver.wait(driver.submit_many(np.concatenate([append, attend])))
        scene.check(job, int(done["status"][1]))

    # ------------------------------------------------------------------ rings

    def test_rings_wrap(self, device: Device) -> None:
        driver = Driver(device, ring=4, completions=8, scratch_bytes=1 << 16)
        for count in (3, 11, 1, 30, 4, 5):
            tags = driver.submit_many(driver.pack("NOP", count, {}))
            done = driver.wait(tags)
            assert done["tag"].tolist() == tags.tolist()
            assert (done["end"] >= done["start"]).all()
        driver.submit("FENCE")
        driver.wait_all()
        assert driver.completed == driver.submitted == 55

    def test_ring_overrun(self, driver: Driver) -> None:
        """Through the raw register, as the driver itself never does it."""
        driver.wait(driver.submit("NOP"))
        driver.device.write(ADDRESS["RING_TAIL"], driver.submitted + driver.ring + 1)
        with pytest.raises(errors.RingOverrun, match="submit commands through the driver"):
            driver.check_ring()
        driver.check_ring()
        driver.wait(driver.submit("NOP"))
        driver.recover()
        driver.wait(driver.submit("NOP"))

    @pytest.mark.parametrize(
        "register,value",
        [("RING_SIZE", 3), ("RING_SIZE", 0), ("COMPLETION_SIZE", 65536), ("RING_BASE_LO", 64)],
    )
    def test_bad_ring(self, driver: Driver, register: str, value: int) -> None:
        driver.write("CONTROL", 0)
        driver.write(register, value)
        driver.write("CONTROL", 1)
        with pytest.raises(errors.BadRing):
            driver.check_ring()
        driver.recover()
        driver.wait(driver.submit("NOP"))

    def test_counters(self, driver: Driver, rng: np.random.Generator) -> None:
        scene = Scene(driver, rng, Format.E4M3, 1)
        before = driver.counters()
        job = scene.job(kinds=[0], causal=False, window=0, bias=False)
        done = self._submit(driver, [job])
        after = driver.counters()
        assert after["JOBS"] - before["JOBS"] == 1
        assert after["BEATS"] - before["BEATS"] == done["beats"][0]
        lanes = driver.config.lanes
        chunks = done["beats"][0] // (2 * lanes * scene.tiles)
        assert after["KV_BYTES"] - before["KV_BYTES"] == chunks * scene.layout.chunk_bytes
        assert after["READ_BYTES"] > before["READ_BYTES"]

    # ------------------------------------------------------------------ bad input

    def test_bad_opcode(self, driver: Driver, rng: np.random.Generator) -> None:
        raw = np.zeros((1, 64), np.uint8)
        for opcode in (len(Opcode), 77, 255):
            raw[0, 0] = opcode
            self._refused(driver, rng, errors.BadOpcode, "opcode", lambda _: raw.copy())

    @pytest.mark.parametrize(
        "field,value,error",
        [
            ("plane", 65535, errors.BadPlane),
            ("format", 5, errors.BadFormat),
            ("format", 15, errors.BadFormat),
            ("head", 0, errors.BadHeadSize),
            ("head", 255, errors.BadHeadSize),
            ("base", FAR, errors.BadAddress),
            ("base", (1 << 64) - 4096, errors.BadAddress),
            ("base", 8, errors.BadAlignment),
            ("stride", 8, errors.BadAlignment),
            ("stride", 0, errors.BadRange),
            ("stride", 0xFFFFF000, errors.BadAddress),
        ],
    )
    def test_bad_plane(
        self, driver: Driver, rng: np.random.Generator, field: str, value: int, error: Any
    ) -> None:
        def command(scene: Scene) -> Any:
            good = {"plane": 0, "format": int(scene.format), "head": scene.tiles,
                    "base": int(scene.base[0]), "stride": scene.stride}  # fmt: skip
            return driver.pack("PLANE", 1, good | {field: np.uint64(value)})

        name = "base" if value == 0xFFFFF000 else field
        self._refused(driver, rng, error, name, command)

    @pytest.mark.parametrize(
        "field,value,error",
        [
            ("sequence", 65535, errors.BadSequence),
            ("table", FAR, errors.BadAddress),
            ("table", 4, errors.BadAlignment),
            ("capacity", 1 << 24, errors.BadRange),
        ],
    )
    def test_bad_sequence(
        self, driver: Driver, rng: np.random.Generator, field: str, value: int, error: Any
    ) -> None:
        def command(scene: Scene) -> Any:
            first = scene.sequences[0]
            good = {"sequence": 0, "table": first.table, "capacity": first.capacity}
            return driver.pack("SEQUENCE", 1, good | {field: value})

        self._refused(driver, rng, error, field, command)

    @pytest.mark.parametrize(
        "field,value,error",
        [
            ("plane", 65535, errors.BadPlane),
            ("plane", -1, errors.BadPlane),  # never defined
            ("sequence", 65535, errors.BadSequence),
            ("sequence", -1, errors.BadSequence),  # never bound
            ("tokens", 0, errors.BadRange),
            ("start", 1 << 20, errors.BadRange),
            ("start", 0xFFFFFFFF, errors.BadRange),
            ("source_format", int(Format.INT8), errors.BadFormat),
            ("k", FAR, errors.BadAddress),
            ("v", FAR, errors.BadAddress),
            ("k", 8, errors.BadAlignment),
            ("v", 8, errors.BadAlignment),
            ("source_stride", 8, errors.BadAlignment),
            ("source_stride", 0, errors.BadRange),
        ],
    )
    def test_bad_append(
        self, driver: Driver, rng: np.random.Generator, field: str, value: int, error: Any
    ) -> None:
        if value < 0:
            value = getattr(driver.config, f"{field}s") - 1

        def command(scene: Scene) -> Any:
            at, row = (
                driver.place(np.zeros(1 << 12, np.uint8)),
                scene.tiles * scene.config.lanes * 2,
            )
            good = {"plane": 0, "sequence": 1, "start": 2, "tokens": 2, "source_format": 1,
                    "k": at, "v": at, "source_stride": row}  # fmt: skip
            return driver.pack("APPEND", 1, good | {field: value})

        self._refused(driver, rng, error, field, command)

    @pytest.mark.parametrize(
        "field,value,error",
        [
            ("plane", 65535, errors.BadPlane),
            ("plane", -1, errors.BadPlane),
            ("rows", 0, errors.BadRows),
            ("rows", 255, errors.BadRows),
            ("segments", 0, errors.BadSegments),
            ("segments", 255, errors.BadSegments),
            ("tables", FAR, errors.BadAddress),
            ("tables", 8, errors.BadAlignment),
            ("query", FAR, errors.BadAddress),
            ("query", 8, errors.BadAlignment),
            ("output", FAR, errors.BadAddress),
            ("output", (1 << 64) - 4096, errors.BadAddress),
            ("output", 8, errors.BadAlignment),
            ("query_stride", 8, errors.BadAlignment),
            ("query_stride", 0, errors.BadRange),
            ("output_stride", 8, errors.BadAlignment),
            ("output_stride", 0, errors.BadRange),
        ],
    )
    def test_bad_attend(
        self, driver: Driver, rng: np.random.Generator, field: str, value: int, error: Any
    ) -> None:
        if value < 0:
            value = driver.config.planes - 1

        def command(scene: Scene) -> Any:
            job = scene.job(rows=2)
            return driver.pack("ATTEND", 1, job.command | {field: np.uint64(value)})

        self._refused(driver, rng, error, field, command)

    @pytest.mark.parametrize(
        "kind,entry,field,error",
        [
            (0, {"kind": 3}, "kind", errors.BadSegmentKind),
            (0, {"kind": 255}, "kind", errors.BadSegmentKind),
            (0, {"sequence": 65535}, "sequence", errors.BadSequence),
            (1, {"sequence": -1}, "sequence", errors.BadSequence),
            (0, {"start": 9, "end": 8}, "start", errors.BadRange),
            (1, {"start": 9, "end": 9}, "start", errors.BadRange),
            (0, {"end": 1 << 22}, "end", errors.BadRange),
            (0, {"end": 0xFFFFFFFF}, "end", errors.BadRange),
            (2, {"address": FAR}, "address", errors.BadAddress),
            (2, {"address": 8}, "address", errors.BadAlignment),
        ],
    )
    def test_bad_segment(
        self,
        driver: Driver,
        rng: np.random.Generator,
        kind: int,
        entry: dict[str, int],
        field: str,
        error: Any,
    ) -> None:
        """The second of three segments is bad: the exception names it."""
        entry = {k: driver.config.sequences - 1 if v < 0 else v for k, v in entry.items()}

        def command(scene: Scene) -> Any:
            job = scene.job(kinds=[0, kind, 0], bias=False)
            at = self._entry(scene, job, 1)
            old = SEGMENT.unpack(driver.view(at, (32,), np.uint8).tobytes())
            new = SEGMENT.pack(**(old | entry))
            driver.view(at, (32,), np.uint8)[:] = np.frombuffer(new, np.uint8)
            return driver.pack("ATTEND", 1, job.command)

        caught = self._refused(driver, rng, error, f"segment.{field}", command)
        assert caught.index == 1

    def test_bad_row(self, driver: Driver, rng: np.random.Generator) -> None:
        """A row's position beyond all token indices."""

        def command(scene: Scene) -> Any:
            job = scene.job(rows=3)
            driver.view(job.command["tables"], (3, 4), "<u4")[1, 0] = 1 << TOKEN_BITS
            return driver.pack("ATTEND", 1, job.command)

        assert self._refused(driver, rng, errors.BadRange, "tables", command).index == 1

    @pytest.mark.parametrize("page", [-1, 0xFFFFFFFF])
    def test_bad_page(self, driver: Driver, rng: np.random.Generator, page: int) -> None:
        """A page number out of range in the block table, met by a job and by an append."""
        wrong = driver.config.pages if page < 0 else page

        def attend(scene: Scene) -> Any:
            self._break_page(scene, wrong)
            return driver.pack("ATTEND", 1, self._over_all(scene, 0).command)

        def append(scene: Scene) -> Any:
            self._break_page(scene, wrong)
            at, row = (
                driver.place(np.zeros(1 << 14, np.uint8)),
                scene.tiles * scene.config.lanes * 2,
            )
            values = {"plane": 0, "sequence": 0, "start": 0, "tokens": scene.sequences[0].capacity,
                      "source_format": 1, "k": at, "v": at, "source_stride": row}  # fmt: skip
            return driver.pack("APPEND", 1, values)

        for field, command in (("segment.sequence", attend), ("sequence", append)):
            self._refused(driver, rng, errors.BadPage, field, command, sequence=1)

    def test_failure_among_others(self, driver: Driver, rng: np.random.Generator) -> None:
        """A refused job between two good ones: they run as if it were not there."""
        scene = Scene(driver, rng, Format.FP16, 1)
        jobs = [scene.job(), scene.job(), scene.job()]
        jobs[1].command["rows"] = 0
        tags = driver.submit_many(
            np.concatenate([driver.pack("ATTEND", 1, job.command) for job in jobs])
        )
        with pytest.raises(errors.BadRows) as caught:
            driver.wait(tags)
        assert caught.value.tag == tags[1]
        scene.check(jobs[0])
        scene.check(jobs[2])
        driver.wait_all()

    # ------------------------------------------------------------------ helpers

    def _submit(self, driver: Driver, jobs: list[JobSpec]) -> Any:
        commands = [driver.pack("ATTEND", 1, job.command) for job in jobs]
        return driver.wait(driver.submit_many(np.concatenate(commands)))

    def _run(self, scene: Scene, jobs: list[JobSpec]) -> None:
        """Jobs under one doorbell; outputs and status as expected, the pool as it was."""
        before = scene.driver.memory[scene.region.start : scene.region.end].copy()
        done = self._submit(scene.driver, jobs)
        for job, status in zip(jobs, done["status"].tolist(), strict=True):
            scene.check(job, status)
            scene.free(job)
        after = scene.driver.memory[scene.region.start : scene.region.end]
        assert np.array_equal(before, after)

    def _refused(
        self,
        driver: Driver,
        rng: np.random.Generator,
        error: type[errors.CommandError],
        field: str,
        command: Callable[[Scene], Any],
        sequence: int = 0,
    ) -> errors.CommandError:
        """The command fails by name, changes no byte but its completion, and a good job follows."""
        scene = Scene(driver, rng, Format.FP16, 1)
        bad = command(scene)
        after_rings = driver.scratch.region.start
        before = driver.memory[after_rings:].copy()
        tag = driver.submit_many(bad)
        with pytest.raises(error) as caught:
            driver.wait(tag)
        assert caught.value.field == field
        assert ":" in str(caught.value)
        assert np.array_equal(before, driver.memory[after_rings:])
        job = self._over_all(scene, sequence)
        done = self._submit(driver, [job])
        scene.check(job, int(done["status"][0]))
        return caught.value

    def _over_all(self, scene: Scene, sequence: int) -> JobSpec:
        """A job over all tokens of one sequence, for all rows."""
        job = scene.job(kinds=[0], causal=False, window=0, plane=0, bias=False)
        s = scene.sequences[sequence]
        entry = {"sequence": sequence, "start": 0, "end": s.capacity, "row_mask": (1 << 64) - 1}
        scene.driver.view(self._entry(scene, job, 0), (32,), np.uint8)[:] = np.frombuffer(
            SEGMENT.pack(kind=0, **entry), np.uint8
        )
        whole = golden.KvSegment(s.codes[0, 0], s.codes[0, 1], s.capacity)
        job.expected = golden.attend(replace(job.golden, segments=[whole]))
        return job

    def _entry(self, scene: Scene, job: JobSpec, index: int) -> int:
        """Address of an entry of the job's segment table."""
        port = scene.config.port_bytes
        return job.command["tables"] + -(-16 * job.rows // port) * port + 32 * index

    def _break_page(self, scene: Scene, page: int) -> None:
        """The last entry of sequence 0's block table."""
        pages = len(scene.sequences[0].pages)
        scene.driver.view(scene.sequences[0].table, (pages,), "<u4")[-1] = page

    def _again(self, two: JobSpec, one: JobSpec) -> golden.Result:
        """What golden says of job `two` with job `one`'s result as its stored states."""
        assert one.expected.raw is not None
        segments = list(two.golden.segments)
        old = segments[1]
        assert isinstance(old, golden.RawSegment)
        exponent, l_value, o = one.expected.raw
        segments[1] = replace(old, exponent=exponent, l=l_value, o=o)
        return golden.attend(replace(two.golden, segments=segments))

    def _append(self, scene: Scene, source: Format, *, specials: bool) -> None:
        driver, rng = scene.driver, scene.rng
        s = scene.sequences[int(rng.integers(len(scene.sequences)))]
        plane = int(rng.integers(scene.planes))
        start = int(rng.integers(0, s.capacity))
        tokens = int(rng.integers(1, s.capacity - start + 1))
        head = scene.tiles * scene.config.lanes
        rows = scene.random_floats((2, tokens, head), source, float(rng.choice([0.01, 1.0, 300.0])))
        if specials:
            wild = rng.integers(0, 1 << 16, rows.shape).astype(np.uint16)
            rows = np.where(rng.random(rows.shape) < 0.1, wild, rows)
        spare = scene.config.lanes * int(rng.integers(0, 2))
        placed = np.zeros((2, tokens, head + spare), np.uint16)
        placed[..., :head] = rows
        address = driver.place(placed)
        before = driver.memory[scene.region.start : scene.region.end].copy()
        done = driver.wait(
            driver.submit(
                "APPEND", plane=plane, sequence=s.number, start=start, tokens=tokens,
                source_format=int(source), k=address, v=address + placed[0].nbytes,
                source_stride=2 * (head + spare),
            )
        )  # fmt: skip
        quantised = False
        for value in (0, 1):
            codes, scale, flags = golden.append(scene.format, rows[value], source)
            quantised |= bool(flags.any())
            s.codes[plane, value, start : start + tokens] = codes
            if scale is not None and s.scales is not None:
                s.scales[plane, value, start : start + tokens] = scale
            for token in range(tokens):
                found = scene.read_token(s, plane, start + token, bool(value))
                np.testing.assert_array_equal(found[0], codes[token])
                assert found[1] is None or scale is not None and found[1] == int(scale[token])
        assert int(done["status"][0]) == int(quantised) << Status.QUANTISE
        # what the scene's own writer makes of the codes, on top of what was there before
        now = driver.memory[scene.region.start : scene.region.end].copy()
        driver.memory[scene.region.start : scene.region.end] = before
        for token in range(start, start + tokens):
            scene.write_token(s, plane, token)
        assert np.array_equal(now, driver.memory[scene.region.start : scene.region.end])
        driver.free(address)
