"""Runs cocotb modules on a built simulation and reads what came out."""

import contextlib
import faulthandler
import json
import logging
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocotb_tools.runner import get_runner

from m890.hdl.verilog import VerilogDesign
from m890.sim.cocotb.build import build, libraries

ENVIRONMENT = "M890_COCOTB"
"""Variable that carries the parameters of a run into the simulation, as JSON."""
PATIENCE = 900
"""Seconds after which a simulation that hangs ends itself."""


@dataclass(frozen=True)
class Outcome:
    """One cocotb test: passed if `message` is empty."""

    name: str
    message: str
    details: str = ""


def launch(
    design: VerilogDesign,
    module: str,
    simulator: str,
    folder: Path,
    *,
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    tests: str | None = None,
) -> list[Outcome]:
    """Runs the cocotb tests of a Python module on a design; the simulator's log lies in `folder`.

    `tests` is a regular expression of the tests' names. `parameters` (JSON values) reach the tests
    through `parameters()`. A simulation that leaves no results is one failed outcome.
    """
    runner = get_runner(simulator)
    runner.log.setLevel(logging.WARNING)
    log, results = folder / "simulation.log", folder / "results.xml"
    extra = {ENVIRONMENT: json.dumps(dict(parameters or {})), "COCOTB_ANSI_OUTPUT": "0"}
    extra |= libraries()
    extra["GPI_LOG_LEVEL"] = extra["COCOTB_LOG_LEVEL"] = "INFO"
    # Registers and memories start with random words in Verilator, with unknown ones in Icarus.
    plusargs = ["+verilator+rand+reset+2", f"+verilator+seed+{1 + seed % 0x7FFFFFFF}"]
    with contextlib.suppress(SystemExit):  # cocotb's runner exits where a test failed
        runner.test(
            test_module=module, hdl_toplevel=design.name, hdl_toplevel_lang="verilog",
            build_dir=build(design, simulator), test_dir=folder, results_xml=str(results),
            seed=seed, extra_env=extra, log_file=log, test_filter=tests,
            plusargs=plusargs if simulator == "verilator" else [],
        )  # fmt: skip
    return _outcomes(results, log)


def parameters() -> dict[str, Any]:
    """In the simulation: the parameters that `launch` was given."""
    return json.loads(os.environ.get(ENVIRONMENT, "{}"))


def watch() -> None:
    """In the simulation: ends it, with where Python stands, if a test takes longer than PATIENCE.

    No trigger could do that where the simulator itself hangs, in a combinational loop for one.
    """
    faulthandler.dump_traceback_later(PATIENCE, exit=True)


def _outcomes(results: Path, log: Path) -> list[Outcome]:
    try:
        cases = list(ElementTree.parse(results).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        cases = []
    if not cases:
        text = log.read_text(errors="replace") if log.exists() else ""
        return [Outcome("simulation", "the simulation left no results", text[-3000:])]
    outcomes = []
    for case in cases:
        bad = [x for x in case if x.tag in ("failure", "error")]
        message = (bad[0].get("error_msg") or bad[0].get("message") or "failed") if bad else ""
        details = bad[0].text or "" if bad else ""
        outcomes.append(Outcome(case.get("name", "?"), message, details))
    return outcomes
