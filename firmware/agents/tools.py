"""The tools that agents call: calculator, text search, look-up and a receipt book.

Each takes the text after the tool's name and returns a short result, or ``err`` and a reason: a
wrong call is the model's to read, never an exception of the program.
"""

import re
from collections.abc import Callable

from m890.firmware.agents.protocol import split_call
from m890.firmware.agents.world import World

LATENCY = {"calc": 1, "look": 4, "find": 8, "save": 6}
"""Simulated latency of each tool, in engine steps."""


class ToolError(ValueError):
    """A call that a tool refuses; its text is what the model gets to read."""


def _product(term: str) -> int:
    if not re.fullmatch(r"\d+(\*\d+)*", term):
        raise ToolError(f"bad term {term}"[:24])
    value = 1
    for factor in term.split("*"):
        value *= int(factor)
    return value


def _sum(expression: str) -> int:
    """Evaluate products joined by + and -; ``a+b%`` and ``a-b%`` work as on a pocket calculator."""
    if expression.startswith("-"):
        expression = f"0{expression}"
    parts = re.split(r"([-+])", expression)
    total = _product(parts[0])
    for sign, term in zip(parts[1::2], parts[2::2], strict=True):
        value = total * _product(term[:-1]) // 100 if term.endswith("%") else _product(term)
        total += value if sign == "+" else -value
    return total


def calculate(expression: str) -> str:
    """Integer arithmetic on + - * and per cent (rounded down); ``a>b`` answers yes or no."""
    left, greater, right = expression.partition(">")
    if greater:
        return "yes" if _sum(left) > _sum(right) else "no"
    total = _sum(left)
    if abs(total) > 99_999_999:
        raise ToolError("too large")
    return str(total)


class Toolbox:
    """The tools of one world, under the names that its system prompt gives them.

    A toolbox belongs to one agent: receipts count up from the world's first number for each.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._receipt = world.receipt
        self._tools = {name: tool for tool, name in world.names.items()}
        self._run: dict[str, Callable[[str], str]] = {
            "calc": calculate,
            "find": self.find,
            "look": self.look,
            "save": self.save,
        }

    def fork(self) -> "Toolbox":
        """An independent copy for a branch: what one branch saves, the others do not see."""
        copy = Toolbox(self._world)
        copy._receipt = self._receipt
        return copy

    def find(self, query: str) -> str:
        """Text search: the note that holds most words of the query, or ``none``."""
        words = set(query.split())
        best = max(self._world.notes, key=lambda note: len(words & set(note.split())), default="")
        return best if words & set(best.split()) else "none"

    def look(self, key: str) -> str:
        """Key-value look-up: the credit of a card, or ``none``."""
        value = self._world.credits.get(key)
        return "none" if value is None else str(value)

    def save(self, value: str) -> str:
        """Book a total and return the receipt's number, such as ``r58``."""
        if not re.fullmatch(r"-?\d+", value):
            raise ToolError("save needs a number")
        self._receipt += 1
        return f"r{self._receipt - 1}"

    def tool_of(self, call: str) -> str | None:
        """The tool (``calc``, ``find``, ``look``, ``save``) that a call names, None if unknown."""
        return self._tools.get(split_call(call)[0])

    def execute(self, call: str) -> str:
        """Run ``NAME ARGUMENT`` and return the result's text."""
        name, argument = split_call(call)
        tool = self._tools.get(name)
        if tool is None:
            return f"err no tool {name}"[:32]
        try:
            return self._run[tool](argument)
        except ToolError as error:
            return f"err {error}"
