"""The fixture of the cocotb tests."""

from pathlib import Path

import pytest

from m890.testbench.cocotb.runner import Bench


@pytest.fixture
def bench(request: pytest.FixtureRequest, simulator: str, seed: int, tmp_path: Path) -> Bench:
    """Runs this file's cocotb tests on the simulator of the test's parameter."""
    return Bench(request, simulator, seed, tmp_path)
