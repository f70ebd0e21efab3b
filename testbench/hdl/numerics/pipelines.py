"""Runs a fixed-latency unit: one operand per cycle, results `latency` cycles later."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from amaranth.hdl import Module, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator


def bits_of(layout: Any, **fields: int) -> int:
    """The bits of a struct with these fields, signed ones as integers."""
    word = 0
    for name, value in fields.items():
        field = data.Layout.cast(layout)[name]
        word |= (int(value) & ((1 << field.width) - 1)) << field.offset
    return word


def fields_of(layout: Any, word: int) -> dict[str, int]:
    """The fields of a struct's bits, signed ones as integers."""
    out = {}
    for name, field in data.Layout.cast(layout):
        value = word >> field.offset & ((1 << field.width) - 1)
        signed = getattr(field.shape, "signed", False)
        out[name] = value - (1 << field.width) if signed and value >> field.width - 1 else value
    return out


def run_pipeline(
    dut: wiring.Component, inputs: Mapping[str, Sequence[int]], outputs: Sequence[str], latency: int
) -> dict[str, list[int]]:
    """Raw bits of `outputs` for each operand of `inputs`, streamed without a gap.

    Reads exactly `latency` cycles after each operand, so a unit whose latency differs fails.
    """
    sources = [(Value.cast(getattr(dut, name)), list(map(int, v))) for name, v in inputs.items()]
    count = len(sources[0][1])
    results: dict[str, list[int]] = {name: [] for name in outputs}

    async def stream(ctx: Any) -> None:
        for cycle in range(count + latency):
            for port, values in sources:
                ctx.set(port, _as_shape(port, values[min(cycle, count - 1)]))
            if cycle >= latency:
                for name in outputs:
                    port = Value.cast(getattr(dut, name))
                    results[name].append(ctx.get(port) & ((1 << len(port)) - 1))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(stream)
    simulator.run()
    return results


def _as_shape(port: Value, value: int) -> int:
    if port.shape().signed and value >> len(port) - 1:
        return value - (1 << len(port))
    return value


class Registered(wiring.Component):
    """A combinational function of `inputs` with a register behind it, so that it runs as a unit."""

    o: Any
    latency = 1

    def __init__(self, inputs: dict[str, Any], output: Any, function: Callable[..., Any]) -> None:
        self._inputs, self._function = tuple(inputs), function
        super().__init__({n: In(shape) for n, shape in inputs.items()} | {"o": Out(output)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ports = {name: getattr(self, name) for name in self._inputs}
        m.d.sync += self.o.eq(self._function(m, **ports))
        return m
