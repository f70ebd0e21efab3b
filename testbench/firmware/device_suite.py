"""What every device has to do: bad input refused by name, random jobs equal to the golden model.

A test file makes a class of its own from `DeviceSuite` and says how to get a device:

    class TestTiny(DeviceSuite):
        @pytest.fixture(scope="class")
        @classmethod
        def device(cls) -> Iterator[Device]:
            yield ModelDevice(preset("tiny"), MEMORY)
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from m890.firmware import errors
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.hdl.commands import SegmentKind, Status
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.hdl.registers import ADDRESS
from m890.sim import golden
from m890.testbench.firmware.bad_input import BadInput
from m890.testbench.firmware.scene import JobSpec, Scene

MEMORY = 16 << 20
"""Device memory that the suite needs: all of a pool's pages for two planes, and more."""


class DeviceSuite(BadInput):
    """Tests of one device; `jobs` is how many random jobs each format gets, `scratch` bytes."""

    jobs = 25
    batch = 5
    scratch = 1 << 20

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        raise NotImplementedError
        yield

    @pytest.fixture
    def driver(self, device: Device) -> Driver:
        return Driver(device, ring=16, scratch_bytes=self.scratch, log=1000)

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
            for plane in range(scene.planes):
                self._append(scene, source, plane, specials=False)
                self._append(scene, source, plane, specials=True)

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

    # ------------------------------------------------------------------ helpers

    def _run(self, scene: Scene, jobs: list[JobSpec]) -> None:
        """Jobs under one doorbell; outputs and status as expected, the pool as it was."""
        before = scene.driver.memory[scene.pool].copy()
        done = self._submit(scene.driver, jobs)
        for job, status in zip(jobs, done["status"].tolist(), strict=True):
            scene.check(job, status)
            scene.free(job)
        after = scene.driver.memory[scene.pool]
        assert np.array_equal(before, after)

    def _again(self, two: JobSpec, one: JobSpec) -> golden.Result:
        """What golden says of job `two` with job `one`'s result as its stored states."""
        assert one.expected.raw is not None
        segments = list(two.golden.segments)
        old = segments[1]
        assert isinstance(old, golden.RawSegment)
        exponent, l_value, o = one.expected.raw
        segments[1] = replace(old, exponent=exponent, l=l_value, o=o)
        return golden.attend(replace(two.golden, segments=segments))

    def _append(self, scene: Scene, source: Format, plane: int, *, specials: bool) -> None:
        driver, rng = scene.driver, scene.rng
        s = scene.sequences[int(rng.integers(len(scene.sequences)))]
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
        before = driver.memory[scene.pool].copy()
        done = driver.wait(
            driver.submit(
                "APPEND", plane=plane, sequence=s.number, start=start, tokens=tokens,
                source_format=int(source), k=address, v=address + placed[0].nbytes,
                source_stride=2 * (head + spare),
            )
        )  # fmt: skip
        quantised = False
        for value in (0, 1):
            row = rows[value]
            if scene.rotated[plane]:
                row = golden.rotate_kv(row, source, scene.config.lanes)
            codes, scale, flags = golden.append(scene.format, row, source)
            quantised |= bool(flags.any())
            s.codes[plane, value, start : start + tokens] = codes
            if scale is not None and s.scales is not None:
                s.scales[plane, value, start : start + tokens] = scale
            for token in range(tokens):
                found = scene.read_token(s, plane, start + token, bool(value))
                np.testing.assert_array_equal(found[0], codes[token])
                wanted = None if scale is None else np.atleast_1d(scale[token]).tolist()
                assert found[1] == wanted
        assert int(done["status"][0]) == int(quantised) << Status.QUANTISE
        # what the scene's own writer makes of the codes, on top of what was there before
        now = driver.memory[scene.pool].copy()
        driver.memory[scene.pool] = before
        for token in range(start, start + tokens):
            scene.write_token(s, plane, token)
        assert np.array_equal(now, driver.memory[scene.pool])
        driver.free(address)
