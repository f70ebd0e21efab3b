"""Attention of plain arrays on a device or a cluster, through the firmware.

Keys and values are appended into pages; rows run in jobs of as many as the core has. On a cluster
the heads are divided, and all cores work at once: the output is that of one core, to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m890.firmware.cluster import Cluster, divide, drivers
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.errors import ContextLimit, ShapeError
from m890.firmware.kvcache import KvCache
from m890.firmware.memory_map import memory_bytes, round_up
from m890.firmware.records import pack
from m890.hdl.commands import ROW, SEGMENT, Status
from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim.arrays import LOG2_E, Problem, padded

LONGEST_APPEND = 32768
"""Tokens of one APPEND: its field has 16 bits."""


@dataclass(frozen=True)
class Outcome:
    """Output [heads, tokens, width] and what it cost.

    Cycles are from first start to last end, of the core that took longest. `useful_beats`: of each
    core; the other counts are those of all.
    """

    output: NDArray[np.float32]
    jobs: int
    append_cycles: int
    cycles: int
    beats: int
    useful_beats: tuple[int, ...]
    kv_bytes: int
    status: frozenset[Status]

    @property
    def utilisation(self) -> list[float]:
        """Useful beats per cycle, of each core."""
        return [beats / self.cycles if self.cycles else 0.0 for beats in self.useful_beats]


def memory_for(config: CoreConfig, problem: Problem, cores: int = 1) -> int:
    """Bytes of memory that each core needs for a problem."""
    parts = _parts(problem, cores)
    shape, pages = parts[0].shape(config), _pages(config, parts[0])  # it has the most KV heads
    return memory_bytes(config, shape, pages=pages, scratch=_scratch(config, parts))


def on_device(device: Device | Cluster, problem: Problem) -> Outcome:
    """Appends K and V, attends, and reads the output."""
    cores = len(device.cores) if isinstance(device, Cluster) else 1
    parts = _parts(problem, cores)
    config = device.config if not isinstance(device, Cluster) else device.config.core
    made = drivers(device, scratch_bytes=_scratch(config, parts))
    runs = [_Run(driver, part) for driver, part in zip(made, parts, strict=True)]
    for act in (_Run.append, _Run.commit, _Run.attend):
        for run in runs:
            act(run)
    done = [run.finish() for run in runs]
    return Outcome(
        np.concatenate([one.output for one in done]),
        jobs=sum(one.jobs for one in done),
        append_cycles=max(one.append_cycles for one in done),
        cycles=max(one.cycles for one in done),
        beats=sum(one.beats for one in done),
        useful_beats=sum((one.useful_beats for one in done), ()),
        kv_bytes=sum(one.kv_bytes for one in done),
        status=frozenset().union(*(one.status for one in done)),
    )


def _parts(problem: Problem, cores: int) -> list[Problem]:
    """What each core does."""
    return [problem.part(own) for own in divide(len(problem.q), len(problem.k), cores)]


class _Run:
    """A problem on one core, step by step, so that several cores take each step at once."""

    def __init__(self, driver: Driver, problem: Problem) -> None:
        self.driver, self.problem = driver, problem
        config = driver.config
        pages = _pages(config, problem)
        self.cache = KvCache(
            driver, problem.shape(config), limit=pages * config.page_tokens, pages=pages
        )
        self.sequence = self.cache.create()
        self._shape: tuple[int, int, int] = (0, 0, 0)  # of the output
        self._output = 0

    def append(self) -> None:
        """Submits the APPENDs of all planes."""
        driver, problem = self.driver, self.problem
        self.cache.expect([(self.sequence, problem.k.shape[1])])
        head, length = problem.head(driver.config), problem.k.shape[1]
        commands = []
        for plane, sources in enumerate(zip(*problem.sources(driver.config), strict=True)):
            k, v = (driver.place(x) for x in sources)
            for start in range(0, length, LONGEST_APPEND):
                skip = start * 2 * head
                values = {
                    "plane": plane, "sequence": self.sequence, "start": start,
                    "tokens": min(LONGEST_APPEND, length - start),
                    "source_format": int(problem.source), "k": k + skip, "v": v + skip,
                    "source_stride": 2 * head, "commit": int(plane == len(problem.k) - 1),
                }  # fmt: skip
                commands.append(driver.pack("APPEND", 1, values))
        self._appends = driver.submit_many(np.concatenate(commands))

    def commit(self) -> None:
        """Waits for the APPENDs."""
        self._appended = self.driver.wait(self._appends)
        self.cache.commit(self.sequence, self.problem.k.shape[1])
        self._before = self.driver.counters()

    def attend(self) -> None:
        """Submits the jobs."""
        driver, config = self.driver, self.driver.config
        arrays = self.problem.rows(config)
        groups, rows, _ = self._shape = arrays[0].shape
        self._output = driver.buffer(arrays[0].size * 4)
        jobs = [
            self._job(plane, slice(at, min(at + config.rows, rows)), arrays)
            for plane in range(groups)
            for at in range(0, rows, config.rows)
        ]
        self._jobs = driver.submit_many(np.concatenate(jobs))

    def finish(self) -> Outcome:
        """Waits for the jobs and reads the output."""
        done, appended = self.driver.wait(self._jobs), self._appended
        before, after = self._before, self.driver.counters()
        status = int(np.bitwise_or.reduce(np.concatenate([appended["status"], done["status"]])))
        return Outcome(
            self.problem.heads(self.driver.view(self._output, self._shape, np.float32).copy()),
            jobs=len(done),
            append_cycles=_span(appended),
            cycles=_span(done),
            beats=int(done["beats"].sum()),
            useful_beats=(after["USEFUL_BEATS"] - before["USEFUL_BEATS"],),
            kv_bytes=after["KV_BYTES"] - before["KV_BYTES"],
            status=frozenset(s for s in Status if status >> s & 1),
        )

    def _job(
        self, plane: int, part: slice, arrays: tuple[NDArray, NDArray, NDArray | None]
    ) -> NDArray[np.uint8]:
        """The ATTEND of some rows of a plane."""
        driver, problem, output = self.driver, self.problem, self._output
        config = driver.config
        query, position, bias = arrays
        head, rows, count = query.shape[2], query.shape[1], part.stop - part.start
        length = problem.k.shape[1]
        end = int(position[part].max()) + 1 if problem.causal else length
        address = 0
        if bias is not None:
            chunks = -(-end // config.lanes)
            own = padded(bias[plane, part], -1, round_up(length, config.lanes))
            own = own[:, : chunks * config.lanes].reshape(count, chunks, config.lanes)
            address = driver.place(own.transpose(1, 0, 2))
        row_table = pack(ROW, count, {"position": np.maximum(position[part], 0)}).reshape(-1)
        row_table = padded(row_table, -1, round_up(row_table.size, config.port_bytes))
        segment = pack(
            SEGMENT,
            1,
            {
                "sequence": self.sequence,
                "end": end,
                "row_mask": (1 << count) - 1,
                "address": address,
            },
        )
        cap = np.float32(problem.softcap * LOG2_E)
        inverse = np.float32(1) / cap if cap else np.float32(0)
        first = plane * rows + part.start
        values = {
            "plane": plane, "rows": count, "segments": 1, "causal": int(problem.causal),
            "window": problem.window, "sinks": problem.sinks, "bias": int(bias is not None),
            "query_format": int(problem.source == Format.FP16),
            "output_format": int(OutputFormat.FP32),
            "tables": driver.place(np.concatenate([row_table, segment.reshape(-1)])),
            "query": driver.place(query[plane, part]), "query_stride": 2 * head,
            "output": output + first * head * 4, "output_stride": 4 * head,
            "softcap": int(cap.view(np.uint32)), "softcap_inverse": int(inverse.view(np.uint32)),
        }  # fmt: skip
        return driver.pack("ATTEND", 1, values)


def _pages(config: CoreConfig, problem: Problem) -> int:
    length = problem.k.shape[1]
    pages = -(-length // config.page_tokens)
    if pages > config.pages:
        raise ContextLimit(0, length, config.pages * config.page_tokens)
    if len(problem.k) > config.planes:
        raise ShapeError(
            f"{len(problem.k)} KV heads do not fit the {config.planes} planes of {config.name}"
        )
    return pages


def _scratch(config: CoreConfig, parts: Sequence[Problem]) -> int:
    """K, V, queries, outputs, biases and tables of a core's jobs, with room between them."""
    return max(_scratch_of(config, part) for part in parts)


def _scratch_of(config: CoreConfig, problem: Problem) -> int:
    head, (heads, tokens, _) = problem.head(config), problem.q.shape
    groups, length, _ = problem.k.shape
    rows = groups * round_up(tokens * problem.group, config.rows)
    size = 4 * groups * length * head + 6 * rows * head + 4096 * (rows // config.rows + 4 * groups)
    if problem.mask is not None:
        size += 2 * heads * (tokens + config.rows) * round_up(length, config.lanes)
    return round_up(2 * size + (1 << 20), 1 << 16)


def _span(done: NDArray) -> int:
    return int(done["end"].max()) - int(done["start"].min())
