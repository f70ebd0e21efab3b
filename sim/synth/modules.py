"""Blocks of a generated design as units of synthesis: their text, what is below, a wrapper."""

import re
from collections import Counter
from functools import cached_property

from m890.hdl.verilog import VerilogDesign
from m890.sim.rtl.blocks import Port, ports

PREFIX = "m890_"
HARNESS = "harness"
"""Name of the wrapper that `harness` writes."""
UNIT = "unit"
"""Name of the block in it."""
PLUMBING = ("Queue", "Sram", "Splitter", "Picker")
"""Classes that are left out where blocks are listed: a core has many, of many sizes."""


class UnitError(ValueError):
    """A block that the design does not have; the message lists those it has."""


class Units:
    """The blocks of a design by the names of their modules without `m890_`."""

    def __init__(self, design: VerilogDesign) -> None:
        self.design = design
        self._texts = {
            m[1]: m[0] for m in re.finditer(r"^module (\w+)\(.*?^endmodule$", design.text, _WHOLE)
        }

    @cached_property
    def names(self) -> dict[str, str]:
        """Every block and its module, from the top down."""
        return {m.removeprefix(PREFIX): m for m in self.design.modules}

    @property
    def top(self) -> str:
        return self.design.name.removeprefix(PREFIX)

    def module(self, unit: str) -> str:
        """The module of a block; an unknown one raises UnitError."""
        if unit not in self.names:
            raise UnitError(f"no block {unit!r}: there are {', '.join(self.shown())}")
        return self.names[unit]

    def shown(self) -> list[str]:
        """Blocks without the plumbing."""
        return [u for u, m in self.names.items() if self.source(m) not in PLUMBING]

    def source(self, module: str) -> str:
        """The Python class of a module."""
        return self.design.modules[module].source

    def text(self, module: str) -> str:
        return self._texts[module]

    def parts(self, module: str) -> Counter[str]:
        """Modules that are instantiated in a module, and how often."""
        instances = self.design.modules[module].instances
        return Counter(part for _, part in instances if part in self._texts)

    def below(self, module: str) -> list[str]:
        """A module and all that it is made of, parts first."""
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in order:
                for part in self.parts(name):
                    visit(part)
                order[name] = None

        visit(module)
        return list(order)

    def instances(self, module: str, top: str | None = None) -> int:
        """How often a module is in the design, or in a module of it."""
        top = top or self.design.name
        if module == top:
            return 1
        return sum(n * self.instances(module, part) for part, n in self.parts(top).items())

    def outline(self, top: str) -> list[str]:
        """The blocks worth a line: two levels from the top down, a row and a score unit with
        their parts."""
        found, below = self._to_depth(2, top), self.below(top)
        for unit in ("row", "score"):
            if (module := self.names.get(unit)) in below:
                found |= self._to_depth(1, module)
        return [module for module in self.names.values() if module in found]

    def _to_depth(self, depth: int, top: str) -> set[str]:
        """A module and those at most so many levels below it, without the plumbing."""
        found, level = {top}, [top]
        for _ in range(depth):
            level = [p for m in level for p in self.parts(m) if self.source(p) not in PLUMBING]
            found |= set(level)
        return found

    def stub(self, module: str) -> str:
        """The module as a black box: its ports only."""
        lines = [
            f"  {'output' if p.output else 'input'} {_range(p)}{p.name}"
            for p in self._ports(module)
        ]
        return f"(* blackbox *)\nmodule {module}(\n" + ",\n".join(lines) + "\n);\nendmodule\n"

    def harness(self, module: str) -> str:
        """A module of three pins around a block, so that any block fits any package.

        Every input of the block comes from a register of a chain that shifts in from one pin;
        every output goes into a register, and these are folded into one pin by a chain of
        exclusive-ors with a register each. So every path of the block starts and ends in registers,
        and the harness itself adds one gate between two.
        """
        own = [p for p in self._ports(module) if p.name != "clk"]
        names = {p: f"port{n}" for n, p in enumerate(own)}
        ins, outs = [p for p in own if not p.output], [p for p in own if p.output]
        given, taken = sum(p.width for p in ins), sum(p.width for p in outs)
        wires = "\n".join(f"  wire {_range(p)}{names[p]};" for p in own)
        pins = ", ".join([".clk(clk)", *(f".{p.name}({names[p]})" for p in own)])
        return f"""\
module {HARNESS}(input wire clk, input wire i, output reg o);
  reg [{given}:0] shift;
  reg [{taken}:0] seen, folded;
{wires}
  assign {{{", ".join(f"{names[p]}" for p in ins)}}} = shift;
  always @(posedge clk) begin
    shift <= {{shift, i}};
    seen <= {{{", ".join(f"{names[p]}" for p in outs)}}};
    folded <= {{folded, 1'b0}} ^ seen;
    o <= folded[{taken}];
  end
  {module} {UNIT}({pins});
endmodule
"""

    def place_of(self, cell: str, top: str) -> str:
        """The block of a cell of a flattened netlist, as instance names from `top` down."""
        path, module = [], top
        for part in cell.split("."):
            inside = dict(self.design.modules[module].instances)
            if part not in inside or inside[part] not in self._texts:
                break
            path.append(part)
            module = inside[part]
        return ".".join(path)

    def _ports(self, module: str) -> list[Port]:
        return ports(self._texts[module], module)


def _range(port: Port) -> str:
    return f"[{port.width - 1}:0] "


_WHOLE = re.M | re.S
