"""Lint of generated Verilog by Verilator."""

import subprocess
import tempfile
from pathlib import Path

from m890.hdl.verilog import VerilogDesign
from m890.hdl.verilog.emit import waivers
from m890.sim import toolchain


class LintError(ValueError):
    """Verilator warns of something that no waiver covers; the message has its first lines."""

    def __init__(self, design: str, report: str) -> None:
        lines = [line for line in report.splitlines() if line.startswith("%")]
        self.warnings = lines
        super().__init__(f"{design} is not lint-clean: " + " | ".join(lines[:5]))


def lint(design: VerilogDesign) -> None:
    """Run `verilator --lint-only -Wall` with the waiver file; raises `LintError`."""
    program = toolchain.find_verilator().require()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{design.name}.v"
        source.write_text(design.text)
        rules = Path(folder) / f"{design.name}.vlt"
        rules.write_text(waivers())
        command = [str(program), "--lint-only", "-Wall", "--top-module", design.name]
        done = subprocess.run(
            [*command, str(rules), str(source)],
            capture_output=True,
            text=True,
            env=toolchain.verilator_env(),
        )
    if done.returncode:
        raise LintError(design.name, (done.stderr + done.stdout).replace(folder, ""))
