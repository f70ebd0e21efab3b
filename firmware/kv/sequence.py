"""What firmware knows of a sequence."""

from dataclasses import dataclass, field

from m890.firmware.kv.prefix import Node


@dataclass
class KvSequence:
    """A sequence of a KV cache; `path` are the tree nodes of its first pages."""

    tenant: int
    length: int = 0
    end: int = 0  # of the tokens that were appended or are expected
    path: list[Node] = field(default_factory=list)
    tokens: list[int] | None = field(default_factory=list)  # committed ones, None: not known
    own: bool = False  # the tree has other pages of the same tokens: its own stay outside
    public: bool = False  # its full pages are published
    slots: list[int] = field(default_factory=list)  # of the host pool, while it is parked there
