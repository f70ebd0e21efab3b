"""Streams of blocks that buffer: valid does not fall, the payload stays, until it is taken.

Streams that come straight out of a queue (scales, tags) are proved with the queue.
"""

from typing import Any

import pytest

from m890.hdl.config import preset
from m890.hdl.kv import regroup, tags, translate
from m890.hdl.pages import copier, mover, walker
from m890.testbench.formal.contracts import FALLS, STAYS
from m890.testbench.formal.small import again
from m890.testbench.formal.streams import Rules
from m890.testbench.formal_runner import prove

pytestmark = pytest.mark.formal
CONFIG = preset("tiny").with_(address_bits=32, planes=2)
LINES = {"PageWalker": {"start": "busy"}, "PageCopier": {"start": "busy"}}
"""Inputs that these blocks do not heed, or not expect, while an output is 1."""
BLOCKS = {
    "Regroup": (regroup, "(~reading | self.o.ready)", "1", STAYS),
    "TagCheck": (
        tags, "self.expected.ready.eq(chunks.o.ready)", "self.expected.ready.eq(1)", FALLS
    ),
    "Translator": (translate, "with m.If(self.o.ready):", "with m.If(pending.o.valid):", FALLS),
    "PageWalker": (
        walker, "with m.If(ended & ~(request.valid & ~request.ready)):", "with m.If(ended):", FALLS
    ),
    "PageCopier": (copier, "with m.If(self.move.ready):", "with m.If(number == 0):", FALLS),
    "Mover": (mover, "beats.level >= piece_of(left)", "beats.level == piece_of(left)", FALLS),
}  # fmt: skip
"""Block: its module, a line of it, what the twin has instead, and the rule that then breaks."""


def rules(name: str, *change: tuple[str, str]) -> Rules:
    module: Any = again(BLOCKS[name][0], *change)
    make = getattr(module, name)
    block = make(CONFIG, 16) if name == "Regroup" else make(CONFIG)
    return Rules(block, LINES.get(name))


@pytest.mark.parametrize("name", BLOCKS)
def test_streams_keep_the_rules(name):
    proof = prove(rules(name), depth=12)
    assert proof, proof
    reached = prove(rules(name), depth=14, mode="cover")
    assert reached, reached


@pytest.mark.parametrize("name", ("Regroup", "PageCopier"))
def test_streams_keep_the_rules_for_ever(name):
    proof = prove(rules(name), depth=3, mode="induction")
    assert proof, proof


@pytest.mark.parametrize("name", BLOCKS)
def test_a_broken_stream_is_found(name):
    _, old, new, message = BLOCKS[name]
    proof = prove(rules(name, (old, new)), depth=12)
    assert message in proof.broken, proof
