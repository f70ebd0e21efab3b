"""What a block takes of an ECP5, or of any technology, and which blocks are placed one by one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from m890.sim.synth import yosys
from m890.sim.synth.modules import Units
from m890.sim.synth.yosys import Netlist

LUTS = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}
"""Places for LUTs that a cell takes: a carry two, 16 x 4 bits of LUT RAM three slices of two."""
LARGEST_PLACED = 0.25
"""Share of a device up to which blocks are placed whole: above it, their parts are."""


@dataclass(frozen=True)
class Ecp5:
    """Cells of an ECP5 that a block takes, or that a device has."""

    lut4: int  # all places for LUTs; those of carries and of LUT RAM are among them
    ff: int
    dsp: int  # multipliers of 18 x 18
    bram: int  # of 18 Kibit
    carry: int = 0
    lutram: int = 0

    def of(self, device: "Ecp5") -> float:
        """The share of the device, by what is scarcest."""
        pairs = ((self.lut4, device.lut4), (self.ff, device.ff), (self.dsp, device.dsp),
                 (self.bram, device.bram))  # fmt: skip
        return max(mine / all_of for mine, all_of in pairs)


LFE5U_85F = Ecp5(lut4=83640, ff=83640, dsp=156, bram=208)
"""Lattice, ECP5 and ECP5-5G Family Data Sheet (FPGA-DS-02012), table 1.1, and nextpnr."""


@dataclass(frozen=True)
class Gates:
    """Of no technology: two-input gates (inverters free), 2:1 multiplexers, registers, memories."""

    gates: int
    mux: int
    ff: int
    memory: int  # bits
    depth: int  # gates and multiplexers between two registers, inside one module


def ecp5(units: Units, module: str, netlists: Mapping[str, Netlist]) -> Ecp5:
    """What a block and all below it take."""
    cells = yosys.total(units, module, netlists)
    places = {kind: each * cells[kind] for kind, each in LUTS.items()}
    return Ecp5(
        lut4=sum(places.values()), ff=cells["TRELLIS_FF"], dsp=cells["MULT18X18D"],
        bram=cells["DP16KD"] + cells["PDPW16KD"], carry=places["CCU2C"],
        lutram=places["TRELLIS_DPR16X4"],
    )  # fmt: skip


def gates(units: Units, module: str, netlists: Mapping[str, Netlist]) -> Gates:
    """What a block and all below it are made of."""
    cells = yosys.total(units, module, netlists)
    return Gates(
        gates=cells["$_AND_"] + cells["$_XOR_"], mux=cells["$_MUX_"],
        ff=sum(n for kind, n in cells.items() if "DFF" in kind),
        memory=memory_bits(units, module), depth=yosys.depth(units, module, netlists),
    )  # fmt: skip


def memory_bits(units: Units, module: str) -> int:
    """Bits of the memories in a block and all below it."""
    own = sum(
        (int(width or 0) + 1) * (int(last) + 1)
        for width, last in _MEMORY.findall(units.text(module))
    )
    return own + sum(n * memory_bits(units, part) for part, n in units.parts(module).items())


def to_place(units: Units, module: str, netlists: Mapping[str, Netlist]) -> list[str]:
    """The blocks that together are a block, each small enough to be placed on its own.

    The wiring of a block that is split is in none of them.
    """
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        share = ecp5(units, name, netlists).of(LFE5U_85F)
        if share <= LARGEST_PLACED or not units.parts(name):
            found[name] = None
        else:
            for part in units.parts(name):
                visit(part)

    visit(module)
    return list(found)


_MEMORY = re.compile(r"^  reg (?:\[(\d+):0\] )?\w+ \[(\d+):0\];", re.M)
