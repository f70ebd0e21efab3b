"""Short sessions on a device, for waves and for measuring the simulators' speed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from m890.firmware.backend import DeviceBackend, Draft
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.log import LogEntry
from m890.firmware.models.backend import Span
from m890.hdl.numerics.formats import Format


@dataclass(frozen=True)
class Scale:
    """Sizes of a session: tokens of context, steps after it, agents beside each other."""

    context: int = 48
    steps: int = 2
    agents: int = 4


class Session:
    """One layer of a decoder with random numbers in place of a model's; the same for one seed."""

    def __init__(self, device: Device, format: Format, seed: int, scale: Scale) -> None:
        config = device.config
        self.scale = scale
        self.driver = Driver(device, ring=256, log=1 << 16)
        self.heads, self.kv_heads = min(4, config.rows), 1
        self.head = min(2 * config.lanes, config.max_head)
        self.backend = DeviceBackend(
            self.driver,
            layers=1,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head,
            format=format,
        )
        self._rng = np.random.default_rng(seed)

    def step(self, label: str, spans: list[Span], drafts: list[Draft | None] | None = None) -> None:
        """Append and attend random tokens; with a draft they are rolled back afterwards."""
        count = sum(span.count for span in spans)

        def random(heads: int) -> np.ndarray:
            return self._rng.standard_normal((count, heads, self.head), np.float32)

        with self.driver.log.label(label):
            self.backend.attend(
                0, spans, random(self.heads), random(self.kv_heads), random(self.kv_heads),
                drafts=drafts,
            )  # fmt: skip
        self.backend.commit(spans)

    def extend(self, label: str, sequences: list[int], count: int = 1) -> None:
        """`count` new tokens for each of some sequences, in one step."""
        self.step(label, [Span(s, self.backend.length(s), count) for s in sequences])

    def commands(self) -> list[LogEntry]:
        """Every command that completed, in the order of completion."""
        return list(self.driver.log)


def prefill(session: Session) -> None:
    """A prompt is read in two chunks."""
    sequence = session.backend.create()
    first = max(session.scale.context // 2, 1)
    session.extend("prefill", [sequence], first)
    session.extend("prefill", [sequence], max(session.scale.context - first, 1))


def decode(session: Session) -> None:
    """A prompt is read, then tokens are made one by one."""
    sequence = session.backend.create()
    session.extend("prefill", [sequence], session.scale.context)
    for n in range(session.scale.steps):
        session.extend(f"decode {n}", [sequence])


def shared(session: Session) -> None:
    """Agents fork from one prompt and go on side by side; its pages are read once for all."""
    root = session.backend.create()
    session.extend("prompt", [root], session.scale.context)
    agents = [
        session.backend.fork(root, session.scale.context) for _ in range(session.scale.agents)
    ]
    for n in range(session.scale.steps):
        session.extend(f"step {n}", agents)


def draft(session: Session) -> None:
    """A tree of draft tokens is verified in one step, then all but the first are rolled back."""
    sequence = session.backend.create()
    session.extend("prefill", [sequence], session.scale.context)
    start = session.backend.length(sequence)
    tree = Draft([0b001, 0b011, 0b101], [start, start + 1, start + 1])
    session.step("verify", [Span(sequence, start, 3)], [tree])
    session.backend.trim(sequence, start + 1)
    session.extend("decode", [sequence])


SESSIONS: dict[str, Callable[[Session], None]] = {
    "prefill": prefill,
    "decode": decode,
    "shared": shared,
    "draft": draft,
}


def play(
    name: str,
    device: Device,
    *,
    format: Format = Format.FP16,
    seed: int = 0,
    scale: Scale | None = None,
) -> list[LogEntry]:
    """Play a session on a device; its commands. Raises ValueError for an unknown name."""
    if name not in SESSIONS:
        raise ValueError(f"no session {name!r}: there are {', '.join(SESSIONS)}")
    session = Session(device, format, seed, scale or Scale())
    SESSIONS[name](session)
    session.driver.wait_all()
    return session.commands()
