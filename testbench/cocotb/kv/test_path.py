"""The KV read path in Verilog against the page layout, with stalls on all streams and memory."""

import random
from collections.abc import Generator
from typing import Any

import cocotb

from m890.hdl.config import preset
from m890.hdl.kv.items import ItemKind, job_layout, see_layout, segment_layout
from m890.hdl.kv.path import PORTS, KvPath
from m890.hdl.kv.tags import FAULT, ROW_NAME
from m890.hdl.pages.guard import owner_layout
from m890.testbench.cocotb.ports import OwnerServer, ReadServer, Script
from m890.testbench.cocotb.runner import Bench, config, on_both_simulators, seed
from m890.testbench.cocotb.streams import Clocked, fields
from m890.testbench.hdl.kv.bench import Bench as PathBench
from m890.testbench.hdl.kv.bench import make_job
from m890.testbench.hdl.kv.support import Image


class CocotbBench(PathBench):
    """The unit test's bench with agents instead of Amaranth's processes."""

    def attach(self, dut: Any, stalls: dict[str, float]) -> Clocked:
        c, clocked = self.config, Clocked(dut)
        self._job = clocked.source(
            "job", layout=job_layout(c), stall=stalls.get("job", 0.0), seed=seed()
        )
        self._segment = clocked.source(
            "segment", layout=segment_layout(c), stall=stalls.get("job", 0.0), seed=seed()
        )
        for name, taken in self.takers().items():
            clocked.sink(name, stall=stalls.get(name, 0.0), seed=seed(), taken=taken)
        ReadServer(
            clocked, PORTS, self.image, port_bytes=c.port_bytes, address_bits=c.address_bits,
            stall=stalls.get("memory", 0.0), seed=seed(),
        )  # fmt: skip
        OwnerServer(
            clocked, "owner", self.image.owner, owner_layout(c), stall=stalls.get("owner", 0.0),
            seed=seed(),
        )  # fmt: skip
        clocked.add(Script(self._feed()))
        clocked.add(Script(self._answer(dut)))
        return clocked

    def _feed(self) -> Generator[None, None, None]:
        """A job waits for the end of the one before the last (its slot)."""
        for number, job in enumerate(self.jobs):
            while self.ended() < number - 1:
                yield
            self._job.put(job.payload())
            while not self._job.idle:
                yield
            last = len(job.segments) - 1
            self._segment.put(
                *(s.payload(index=n, last=n == last) for n, s in enumerate(job.segments))
            )
            while not self._segment.idle:
                yield

    def _answer(self, dut: Any) -> Generator[None, None, None]:
        """The rows' answers: the question's cycle is 0, the answer stands in cycle 2."""
        layout, chance = see_layout(self.config), random.Random(seed())
        see, seen, errors = dut.see, dut.seen, dut.bus_error
        faults = ((dut.k_fault, self.got.k_fault), (dut.v_fault, self.got.v_fault))
        answer = None
        while True:
            seen.value = chance.randrange(2) if answer is None else int(answer)
            if int(errors.value):
                self.bus_errors.append(int(errors.value))
            for fault, found in faults:
                word = fault.value  # Icarus: the name is X until a fault is valid
                if int(word[FAULT["valid"].offset]):
                    row = fields(FAULT, int(word))
                    name = fields(ROW_NAME, row["name"])
                    found.append((row["ident"], name["sequence"], name["token"]))
            word, answer = see.value, None
            if int(word[layout["valid"].offset]):
                question = fields(layout, int(word))
                slot = question["slot"]
                job = [job for job in self.jobs if job.slot == slot][self.ended(slot)]
                low, high = question["t_low"], question["t_high"]
                self.got.query.append((low, high))
                answer = job.seen(
                    low, high, question["start"], question["row_mask"],
                    draft=bool(question["draft"]),
                )  # fmt: skip
            yield


STALLS = {
    "none": {},
    "all": dict.fromkeys(
        ("item", "k_beat", "v_beat", "scale", "bias_beat", "raw_beat", "memory", "owner", "job"),
        0.3,
    ),
    "v_beat": {"v_beat": 0.8},
    "memory": {"memory": 0.7},
}


@cocotb.test()
@cocotb.parametrize(where=list(STALLS))
async def random_jobs(dut: Any, where: str) -> None:
    c, chance = config(), random.Random(seed())
    image = Image(c, seed())
    jobs = [make_job(c, image, chance, n, tiles=chance.choice([1, 2, 4])) for n in range(4)]
    bench = CocotbBench(c, image, jobs)
    clocked = bench.attach(dut, STALLS[where])
    await clocked.start(seen=0)
    await clocked.until(bench.done, 12000, after=60)
    bench.compare()
    assert bench.bus_errors == []
    ends = [item for item in bench.got.item if item["kind"] == ItemKind.END]
    assert len(ends) == len(jobs)


@on_both_simulators
def test_path(bench: Bench) -> None:
    bench.run(KvPath, preset("tiny"))
