"""Solve held-out tasks on any backend and compare what backends answer.

python -m m890.firmware.agents.evaluate --tasks 500
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from m890.firmware.agents.engine import Engine, Report
from m890.firmware.agents.session import Session
from m890.firmware.agents.tasks import Task, batch
from m890.firmware.agents.tools import Toolbox
from m890.firmware.models.backend import AttentionBackend
from m890.firmware.models.checkpoint import load_weights
from m890.firmware.models.llama import Decoder
from m890.firmware.models.reference import ReferenceBackend

WEIGHTS = Path(__file__).parent / "weights" / "agent.npz"
"""The committed weights of the agent."""


@dataclass(frozen=True)
class Outcome:
    """What one agent made of its task: ``answer`` is None where it failed with ``error``."""

    task: Task
    answer: str | None
    error: str | None
    calls: tuple[str, ...]
    text: str
    generated: int
    margin: float

    @property
    def solved(self) -> bool:
        """Whether the answer is right."""
        return self.answer == self.task.answer


def load_agent(path: Path = WEIGHTS) -> Decoder:
    """The decoder with the committed (or another) agent's weights."""
    config, weights, _ = load_weights(path)
    return Decoder(config, weights)


def sessions_of(
    group: Sequence[Task], branches: int = 1, temperature: float = 0.0, tenants: int = 0
) -> list[Session]:
    """One agent per task, named a0, a1, ...

    With `tenants` they are of tenants 1 to `tenants` in turn, else all of tenant 0.
    """
    return [
        Session(
            f"a{index}",
            task.request,
            Toolbox(task.world),
            branches=branches,
            temperature=temperature,
            seed=index,
            tenant=index % tenants + 1 if tenants else 0,
        )
        for index, task in enumerate(group)
    ]


def held_out(count: int, seed: int = 1, per_prompt: int = 25) -> list[list[Task]]:
    """``count`` held-out tasks in groups that share a system prompt."""
    groups: list[list[Task]] = []
    while (left := count - sum(map(len, groups))) > 0:
        groups.append(batch(seed * 100_003 + len(groups), min(per_prompt, left)))
    return groups


def solve_tasks(
    decoder: Decoder,
    backend: Callable[[], AttentionBackend],
    groups: Sequence[Sequence[Task]],
    *,
    chunk: int = 64,
    on_group: Callable[[list[Outcome], Report], None] | None = None,
) -> list[Outcome]:
    """Run every group of tasks (one shared prompt each) on a backend, in the order of the tasks."""
    outcomes: list[Outcome] = []
    for group in groups:
        sessions = sessions_of(group)
        report = Engine(decoder, backend(), chunk=chunk).run(group[0].world.prompt(), sessions)
        fresh = [
            Outcome(
                task=task,
                answer=session.answer,
                error=None if session.error is None else str(session.error),
                calls=tuple(session.calls),
                text=session.text,
                generated=session.generated,
                margin=session.margin,
            )
            for task, session in zip(group, sessions, strict=True)
        ]
        outcomes += fresh
        if on_group is not None:
            on_group(fresh, report)
    return outcomes


def accuracy(outcomes: Sequence[Outcome]) -> dict[str, tuple[int, int]]:
    """(solved, tasks) per family, for tasks with absent tool sequences, and in all."""
    table: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for outcome in sorted(outcomes, key=lambda o: o.task.family):
        for name in (outcome.task.family, *(["absent sequences"] if outcome.task.absent else [])):
            solved, total = table[name]
            table[name] = (solved + outcome.solved, total + 1)
    table["all"] = (sum(o.solved for o in outcomes), len(outcomes))
    return dict(table)


def agreement(left: Sequence[Outcome], right: Sequence[Outcome]) -> float:
    """The share of tasks on which two backends gave the same answer."""
    same = [a.answer == b.answer for a, b in zip(left, right, strict=True)]
    return sum(same) / len(same)


def main() -> None:
    """Command line: accuracy of the float reference."""
    parser = argparse.ArgumentParser(description="Solve held-out tasks on the float reference.")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--show", type=int, default=0, help="failed transcripts to print")
    options = parser.parse_args()
    decoder = load_agent(options.weights)
    begin = time.monotonic()
    groups = held_out(options.tasks, options.seed)
    outcomes = solve_tasks(decoder, lambda: ReferenceBackend(decoder.config), groups)
    for name, (solved, total) in accuracy(outcomes).items():
        print(f"{name:20} {solved:5} of {total:5}  {100 * solved / total:6.2f} %")
    margins = sorted(outcome.margin for outcome in outcomes)
    low, middle = margins[len(margins) // 100], margins[len(margins) // 2]
    print(
        f"smallest logit gap of a task: least {margins[0]:.3f}, 1 % {low:.3f}, median {middle:.2f}"
    )
    print(f"{time.monotonic() - begin:.1f} s")
    for outcome in [o for o in outcomes if not o.solved][: options.show]:
        print(f"\nexpected {outcome.task.answer}, error {outcome.error}\n{outcome.text}")


if __name__ == "__main__":
    main()
