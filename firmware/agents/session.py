"""One agent as a state machine that any scheduler can drive.

A session says which tokens it next wants to feed (``pending``), takes sampled tokens (``accept``)
and wakes when its tool's result is due (``wake``). It knows nothing of models or KV caches::

    PREFILL --accept--> THINK --call--> TOOL --wake--> RESUME --accept--> THINK --answer--> DONE
        \\--fork--> JOIN (until all branches have ended) --vote--> DONE

``FAILED`` is the other end: ``error`` then holds a named exception, and other agents go on.
"""

from collections import Counter
from collections.abc import Sequence
from enum import Enum

import numpy as np

from m890.firmware.agents.protocol import (
    ANSWER,
    CALL,
    END,
    OWN,
    REQUEST,
    RESULT,
    TOKENIZER,
    Message,
)
from m890.firmware.agents.tools import LATENCY, Toolbox
from m890.firmware.models.backend import Floats


class AgentError(RuntimeError):
    """Why an agent ended without an answer."""


class RunawayError(AgentError):
    """The model wrote more tokens than a task may take."""


class ProtocolError(AgentError):
    """The model wrote a line that is not its to write."""


class NoAnswerError(AgentError):
    """Every branch of a forked agent failed."""


class State(Enum):
    """What an agent is doing."""

    PREFILL = "prefill"
    THINK = "think"
    TOOL = "tool"
    RESUME = "resume"
    JOIN = "join"
    DONE = "done"
    FAILED = "failed"


class Session:
    """An agent at work on one request.

    ``branches`` above 1 forks the agent after its request: branch 0 is greedy, the others sample at
    ``temperature``, and the answers are put to the vote. Its KV is ``tenant``'s. ``text`` is the
    transcript so far, ``calls`` lists the tools called, ``generated`` counts the model's own
    tokens, ``margin`` is the smallest gap between the best two logits so far.
    """

    def __init__(
        self,
        name: str,
        request: str,
        toolbox: Toolbox,
        *,
        branches: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int = 512,
        tenant: int = 0,
    ) -> None:
        if branches < 1:
            raise ValueError(f"an agent needs at least one branch, got {branches}")
        self.name = name
        self.branches, self.tenant = branches, tenant
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.state = State.PREFILL
        self.text = str(Message(REQUEST, request))
        self.calls: list[str] = []
        self.generated = 0
        self.margin = float("inf")
        self.answer: str | None = None
        self.error: Exception | None = None
        self.children: list[Session] = []
        self._request = request
        self._toolbox = toolbox
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._pending = TOKENIZER.encode(self.text)
        self._line = ""
        self._result = ""
        self._ready = 0

    @property
    def finished(self) -> bool:
        """Whether the agent has ended, well or badly."""
        return self.state in (State.DONE, State.FAILED)

    @property
    def pending(self) -> Sequence[int]:
        """Tokens to feed next; empty while the agent waits, joins or has ended."""
        active = self.state in (State.PREFILL, State.THINK, State.RESUME)
        return self._pending if active else ()

    @property
    def ready(self) -> int | None:
        """The step at which a waiting agent's result is due, else None."""
        return self._ready if self.state is State.TOOL else None

    @property
    def forks_now(self) -> bool:
        """Whether only the request's last token is left, where a branching agent forks."""
        return self.branches > 1 and self.state is State.PREFILL and len(self._pending) == 1

    def fed(self, count: int) -> bool:
        """Note that ``count`` pending tokens were fed; True if a token is to be sampled now."""
        del self._pending[:count]
        return not self._pending

    def sample(self, logits: Floats) -> int:
        """Choose the next token from logits [vocabulary]: the best, or by temperature."""
        second, first = np.partition(logits, -2)[-2:]
        self.margin = min(self.margin, float(first - second))
        if self.temperature <= 0.0:
            return int(np.argmax(logits))
        scaled = (logits - logits.max()) / self.temperature
        weight = np.exp(scaled.astype(np.float64))
        return int(self._random.choice(len(logits), p=weight / weight.sum()))

    def accept(self, token: int, now: int) -> None:
        """Take the token sampled in step ``now``."""
        character = TOKENIZER.decode([token])
        self.state = State.THINK
        self._pending.append(token)
        self.text += character
        self.generated += 1
        self._line += character
        if self._line[0] not in OWN:
            self.fail(
                ProtocolError(f"agent {self.name} wrote a line that starts with {character!r}")
            )
        elif character == END:
            line, self._line = self._line[:-1], ""
            self._finish_line(line[0], line[1:], now)
        elif self.generated >= self.max_tokens:
            self.fail(
                RunawayError(f"agent {self.name} wrote {self.generated} tokens and no answer")
            )

    def _finish_line(self, tag: str, text: str, now: int) -> None:
        if tag == CALL:
            tool = self._toolbox.tool_of(text)
            self._result = self._toolbox.execute(text)
            self.calls.append(tool or "unknown")
            self._ready = now + LATENCY.get(tool or "", 1)
            self.state = State.TOOL
        elif tag == ANSWER:
            self.answer = text
            self._pending = []
            self.state = State.DONE

    def wake(self, now: int) -> bool:
        """Resume if the tool's result is due: the result is then pending. True if it was."""
        if self.state is not State.TOOL or now < self._ready:
            return False
        message = str(Message(RESULT, self._result))
        self._pending += TOKENIZER.encode(message)
        self.text += message
        self.state = State.RESUME
        return True

    def fail(self, error: Exception) -> None:
        """End the agent with an error."""
        self.error = error
        self._pending = []
        self.state = State.FAILED

    def fork(self) -> list["Session"]:
        """Split into branches, each with the request's last token pending; this agent joins."""
        if not self.forks_now:
            raise ValueError(f"agent {self.name} is not at its fork")
        for branch in range(self.branches):
            child = Session(
                f"{self.name}.{branch}",
                self._request,
                self._toolbox.fork(),
                temperature=self.temperature if branch else 0.0,
                seed=self._seed * 1000 + branch,
                max_tokens=self.max_tokens,
                tenant=self.tenant,
            )
            child._pending = list(self._pending)
            self.children.append(child)
        self._pending = []
        self.state = State.JOIN
        return self.children

    def join(self) -> bool:
        """Vote once every branch has ended: the most frequent answer, the earliest of equals."""
        if self.state is not State.JOIN or not all(child.finished for child in self.children):
            return False
        votes = Counter(child.answer for child in self.children if child.answer is not None)
        if not votes:
            self.fail(NoAnswerError(f"all {self.branches} branches of agent {self.name} failed"))
            return True
        self.answer = votes.most_common(1)[0][0]
        winner = next(child for child in self.children if child.answer == self.answer)
        self.text, self.calls, self.margin = winner.text, winner.calls, winner.margin
        self.generated = sum(child.generated for child in self.children)
        self.state = State.DONE
        return True
