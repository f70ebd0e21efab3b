"""Seeded tasks: a request, the tool calls that solve it, and the right answer.

A request names one to four items and some clauses (deal, tax, ship TOWN, card CLIENT, book) in any
order and in two wordings each. The system prompt dictates the order of work, so the agent first
plans (writes the clauses in that order), then does one clause after the other:

    N ITEM        total + N * price; the price stands in the system prompt
    deal          ask whether the total is over the threshold; if so take the per cents off
    tax           add the per cents
    ship TOWN     search the notes for the town, add its fee
    card CLIENT   search for the client's card, look up its credit, subtract it (``none``: nothing)
    book          save the total, give the receipt in the answer

Held out of training: every name and drawn value (see ``world``), every template whose hash says so,
and every task whose tool sequence is reserved.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from m890.firmware.agents.protocol import ANSWER, CALL, PLAN, RESULT, THINK, Message
from m890.firmware.agents.tools import Toolbox
from m890.firmware.agents.world import CLAUSES, CUT, OVER, TAX, World, code, make_world

OPENERS = ("buy", "get", "want", "need")
WORDINGS: dict[str, tuple[str, str]] = {
    "deal": ("deal", "with deal"),
    "tax": ("tax", "add tax"),
    "ship": ("ship to {}", "send to {}"),
    "card": ("card of {}", "use card of {}"),
    "book": ("book it", "then book"),
}
MIN_CALLS, MAX_CALLS = 3, 8


@dataclass(frozen=True)
class Clause:
    """One part of a request: ``kind`` is ``item`` or a key of ``WORDINGS``."""

    kind: str
    argument: str = ""
    count: int = 0

    def __str__(self) -> str:
        """The canonical text, as plans and thoughts write it."""
        if self.kind == "item":
            return f"{self.count} {self.argument}"
        return f"{self.kind} {self.argument}".rstrip()


@dataclass(frozen=True)
class Task:
    """A request in a world, with its solution.

    ``transcript``: the messages that follow the request, plan to answer. ``sequence``: the tools
    in the order of their calls. ``template``: the request's shape without names and values.
    """

    world: World
    request: str
    answer: str
    transcript: tuple[Message, ...]
    sequence: tuple[str, ...]
    template: str
    family: str

    @property
    def absent(self) -> bool:
        """Whether the tool sequence occurs in no training task."""
        return reserved_sequence(self.sequence)


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def reserved_sequence(sequence: tuple[str, ...]) -> bool:
    """Whether a list of tools is kept out of training: one in five of those of four calls or more.

    Lists of calculations only are trained: they differ in nothing but their length.
    """
    return len(sequence) >= 4 and len(set(sequence)) > 1 and _hash(" ".join(sequence)) % 5 == 0


def reserved_template(template: str) -> bool:
    """Whether a template is kept out of training: one in four, of those with any clause."""
    return len(template.split()) > 2 and _hash(template) % 4 == 0


def plan(world: World, clauses: list[Clause]) -> list[Clause]:
    """Order clauses as the system prompt dictates: items as named, rules by rank, booking last."""
    rank = {"item": -1, "book": len(CLAUSES)} | {kind: i for i, kind in enumerate(world.order)}
    return sorted(clauses, key=lambda clause: rank[clause.kind])


def recall(world: World, clause: Clause) -> str:
    """A clause with what the system prompt says of it: a price, a rate or a threshold."""
    if clause.kind == "item":
        return f"{clause} {code(clause.argument)}{world.prices[clause.argument]}"
    if clause.kind == "tax":
        return f"{clause} {TAX}{world.tax}"
    if clause.kind == "deal":
        cut, over = world.deal
        return f"{clause} {CUT}{cut} over {OVER}{over}"
    return str(clause)


def solve(world: World, clauses: list[Clause]) -> tuple[list[Message], list[str], int]:
    """Work through a request with the real tools: the transcript, the tools called, the total."""
    box = Toolbox(world)
    out: list[Message] = []
    tools: list[str] = []
    total, receipt = 0, ""

    def call(tool: str, argument: str) -> str:
        text = f"{world.names[tool]} {argument}"
        result = box.execute(text)
        out.extend((Message(CALL, text), Message(RESULT, result)))
        tools.append(tool)
        return result

    ordered = plan(world, clauses)
    out.append(Message(PLAN, ",".join(map(str, ordered))))
    for index, clause in enumerate(ordered):
        recalled = recall(world, clause)
        out.append(Message(THINK, f"{total} {recalled}" if index else recalled))
        if clause.kind == "item":
            product = f"{clause.count}*{world.prices[clause.argument]}"
            total = int(call("calc", f"{total}+{product}" if index else product))
        elif clause.kind == "deal":
            cut, over = world.deal
            if call("calc", f"{total}>{over}") == "yes":
                total = int(call("calc", f"{total}-{cut}%"))
        elif clause.kind == "tax":
            total = int(call("calc", f"{total}+{world.tax}%"))
        elif clause.kind == "ship":
            call("find", clause.argument)
            total = int(call("calc", f"{total}+{world.towns[clause.argument]}"))
        elif clause.kind == "card":
            call("find", clause.argument)
            credit = call("look", world.cards[clause.argument])
            if credit != "none":
                total = int(call("calc", f"{total}-{credit}"))
        else:
            receipt = call("save", str(total))
    out.append(Message(ANSWER, f"{total} {receipt}".rstrip()))
    return out, tools, total


def _draw(rng: random.Random, world: World, max_calls: int) -> Task | None:
    """Draw one task; None where it has too few or too many calls or a negative total."""
    items = rng.choice((1, 2, 2, 3, 3, 4))
    kinds = [kind for kind in CLAUSES if rng.random() < 0.5]
    if rng.random() < 0.4:
        kinds.append("book")
    rng.shuffle(kinds)
    clauses = [
        Clause("item", name, rng.randint(2, 9)) for name in rng.sample(list(world.prices), items)
    ]
    wording = [rng.randrange(2) for _ in kinds]
    opener = rng.choice(OPENERS)
    words = []
    for kind, variant in zip(kinds, wording, strict=True):
        people = {"ship": world.towns, "card": world.cards}.get(kind)
        argument = rng.choice(list(people)) if people else ""
        clauses.append(Clause(kind, argument))
        words.append(WORDINGS[kind][variant].format(argument))
    transcript, tools, total = solve(world, clauses)
    negative = any(m.tag == RESULT and m.text.startswith("-") for m in transcript)
    if not MIN_CALLS <= len(tools) <= max_calls or negative or total <= 0:
        return None
    goods = " ".join(map(str, clauses[:items]))
    order = "".join(kind[0] for kind in world.order if kind in kinds)
    shape = " ".join(f"{kind}{variant}" for kind, variant in zip(kinds, wording, strict=True))
    base = "-".join(k for k in ("ship", "card") if k in kinds) or "quote"
    return Task(
        world=world,
        request="; ".join([f"{opener} {goods}", *words]),
        answer=transcript[-1].text,
        transcript=tuple(transcript),
        sequence=tuple(tools),
        template=f"{opener} {items} {shape} {order}",
        family=base + ("-book" if "book" in kinds else ""),
    )


def tasks(
    seed: int, *, held: bool, world: World | None = None, max_calls: int = MAX_CALLS
) -> Iterator[Task]:
    """An endless stream of tasks in one world (drawn from the seed where none is given).

    ``held=False`` yields training tasks only; ``held=True`` yields tasks whose template or tool
    sequence (and, in a held-out world, names and values) training never sees.
    """
    rng = random.Random(f"tasks {seed} {held}")
    place = world if world is not None else make_world(rng, held)
    while True:
        task = _draw(rng, place, max_calls)
        if task is None:
            continue
        if (reserved_template(task.template) or task.absent) == held:
            yield task


def batch(seed: int, count: int, *, held: bool = True) -> list[Task]:
    """``count`` tasks that share one world and so one system prompt."""
    stream = tasks(seed, held=held)
    return [next(stream) for _ in range(count)]
