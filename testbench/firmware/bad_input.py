"""Bad input on any device: refused by name, nothing changed, the device as usable as before."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from m890.firmware import errors
from m890.firmware.driver import Driver
from m890.hdl.commands import SEGMENT, Opcode
from m890.hdl.config import TOKEN_BITS
from m890.hdl.numerics.formats import Format
from m890.sim import golden
from m890.testbench.firmware.scene import JobSpec, Scene

FAR = 1 << 39
"""An address outside every memory."""
WATCHED = 64 << 20
"""Bytes behind the rings in which no bit may change; a large core's memory is gigabytes."""


class BadInput:
    """Tests of malformed commands and tables; `DeviceSuite` brings the device."""

    def test_bad_opcode(self, driver: Driver, rng: np.random.Generator) -> None:
        raw = np.zeros((1, 64), np.uint8)
        for opcode in (len(Opcode), 77, 255):
            raw[0, 0] = opcode
            self._refused(driver, rng, errors.BadOpcode, "opcode", lambda _: raw.copy())

    @pytest.mark.parametrize(
        "field,value,error",
        [
            ("plane", 65535, errors.BadPlane),
            ("format", len(Format), errors.BadFormat),
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
        watched = driver.memory[after_rings : after_rings + WATCHED]
        before = watched.copy()
        tag = driver.submit_many(bad)
        with pytest.raises(error) as caught:
            driver.wait(tag)
        assert caught.value.field == field
        assert ":" in str(caught.value)
        assert np.array_equal(before, watched)
        job = self._over_all(scene, sequence)
        done = self._submit(driver, [job])
        scene.check(job, int(done["status"][0]))
        scene.close()
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
