"""The devices by name: one place that opens them, for every command and bench."""

from collections.abc import Callable
from typing import Any

from m890.firmware.device import Device
from m890.firmware.errors import FirmwareError
from m890.hdl.config import CoreConfig

DEVICES = ("rtl", "model")
LATENCY = 40
"""Cycles of the memory behind the RTL, unless a command says otherwise."""


class UnknownDevice(FirmwareError):
    """A device that does not exist."""


def open_device(
    kind: str,
    config: CoreConfig,
    memory_bytes: int,
    *,
    seed: int = 0,
    waves: bool = False,
    say: Callable[[str], None] | None = None,
    **memory: Any,
) -> Device:
    """The device `kind` with its memory; `memory` goes to RtlDevice (latency, bandwidth, stall).

    There is no way from one to the other: what asks for RTL runs on RTL or fails.
    """
    if kind == "rtl":
        from m890.sim.rtl.device import RtlDevice  # slow to import; the model needs none of it

        options = {"latency": LATENCY, **memory}
        return RtlDevice(
            config, memory_bytes=memory_bytes, seed=seed, waves=waves, say=say, **options
        )
    if kind == "model":
        from m890.sim.timing.device import ModelDevice

        return ModelDevice(config, memory_bytes)
    raise UnknownDevice(f"unknown device {kind!r}; there are {', '.join(DEVICES)}")
