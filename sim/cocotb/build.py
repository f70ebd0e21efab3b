"""Builds generated Verilog for cocotb, for Verilator or Icarus, kept by content hash.

Differs from cocotb's own build in three ways: only the top's ports are visible to Python (making
every signal public costs most of Verilator's speed), Verilator's runtime is compiled once for all
designs, and a build is found again by what went into it.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cocotb_tools.config

from m890.hdl.verilog import VerilogDesign
from m890.sim import toolchain

SIMULATORS = ("verilator", "icarus")
VERILATE = (
    "--cc", "--exe", "--vpi", "--no-public-flat-rw", "--prefix", "Vtop", "--timescale", "1ns/1ps",
    "-O3", "--x-assign", "unique", "--x-initial", "unique", "-Wno-fatal", "-Wno-lint",
    "-Wno-style",
)  # fmt: skip
COMPILE = ("OPT_FAST=-O1", "OPT_SLOW=-O0", "OPT_GLOBAL=-O2")
"""Python takes most of a run's time, so the model is compiled quickly rather than well."""
LINK = "-lcocotbvpi_verilator"
"""No run path: a build outlives the environment that made it; `libraries` says where to look."""
RUNTIME = ("verilated.o", "verilated_vpi.o", "verilated_threads.o")


class BuildError(RuntimeError):
    """A simulator's compiler refused; the message has its first words."""


def build(design: VerilogDesign, simulator: str) -> Path:
    """The folder with the simulation of a design, from the cache where it is there."""
    if simulator not in SIMULATORS:
        raise ValueError(f"simulator must be {' or '.join(SIMULATORS)}, not {simulator!r}")
    icarus = simulator == "icarus"
    tool = toolchain.find_icarus() if icarus else toolchain.find_verilator()
    tool.require()
    options = () if icarus else (VERILATE, COMPILE, LINK, _compiler())
    key = _hash(design.text, simulator, tool.version, repr(options), _cocotb_main().read_text())
    folder = toolchain.cache_folder() / "cocotb" / f"{design.name}-{simulator}-{key}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
        try:
            (work / "top.v").write_text(design.text)
            (_icarus if icarus else _verilator)(design, work)
            os.replace(work, folder)
        except OSError:
            if not folder.exists():  # else another process built the same meanwhile
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def libraries() -> dict[str, str]:
    """The environment in which a simulation finds the cocotb that is installed here and now."""
    others = os.environ.get("LD_LIBRARY_PATH")
    folder = str(cocotb_tools.config.libs_dir)
    return {"LD_LIBRARY_PATH": f"{folder}{os.pathsep}{others}" if others else folder}


def _icarus(design: VerilogDesign, work: Path) -> None:
    (work / "commands.f").write_text("+timescale+1ns/1ps\n")
    _run(
        ["iverilog", "-g2012", "-s", design.name, "-f", "commands.f", "-o", "sim.vvp", "top.v"],
        work,
    )


def _verilator(design: VerilogDesign, work: Path) -> None:
    lines = [f'public_flat_rw -module "{design.name}" -var "{p.name}"' for p in design.ports]
    (work / "public.vlt").write_text("\n".join(["`verilator_config", *lines, ""]))
    program = str(toolchain.find_verilator().require())
    _run(
        [program, *VERILATE, "--Mdir", ".", "--top-module", design.name, "-o", design.name,
         "-LDFLAGS", f"-L{cocotb_tools.config.libs_dir} {LINK}",
         str(_cocotb_main()), "public.vlt", "top.v"],
        work,
    )  # fmt: skip
    runtime = toolchain.cache_folder() / "cocotb" / f"runtime-{_hash(repr(COMPILE), _compiler())}"
    for name in RUNTIME:
        if (runtime / name).exists():
            shutil.copy(runtime / name, work)  # newer than its source: make leaves it alone
    jobs = f"-j{os.cpu_count() or 1}"
    _run([str(toolchain.find_make().require()), jobs, "-f", "Vtop.mk", *COMPILE], work)
    runtime.mkdir(exist_ok=True)
    for name in RUNTIME:
        if not (runtime / name).exists():
            shutil.copy(work / name, runtime / f".{os.getpid()}")
            os.replace(runtime / f".{os.getpid()}", runtime / name)
    for path in work.iterdir():
        if path.suffix in (".o", ".a", ".cpp", ".h", ".d", ".gch"):
            path.unlink()


def _cocotb_main() -> Path:
    return Path(cocotb_tools.config.share_dir) / "lib" / "verilator" / "verilator.cpp"


def _compiler() -> str:
    """Identity of everything outside the design that Verilator's objects depend on."""
    cxx, verilator = toolchain.find_cxx(), toolchain.find_verilator()
    return repr((str(cxx.require()), cxx.version, verilator.version))


def _run(command: Sequence[str], work: Path) -> None:
    done = subprocess.run(
        command, cwd=work, env=toolchain.verilator_env(), capture_output=True, text=True
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()
        words = [x for x in lines if re.search(r"(?i)error", x)] or lines
        raise BuildError(f"{Path(command[0]).name} failed: {' '.join(words[:3])}")


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return digest.hexdigest()[:20]
