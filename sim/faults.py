"""Faults of memory between the steps of a run: bits of K and V that flip."""

from collections.abc import Sequence

import numpy as np

from m890.firmware.backend import DeviceBackend


class Flips:
    """Flips `each` random bits of committed tokens whenever it strikes; `count` so far.

    `cores`: what holds the tokens, one of a device, several of a cluster.
    """

    def __init__(self, cores: Sequence[DeviceBackend], each: int, seed: int) -> None:
        self._cores, self._each = cores, each
        self._rng = np.random.default_rng(seed)
        self.count = 0

    def strike(self) -> None:
        """Between two steps."""
        rng, cache = self._rng, self._cores[0].cache
        held = [s for s in cache.sequences if cache.length(s) and not cache.parked(s)]
        for _ in range(self._each if held else 0):
            cache = self._cores[int(rng.integers(len(self._cores)))].cache
            sequence, plane = int(rng.choice(held)), int(rng.integers(cache.shape.planes))
            token = int(rng.integers(cache.length(sequence)))
            at = rng.choice(cache.token_addresses(plane, sequence, token))
            cache.driver.memory[at] ^= np.uint8(1 << rng.integers(8))
            self.count += 1
