"""A KV cache of two FP16 planes on any device: tokens that can be told apart, random use of it."""

import random
from typing import Any

import numpy as np

from m890.firmware import errors
from m890.firmware.kvcache import KvCache

DIGITS = 1024 ** np.arange(6)
"""Of a token's value: each is exact as FP16."""


def append(
    cache: KvCache, sequence: int, values: list[int], tokens: list[int] | None, *,
    commit: bool = True,
) -> None:  # fmt: skip
    """Appends tokens that hold the values, K and V of both planes alike."""
    cache.wake([sequence])
    start = cache.length(sequence)
    needs = [(sequence, start + len(values))]
    cache.expect(needs)
    if values:
        rows = np.zeros((len(values), cache.shape.head), np.float16)
        rows[:, : len(DIGITS)] = np.array(values)[:, None] // DIGITS % 1024
        at = cache.driver.place(rows)
        fields = {
            "plane": np.arange(2), "sequence": sequence, "start": start, "tokens": len(values),
            "source_format": 1, "k": at, "v": at, "source_stride": 16, "commit": [0, 1],
            "tenant": cache.tenant(sequence),
        }  # fmt: skip
        try:
            cache.perform(cache.driver.pack("APPEND", 2, fields), needs)
        finally:
            cache.driver.free(at)
    if commit:
        cache.commit(sequence, len(values), tokens)


def look(cache: KvCache, sequence: int) -> list[int]:
    """Values of a sequence's tokens, the same in all planes."""
    cache.driver.wait_all()
    found = []
    for plane in range(2):
        for value in (False, True):
            rows = cache.read_tokens(plane, sequence, value=value).view(np.float16)
            digits = rows[:, : len(DIGITS)].astype(np.int64)
            found.append((digits * DIGITS).sum(-1).tolist())
    assert found[1:] == found[:-1]
    return found[0]


def play(cache: KvCache, seed: int, calls: int) -> list[Any]:
    """Random calls; after each what all sequences hold and where, or why it was refused."""
    rng, seen = random.Random(seed), []
    for _ in range(calls):
        try:
            _call(cache, rng)
        except (errors.PoolFull, errors.SequencesFull, errors.ContextLimit) as error:
            seen.append(str(error))
        for s in cache.sequences:
            held = None if cache.parked(s) else look(cache, s)
            seen.append((s, held, cache.block_table(s)))
        seen.append((cache.use, len(cache.host.free)))
    return seen


def _call(cache: KvCache, rng: random.Random) -> None:
    kinds = ("create", "append", "fork", "trim", "release", "pause", "park")
    kind = rng.choices(kinds, (1, 4, 1, 2, 1, 2, 1))[0]
    if kind == "create" or not cache.sequences:
        public = rng.random() < 0.3
        cache.create([0] * rng.randint(0, 30), rng.choice(sorted(cache.quotas)), public=public)
        return
    s = rng.choice(cache.sequences)
    if kind == "append":
        count = rng.randint(1, 20)
        values = [rng.randrange(1 << 40) for _ in range(count)]
        append(cache, s, values, [0] * count if rng.random() < 0.7 else None)
    elif kind in ("release", "pause", "park"):
        getattr(cache, kind)(s)
    else:
        getattr(cache, kind)(s, rng.randint(0, cache.length(s)))
