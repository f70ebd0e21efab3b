"""KV bytes that agents with a common prompt read together, as a share of what each reads alone.

Every agent decodes one token; the same tokens are then decoded with sharing switched off. The ideal
reads the common prompt once per job and each agent's own tokens once.
"""

import numpy as np

from m890.firmware.backend import DeviceBackend
from m890.firmware.driver import Driver
from m890.firmware.memory_map import PlaneShape, memory_bytes
from m890.firmware.models.backend import Span
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.sim.bench.registry import FACT, LOWER, BenchContext, BenchError, Item
from m890.sim.devices import DEVICES, open_device

OPTIONS = {
    "device": f"what runs: {', '.join(DEVICES)} (rtl)",
    "agents": "how many agents share the prompt (8)",
    "shared": "tokens of the common prompt (1024)",
    "own": "tokens of each agent's own, the new one included (64)",
    "group": "query heads that share the KV head (1)",
    "head": "head size (64)",
    "format": "KV format (fp16)",
}
BETTER = {"sharing.read_ratio": LOWER, "sharing.ideal_ratio": FACT}
CHUNK = 64
"""Tokens of a prefill step."""


def run(context: BenchContext) -> list[Item]:
    """The measured ratio and the ideal one, for one KV head."""
    name, device_name = context.preset or "small", context.option("device", "rtl")
    agents, shared = context.option("agents", 8), context.option("shared", 1024)
    own, group = context.option("own", 64), context.option("group", 1)
    head, config = context.option("head", 64), preset(name)
    text = context.option("format", "fp16")
    if text.upper() not in Format.__members__:
        raise BenchError(f"no format {text!r}: there are {', '.join(Format.__members__).lower()}")
    if device_name not in DEVICES:
        raise BenchError(f"no device {device_name!r}: there are {', '.join(DEVICES)}")
    if min(agents, shared, own, group) < 1 or group > config.rows:
        raise BenchError(f"agents, shared, own and group start at 1, group ends at {config.rows}")
    format = Format[text.upper()]
    shape = PlaneShape(1, format, -(-head // config.lanes) * config.lanes)
    size = memory_bytes(config, shape, scratch=8 << 20)
    device = open_device(device_name, config, size, seed=context.seed, say=context.progress.say)
    try:
        backend = DeviceBackend(
            Driver(device, scratch_bytes=8 << 20), layers=1, heads=group, kv_heads=1,
            head_size=head, format=format,
        )  # fmt: skip
        together, alone = _measure(context, backend, agents, shared, own)
    finally:
        device.close()
    jobs = -(-agents // (config.rows // group))
    facts = {
        "preset": name, "device": device_name, "format": format.name.lower(), "agents": agents,
        "shared": shared, "own": own, "group": group, "head": head, "jobs": jobs,
    }  # fmt: skip
    ideal = _ideal(jobs, agents, shared, own)
    return [
        context.item("sharing.read_ratio", "1", together / alone, **facts),
        context.item("sharing.ideal_ratio", "1", ideal, **facts),
    ]


def _ideal(jobs: int, agents: int, shared: int, own: int) -> float:
    """Every job reads the prompt once, and each agent's own tokens are read once."""
    return (jobs * shared + agents * own) / (agents * (shared + own))


def _measure(
    context: BenchContext, backend: DeviceBackend, agents: int, shared: int, own: int
) -> tuple[int, int]:
    """KV bytes of one decode step of all agents: (sharing, each for itself)."""
    rng = np.random.default_rng(context.seed)

    def step(spans: list[Span], *, commit: bool = True) -> None:
        count = sum(s.count for s in spans)
        q = rng.normal(size=(count, backend.heads, backend.head_size)).astype(np.float32)
        k, v = rng.normal(size=(2, count, 1, backend.head_size)).astype(np.float32)
        backend.attend(0, spans, q, k, v)
        if commit:
            backend.commit(spans)

    root = backend.create()
    for start in context.progress.track(range(0, shared, CHUNK), "prompt"):
        step([Span(root, start, min(CHUNK, shared - start))])
    numbers = [backend.fork(root, shared) for _ in range(agents)]
    backend.release(root)
    if own > 1:
        for number in context.progress.track(numbers, "agents"):
            step([Span(number, shared, own - 1)])
    spans = [Span(number, shared + own - 1, 1) for number in numbers]
    read = []
    for backend.share in (True, False):
        before = backend.driver.counters()["KV_BYTES"]
        step(spans, commit=False)
        read.append(backend.driver.counters()["KV_BYTES"] - before)
        backend.forget_step()
    return read[0], read[1]
