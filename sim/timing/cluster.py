"""A cluster without RTL: model devices on one memory, each with a time of its own."""

import numpy as np
from numpy.typing import NDArray

from m890.hdl.config import ClusterConfig
from m890.sim.timing.device import ModelDevice


class ModelCluster:
    """Implements `m890.firmware.cluster.Cluster`.

    Function
        Cores are `ModelDevice`s: bit for bit what the RTL computes. Their modelled cycles know
        nothing of each other, as of cores with a memory port each.
    """

    def __init__(self, config: ClusterConfig, memory_bytes: int) -> None:
        self.config = config
        self.memory: NDArray[np.uint8] = np.zeros(-(-memory_bytes // 4096) * 4096, np.uint8)
        self.cores = tuple(
            ModelDevice(config.core, memory=self.memory) for _ in range(config.cores)
        )

    def close(self) -> None:
        pass
