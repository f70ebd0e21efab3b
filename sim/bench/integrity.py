"""Integrity tags: utilisation with tags over that without, flips of one bit detected and repaired.

Utilisation is that of the bench stream, `decode_2048` and `short_256` in the same seed, the worse
of the two ratios. Flips are of random bits of rows, scales and tags, in all formats, one before
each step of a small decoder; `repaired` is the share of those detected that firmware repaired, with
all bytes as they were.
"""

from collections.abc import Iterator

import numpy as np

from m890.firmware.backend import DeviceBackend
from m890.firmware.driver import Driver
from m890.firmware.memory_map import PlaneShape, memory_bytes
from m890.firmware.models.backend import Span
from m890.firmware.models.llama import Config, Decoder
from m890.firmware.repair import Repair
from m890.hdl.config import CoreConfig, preset
from m890.hdl.numerics.formats import Format
from m890.sim.bench import stream
from m890.sim.bench.registry import FACT, HIGHER, BenchContext, BenchError, Item
from m890.sim.rtl.device import RtlDevice

WORKLOADS = ("decode_2048", "short_256")
FLIPS = 200
SCRATCH = 1 << 20
PAGES = 4
CHUNK = 16
"""Tokens of a prefill step."""
OPTIONS = {
    "flips": f"flips of one bit in each format ({FLIPS})",
    "jobs": "jobs of decode_2048 (16)",
    "utilisation": "yes or no: measure utilisation too (yes)",
}
BETTER = {"integrity.flips": FACT, "integrity.*": HIGHER}


def run(context: BenchContext) -> list[Item]:
    """Of `small`, or the preset that is asked for."""
    config, count = preset(context.preset or "small"), context.option("flips", FLIPS)
    if count < 1:
        raise BenchError(f"flips is 1 or more, not {count}")
    items = []
    if context.option("utilisation", True):
        ratios = dict(_utilisation(config, context))
        facts = {"preset": config.name, "device": "rtl", "format": "e4m3", **ratios}
        worst = min(ratios.values())
        items.append(context.item("integrity.utilisation_ratio", "1", worst, **facts))
    flips = detected = repaired = 0
    for format in context.progress.track(list(Format), "flips"):
        flips += count
        named, healed = flip(config, format, count, context.seed, context)
        detected, repaired = detected + named, repaired + healed
        context.progress.say(f"{format.name}: {count} flips, {named} detected, {healed} repaired")
    facts = {"preset": config.name, "device": "rtl"}
    items.append(context.item("integrity.flips", "1", flips, **facts))
    items.append(context.item("integrity.detected", "1", detected / flips, **facts))
    items.append(context.item("integrity.repaired", "1", repaired / max(detected, 1), **facts))
    return items


def _utilisation(config: CoreConfig, context: BenchContext) -> Iterator[tuple[str, float]]:
    """Ratio of each workload."""
    head = min(stream.HEAD, config.max_head)
    rng = np.random.default_rng(context.seed)
    jobs = context.option("jobs", min(16, config.planes))
    for work in stream.workloads(config, rng, jobs):
        if work.name not in WORKLOADS:
            continue
        off, on = (
            stream.measure(config, work, context, head, stream.LATENCY, 1, tags=tags)
            for tags in (False, True)
        )
        ratio = on.useful / on.cycles / (off.useful / off.cycles)
        context.progress.say(
            f"{work.name}: {off.useful / off.cycles:.4f} without tags, {on.cycles} cycles with"
            f" them for {off.cycles}"
        )
        yield work.name, ratio


def flip(
    config: CoreConfig, format: Format, count: int, seed: int, context: BenchContext
) -> tuple[int, int]:
    """Flips a random bit of a written token `count` times, before a step of a small decoder.

    How many were named rightly, and how many of these left every byte as it was before the flip.
    """
    rng = np.random.default_rng([seed, format])
    head, tokens = 2 * config.lanes, PAGES * config.page_tokens - 1
    model = Config(
        width=2 * head, hidden=head, layers=2, heads=2, kv_heads=1, vocabulary=64, limit=tokens + 1
    )
    decoder = Decoder.random(model, rng)
    shape = PlaneShape(model.layers, format, head, tags=True)
    size = memory_bytes(config, shape, pages=PAGES, scratch=SCRATCH)
    with RtlDevice(config, memory_bytes=size, seed=seed, say=context.progress.say) as device:
        backend = DeviceBackend(
            Driver(device, ring=16, scratch_bytes=SCRATCH), layers=model.layers, heads=model.heads,
            kv_heads=model.kv_heads, head_size=head, format=format, pages=PAGES, tags=True,
            recompute=decoder.recompute,
        )  # fmt: skip
        sequence = backend.create()
        prompt = rng.integers(model.vocabulary, size=tokens)
        for start in range(0, tokens, CHUNK):
            part = prompt[start : start + CHUNK]
            decoder.step([Span(sequence, start, len(part))], part, backend)
        found = [_struck(backend, decoder, sequence, rng) for _ in range(count)]
    return sum(detected for detected, _ in found), sum(repaired for _, repaired in found)


def _struck(
    backend: DeviceBackend, decoder: Decoder, sequence: int, rng: np.random.Generator
) -> tuple[bool, bool]:
    """Whether a flip is named rightly, and repaired; all is as before then."""
    cache, memory = backend.cache, backend.driver.memory
    tokens = backend.length(sequence)
    token, plane = int(rng.integers(tokens)), int(rng.integers(cache.shape.planes))
    addresses = np.concatenate([cache.token_addresses(plane, sequence, t) for t in range(tokens)])
    before = memory[addresses].copy()
    here = cache.token_addresses(plane, sequence, token)
    # K or V, row or header: else a bit would hardly ever be one of a scale or a tag
    half = cache.shape.layout(cache.config).half_bytes
    row = np.array_split(here, 2)[rng.integers(2)]
    part = row[:-half] if rng.integers(2) else row[-half:]
    memory[rng.choice(part)] ^= np.uint8(1 << rng.integers(8))
    count = len(backend.repairer.repairs)
    decoder.step([Span(sequence, tokens, 1)], [0], backend)
    backend.trim(sequence, tokens)
    detected = backend.repairer.repairs[count:] == [Repair(sequence, plane, token)]
    repaired = detected and np.array_equal(memory[addresses], before)
    memory[addresses] = before
    return detected, repaired
