"""What every test shares: one printed seed, the data folder, tools that may be missing, skips.

Fixtures: `seed` (differs per test, repeats with `--seed`), `rng` (numpy's generator of that seed),
`data` (the folder of public test data, `M890_DATA`). Tests marked `cocotb` run with the environment
of `m890.sim.toolchain.verilator_env`; those marked `icarus` skip where Icarus is missing.
"""

import collections
import os
import random
import zlib
from pathlib import Path

import find_libpython
import hypothesis
import numpy as np
import pytest

from m890.sim import toolchain

DEFAULT_SEED = 890


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help=f"seed of all random tests (default {DEFAULT_SEED})")


def pytest_configure(config: pytest.Config) -> None:
    beside = config.rootpath.parent / "shared" / "data"
    if "M890_DATA" not in os.environ and beside.is_dir():
        os.environ["M890_DATA"] = str(beside)
    chosen = config.getoption("--seed")
    hypothesis.settings.register_profile(
        "m890", deadline=None, derandomize=chosen is None, print_blob=True
    )
    hypothesis.settings.load_profile("m890")


def pytest_report_header(config: pytest.Config) -> list[str]:
    data = os.environ.get("M890_DATA")
    return [
        f"seed: {_base_seed(config)} (repeat with --seed {_base_seed(config)})",
        f"data: {'M890_DATA is set' if data else 'M890_DATA is not set, its tests skip'}",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives tests whose tool is missing a skip with the package to install."""
    missing = {
        "icarus": toolchain.find_icarus().reason,
        "cocotb": _missing_libpython(),
    }
    for mark, reason in missing.items():
        if reason:
            for item in items:
                if item.get_closest_marker(mark):
                    item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Counts the skips by reason, above pytest's own closing line."""
    reasons = collections.Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count}: {reason}")


@pytest.fixture(autouse=True)
def _tool_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """cocotb takes its tools from the process's environment."""
    if request.node.get_closest_marker("cocotb"):
        for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
            monkeypatch.delenv(name, raising=False)
        for name, value in toolchain.verilator_env().items():
            monkeypatch.setenv(name, value)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this test's own, made of the run's seed and the test's name."""
    value = zlib.crc32(f"{_base_seed(request.config)} {request.node.nodeid}".encode())
    random.seed(value)
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Random numbers that differ per test and repeat with `--seed`."""
    return np.random.default_rng(seed)


@pytest.fixture
def data() -> Path:
    """The folder of public test data; the test skips without it."""
    folder = Path(os.environ.get("M890_DATA", ""))
    if not os.environ.get("M890_DATA") or not folder.is_dir():
        pytest.skip("M890_DATA names no folder (docs/installation.md says where the data is from)")
    return folder


def _base_seed(config: pytest.Config) -> int:
    chosen = config.getoption("--seed")
    return DEFAULT_SEED if chosen is None else chosen


def _missing_libpython() -> str:
    if find_libpython.find_libpython():
        return ""
    return (
        "Python's shared library, which cocotb loads, is missing: install the package"
        " libpython3-dev (Debian: apt-get install libpython3-dev)."
    )
