# pyright: reportMissingImports=false
"""What the agent is trained on: copying drills, exercises and whole tasks, as padded batches."""

import random

import torch
from torch import Tensor

from m890.firmware.agents.protocol import END, PLAN, REQUEST, SYSTEM, THINK, TOKENIZER, Message
from m890.firmware.agents.tasks import MAX_CALLS, MIN_CALLS, Task, tasks
from m890.firmware.agents.world import code, make_world, random_names

Body = list[tuple[str, bool]]
"""What follows a prompt: pieces of text, and whether the model is to learn to write them."""

Group = tuple[str, list[Body]]
"""A shared prompt and the bodies that follow it, one per task."""


class Batch:
    """Worlds and tasks as padded index tensors.

    ``prompt`` [W, P] and ``task`` [W * K, T] hold tokens (0 where padded), ``offset`` [W * K] the
    prompt's length, ``target`` [W * K, T] the next token where the model writes it, else -1.
    """

    def __init__(self, groups: list[Group]) -> None:
        prompts = [TOKENIZER.encode(prompt) for prompt, _ in groups]
        rows: list[tuple[list[int], list[int]]] = []
        for body in (body for _, bodies in groups for body in bodies):
            tokens: list[int] = []
            own: list[bool] = []
            for text, learn in body:
                tokens += TOKENIZER.encode(text)
                own += [learn] * len(text)
            # a tag opens the model's line: predicting it is the model's decision too
            rows.append(
                (tokens[:-1], [t if o else -1 for t, o in zip(tokens[1:], own[1:], strict=True)])
            )
        self.per_world = len(groups[0][1])
        self.prompt = _pad(prompts, 0)
        self.task = _pad([row[0] for row in rows], 0)
        self.target = _pad([row[1] for row in rows], -1)
        self.prompt_length = torch.tensor([len(p) for p in prompts])
        self.task_length = torch.tensor([len(row[0]) for row in rows])


def _pad(rows: list[list[int]], fill: int) -> Tensor:
    out = torch.full((len(rows), max(map(len, rows))), fill)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return out


def drills(rng: random.Random, worlds: int, per_world: int) -> Batch:
    """Copying exercises: a list of names and numbers to repeat in order, or to recall shuffled.

    A network that starts on tasks takes ten times longer to discover that text can be copied.
    """
    groups: list[Group] = []
    for _ in range(worlds):
        count = rng.randint(2, 6)
        pairs = [f"{name} {rng.randint(2, 99)}" for name in random_names(rng, count)]
        prompt = str(Message(SYSTEM, ",".join(pairs)))
        bodies: list[Body] = []
        for _ in range(per_world):
            lines: Body = [(str(Message(REQUEST, "")), False)]
            for _ in range(2):
                if rng.random() < 0.5:
                    rng.shuffle(pairs)
                lines.append((str(Message(PLAN, ",".join(pairs))), True))
            bodies.append(lines)
        groups.append((prompt, bodies))
    return Batch(groups)


def draw(rng: random.Random, worlds: int, per_world: int, max_calls: int) -> Batch:
    """Fresh training tasks: ``worlds`` prompts with ``per_world`` tasks each."""
    groups: list[Group] = []
    for _ in range(worlds):
        world = make_world(rng, held=False, items=rng.randint(4, 10))
        stream = tasks(rng.getrandbits(48), held=False, world=world, max_calls=max_calls)
        chosen = [next(stream) for _ in range(per_world)]
        groups.append((world.prompt(), [_body(task, len(task.transcript)) for task in chosen]))
    return Batch(groups)


def _body(task: Task, messages: int) -> Body:
    """A request and the first ``messages`` messages of its solution."""
    lines = (Message(REQUEST, task.request), *task.transcript[:messages])
    return [(str(line), line.own) for line in lines]


def exercises(rng: random.Random, worlds: int, per_world: int) -> Batch:
    """What is rare in whole tasks, many times over: recalling prices, and ordering plans.

    Half the bodies name every item of the price list and learn only its price, the others are a
    request with its plan. Ten times as many of both per token as whole tasks have.
    """
    groups: list[Group] = []
    for _ in range(worlds):
        world = make_world(rng, held=False, items=rng.randint(6, 10))
        stream = tasks(rng.getrandbits(48), held=False, world=world)
        bodies: list[Body] = []
        for index in range(per_world):
            body = _body(next(stream), 1)
            if index % 2 == 0:
                body = body[:1]
                for item in rng.sample(list(world.prices), len(world.prices)):
                    total = rng.randint(20, 2000)
                    body.append((f"{THINK}{total} {rng.randint(2, 9)} {item} ", False))
                    body.append((f"{code(item)}{world.prices[item]}{END}", True))
            bodies.append(body)
        groups.append((world.prompt(), bodies))
    return Batch(groups)


class Curriculum:
    """Copying drills, then tasks of three calls, then all tasks; exercises between the tasks.

    A phase ends when the share of wrong tokens over its last 50 steps falls below its bound.
    """

    PHASES = ("drills", "short", "all")
    CALLS = (0, MIN_CALLS, MAX_CALLS)
    BOUNDS = (0.2, 0.04, 0.0)

    def __init__(self, seed: int) -> None:
        self.phase = 0
        self._rng = random.Random(seed)
        self._wrong: list[float] = []
        self._step = 0

    def next(self) -> Batch:
        """The batch of the next step."""
        if self.phase == 0:
            return drills(self._rng, 3, 2)
        self._step += 1
        if self._step % 3 == 0:
            return exercises(self._rng, 3, 4)
        return draw(self._rng, 3, 4, self.CALLS[self.phase])

    def note(self, wrong: float) -> None:
        """Take the share of wrong tokens of the last step."""
        self._wrong.append(wrong)
        recent = self._wrong[-50:]
        if len(recent) == 50 and sum(recent) / 50 < self.BOUNDS[self.phase]:
            self.phase += 1
            self._wrong.clear()
