"""Parameters of the HBM3-like memory model (harness/hbm.h), with their sources.

JEDEC publishes the structure and the rules (JESD238, HBM3); the values are the vendors' and not
public. Simulators therefore scale those of HBM2 by time, and so does this file:

[attacc] github.com/scale-snu/attacc_simulator, src_dram_impl_HBM3.patch (for Ramulator 2): the
structure of JESD238A, and preset HBM3_6.4Gbps in clocks of 0.625 ns, with dramsim3's nanoseconds.
[dramsim3] github.com/umd-memsys/DRAMsim3, configs/HBM2_8Gb_x128.ini: HBM2 at a clock of 1 ns.

Only these facts are taken, no code. What neither says is marked as an assumption.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

from m890.hdl.config import CoreConfig

SLICES = 16
"""Most slices of an address map."""
FIELDS = ("column", "group", "bank")
"""What a slice of the address selects; the row takes what is left."""


class Refresh(IntEnum):
    """How rows are refreshed."""

    NONE = 0
    ALL_BANKS = 1
    PER_BANK = 2


POSITIVE = {
    "clock_mhz", "core_mhz", "path", "pseudo_channels", "per_channel", "burst_bytes", "burst",
    "refi", "read_queue", "drain_from", "turn",
}  # fmt: skip
"""What cannot be zero."""


@dataclass(frozen=True)
class AddressMap:
    """Where an address lies: pseudo-channel by stripes, then slices of bits from the lowest up.

    Address / 32 bytes is the number of an access. `stripe` accesses in a row lie in one
    pseudo-channel, the next ones in the next (any number of pseudo-channels, not only powers of
    two). Within it the slices name field and bits, lowest bits first; the row is the rest. `hash`
    XORs low bits of the row into group and bank, so that addresses a power of two apart do not
    meet in one bank.
    """

    stripe: int
    slices: tuple[tuple[str, int], ...]
    hash: bool

    def __post_init__(self) -> None:
        if self.stripe < 1 or len(self.slices) > SLICES:
            raise ValueError(f"an address map has a stripe and up to {SLICES} slices, not {self}")
        for field, bits in self.slices:
            if field not in FIELDS or not 1 <= bits <= 32:
                names = ", ".join(FIELDS)
                raise ValueError(f"a slice is 1 to 32 bits of {names}, not {bits} of {field!r}")

    def bits(self, field: str) -> int:
        """Bits of one field."""
        return sum(bits for name, bits in self.slices if name == field)


SPREAD = AddressMap(8, (("group", 1), ("column", 5), ("group", 1), ("bank", 2)), False)
"""256 bytes per pseudo-channel; in it two bank groups take turns until two rows are full.

Two groups at tCCDL are as fast as four at tCCDS, and open half the rows at a page's ends. The hash
gains nothing for pages, which pass through all banks (docs/decisions).
"""


@dataclass(frozen=True)
class HbmTiming:
    """One core's share of an HBM3-like memory. Times in clocks of `clock_mhz` unless said.

    The command clock is a quarter of the data rate: 6.4 Gbit/s per pin, 1.6 GHz, 0.625 ns.
    """

    clock_mhz: int = 1600  # [attacc]
    core_mhz: int = 1200  # assumption, as the page of what is public says
    path: int = 40  # core cycles from DRAM to the port and back: controller, network; assumption

    pseudo_channels: int = 3  # that one core gets: `share`
    per_channel: int = 2  # JESD238: they share the channel's row and column command buses
    groups: int = 4  # bank groups [attacc]; stack ids are not modelled (assumption: fewer banks)
    banks: int = 4  # per bank group [attacc]
    burst_bytes: int = 32  # JESD238: 32 pins x burst length 8 [attacc]

    burst: int = 2  # nBL [attacc]: 8 bits per pin, four per clock
    read_latency: int = 23  # nCL [attacc], 14 ns [dramsim3]: RD to its first bit
    write_latency: int = 7  # nCWL [attacc], 4 ns: WR to its first bit
    rcd_read: int = 23  # tRCDRD [attacc], 14 ns: ACT to RD of the bank
    rcd_write: int = 23  # tRCDWR [attacc], 14 ns: ACT to WR of the bank
    rp: int = 23  # tRP [attacc], 14 ns: PRE to ACT of the bank
    ras: int = 55  # tRAS [attacc], 34 ns: ACT to PRE of the bank
    rc: int = 77  # tRC [attacc]: ACT to ACT of the bank
    ccd_s: int = 2  # tCCDS [attacc]: RD to RD, WR to WR of different bank groups
    ccd_l: int = 4  # tCCDL [attacc]: RD to RD, WR to WR of one bank group
    rrd_s: int = 2  # tRRDS [attacc]: ACT to ACT of different bank groups
    rrd_l: int = 4  # tRRDL [attacc]: ACT to ACT of one bank group
    faw: int = 48  # tFAW [attacc], 30 ns: any five ACTs span at least this
    rtp: int = 10  # tRTPL [attacc], 6 ns: RD to PRE of the bank
    wr: int = 26  # tWR [attacc], 16 ns: end of written data to PRE of the bank
    wtr_s: int = 10  # tWTRS [attacc], 6 ns: end of written data to RD of another bank group
    wtr_l: int = 13  # tWTRL [attacc], 8 ns: end of written data to RD of the same bank group
    rtw: int = 20  # RD to WR: nCL + nBL + 2 - nCWL [attacc]

    refresh: Refresh = Refresh.PER_BANK  # assumption: JESD238 has both
    refi: int = 6240  # tREFI [attacc], 3.9 us: between refreshes of all banks, or of one bank
    rfc: int = 656  # tRFC, all banks: 410 ns for 12 Gbit per channel (a stack of 24 GB) [attacc]
    rfc_bank: int = 320  # tRFCSB [attacc], 200 ns: refresh of one bank
    rrefd: int = 13  # tRREFD [attacc], 8 ns: refresh of a bank to ACT or refresh of another

    # The controller, per pseudo-channel: all assumptions.
    read_queue: int = 64  # reads among which it chooses; assumption, as all below
    write_queue: int = 64  # writes among which it chooses
    drain_from: int = 48  # writes wait until so many are queued or no read is
    turn: int = 32  # while the other direction waits, each keeps the bus for so many accesses
    patience: int = 2000  # clocks after which an access no longer waits for others' row hits
    map: AddressMap = SPREAD  # where an address lies: chosen by measurement

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name != "map"):
            least = int(name in POSITIVE)
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, not {getattr(self, name)}")
        for name in ("groups", "banks"):
            value, bits = getattr(self, name), self.map.bits(name.rstrip("s"))
            if value != 1 << bits:
                raise ValueError(f"{name} must be {1 << bits}, as the map has it, not {value}")
        if self.groups * self.banks > 64:
            raise ValueError(f"there are up to 64 banks, not {self.groups * self.banks}")
        if self.drain_from > self.write_queue:
            raise ValueError(
                f"drain_from must be up to write_queue ({self.write_queue}), not {self.drain_from}"
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.burst_bytes << self.map.bits("column")

    @property
    def peak(self) -> float:
        """Bytes per core cycle when every clock of every data bus is used."""
        rate = self.burst_bytes * self.clock_mhz / (self.burst * self.core_mhz)
        return self.pseudo_channels * rate

    def with_(self, **changes: object) -> "HbmTiming":
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def parameters(self) -> "HbmParameters":
        """As the C++ model takes them."""
        values = {f.name: int(getattr(self, f.name)) for f in fields(self) if f.name != "map"}
        slices = [FIELDS.index(field) << 8 | bits for field, bits in self.map.slices]
        return HbmParameters(
            **values,
            stripe=self.map.stripe,
            hash=int(self.map.hash),
            slices=(ctypes.c_uint64 * SLICES)(*slices),
        )


def share(config: CoreConfig, timing: HbmTiming | None = None) -> HbmTiming:
    """The memory of one core: the fewest pseudo-channels that give it `lanes` bytes per cycle.

    m890: exactly 3 (64 cores, 6 stacks of 32 pseudo-channels), 64 bytes per cycle. The smaller
    presets get one or two, at the same clock ratio.
    """
    t = timing or HbmTiming()
    needed, each = config.lanes * t.core_mhz * t.burst, t.burst_bytes * t.clock_mhz
    return t.with_(pseudo_channels=-(-needed // each))


class HbmParameters(ctypes.Structure):
    """As harness/dram.h declares it."""

    _fields_ = (
        *((f.name, ctypes.c_uint64) for f in fields(HbmTiming) if f.name != "map"),
        ("stripe", ctypes.c_uint64),
        ("hash", ctypes.c_uint64),
        ("slices", ctypes.c_uint64 * SLICES),
    )


COUNTERS: Sequence[str] = ("reads", "writes", "activations", "refreshes", "turns")
"""What the model counts: commands, and turns of the data bus between reading and writing."""
