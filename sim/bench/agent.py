"""Held-out tasks that tool-calling agents solve, and how often a device gives the float's answer.

All agents of a group share one system prompt. The float32 reference solves every task first.
"""

from collections.abc import Callable, Sequence

from m890.firmware.agents.engine import Report
from m890.firmware.agents.evaluate import Outcome, agreement, held_out, load_agent, solve_tasks
from m890.firmware.agents.tasks import Task
from m890.firmware.backend import DeviceBackend, Usage
from m890.firmware.cluster import ClusterBackend
from m890.firmware.driver import Driver
from m890.firmware.models.llama import Decoder
from m890.firmware.models.reference import ReferenceBackend
from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format
from m890.sim import play
from m890.sim.bench.registry import FACT, HIGHER, BenchContext, BenchError, Item
from m890.sim.devices import open_device

OPTIONS = {
    "model": "held-out tasks on the model device (500); 0 leaves it out",
    "rtl": "held-out tasks on the RTL, the first ones of the same (50); 0 leaves it out",
    "format": "KV format (fp16)",
    "chunk": "most tokens of an agent in one step (64)",
}
BETTER = {"agent.tasks.*": FACT, "agent.*": HIGHER}


def run(context: BenchContext) -> list[Item]:
    """Share solved by the float reference, and agreement of each device with it."""
    text, name = context.option("format", "fp16"), context.preset or "small"
    if text.upper() not in Format.__members__:
        raise BenchError(f"no format {text!r}: there are {', '.join(Format.__members__).lower()}")
    counts = {"model": context.option("model", 500), "rtl": context.option("rtl", 50)}
    counts = {kind: count for kind, count in counts.items() if count > 0}
    if not counts:
        raise BenchError("the options model and rtl are both 0: there must be a task at least")
    decoder, chunk = load_agent(), context.option("chunk", 64)
    groups = held_out(max(counts.values()), context.seed)
    context.progress.say(f"{max(counts.values())} tasks on the float reference")
    truth = solve_tasks(decoder, lambda: ReferenceBackend(decoder.config), groups, chunk=chunk)
    solved = sum(o.solved for o in truth) / len(truth)
    items = [context.item("agent.solved.float", "1", solved, tasks=len(truth))]
    for kind, count in counts.items():
        found, usage = _solve(context, decoder, kind, name, Format[text.upper()], groups, count)
        facts = {
            "preset": name, "device": kind, "format": text.lower(), "tasks": count,
            "tokens": usage.tokens, "cycles_per_token": round(usage.cycles_per_token, 1),
            "utilisation": round(usage.utilisation, 4),
            "saved": round(usage.saved / max(usage.kv_bytes_alone, 1), 4),
        }  # fmt: skip
        same = agreement(truth[:count], found)
        items.append(context.item(f"agent.agreement.{kind}.{text.lower()}", "1", same, **facts))
        items.append(context.item(f"agent.tasks.{kind}", "tasks", count, **facts))
    return items


def _solve(
    context: BenchContext,
    decoder: Decoder,
    kind: str,
    name: str,
    format: Format,
    groups: Sequence[Sequence[Task]],
    count: int,
) -> tuple[list[Outcome], Usage]:
    """The first `count` tasks on one device, group after group, and what attention cost."""
    core, say = preset(name), context.progress.say
    memory = play.needed_memory(core, decoder.config, format, max(map(len, groups)))
    device = open_device(kind, core, memory, seed=context.seed, say=say)
    backends: list[DeviceBackend | ClusterBackend] = []

    def fresh() -> DeviceBackend | ClusterBackend:
        driver = Driver(device, scratch_bytes=play.SCRATCH)
        backends.append(play.backend_of([driver], decoder, format))
        return backends[-1]

    done = 0

    def report(outcomes: list[Outcome], _: Report) -> None:
        nonlocal done
        done += len(outcomes)
        say(f"{kind}: {done} of {count} tasks")

    on_group: Callable[[list[Outcome], Report], None] = report
    try:
        found = solve_tasks(
            decoder, fresh, _first(groups, count), chunk=context.option("chunk", 64),
            on_group=on_group,
        )  # fmt: skip
    finally:
        device.close()
    usage = Usage()
    for backend in backends:
        usage.add(backend.total)
    return found, usage


def _first(groups: Sequence[Sequence[Task]], count: int) -> list[Sequence[Task]]:
    """The first `count` tasks, still in groups that share a prompt."""
    out: list[Sequence[Task]] = []
    for group in groups:
        left = count - sum(map(len, out))
        if left > 0:
            out.append(group[:left])
    return out
