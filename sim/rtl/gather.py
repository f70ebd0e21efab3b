"""Prepares Verilog for the native simulator: logic moves to where it is needed.

What only the registers of one condition read is computed inside their process, so that the
simulator passes over it while the condition is false: pipelines that stand still cost nothing. The
results are the same; signals that moved are not up to date in between, so libraries that record
waves are built without this.
"""

import re
from dataclasses import dataclass

from m890.hdl.verilog import VerilogDesign

_MODULE = re.compile(
    r"^module (?P<name>\w+)\((?P<ports>.*?)\n\);\n(?P<body>.*?)^endmodule$", re.M | re.S
)
_ASSIGN = re.compile(r"  assign (\w+|\\\S+ ) ?= (.*);", re.S)
_LOGIC = re.compile(r"  always @\* begin\n    if \(_at_start\) ;\n(.*)\n  end", re.S)
_CLOCKED = re.compile(
    r"(  always @\(posedge clk\) begin\n(?:    if \(rst\) begin\n(?:      .*\n)*    end else |    )"
    r"if \((.*)\) begin\n)((?:      .*\n)*    end\n  end)"
)
_TARGET = re.compile(r"^ *(\w+|\\\S+ )(?:\[[^\]=]*\])? ?= |^ *(\{[^=]*\}) = ", re.M)
_WIRE = re.compile(r"^  wire ((?:signed )?(?:\[\d+:\d+\] )?)(\w+|\\\S+ );$")
_DECLARATION = re.compile(r" *(?:\(\*.*\*\)\s*)*(?:wire|reg) [^=\n]*(?:= [^;\n]*)?;$")
_NOISE = re.compile(r"\d*'s?[bdh][0-9a-fA-Fxz?_]+|\(\*.*?\*\)|//[^\n]*")
_NAME = re.compile(r"\\\S+|[A-Za-z_]\w*")
_OPENING = re.compile(r"\b(?:begin|casez|case)\b|\(")
_CLOSING = re.compile(r"\b(?:end|endcase)\b|\)")


@dataclass
class _Logic:
    """A signal's combinational statement, and the names that it reads."""

    statement: str  # as it stands in the module
    inside: str  # as it stands in a process
    reads: set[str]


def prepare(design: VerilogDesign, *, everything_shows: bool) -> str:
    """The design's Verilog for the native simulator.

    External modules, which are instantiated many times, are compiled once each: half the time to
    build. `everything_shows` leaves all signals up to date in every cycle, for waves.
    """
    text = design.text if everything_shows else gather(design.text)
    for module in (m.name for m in design.modules.values() if m.external):
        start = re.compile(rf"^(module {module}\(.*?^\);)$", re.M | re.S)
        text = start.sub(r"\1 /*verilator no_inline_module*/", text, count=1)
    return text


def gather(text: str) -> str:
    """Verilog with every module's logic moved as far as it can be."""
    return _MODULE.sub(_gathered, text)


def _names(text: str) -> set[str]:
    return set(_NAME.findall(_NOISE.sub(" ", text)))


def _statements(body: str) -> list[str]:
    """The module's statements at its outermost level."""
    out: list[str] = []
    current: list[str] = []
    depth = 0
    for line in body.split("\n"):
        if not line.strip():
            continue
        current.append(line)
        bare = _NOISE.sub(" ", line)
        depth += len(_OPENING.findall(bare)) - len(_CLOSING.findall(bare))
        if depth == 0 and re.search(r"(;|\bend) *$", bare):
            out.append("\n".join(current))
            current = []
    return [*out, *(["\n".join(current)] if current else [])]


def _targets(process: str) -> set[str]:
    """The signals that a process assigns, whole or in parts."""
    return set().union(*(_names(single or parts) for single, parts in _TARGET.findall(process)))


def _gathered(module: re.Match[str]) -> str:
    logic: dict[str, _Logic] = {}
    processes: list[re.Match[str]] = []
    declarations: list[str] = []
    rest: list[str] = []
    for statement in _statements(module["body"]):
        if match := _ASSIGN.fullmatch(statement):
            name = match[1].strip()
            logic[name] = _Logic(statement, f"      {statement[9:]}", _names(match[2]))
        elif match := _CLOCKED.fullmatch(statement):
            processes.append(match)
        elif (match := _LOGIC.fullmatch(statement)) and len(targets := _targets(match[1])) == 1:
            name = targets.pop()
            lines = "\n".join(f"  {line}" for line in match[1].split("\n"))
            if name in logic:  # another part of it has a process of its own: both stay
                rest += [logic.pop(name).statement, statement]
            else:
                logic[name] = _Logic(statement, lines, _names(match[1]) - {name})
        elif _DECLARATION.match(statement):
            declarations.append(statement)
        else:
            rest.append(statement)
    if not processes:
        return module[0]
    moved: set[str] = set()
    written = []
    reads = [_names(p[3]) for p in processes]
    fixed = (module["ports"], *(p[1] for p in processes), *rest)
    outside = set().union(*(_names(part) for part in fixed))
    for n, process in enumerate(processes):
        mine = reads[n]
        others = outside.union(*(r for i, r in enumerate(reads) if i != n))
        order = _only_for(mine, others, {n: x for n, x in logic.items() if n not in moved})
        moved |= set(order)
        reads[n] = mine.union(*(logic[name].reads for name in order))
        written.append(process[1] + "".join(logic[n].inside + "\n" for n in order) + process[3])
    body = [*(_declared(s, moved) for s in declarations), *rest]
    body += [x.statement for n, x in logic.items() if n not in moved]
    lines = "\n".join([*body, *written])
    return f"module {module['name']}({module['ports']}\n);\n{lines}\nendmodule"


def _only_for(mine: set[str], others: set[str], logic: dict[str, _Logic]) -> list[str]:
    """The signals that only the process reads, itself or through each other, sources first."""
    readers: dict[str, list[str]] = {}
    for name, one in logic.items():
        for source in one.reads:
            readers.setdefault(source, []).append(name)
    free = {name for name in logic if name not in others}
    pending = list(free)
    while pending:
        name = pending.pop()
        if name in free and any(r not in free for r in readers.get(name, ())):
            free.discard(name)
            pending += [s for s in logic[name].reads if s in free]
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in free and name not in order:
            for source in sorted(logic[name].reads):
                visit(source)
            order[name] = None

    for name in sorted(mine):
        visit(name)
    return list(order)


def _declared(statement: str, moved: set[str]) -> str:
    """A wire that is assigned in a process is declared as a variable."""
    match = _WIRE.fullmatch(statement)
    if match and match[2].strip() in moved:
        return f"  reg {match[1]}{match[2]};"
    return statement
