"""Builds the native simulator: Verilog -> Verilator -> shared library, kept by content hash.

A build is found again by the hash of everything that went into it: Verilog, harness, options,
Verilator's version, compiler. Verilator's own runtime is compiled once per compiler.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from m890.hdl.verilog import VerilogDesign
from m890.sim import toolchain
from m890.sim.rtl import flatten, gather
from m890.sim.rtl.blocks import alone, cut, wrapper

HARNESS = Path(__file__).resolve().parent / "harness"
LIBRARY = "device.so"
WAVES = "-waves"
"""What the folder's name of a library that records waves ends with."""
OPTIMISE = "-O2"
"""For code that runs every cycle; what runs once is compiled with -O0."""
NATIVE = "-march=native"
"""For the processor that builds: a twentieth faster. A cache that others share tells them apart."""
WARY = "-fno-tree-slp-vectorize"
"""For the design's large functions: GCC 12.2 has turned out wrong code there, depending on what
other passes left, and it gains nothing. A row is smaller, and a fiftieth faster with it."""
VERILATE = (
    "--cc", "--no-timing", "-O3", "-fdfg-synthesize-all",
    "--x-assign", "fast", "--x-initial", "unique",
    "--output-split", "1000000", "--output-split-cfuncs", "40000",
    "-Wno-fatal", "-Wno-lint", "-Wno-style",
)  # fmt: skip
RUNTIME = ("verilated.cpp", "verilated_threads.cpp")
RUNTIME_TRACE = ("verilated_fst_c.cpp",)
BLOCK_ROWS = 16
"""Cores of this many rows have the row built on its own, once, whatever the number of rows.

With 8 rows that simulates 8 % slower (`small`). Waves do not show the inside of such a row.
"""


CORE = "m890_core"
"""The module of a cluster's cores, which is built on its own, once, whatever their number."""


_MODULE = re.compile(r"^module (\w+)\(.*?^endmodule$", re.M | re.S)


class BuildError(RuntimeError):
    """Verilator or the compiler refused; the message has their first words."""


@dataclass
class Build:
    """A library that is ready, and what it took."""

    library: Path
    cached: bool
    seconds: dict[str, float] = field(default_factory=dict)  # verilate, compile
    peak_memory: int = 0  # KiB, of the largest process


def build(
    design: VerilogDesign,
    *,
    trace: bool = False,
    fastest: bool = False,
    optimise: str = OPTIMISE,
    verilate: Sequence[str] = (),
    hierarchical: bool | None = None,
    say: Callable[[str], None] | None = None,
    cache: Path | None = None,
) -> Build:
    """The shared library of a design, from the cache where it is there.

    `trace` compiles waves in: twice the time to build, and slower to run also while they are off,
    as logic is not gathered (`m890.sim.rtl.gather`). `fastest` builds anew where only such a
    library is there.
    `hierarchical` builds rows on their own (None: in large cores); the core of a cluster always is,
    but for waves. Processes that want the same build wait for the first. Raises `BuildError` and
    `ToolMissing`.
    """
    compiler = _Compiler(optimise)
    options = [*VERILATE, *verilate]
    if hierarchical is None:
        hierarchical = design.config.rows >= BLOCK_ROWS
    rows = [m.name for m in design.modules.values() if m.external and m.name != CORE]
    cores = [CORE] if design.cluster is not None and not trace else []
    # What lies inside comes first: its wrapper becomes part of what lies around it.
    apart = [*(rows if hierarchical else ()), *cores]
    blocks = {name: wrapper(design.text, name) for name in apart}
    sources = (*map(Path, (flatten.__file__, gather.__file__)), *sorted(HARNESS.iterdir()))
    parts = [design.text, *(p.read_text() for p in sources), _ports(design), repr(options)]
    key = _hash(*parts, compiler.identity, *(text for pair in blocks.values() for text in pair))
    cache = cache or toolchain.cache_folder()
    folder = cache / "builds" / f"{design.name}-{design.label}-{key}"
    recording = folder.with_name(folder.name + WAVES)
    # A library that can record waves serves both wishes: half as fast, but there.
    for found in (*([] if trace else [folder]), *([] if fastest else [recording])):
        if (found / LIBRARY).exists():
            return Build(found / LIBRARY, True)
    if trace:
        folder = recording
        options.append("--trace-fst")
    design = replace(design, text=gather.prepare(design, everything_shows=trace))
    say = say or _say
    say(f"building the {design.label} simulator{' with waves' if trace else ''} (once) ...")
    started = time.perf_counter()
    with _lock(folder), _workspace(folder) as work:
        if (folder / LIBRARY).exists():  # another process built it while this one waited
            return Build(folder / LIBRARY, True)
        text, objects = design.text, []
        for block, (verilog, source) in blocks.items():
            inside = _only(design, block, text)
            objects += _block(block, inside, source, options, compiler, cache, say)
            text = cut(text, block) + verilog
        (work / f"{design.name}.sv").write_text(text)
        _verilate(work, "Vcore", design.name, options)
        runtime = _runtime(compiler, trace, cache)
        shutil.copytree(HARNESS, work, dirs_exist_ok=True)
        (work / "ports.h").write_text(_ports(design))
        objects += compiler.compile_folder(work, _flags(trace), say)
        _run([compiler.program, "-shared", "-o", str(work / LIBRARY), *map(str, objects),
              *map(str, runtime), "-lpthread"])  # fmt: skip
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix in (".o", ".cpp", ".h", ".sv"):
                path.unlink()
    total = time.perf_counter() - started
    say(f"built in {total:.1f} s, kept in {folder}")
    seconds = {"verilate": total - compiler.seconds, "compile": compiler.seconds}
    return Build(folder / LIBRARY, False, seconds, compiler.peak_memory)


def _verilate(folder: Path, prefix: str, top: str, options: Sequence[str]) -> None:
    """C++ of the module `top`, which the folder's TOP.sv holds, into the folder."""
    program = str(toolchain.find_verilator().require())
    _run([program, *options, "--prefix", prefix, "--top-module", top, "--Mdir", str(folder),
          str(folder / f"{top}.sv")])  # fmt: skip


def _block(
    name: str,
    text: str,
    wrapper: str,
    options: Sequence[str],
    compiler: "_Compiler",
    cache: Path,
    say: Callable[[str], None],
) -> list[Path]:
    """Object files of a block and its wrapper, for all designs that hold it."""
    options = [o for o in options if o != "--trace-fst"]
    key = _hash(text, wrapper, repr(options), compiler.identity)
    folder = cache / "blocks" / f"{name}-{key}"
    with _lock(folder):
        if not folder.exists():
            with _workspace(folder) as work:
                (work / f"{name}.sv").write_text(alone(text))
                (work / f"{name}_wrapper.cpp").write_text(wrapper)
                _verilate(work, f"V{name}", name, options)
                compiler.compile_folder(work, _flags(trace=False), say)
                for path in work.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path)
                    elif path.suffix != ".o":
                        path.unlink()
    return sorted(folder.glob("*.o"))


def _only(design: VerilogDesign, block: str, text: str) -> str:
    """The Verilog of a module and all that is in it, as far as that was not written out in it."""
    bodies = {match[1]: match[0] for match in re.finditer(_MODULE, text)}
    wanted, queue = {block: None}, [block]
    while queue:
        for _, module in design.modules[queue.pop()].instances:
            if module not in wanted:
                wanted[module] = None
                queue.append(module)
    found = [bodies[name] for name in wanted if name in bodies]
    return "\n".join(["`default_nettype none", *found, ""])


def _ports(design: VerilogDesign) -> str:
    """The header that tells the harness which memory ports there are."""
    cluster, prefixes, ids = design.cluster, ["m_axi_"], 16
    if cluster is not None and cluster.shared:
        ids <<= cluster.core_bits
    elif cluster is not None:
        prefixes = [f"m_axi_{n}_" for n in range(cluster.ports)]
    ports = " ".join(f"X({n}, {prefix})" for n, prefix in enumerate(prefixes))
    return f"#define M890_PORTS(X) {ports}\n#define M890_IDS {ids}\n"


def _flags(trace: bool) -> list[str]:
    root = toolchain.verilator_root()
    include = [f"-I{root / 'include'}", f"-I{root / 'include' / 'vltstd'}"]
    define = ["-DVERILATOR=1", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0", "-DVL_NO_LEGACY",
              f"-DVM_TRACE={int(trace)}", f"-DVM_TRACE_FST={int(trace)}", "-DVM_TRACE_VCD=0",
              "-DVM_TRACE_SAIF=0"]  # fmt: skip
    fst = [f"-I{toolchain.FST_LIBRARIES / 'include'}"] if trace else []
    return [*include, *define, *fst]


class _Compiler:
    """Runs the C++ compiler on many files at once and watches its memory and time."""

    def __init__(self, optimise: str) -> None:
        self.program = str(toolchain.find_cxx().require())
        self.flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-semantic-interposition",
                      "-w", "-faligned-new", "-pthread"]  # fmt: skip
        processor = _processor(self.program)
        self.flags += [NATIVE] if processor else []
        version = _output([self.program, "--version"]).splitlines()[0]
        verilator = toolchain.find_verilator()
        verilator.require()
        self.identity = repr((version, self.flags, processor, optimise, verilator.version))
        self.optimise = optimise
        self.gcc = "clang" not in version
        self.peak_memory = 0
        self.seconds = 0.0

    def compile_folder(
        self, folder: Path, flags: Sequence[str], say: Callable[[str], None]
    ) -> list[Path]:
        """Object files of all that lies in a folder."""
        started, flags = time.perf_counter(), [f"-I{folder}", *flags]
        self.compile_headers(list(folder.glob("*__pch.h")), flags)
        objects = self.compile_all(list(folder.glob("*.cpp")), folder, flags, say)
        self.seconds += time.perf_counter() - started
        return objects

    def compile_headers(self, headers: Sequence[Path], flags: Sequence[str]) -> None:
        """What every file of a model includes first, once: else half of the time goes there."""
        if not self.gcc:
            return

        def compile_one(job: tuple[Path, str]) -> None:
            header, optimise = job
            ready = header.with_name(header.name + ".gch")  # g++ looks for its options in here
            ready.mkdir(exist_ok=True)
            command = [self.program, "-x", "c++-header", optimise, *self.flags, *flags]
            memory = _run([*command, str(header), "-o", str(ready / optimise)])
            self.peak_memory = max(self.peak_memory, memory)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            jobs = [(header, level) for header in headers for level in (self.optimise, "-O0")]
            list(pool.map(compile_one, jobs))

    def compile_all(
        self,
        sources: Sequence[Path],
        work: Path,
        flags: Sequence[str],
        say: Callable[[str], None],
    ) -> list[Path]:
        """Object files of all sources; the largest come first, so that no core waits at the end."""
        order = sorted(sources, key=lambda p: -p.stat().st_size * ("__Slow" not in p.name))
        done, told = 0, time.perf_counter()

        def compile_one(source: Path) -> Path:
            nonlocal done, told
            target = work / f"{source.stem}.o"
            optimise = ["-O0"] if "__Slow" in source.name else [self.optimise]
            optimise += [WARY] if self.gcc and "___024root" in source.name else []
            command = [self.program, "-c", *optimise, *self.flags, *flags, str(source)]
            self.peak_memory = max(self.peak_memory, _run([*command, "-o", str(target)]))
            done += 1
            if time.perf_counter() - told > 5:
                told = time.perf_counter()
                say(f"compiling: {done} of {len(sources)} files")
            return target

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(compile_one, order))


def _processor(program: str) -> str:
    """What the compiler makes of this processor; nothing where it does not know how."""
    command = [program, NATIVE, "-###", "-E", "-x", "c++", os.devnull]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if told.returncode else told.stderr


def _runtime(compiler: _Compiler, trace: bool, cache: Path) -> list[Path]:
    """Verilator's runtime as object files, compiled once."""
    names = [*RUNTIME, *(RUNTIME_TRACE if trace else ())]
    folder = cache / "runtime" / _hash(compiler.identity, str(trace))
    if not folder.exists():
        with _workspace(folder) as work:
            include = toolchain.verilator_root() / "include"
            compiler.compile_all([include / name for name in names], work, _flags(trace), _say)
    return [folder / f"{Path(name).stem}.o" for name in names]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Only one process builds a folder; the others wait for it. Ends with the process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: the work may be done twice
        yield


class _workspace:
    """A temporary folder that becomes `target` in one step, unless somebody else was faster."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> Path:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._work = Path(tempfile.mkdtemp(prefix=".building-", dir=self._target.parent))
        return self._work

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is None:
            try:
                os.replace(self._work, self._target)
                return
            except OSError:
                pass  # the same build was finished by another process in the meantime
        shutil.rmtree(self._work, ignore_errors=True)


def _run(command: Sequence[str]) -> int:
    """Runs a tool; returns its peak memory in KiB."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=toolchain.verilator_env()
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            text = log.read()
            lines = [
                x for x in text.splitlines() if re.search(r"(?i)error", x)
            ] or text.splitlines()
            words = " ".join(lines[:3])
            raise BuildError(f"{Path(command[0]).name} failed: {words}")
    return usage.ru_maxrss


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return digest.hexdigest()[:20]


def _say(text: str) -> None:
    print(f"m890: {text}", file=sys.stderr, flush=True)
