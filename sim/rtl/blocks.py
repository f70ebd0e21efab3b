"""Blocks of a design that are Verilated on their own: one object per instance, called once a cycle.

A block stands for a module with one clock, `clk`, whose outputs are functions of its registers
alone. So nothing has to be done between two edges: at an edge the rest of the design hands over the
inputs of the cycle that ends and takes the outputs of the one that begins. Verilator's own way
(`--lib-create`) knows no such promise; it hands all ports over three times a cycle, as four-state
vectors, and evaluates every time.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SIZES = (
    (8, "byte unsigned", "unsigned char"),
    (16, "shortint unsigned", "unsigned short"),
    (32, "int unsigned", "unsigned int"),
    (64, "longint unsigned", "unsigned long long"),
)
"""Bits at most; the type that carries them in SystemVerilog, and in C."""


@dataclass(frozen=True)
class Port:
    """A port as both sides of the call see it: by value up to 64 bits, else a vector."""

    name: str
    output: bool
    width: int

    @property
    def bits(self) -> str:
        return f"bit [{self.width - 1}:0]"

    @property
    def kind(self) -> str:
        """Its type in SystemVerilog's call."""
        return next((k for most, k, _ in _SIZES if self.width <= most), self.bits)

    def formal(self) -> str:
        """As the imported function declares it."""
        return f"{'output' if self.output else 'input'} {self.kind} {self.name}"

    def argument(self) -> str:
        """The same in C."""
        kind = next((k for most, _, k in _SIZES if self.width <= most), "")
        if not kind:
            return f"{'' if self.output else 'const '}svBitVecVal* {self.name}"
        return f"{kind}{'*' if self.output else ''} {self.name}"

    def move(self) -> str:
        """Statement of C: into the block, or out of it."""
        wide = self.width > 64
        inside = f"b->{self.name}.data()" if wide else f"b->{self.name}"
        outside = f"*{self.name}" if self.output and not wide else self.name
        target, source = (outside, inside) if self.output else (inside, outside)
        if wide:
            return f"memcpy({target}, {source}, {4 * -(-self.width // 32)});"
        return f"{target} = {source};"


def cut(text: str, block: str) -> str:
    """The design's Verilog without the module `block`."""
    return re.sub(rf"^module {block}\(.*?^endmodule$", "", text, count=1, flags=re.M | re.S)


def alone(text: str) -> str:
    """The Verilog of a block for Verilator: either edge of `clk` is one, so that a cycle is one
    evaluation and not two."""
    return text.replace("posedge clk", "edge clk")


def wrapper(text: str, block: str) -> tuple[str, str]:
    """SystemVerilog that stands for the module `block` in the design, and the C++ that it calls."""
    own = [p for p in ports(text, block) if p.name != "clk"]
    outputs = [p for p in own if p.output]
    heads = [f"{'output reg' if p.output else 'input wire'} {p.bits[4:]} {p.name}" for p in own]
    names = ["block", *(f"{p.name}_now" if p.output else p.name for p in own)]
    verilog = f"""\
module {block}(
  input wire clk,
  {_LINE.join(heads)}
);
  import "DPI-C" function chandle {block}_create();
  import "DPI-C" function void {block}_clock(
  input chandle block,
  {_LINE.join(p.formal() for p in own)}
  );
  import "DPI-C" function void {block}_destroy(input chandle block);
  // verilator tracing_off
  chandle block;
  initial block = {block}_create();
  final {block}_destroy(block);
  {_lines(f"{p.kind} {p.name}_now;" for p in outputs)}
  always @(posedge clk) begin
  {block}_clock({", ".join(names)});
  {_lines(f"{p.name} <= {p.name}_now[{p.width - 1}:0];" for p in outputs)}
  end
endmodule
"""
    source = f"""\
#include <cstring>

#include "V{block}.h"
#include "svdpi.h"

namespace {{
struct Block : V{block} {{
  using V{block}::V{block};
  bool begun = false;  // initial values are set, which may come from inputs: a row's number
}};
}}  // namespace
extern "C" void* {block}_create() {{
  Block* b = new Block(Verilated::threadContextp(), "{block}");
  b->clk = 0;
  return b;
}}
extern "C" void {block}_destroy(void* block) {{
  Block* b = static_cast<Block*>(block);
  b->final();
  delete b;
}}
extern "C" void {block}_clock(void* block, {", ".join(p.argument() for p in own)}) {{
  Block* b = static_cast<Block*>(block);
  {_lines(p.move() for p in own if not p.output)}
  if (!b->begun) b->eval();
  b->begun = true;
  b->clk = !b->clk;
  b->eval();
  {_lines(p.move() for p in outputs)}
}}
"""
    return verilog, source


_LINE = ",\n  "
_PORT = re.compile(
    r"^  (input|output) (?:wire|reg) (?:signed )?(?:\[(\d+):0\] )?(\w+|\\\S+ )", re.M
)


def _lines(statements: Iterable[str]) -> str:
    return "\n  ".join(statements)


def ports(text: str, block: str) -> list[Port]:
    """The ports of a module, in order."""
    header = re.search(rf"^module {block}\((.*?)^\);", text, re.M | re.S)
    if header is None:
        raise ValueError(f"no module {block} in this Verilog")
    return [
        Port(name, way == "output", int(top or 0) + 1)
        for way, top, name in _PORT.findall(header[1])
    ]
