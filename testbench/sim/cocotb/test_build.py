"""A cached simulation holds nothing of the environment that built it."""

import cocotb_tools.config
import pytest

from m890.hdl.config import preset
from m890.hdl.memory.queue import Queue
from m890.sim.cocotb import build as building
from m890.sim.cocotb.design import block_design


@pytest.mark.cocotb
def test_a_build_outlives_the_environment_that_made_it() -> None:
    design = block_design(preset("tiny"), lambda config: Queue(8, depth=4))
    program = building.build(design, "verilator") / design.name
    text = program.read_bytes()
    assert b"libcocotbvpi_verilator.so" in text
    assert str(cocotb_tools.config.libs_dir).encode() not in text


def test_libraries_come_before_what_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(cocotb_tools.config.libs_dir)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert building.libraries() == {"LD_LIBRARY_PATH": here}
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    assert building.libraries() == {"LD_LIBRARY_PATH": f"{here}:/somewhere"}
