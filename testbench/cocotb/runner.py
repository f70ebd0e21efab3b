"""From pytest into a simulator: one call builds a block, runs its cocotb tests and reports.

A test file holds cocotb tests and one pytest function:

    def component(config): return Gearbox(config)

    @cocotb.test()
    async def elements_in_order(dut): ...

    @on_both_simulators
    def test_gearbox(bench): bench.run(component, preset("tiny"))
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from amaranth.lib import wiring

from m890.hdl.config import CoreConfig, preset
from m890.hdl.verilog import VerilogDesign
from m890.sim.cocotb.design import block_design
from m890.sim.cocotb.launch import launch, parameters

PACKAGE = "m890.testbench"


class Bench:
    """Runs the cocotb tests of the calling test's module."""

    def __init__(self, request: pytest.FixtureRequest, simulator: str, seed: int, folder: Path):
        self.simulator, self.seed, self.folder = simulator, seed, folder
        self._node = request.node
        self._base_seed = request.config.getoption("--seed")

    def run(
        self,
        component: Callable[[CoreConfig], wiring.Component] | VerilogDesign,
        config: CoreConfig,
        *,
        tests: str | None = None,
        **more: Any,
    ) -> None:
        """Generates, builds, simulates; fails with the cocotb test's message and how to repeat it.

        `tests` selects tests by a regular expression; `more` reaches them through `parameters()`.
        """
        __tracebackhide__ = True
        path = Path(inspect.getfile(self._node.function)).resolve()
        inside = path.relative_to(Path(__file__).resolve().parents[1]).with_suffix("")
        module = ".".join([PACKAGE, *inside.parts])
        if isinstance(component, VerilogDesign):
            design = component
        else:
            design = block_design(config, component)
        told = {"preset": config.name, "seed": self.seed, **more}
        outcomes = launch(
            design, module, self.simulator, self.folder, seed=self.seed, parameters=told,
            tests=tests,
        )  # fmt: skip
        for outcome in outcomes:
            print(f"{outcome.name}: {outcome.message or 'passed'}")
        bad = [x for x in outcomes if x.message]
        if bad:
            pytest.fail(
                f"{bad[0].name} on {self.simulator}: {bad[0].message}\n{bad[0].details[-3000:]}\n"
                f"log: {self.folder / 'simulation.log'}\nrepeat: {self._repeat()}",
                pytrace=False,
            )

    def _repeat(self) -> str:
        seed = "" if self._base_seed is None else f" --seed {self._base_seed}"
        name, _, parameter = self._node.name.rstrip("]").partition("[")
        words = [Path(self._node.path).stem, name, *parameter.split("-")]
        return f'make test PYTEST_ARGS="-k \'{" and ".join(dict.fromkeys(words))}\'{seed}"'


def on_both_simulators(function: Callable) -> Callable:
    """Marks a pytest function that takes `bench` to run on Verilator and on Icarus."""
    simulators = ["verilator", pytest.param("icarus", marks=pytest.mark.icarus)]
    return pytest.mark.cocotb(pytest.mark.parametrize("simulator", simulators)(function))


def config() -> CoreConfig:
    """In the simulation: the configuration of the design."""
    return preset(parameters()["preset"])


def seed() -> int:
    """In the simulation: the run's seed."""
    return parameters()["seed"]
