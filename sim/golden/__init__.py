"""The golden model: the specification of every number of the core, in vectorised numpy.

`attend` and `append` (of a rotated plane after `rotate_kv`) are what a job and a command compute,
`tag` what protects a row in memory, `attention` serves plain arrays; `dot`, `score`, `wide` and
`output` are their parts. `docs/numerics.md` says the same in prose, and the RTL equals it bit for
bit.
"""

from m890.sim.golden.append import append
from m890.sim.golden.attend import Job, KvSegment, RawSegment, Result, attend
from m890.sim.golden.attention import attention
from m890.sim.golden.rotate import rotate_kv
from m890.sim.golden.tags import tag

__all__ = [
    "Job", "KvSegment", "RawSegment", "Result", "append", "attend", "attention", "rotate_kv", "tag",
]  # fmt: skip
