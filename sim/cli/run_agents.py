"""`m890 run` for agents: live progress, the table of results, timeline and waves."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from m890.firmware.agents.engine import Event
from m890.firmware.agents.evaluate import load_agent
from m890.firmware.agents.session import State
from m890.firmware.agents.tasks import batch
from m890.firmware.backend import Usage
from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import Format
from m890.sim import play
from m890.sim.cli import output
from m890.sim.devices import open_cores
from m890.sim.report import timeline

WAVES_AFTER = 40
"""Engine step after which waves begin: agents decode, several at once."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    agents: int
    device: str
    memory: str
    cores: int
    core: CoreConfig
    format: Format
    rotate: bool | None
    seed: int
    chunk: int
    branches: int
    temperature: float
    drafts: bool
    tags: bool
    flips: int
    tenants: int
    pages: int
    host_pages: int
    show: bool
    out: Path | None
    waves: int


def run_agents(options: Options) -> int:
    """Plays the agents; 0 even where an answer is wrong: the table says so."""
    console = output.stderr()
    decoder = load_agent()
    group = batch(options.seed, options.agents)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    sequences = options.agents * options.branches
    size = play.needed_memory(
        options.core, decoder.config, options.format, sequences, tags=options.tags,
        host_pages=options.host_pages, cores=options.cores,
    )  # fmt: skip
    pools = play.pools_of(
        options.core, len(group[0].world.prompt()), options.agents, options.tenants,
        options.pages or play.pool_pages(options.core, decoder.config, sequences),
        options.host_pages,
    )  # fmt: skip
    device = open_cores(
        options.device, options.core, size, options.cores, seed=options.seed,
        waves=bool(options.waves), memory=options.memory, say=lambda text: console.print(text),
    )  # fmt: skip
    ready = time.monotonic()
    board = _Board(options.agents)
    recorder = _Recorder(device, options) if options.waves else None

    def on_step(event: Event, now: int) -> None:
        board.update(event, now)
        if recorder is not None:
            recorder.step(event.step, now)

    live: AbstractContextManager[Any] = nullcontext()
    if console.is_terminal:
        live = Live(board, console=console, refresh_per_second=8, transient=True)
    with live:
        player = play.Player(
            device, decoder, format=options.format, rotate=options.rotate, chunk=options.chunk,
            drafts=play.draft_nodes(options.core, decoder.config) if options.drafts else 0,
            tags=options.tags, flips=options.flips, log=200_000 if options.waves else 0,
            on_step=on_step, pools=pools,
        )  # fmt: skip
        played = player.play(
            group, branches=options.branches, temperature=options.temperature,
            tenants=options.tenants,
        )  # fmt: skip
    seconds = time.monotonic() - ready
    out = output.console()
    if options.show:
        for agent in played.agents:
            out.print(f"[bold]{agent.name}[/bold]", highlight=False)
            print(agent.session.text)
    out.print(_results(played))
    out.print(_totals(played, options, seconds, ready - begin))
    if options.out is not None:
        _pictures(options.out, played, options)
    if recorder is not None:
        recorder.finish(player, out)
    device.close()
    return 0


class _Board:
    """The live table: one line per agent, its state, tokens and latest words."""

    def __init__(self, agents: int) -> None:
        self._rows: dict[str, tuple[State, int, str]] = {}
        self._now = self._step = 0

    def update(self, event: Event, now: int) -> None:
        _, tokens, text = self._rows.get(event.agent, (event.state, 0, ""))
        text = (text + event.text)[-400:]
        self._rows[event.agent] = (event.state, tokens + event.tokens, text)
        self._now, self._step = now, event.step

    def __rich__(self) -> Table:
        table = Table(box=None, pad_edge=False, title=None)
        for name in ("agent", "state", "tokens", "latest line"):
            table.add_column(name, justify="right" if name == "tokens" else "left", no_wrap=True)
        for name, (state, tokens, text) in self._rows.items():
            line = text.rstrip("\n").rpartition("\n")[2]
            table.add_row(name, state.value, str(tokens), line)
        table.caption = f"step {self._step}, cycle {self._now:,}"
        return table


class _Recorder:
    """Records a window of waves once agents are decoding."""

    def __init__(self, device: Any, options: Options) -> None:
        assert options.out is not None
        self._device, self._cycles = device, options.waves
        self.path = options.out / "waves.fst"
        self._start = self._end = 0

    def step(self, step: int, now: int) -> None:
        if not self._start and step >= WAVES_AFTER:
            self._start = self._device.cycle + 1
            self._end = self._start + self._cycles
            self._device.start_waves(self.path, self._start, self._end)

    def finish(self, player: play.Player, out: Any) -> None:
        from m890.sim.rtl import gtkw

        self._device.stop_waves()
        if not self._start:
            out.print("no waves: the run ended before agents decoded")
            return
        offset = self._device.counter_offset()
        markers = [
            (f"{entry.name} {entry.tag}", entry.start + offset)
            for entry in player.drivers[0].log
            if entry.name in ("APPEND", "ATTEND")
            and self._start <= entry.start + offset < self._end
        ]
        save = gtkw.write(self._device.design, self.path, markers, self._start)
        out.print(f"waves of cycles {self._start:,} to {self._end:,}: gtkwave {save}")


def _results(played: play.Played) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = (
        "agent", "answer", "right", "calls", "tokens", "cycles", "KV read", "saved", "cyc/token"
    )  # fmt: skip
    for name in columns:
        left = name in ("agent", "answer", "right")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for agent in played.agents:
        session = agent.session
        answer = session.answer if session.answer is not None else f"({session.error})"
        table.add_row(
            agent.name, answer, "yes" if agent.solved else "no", str(len(session.calls)),
            *_cost(agent.usage),
        )  # fmt: skip
    table.add_row("prompt", "", "", "", *_cost(played.prompt))
    right = sum(agent.solved for agent in played.agents)
    table.add_row(
        "[bold]all", "", f"{right} of {len(played.agents)}",
        str(sum(len(a.session.calls) for a in played.agents)), *_cost(played.total),
    )  # fmt: skip
    return table


def _cost(usage: Usage) -> tuple[str, ...]:
    return (
        f"{usage.tokens:,}",
        f"{usage.cycles / 1e3:,.0f} k",
        f"{usage.kv_bytes / 1e6:.1f} MB",
        f"{usage.saved / 1e6:.1f} MB",
        f"{usage.cycles_per_token:,.0f}",
    )


def _totals(played: play.Played, options: Options, seconds: float, setup: float) -> str:
    total, report = played.total, played.report
    drafted = ""
    if options.drafts:
        drafted = (
            f"\n{report.tokens_per_step:.2f} tokens per step and agent,"
            f" {report.drafted:,} nodes of drafts verified"
        )
    moved = f"\n{played.moved:,} pages moved to the host pool" if played.moved else ""
    damage = ""
    if played.flips or total.repaired:
        damage = f"\n{played.flips:,} bits flipped, {total.repaired:,} damaged tokens repaired"
    return (
        f"{len(played.agents)} agents on one prompt of {report.prompt} tokens,"
        f" {report.generated:,} tokens generated in {report.steps:,} steps;"
        f" sharing saved {total.saved / (total.kv_bytes_alone or 1):.0%} of the KV reads\n"
        f"{output.utilisation(played.utilisation)}, {total.jobs:,} jobs;"
        f" {options.device} device, {options.core.name}, {options.format.name} KV,"
        f" {seconds:.1f} s (device ready after {setup:.1f} s){drafted}{moved}{damage}"
    )


def _pictures(folder: Path, played: play.Played, options: Options) -> None:
    title = f"{len(played.agents)} agents, {options.core.name}, {options.format.name} KV"
    picture, trace = folder / "timeline.png", folder / "timeline.json"
    timeline.draw(played.events, picture, title=title)
    timeline.perfetto(played.events, trace)
    output.console().print(f"timeline: {picture} and {trace} (open in ui.perfetto.dev)")
