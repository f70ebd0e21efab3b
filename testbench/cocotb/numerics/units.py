"""The numeric units side by side in one design, and a stream of operands through one of them."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from amaranth.hdl import Module
from amaranth.lib import wiring

from m890.hdl.config import CoreConfig
from m890.hdl.numerics.dot import DotProduct
from m890.hdl.numerics.exp2 import Exp2, ScaleP
from m890.hdl.numerics.softcap import SoftCap
from m890.hdl.numerics.wide import MulWide, ScaleWide, WideAdd
from m890.testbench.cocotb.streams import Clocked


class Units(wiring.Component):
    """One of each; port p of unit u is `u__p`."""

    def __init__(self, config: CoreConfig) -> None:
        self.units: dict[str, Any] = {
            "dot": DotProduct(config.lanes), "add": WideAdd(), "multiply": MulWide(),
            "scale": ScaleWide(), "exp2": Exp2(), "scale_p": ScaleP(), "softcap": SoftCap(),
        }  # fmt: skip
        super().__init__({name: wiring.Out(u.signature) for name, u in self.units.items()})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name, unit in self.units.items():
            m.submodules[f"{name}_unit"] = unit
            wiring.connect(m, wiring.flipped(getattr(self, name)), unit)
        return m


@functools.cache
def latency(config: CoreConfig, unit: str) -> int:
    """Cycles from a unit's operands to its results."""
    return Units(config).units[unit].latency


async def stream(
    dut: Any, unit: str, operands: Mapping[str, Sequence[int]], outputs: Sequence[str], cycles: int
) -> dict[str, list[int]]:
    """Bits of `outputs`, `cycles` after each operand; one operand per cycle without a gap."""
    inputs = [(getattr(dut, f"{unit}__{n}"), list(map(int, v))) for n, v in operands.items()]
    ends = [(name, getattr(dut, f"{unit}__{name}")) for name in outputs]
    results: dict[str, list[int]] = {name: [] for name in outputs}
    count = len(inputs[0][1])
    clocked = Clocked(dut)
    await clocked.start(**{f"{unit}__{n}": int(v[0]) for n, v in operands.items()})
    for n in range(count + cycles + 1):
        await clocked.tick()
        if n > cycles:  # operand 0 stands since edge 0 and is used at edge 1
            for name, handle in ends:
                results[name].append(int(handle.value))
        for handle, values in inputs:
            handle.value = values[min(n, count - 1)]
    return results
