"""What every device does with integrity tags: writes them, checks them, names what is damaged."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from m890.firmware import errors
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.hdl.commands import SegmentKind
from m890.hdl.numerics.formats import Format
from m890.testbench.firmware.device_suite import DeviceSuite
from m890.testbench.firmware.scene import JobSpec, Scene, Sequence

FORMATS = pytest.mark.parametrize("format", list(Format), ids=lambda f: f.name)
SEE_ALL: dict[str, Any] = {"causal": False, "window": 0, "bias": False}


class IntegritySuite:
    """Tests of one device; `flips` is how many flips of one bit each format gets."""

    jobs = 15
    flips = 24
    scratch = 1 << 20

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        raise NotImplementedError
        yield

    @pytest.fixture
    def driver(self, device: Device) -> Driver:
        return Driver(device, ring=16, scratch_bytes=self.scratch, log=1000)

    @FORMATS
    def test_random_jobs(self, driver: Driver, rng: np.random.Generator, format: Format) -> None:
        """With tags, jobs are what they are without."""
        tiles = int(rng.integers(1, driver.config.max_tiles + 1))
        scene = Scene(driver, rng, format, tiles, tags=True)
        for _ in range(self.jobs // 5):
            self._run(scene, [scene.job() for _ in range(5)])

    @FORMATS
    def test_append(self, driver: Driver, rng: np.random.Generator, format: Format) -> None:
        """Tags are those of what APPEND wrote; no other byte of the pool changes."""
        tiles = int(rng.integers(1, driver.config.max_tiles + 1))
        scene = Scene(driver, rng, format, tiles, tags=True)
        for source in (Format.FP16, Format.BF16):
            for plane in range(scene.planes):
                DeviceSuite()._append(scene, source, plane, specials=False)
                DeviceSuite()._append(scene, source, plane, specials=True)

    @FORMATS
    def test_flips(self, driver: Driver, rng: np.random.Generator, format: Format) -> None:
        """A bit of a row, its scales or its tag: the job fails, names it and writes nothing."""
        tiles = int(rng.integers(1, driver.config.max_tiles + 1))
        scene = Scene(driver, rng, format, tiles, tags=True)
        job = self._job(scene)
        for _ in range(self.flips):
            sequence, token = self._seen(scene, job)
            places = self._places(scene, job, sequence, token)
            at = int(rng.choice(places if rng.random() < 0.7 else self._header(scene, places)))
            self._flipped(scene, job, at, int(rng.integers(8)), sequence, token)
        self._run(scene, [job])

    @FORMATS
    def test_other_tokens_may_be_bad(
        self, driver: Driver, rng: np.random.Generator, format: Format
    ) -> None:
        """Tokens of a chunk outside the segments' ranges, as those not written yet."""
        scene = Scene(driver, rng, format, 1, tags=True)
        for _ in range(5):
            job = self._job(scene)
            seen = {number: set() for number in range(len(scene.sequences))}
            for s in self._streamed(scene, job):
                seen[s["sequence"]] |= set(range(s["start"], s["end"]))
            before = driver.memory[scene.pool].copy()
            for s in scene.sequences:
                for token in set(range(s.capacity)) - seen[s.number]:
                    places = self._places(scene, job, s, token)
                    driver.memory[places] = rng.integers(0, 256, len(places), np.uint8)
            self._run(scene, [job])
            driver.memory[scene.pool] = before

    def test_first_of_several(self, driver: Driver, rng: np.random.Generator) -> None:
        """The first K row in the order of the stream is named; V's only if all of K is whole."""
        scene = Scene(driver, rng, Format.E4M3, 2, tags=True)
        job = self._job(scene, sure=3)
        one, two = self._streamed(scene, job)[:2]
        order = [(one, one["start"]), (one, one["end"] - 1), (two, two["end"] - 1)]
        found = [(scene.sequences[s["sequence"]], token) for s, token in order]
        memory = driver.memory
        for value in (True, False):
            for sequence, token in reversed(found):
                memory[self._row(scene, job, sequence, token, value=value)] ^= 0x40
                self._fails(scene, job, sequence, token)
        for value in (False, True):
            for sequence, token in found:
                self._fails(scene, job, sequence, token)
                memory[self._row(scene, job, sequence, token, value=value)] ^= 0x40
        self._run(scene, [job])

    def test_jobs_beside_a_bad_one(self, driver: Driver, rng: np.random.Generator) -> None:
        """Only the job that reads the bad token fails, wherever it stands under the doorbell."""
        scene = Scene(driver, rng, Format.INT8, 1, tags=True)
        good = [scene.job(plane=1) for _ in range(6)]
        bad = self._job(scene, plane=0)
        sequence, token = self._seen(scene, bad)
        at = self._places(scene, bad, sequence, token)[0]
        driver.memory[at] ^= 1
        for place in range(len(good) + 1):
            some = [*good[:place], bad, *good[place:]]
            for job in good:
                driver.memory[job.output : job.output + job.output_bytes] = 0xA5
            tags = driver.submit_many(
                np.concatenate([driver.pack("ATTEND", 1, job.command) for job in some])
            )
            with pytest.raises(errors.BadTag) as caught:
                driver.wait(tags)
            self._names(caught.value, scene, bad, sequence, token)
            assert caught.value.tag == tags[place]
            for job in good:
                scene.check(job)
        driver.memory[at] ^= 1
        self._run(scene, [bad])

    # ------------------------------------------------------------------ helpers

    def _job(self, scene: Scene, sure: int = 1, **fixed: Any) -> JobSpec:
        """A job that sees every token of its segments. If more than 1 is `sure`, they have as
        many tokens, and the first two are of two sequences."""
        while True:
            kinds = [SegmentKind.KV] * int(scene.rng.integers(2, 4))
            job = scene.job(kinds=kinds, **SEE_ALL, **fixed)
            streamed = self._streamed(scene, job)
            apart = sure == 1 or len({s["sequence"] for s in streamed[:2]}) == 2
            if streamed and apart and all(s["end"] - s["start"] >= sure for s in streamed):
                return job
            scene.free(job)

    def _streamed(self, scene: Scene, job: JobSpec) -> list[dict[str, int]]:
        """The segments that some row sees."""
        rows = (1 << job.rows) - 1
        return [s for s in scene.segments(job) if s["row_mask"] & rows]

    def _seen(self, scene: Scene, job: JobSpec) -> tuple[Sequence, int]:
        segment = scene.rng.choice(self._streamed(scene, job))  # type: ignore[arg-type]
        token = int(scene.rng.integers(segment["start"], segment["end"]))
        return scene.sequences[segment["sequence"]], token

    def _row(
        self, scene: Scene, job: JobSpec, sequence: Sequence, token: int, *, value: bool
    ) -> int:
        """Address of a byte of a row."""
        page = scene.page_address(sequence, job.command["plane"], token)
        return page + scene.row_bytes(token % scene.config.page_tokens, value)[0]

    def _places(self, scene: Scene, job: JobSpec, sequence: Sequence, token: int) -> list[int]:
        """Addresses of all bytes of a token: rows, then scales and tag, of K and of V."""
        page = scene.page_address(sequence, job.command["plane"], token)
        inside = token % scene.config.page_tokens
        out = []
        for value in (False, True):
            tag = scene.layout.tag(inside, value=value)
            out += [*scene.row_bytes(inside, value), tag, tag + 1]
        return [page + at for at in out]

    def _header(self, scene: Scene, places: list[int]) -> list[int]:
        """Those of `places` that are V's scales and tag."""
        return places[-scene.layout.half_bytes :]

    def _flipped(
        self, scene: Scene, job: JobSpec, at: int, bit: int, sequence: Sequence, token: int
    ) -> None:
        """The job with this bit flipped, then all as it was."""
        scene.driver.memory[at] ^= 1 << bit
        self._fails(scene, job, sequence, token)
        scene.driver.memory[at] ^= 1 << bit

    def _fails(self, scene: Scene, job: JobSpec, sequence: Sequence, token: int) -> None:
        driver = scene.driver
        output = driver.view(job.output, (job.output_bytes,), np.uint8)
        output[:] = noise = scene.rng.integers(0, 256, job.output_bytes, np.uint8)
        before = driver.counters()["JOBS"]
        with pytest.raises(errors.BadTag) as caught:
            driver.wait(driver.submit("ATTEND", **job.command))
        self._names(caught.value, scene, job, sequence, token)
        assert np.array_equal(output, noise), "a damaged job wrote to its output"
        assert driver.counters()["JOBS"] == before

    def _names(
        self, error: errors.BadTag, scene: Scene, job: JobSpec, sequence: Sequence, token: int
    ) -> None:
        where = (error.sequence, error.plane, error.token)
        assert where == (sequence.number, job.command["plane"], token)

    def _run(self, scene: Scene, jobs: list[JobSpec]) -> None:
        driver = scene.driver
        tags = driver.submit_many(
            np.concatenate([driver.pack("ATTEND", 1, job.command) for job in jobs])
        )
        done = driver.wait(tags)
        for job, status in zip(jobs, done["status"].tolist(), strict=True):
            scene.check(job, status)
