"""The native cluster: Verilated cores on one memory in this process."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m890.hdl.config import ClusterConfig, CoreConfig
from m890.hdl.memory.ports import CSR_BITS
from m890.sim.rtl.cache import core_design
from m890.sim.rtl.device import RtlDevice


class RtlCluster:
    """The RTL of a cluster, Verilated, with a memory that all cores share.

    Function
        Implements `m890.firmware.cluster.Cluster`. Time is one: while one core is waited for, the
        others go on.
    Parameters
        config : of the cluster. options : as of `RtlDevice`; latency, bandwidth, stall and hbm are
        those of each memory port.
    """

    def __init__(self, config: ClusterConfig, **options: Any) -> None:
        self.config = config
        self.device = RtlDevice(config.core, design=core_design(config), **options)
        self.cores = tuple(ClusterCore(self.device, n) for n in range(config.cores))

    @property
    def memory(self) -> NDArray[np.uint8]:
        """Every byte of memory."""
        return self.device.memory

    @property
    def cycle(self) -> int:
        """Cycles since the simulation started."""
        return self.device.cycle

    def close(self) -> None:
        """Ends the simulation."""
        self.device.close()

    def __enter__(self) -> "RtlCluster":
        return self

    def __exit__(self, *what: object) -> None:
        self.close()


class ClusterCore:
    """One core of a native cluster; implements `m890.firmware.device.Device`."""

    def __init__(self, device: RtlDevice, number: int) -> None:
        self.device, self.number = device, number

    @property
    def config(self) -> CoreConfig:
        return self.device.config

    @property
    def memory(self) -> NDArray[np.uint8]:
        return self.device.memory

    @property
    def cycle(self) -> int:
        """Cycles since the simulation started."""
        return self.device.cycle

    def read(self, address: int) -> int:
        return self.device.read(self._at(address))

    def write(self, address: int, value: int) -> None:
        self.device.write(self._at(address), value)

    def run(self, cycles: int | None = None) -> int:
        """Lets time pass, for all cores, until this core's interrupt or for `cycles`."""
        return self.device.run(cycles, interrupts=1 << self.number)

    def close(self) -> None:
        """Ends the simulation of the whole cluster."""
        self.device.close()

    def _at(self, address: int) -> int:
        return self.number << CSR_BITS | address
