"""Devices by name, for the command line and the benches."""

from collections.abc import Callable

from m890.firmware.device import Device
from m890.hdl.config import CoreConfig
from m890.sim.timing.device import ModelDevice

KINDS = ("rtl", "model")
"""rtl: the core's Verilog, Verilated. model: golden numbers with modelled time."""


class UnknownDevice(ValueError):
    """A name that no device has."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"no device {kind!r}: there are {', '.join(KINDS)}")


def open_device(
    kind: str,
    config: CoreConfig,
    memory_bytes: int,
    *,
    seed: int = 0,
    latency: int = 100,
    bandwidth: float | None = None,
    waves: bool = False,
    say: Callable[[str], None] | None = None,
) -> Device:
    """A device with `memory_bytes` of memory; the caller closes it.

    latency and bandwidth (bytes per cycle, None: no limit) are those of the RTL's memory; waves
    makes it able to record. Nothing falls back from one kind to another.
    """
    if kind == "model":
        return ModelDevice(config, memory_bytes)
    if kind != "rtl":
        raise UnknownDevice(kind)
    from m890.sim.rtl.device import RtlDevice  # only whoever simulates needs a compiler

    return RtlDevice(
        config, memory_bytes=memory_bytes, latency=latency, bandwidth=bandwidth, seed=seed,
        waves=waves, say=say,
    )  # fmt: skip
