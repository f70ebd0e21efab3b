"""Control and status registers (AXI4-Lite, 32 bits): the source for RTL, firmware, docs."""

from dataclasses import dataclass
from enum import IntEnum

IDENT = 0x4D383930
"""ASCII 'M890', read at address 0."""
VERSION = 1


@dataclass(frozen=True)
class Register:
    """A 32-bit register. access: ro read only, rw read and write, w1c write one to clear."""

    name: str
    address: int
    access: str
    doc: str


class Stall(IntEnum):
    """Why the array took no beat in a cycle; exactly one cause per idle cycle, first match wins."""

    IDLE = 0  # no job in the core
    QUERY = 1  # the next job's rows are not loaded yet
    WALK = 2  # no chunk is known yet: segment walk, block table, translation
    KV_DATA = 3  # a chunk is known, its K or V is not here yet: memory
    SCORE = 4  # V waits for p: the latency of dot product, score and exp2
    DRAIN = 5  # the accumulators are not drained yet
    BIAS = 6  # the additive bias is not here yet
    RAW = 7  # a stored state is being added (the array itself does nothing)


def _table() -> tuple[Register, ...]:
    rows = [
        ("IDENT", "ro", "0x4D383930, 'M890'"),
        ("VERSION", "ro", "register map version"),
        ("GEOMETRY", "ro", "rows [7:0], lanes [15:8], page tokens [31:16]"),
        ("LIMITS", "ro", "largest head in tiles [7:0], segments [15:8], planes - 1 [31:16]"),
        ("POOL", "ro", "pages - 1 [15:0], sequences - 1 [31:16]"),
        (
            "CONTROL",
            "rw",
            "bit 0 enable; bit 1 resets ring pointers and counters, with bit 2 the page manager too"
            " (self-clearing)",
        ),
        ("STATUS", "ro", "bit 0 busy; bit 1 ring error; error code [15:8]"),
        ("IRQ_ENABLE", "rw", "bit 0 completion written; bit 1 ring error"),
        ("IRQ_STATUS", "w1c", "pending interrupts, same bits"),
        ("MEMORY_LIMIT_LO", "rw", "bytes of memory; every address is checked against it"),
        ("MEMORY_LIMIT_HI", "rw", "its upper word"),
        ("RING_BASE_LO", "rw", "byte address of the command ring, 128-byte aligned"),
        ("RING_BASE_HI", "rw", "its upper word"),
        ("RING_SIZE", "rw", "entries of the command ring, a power of two up to 32768"),
        ("RING_TAIL", "rw", "doorbell: commands written so far, modulo 65536"),
        ("RING_HEAD", "ro", "commands fetched so far, modulo 65536"),
        ("COMPLETION_BASE_LO", "rw", "byte address of the completion ring, 128-byte aligned"),
        ("COMPLETION_BASE_HI", "rw", "its upper word"),
        ("COMPLETION_SIZE", "rw", "entries of the completion ring, a power of two up to 32768"),
        ("COMPLETION_TAIL", "ro", "completions written so far, modulo 65536"),
        ("COMPLETION_HEAD", "rw", "completions that firmware has read, modulo 65536"),
        ("TENANTS", "ro", "tenants - 1"),
        (
            "PAGE_ERRORS",
            "ro",
            "words of the page manager read with one wrong bit [15:0], more [31:16]",
        ),
        ("PAGE_INJECT", "rw", "bits [1:0] are turned over in every word that it writes, for tests"),
    ]
    counters = [
        ("CYCLES", "cycles since reset or clear"),
        ("BEATS", "cycles in which the array took a beat"),
        ("USEFUL_BEATS", "of these, beats with at least one token visible to a row"),
        ("JOBS", "ATTEND jobs completed"),
        ("READ_BYTES", "bytes read from memory"),
        ("KV_BYTES", "of these, KV pages"),
        ("WRITE_BYTES", "bytes written to memory"),
        ("TOKENS", "tokens appended, counted once per plane"),
        *((f"STALL_{s.name}", f"cycles without a beat, cause {s.name.lower()}") for s in Stall),
    ]
    for name, doc in counters:
        rows.append((f"{name}_LO", "ro", doc))
        rows.append((f"{name}_HI", "ro", "its upper word, latched when the lower word is read"))
    return tuple(Register(n, 4 * i, a, d) for i, (n, a, d) in enumerate(rows))


REGISTERS: tuple[Register, ...] = _table()
ADDRESS: dict[str, int] = {r.name: r.address for r in REGISTERS}
COUNTERS: tuple[str, ...] = tuple(
    r.name[:-3] for r in REGISTERS if r.name.endswith("_LO") and r.access == "ro"
)
"""64-bit counters, in register order."""
