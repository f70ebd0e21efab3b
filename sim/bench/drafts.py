"""Tokens per verification step, and cycles per token with drafts against plain decoding.

The project's agents solve the same held-out tasks twice, several at once; drafts come from their
own contexts. Cycles are those of attention after the common prompt, per token that agents wrote.
"""

from collections.abc import Sequence

from m890.firmware.agents.evaluate import held_out, load_agent
from m890.firmware.agents.tasks import Task
from m890.firmware.models.llama import Decoder
from m890.hdl.config import CoreConfig, preset
from m890.hdl.numerics.formats import Format
from m890.sim import play
from m890.sim.bench.registry import HIGHER, LOWER, BenchContext, BenchError, Item
from m890.sim.devices import DEVICES, open_device

OPTIONS = {
    "device": f"what runs: {', '.join(DEVICES)} (model)",
    "tasks": "held-out tasks (16)",
    "agents": "how many of them at once (4)",
    "nodes": "most nodes of a draft; 0: as many as rows are free beside one token (0)",
    "format": "KV format (fp16)",
    "chunk": "most known tokens of an agent in one step (64)",
}
BETTER = {"drafts.tokens_per_step": HIGHER, "drafts.cycles_per_token.*": LOWER}


def run(context: BenchContext) -> list[Item]:
    """The agents with drafts, then without."""
    name, device = context.preset or "small", context.option("device", "model")
    tasks, agents = context.option("tasks", 16), context.option("agents", 4)
    nodes, text = context.option("nodes", 0), context.option("format", "fp16")
    if text.upper() not in Format.__members__:
        raise BenchError(f"no format {text!r}: there are {', '.join(Format.__members__).lower()}")
    if device not in DEVICES:
        raise BenchError(f"no device {device!r}: there are {', '.join(DEVICES)}")
    if min(tasks, agents) < 1 or nodes < 0:
        raise BenchError("tasks and agents start at 1, nodes at 0")
    decoder, config = load_agent(), preset(name)
    nodes = nodes or play.draft_nodes(config, decoder.config)
    groups, format = held_out(tasks, context.seed, agents), Format[text.upper()]
    drafted = _play(context, decoder, config, device, format, groups, nodes)
    plain = _play(context, decoder, config, device, format, groups, 0)
    same = sum(a == b for a, b in zip(drafted.texts, plain.texts, strict=True))
    facts = {
        "preset": name, "device": device, "format": text.lower(), "tasks": tasks, "agents": agents,
        "nodes": nodes, "nodes_per_step": round(drafted.nodes / drafted.turns, 2),
        "same_text": round(same / tasks, 4),
    }  # fmt: skip
    return [
        context.item("drafts.tokens_per_step", "1", drafted.tokens / drafted.turns, **facts),
        context.item("drafts.cycles_per_token.draft", "cycles", drafted.cycles_per_token, **facts),
        context.item("drafts.cycles_per_token.plain", "cycles", plain.cycles_per_token, **facts),
    ]


class _Total:
    """What all groups of one way of decoding came to."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.cycles = 0.0
        self.tokens = self.turns = self.nodes = 0

    def add(self, played: play.Played) -> None:
        """A group; the common prompt's prefill is left out."""
        report = played.report
        self.texts += [agent.session.text for agent in played.agents]
        self.cycles += played.total.cycles - played.prompt.cycles
        self.tokens += report.generated
        self.turns += report.turns
        self.nodes += report.drafted

    @property
    def cycles_per_token(self) -> float:
        return self.cycles / self.tokens


def _play(
    context: BenchContext,
    decoder: Decoder,
    config: CoreConfig,
    kind: str,
    format: Format,
    groups: Sequence[Sequence[Task]],
    nodes: int,
) -> _Total:
    """Every group on one device."""
    memory = play.needed_memory(config, decoder.config, format, max(map(len, groups)))
    device = open_device(kind, config, memory, seed=context.seed, say=context.progress.say)
    done = _Total()
    try:
        player = play.Player(
            device, decoder, format=format, chunk=context.option("chunk", 64), drafts=nodes
        )
        label = f"drafts of {nodes}" if nodes else "plain"
        for group in context.progress.track(groups, label):
            done.add(player.play(group))
    finally:
        device.close()
    return done
