"""Cores on one memory: what the firmware asks of a cluster, and how memory is divided."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.hdl.config import ClusterConfig


class Cluster(Protocol):
    """Attention cores on one memory: every core's `memory` is the whole."""

    @property
    def config(self) -> ClusterConfig:
        """Parameters the cluster was built with."""
        ...

    @property
    def cores(self) -> Sequence[Device]:
        """The cores. While one is waited for, the others go on."""
        ...

    @property
    def memory(self) -> NDArray[np.uint8]:
        """Every byte of memory."""
        ...

    def close(self) -> None:
        """Frees what the cluster holds; it cannot be used afterwards."""
        ...


def drivers(cluster: Cluster, **options: Any) -> list[Driver]:
    """A driver per core; each core has an equal part of memory for its rings, planes and scratch.

    Addresses are those of the whole memory, so a core's job may read what another core has left.
    """
    size = cluster.memory.size // len(cluster.cores) & ~4095
    return [
        Driver(core, part=(n * size, (n + 1) * size), **options)
        for n, core in enumerate(cluster.cores)
    ]
