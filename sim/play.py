"""Agents, or a plain language model, on a device: what `m890 run` and the benches share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from m890.firmware.agents.engine import Engine, Report
from m890.firmware.agents.engine import Event as AgentEvent
from m890.firmware.agents.evaluate import sessions_of
from m890.firmware.agents.session import Session, State
from m890.firmware.agents.tasks import Task
from m890.firmware.backend import DeviceBackend, Usage
from m890.firmware.cluster import Cluster, ClusterBackend, divide, drivers
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.memory_map import PlaneShape, memory_bytes, round_up
from m890.firmware.models import draft
from m890.firmware.models.backend import AttentionBackend
from m890.firmware.models.llama import Config, Decoder
from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import Format
from m890.sim.faults import Flips
from m890.sim.report.timeline import Event

SCRATCH = 16 << 20


@dataclass(frozen=True)
class Pools:
    """Pages of the device's pool (None: all that fit) and of the host's, and tenants' quotas."""

    pages: int | None = None
    host_pages: int = 0
    quotas: Mapping[int, int] | None = None


def pools_of(
    core: CoreConfig, prompt: int, agents: int, tenants: int, pages: int, host_pages: int
) -> Pools:
    """A pool divided between the prompt's tenant 0, with `prompt` tokens, and those of `agents`.

    Without `tenants` the agents are of tenant 0, too; else of 1 to `tenants` in turn.
    """
    if not tenants:
        return Pools(pages, host_pages)
    quotas = {0: -(-prompt // core.page_tokens)}
    rest = pages - quotas[0]
    for tenant in range(1, tenants + 1):
        own = len(range(tenant - 1, agents, tenants))
        quotas[tenant] = max(0, rest * own // agents)
    return Pools(pages, host_pages, quotas)


def pool_pages(core: CoreConfig, model: Config, agents: int) -> int:
    """Pages for so many agents with full contexts, and their prompt."""
    return min(-(-model.limit // core.page_tokens) * (agents + 1), core.pages)


def needed_memory(
    core: CoreConfig,
    model: Config,
    format: Format,
    agents: int,
    *,
    tags: bool = False,
    host_pages: int = 0,
    cores: int = 1,
) -> int:
    """Bytes of memory for so many agents with full contexts, and for a host pool, of each core."""
    head = round_up(model.head_dim, core.lanes)
    _, most = divide(model.heads, model.kv_heads, cores)[0].counts
    shape = PlaneShape(model.layers * most, format, head, tags=tags)
    pool = memory_bytes(core, shape, pages=pool_pages(core, model, agents), scratch=SCRATCH)
    return pool + round_up(host_pages * shape.planes * shape.stride(core), 1 << 20)


def backend_of(
    drivers: Sequence[Driver],
    decoder: Decoder,
    format: Format,
    rotate: bool | None = None,
    *,
    tags: bool = False,
    pools: Pools | None = None,
) -> DeviceBackend | ClusterBackend:
    """The decoder's attention on one core or several; with `tags` damaged tokens are repaired."""
    model, pools = decoder.config, pools or Pools()
    options: dict[str, Any] = {
        "layers": model.layers, "heads": model.heads, "kv_heads": model.kv_heads,
        "head_size": model.head_dim, "format": format, "rotate": rotate, "tags": tags,
        "pages": pools.pages, "quotas": pools.quotas, "host_pages": pools.host_pages,
        "recompute": decoder.recompute,
    }  # fmt: skip
    if len(drivers) == 1:
        return DeviceBackend(drivers[0], **options)
    return ClusterBackend(drivers, **options)


def draft_nodes(core: CoreConfig, model: Config) -> int:
    """Nodes of a draft that fill the rows of a job beside the last known token; 1 at least."""
    beside = core.rows // (model.heads // model.kv_heads) - 1
    return max(1, min(beside, draft.MOST_NODES))


@dataclass
class AgentResult:
    """One agent at its end; branches count into their agent."""

    name: str
    task: Task
    session: Session
    usage: Usage

    @property
    def solved(self) -> bool:
        return self.session.answer == self.task.answer


@dataclass
class Played:
    """A run: agents in order, totals, those of each core, the timeline in device cycles.

    `flips` of bits, and pages `moved` to the host pool.
    """

    agents: list[AgentResult]
    report: Report
    prompt: Usage
    total: Usage
    cores: list[Usage]
    flips: int = 0
    moved: int = 0
    events: list[Event] = field(default_factory=list)

    @property
    def utilisation(self) -> list[float]:
        """Array beats of each core per cycle in which any of them is at work."""
        return [core.beats / (self.total.cycles or 1) for core in self.cores]


class Player:
    """Plays groups of tasks with one decoder, on a device or a cluster.

    `drafts`: most nodes of a draft, none where 0. `tags`: damaged tokens are repaired; `flips` bits
    of them flip before each step, for a trial. `on_step` is called after every agent event with the
    event and the device's cycle.
    """

    def __init__(
        self,
        device: Device | Cluster,
        decoder: Decoder,
        *,
        format: Format = Format.FP16,
        rotate: bool | None = None,
        chunk: int = 64,
        drafts: int = 0,
        tags: bool = False,
        flips: int = 0,
        pools: Pools | None = None,
        log: int = 0,
        on_step: Callable[[AgentEvent, int], None] | None = None,
    ) -> None:
        self.decoder, self.chunk, self.drafts = decoder, chunk, drafts
        self.drivers = drivers(device, scratch_bytes=SCRATCH, log=log)
        self.backend = backend_of(self.drivers, decoder, format, rotate, tags=tags, pools=pools)
        self._flips = Flips(self.backend.cores, flips, seed=0)
        self._on_step = on_step

    def play(
        self,
        group: Sequence[Task],
        *,
        branches: int = 1,
        temperature: float = 0.0,
        tenants: int = 0,
    ) -> Played:
        """Runs one group of tasks, which share a system prompt, to its end."""
        backend, cores = self.backend, self.backend.cores
        before = [Usage(**vars(b.total)) for b in (backend, *cores)]
        flipped, step = self._flips.count, -1
        host = cores[0].cache.host  # a page that moves does so on all cores
        moved = host.moved
        sessions = sessions_of(group, branches, temperature, tenants)
        timeline = _Timeline(backend.now)
        usages: dict[str, dict[int, Usage]] = {}

        def on_event(event: AgentEvent) -> None:
            nonlocal step
            if event.step != step:
                self._flips.strike()
                step = event.step
            if event.sequence >= 0:
                usage = backend.usage(event.sequence)
                usages.setdefault(event.agent, {})[id(usage)] = usage
            timeline.add(event, backend.now)
            if self._on_step is not None:
                self._on_step(event, backend.now)

        engine = Engine(
            self.decoder, backend, chunk=self.chunk, drafts=self.drafts, on_event=on_event
        )
        report = engine.run(group[0].world.prompt(), sessions)
        total, *each = (
            b.total.since(then) for b, then in zip((backend, *cores), before, strict=True)
        )

        def spent(name: str) -> Usage:
            sum_ = Usage()
            for agent, parts in usages.items():
                if agent == name or agent.startswith(f"{name}."):
                    for usage in parts.values():
                        sum_.add(usage)
            return sum_

        agents = [
            AgentResult(session.name, task, session, spent(session.name))
            for session, task in zip(sessions, group, strict=True)
        ]
        return Played(
            agents, report, spent("prompt"), total, each, self._flips.count - flipped,
            host.moved - moved, timeline.finish(),
        )  # fmt: skip


class _Timeline:
    """Merges engine steps into bars: prefill, decode, tool wait; one track per agent."""

    def __init__(self, now: int) -> None:
        self._events: list[Event] = []
        self._step, self._begin, self._now = -1, now, now
        self._open: dict[str, Event] = {}
        self._waits: dict[str, int] = {}

    def add(self, event: AgentEvent, now: int) -> None:
        if event.step != self._step:
            self._step, self._begin = event.step, self._now
        self._now = now
        name = event.agent
        if name in self._waits and event.state is not State.TOOL:
            start = self._waits.pop(name)
            self._put(Event("tool", name, start, max(self._begin, start), "tool wait"))
        if event.tokens:
            kind = "decode" if event.tokens == 1 or event.drafted else "prefill"
            self._bar(name, kind, event)
        if event.state is State.TOOL:
            self._waits.setdefault(name, now)

    def _bar(self, name: str, kind: str, event: AgentEvent) -> None:
        last = self._open.get(name)
        if last is not None and last.kind == kind and last.end >= self._begin:
            tokens = last.details["tokens"] + event.tokens
            start = last.start
        else:
            if last is not None:
                self._put(last)
            tokens, start = event.tokens, self._begin
        self._open[name] = Event(
            f"{kind} {tokens}", name, start, self._now, kind, {"tokens": tokens}
        )

    def _put(self, event: Event) -> None:
        if event.end > event.start:
            self._events.append(event)

    def finish(self) -> list[Event]:
        for event in self._open.values():
            self._put(event)
        return sorted(self._events, key=lambda e: (e.track != "prompt", e.track, e.start))


def generate(
    decoder: Decoder,
    backend: AttentionBackend,
    prompt: Sequence[int],
    tokens: int,
    *,
    stop: int = 1,
    drafts: int = 0,
) -> Iterator[list[int]]:
    """Greedy text of a plain model: what each step adds to `prompt`, until `tokens` or `stop`.

    `drafts`: most nodes of a draft; without one a step adds one token.
    """
    for added in draft.generate(decoder, backend, prompt, tokens, nodes=drafts):
        if stop in added:
            yield added[: added.index(stop)]
            return
        yield added
