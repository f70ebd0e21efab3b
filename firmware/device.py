"""What the driver asks of a device: registers, memory, and time that passes."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m890.hdl.config import CoreConfig


class Device(Protocol):
    """One attention core with its memory: simulated RTL, model or hardware.

    `memory` is the device's memory itself: what the host writes there the device sees with its
    next access, and what the device writes the host sees once the command has completed.
    """

    @property
    def config(self) -> CoreConfig:
        """Parameters the core was built with."""
        ...

    @property
    def memory(self) -> NDArray[np.uint8]:
        """Every byte of device memory, one dimension, writable; its size is a multiple of 4 KiB."""
        ...

    def read(self, address: int) -> int:
        """Value of the 32-bit register at a byte address."""
        ...

    def write(self, address: int, value: int) -> None:
        """Sets the 32-bit register at a byte address."""
        ...

    def run(self, cycles: int | None = None) -> int:
        """Lets time pass until an enabled interrupt is pending or `cycles` have passed.

        None waits for the interrupt and raises DeviceTimeout when nothing moves any more. Returns
        the cycles that passed.
        """
        ...

    def close(self) -> None:
        """Frees what the device holds; it cannot be used afterwards."""
        ...
