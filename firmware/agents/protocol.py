"""The agent's text protocol: one line per message, the first character says who speaks.

A context is plain text, one token per character:

    #...        system prompt (several lines; shared by all agents of a batch)
    ?...        the user's request
    @...        the model's plan: the clauses of the request in the order in which it will do them
    ~...        the model's thought before a step: the running total, the clause in hand and
                what the system prompt says of it
    !NAME ARG   a tool call by the model
    =...        the tool's result
    $...        the model's answer; ends the task

The model writes the lines ``@ ~ ! $``; everything else is fed to it. Single-character tags keep
contexts short and need no special tokens.
"""

from dataclasses import dataclass

from m890.firmware.models.tokenizer import CharTokenizer

SYSTEM, REQUEST, PLAN, THINK, CALL, RESULT, ANSWER, END = "#?@~!=$\n"
OWN = PLAN + THINK + CALL + ANSWER
"""Tags of the lines that the model itself writes."""

CODES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Capital letters stand before numbers that have a name: prices, rates, fees, cards."""

ALPHABET = "\n #?@~!=$,;:.*+->%0123456789abcdefghijklmnopqrstuvwxyz" + CODES
"""Every character that a context may hold; its index is the token."""

TOKENIZER = CharTokenizer(ALPHABET)


@dataclass(frozen=True)
class Message:
    """One line of a context: its ``tag`` and the ``text`` between tag and newline."""

    tag: str
    text: str

    @property
    def own(self) -> bool:
        """Whether the model writes this line."""
        return self.tag in OWN

    def __str__(self) -> str:
        return f"{self.tag}{self.text}{END}"


def parse(text: str) -> list[Message]:
    """Split a transcript into messages; an unfinished last line counts as one."""
    return [Message(line[0], line[1:]) for line in text.split(END) if line]


def split_call(text: str) -> tuple[str, str]:
    """Split the text of a call into the tool's name and its argument (may be empty)."""
    name, _, argument = text.partition(" ")
    return name, argument
