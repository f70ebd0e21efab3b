"""The devices by name: one place that opens them, for every command and bench."""

from collections.abc import Callable

from m890.firmware.cluster import Cluster
from m890.firmware.device import Device
from m890.firmware.errors import FirmwareError
from m890.hdl.config import ClusterConfig, CoreConfig
from m890.sim.rtl.hbm import HbmTiming, share

DEVICES = ("rtl", "model")
MEMORIES = ("fixed", "hbm3")
"""Memories behind the RTL: of fixed latency at the port's rate, or one core's share of HBM3."""
LATENCY = 40
"""Cycles of the fixed memory, unless a command says otherwise."""


class UnknownDevice(FirmwareError):
    """A device, or a memory of it, that does not exist."""


def memory_of(name: str, config: CoreConfig) -> HbmTiming | None:
    """The core's share of the HBM3-like memory; None for the fixed one."""
    if name not in MEMORIES:
        raise UnknownDevice(f"unknown memory {name!r}; there are {', '.join(MEMORIES)}")
    return share(config) if name == "hbm3" else None


def open_device(
    kind: str,
    config: CoreConfig,
    memory_bytes: int,
    *,
    seed: int = 0,
    waves: bool = False,
    memory: str = "fixed",
    say: Callable[[str], None] | None = None,
) -> Device:
    """The device `kind` with its memory, one of MEMORIES.

    There is no way from one to the other: what asks for RTL runs on RTL or fails.
    """
    hbm = memory_of(memory, config)
    if kind == "rtl":
        from m890.sim.rtl.device import RtlDevice  # slow to import; the model needs none of it

        return RtlDevice(
            config, memory_bytes=memory_bytes, latency=LATENCY, hbm=hbm, seed=seed, waves=waves,
            say=say,
        )  # fmt: skip
    _check_model(kind, memory)
    from m890.sim.timing.device import ModelDevice

    return ModelDevice(config, memory_bytes)


def open_cores(
    kind: str,
    config: CoreConfig,
    memory_bytes: int,
    cores: int,
    *,
    seed: int = 0,
    waves: bool = False,
    memory: str = "fixed",
    say: Callable[[str], None] | None = None,
) -> Device | Cluster:
    """One core as of `open_device`, or a cluster: `memory_bytes` and a memory port for each."""
    if cores == 1:
        return open_device(
            kind, config, memory_bytes, seed=seed, waves=waves, memory=memory, say=say
        )
    cluster, hbm = ClusterConfig(config, cores), memory_of(memory, config)
    size = cores * memory_bytes
    if kind == "rtl":
        from m890.sim.rtl.cluster import RtlCluster  # slow to import

        return RtlCluster(
            cluster, memory_bytes=size, latency=LATENCY, hbm=hbm, seed=seed, waves=waves, say=say
        )
    _check_model(kind, memory)
    from m890.sim.timing.cluster import ModelCluster

    return ModelCluster(cluster, size)


def _check_model(kind: str, memory: str) -> None:
    if kind != "model":
        raise UnknownDevice(f"unknown device {kind!r}; there are {', '.join(DEVICES)}")
    if memory != "fixed":
        raise UnknownDevice(f"only the rtl device has the memory {memory}, not the model")
