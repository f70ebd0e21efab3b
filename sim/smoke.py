"""The smallest whole build: a counter through Verilator and the compiler, run with FST waves."""

import subprocess
import time
from pathlib import Path

from m890.sim import toolchain

COUNTER = """
module counter(input clk, input rst, output reg [7:0] q);
  always @(posedge clk) if (rst) q <= 0; else q <= q + 1;
endmodule
"""
MAIN = """
#include "Vcounter.h"
#include "verilated.h"
#include "verilated_fst_c.h"
int main() {
    VerilatedContext context;
    context.traceEverOn(true);
    Vcounter top{&context};
    VerilatedFstC waves;
    top.trace(&waves, 99);
    waves.open("counter.fst");
    for (int i = 0; i < 100; i++) {
        top.clk = i & 1;
        top.rst = i < 4;
        top.eval();
        waves.dump(i);
    }
    waves.close();
    return top.q == 48 ? 0 : 1;
}
"""


def build_and_run(folder: Path) -> tuple[float, int]:
    """Builds in `folder`; returns the seconds that took and the size of the waves in bytes.

    Raises `ToolMissing` without a tool and `CalledProcessError`, with the log, where a step fails.
    """
    (folder / "counter.v").write_text(COUNTER)
    (folder / "main.cpp").write_text(MAIN)
    start = time.perf_counter()
    env = toolchain.verilator_env()
    verilator = toolchain.find_verilator().require()
    make = toolchain.find_make().require()
    cxx = toolchain.find_cxx().require()
    files = ["counter.v", "main.cpp"]
    _run([str(verilator), "--cc", "--exe", "--trace-fst", "-Mdir", "obj", *files], folder, env)
    _run([str(make), "-C", "obj", "-f", "Vcounter.mk", f"CXX={cxx}", "Vcounter"], folder, env)
    _run([str(folder / "obj" / "Vcounter")], folder, env)
    return time.perf_counter() - start, (folder / "counter.fst").stat().st_size


def _run(command: list[str], folder: Path, env: dict[str, str]) -> None:
    subprocess.run(
        command,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        timeout=300,
    )
