"""Faults of memory between the steps of a run: bits of K and V that flip."""

import numpy as np

from m890.firmware.backend import DeviceBackend


class Flips:
    """Flips `each` random bits of committed tokens whenever it strikes; `count` so far."""

    def __init__(self, backend: DeviceBackend, each: int, seed: int) -> None:
        self._backend, self._each = backend, each
        self._rng = np.random.default_rng(seed)
        self.count = 0

    def strike(self) -> None:
        """Between two steps."""
        cache, rng = self._backend.cache, self._rng
        held = [s for s in cache.sequences if cache.length(s) and not cache.parked(s)]
        for _ in range(self._each if held else 0):
            sequence, plane = int(rng.choice(held)), int(rng.integers(cache.shape.planes))
            token = int(rng.integers(cache.length(sequence)))
            at = rng.choice(cache.token_addresses(plane, sequence, token))
            self._backend.driver.memory[at] ^= np.uint8(1 << rng.integers(8))
            self.count += 1
