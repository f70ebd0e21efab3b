"""Block tests run with memories that do no more than they promise."""

import pytest

from m890.testbench.hdl.memory.garbled import garble

BLOCKS = ("attention", "control", "kv", "memory", "pages")
"""Folders whose tests simulate what they elaborate and write nothing."""


@pytest.fixture(autouse=True)
def _garbled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.parent.name in BLOCKS:
        garble(monkeypatch)
