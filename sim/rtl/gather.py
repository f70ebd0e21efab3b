"""Prepares Verilog for the native simulator: logic moves to where it is needed.

Modules are written out in each other (`m890.sim.rtl.flatten`), registers under the same condition
share a process, and what only the registers of one condition read is computed inside their process,
so that the simulator passes over all of it while the condition is false: pipelines that stand still
cost nothing. What only registers of a few conditions feed is computed in the cycle after one of
them held. The results are the same; signals that moved are not up to date in between, so libraries
that record waves are built without this.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from m890.hdl.verilog import VerilogDesign
from m890.sim.rtl.flatten import AT_START, MODULE, flatten, renamed, statements

_ASSIGN = re.compile(r"  assign (\w[\w$]*|\\\S+ ) ?= (.*);", re.S)
_PARTS = re.compile(r"  assign (\{[^=]*\}|(?:\w[\w$]*|\\\S+ )\[[^\]=]*\]) = (.*);", re.S)
_LOGIC = re.compile(rf"  always @\* begin\n    if \({AT_START}\) ;\n(.*)\n  end", re.S)
_CLOCKED = re.compile(
    r"  always @\(posedge clk\) begin\n"
    r"(?:    if \(rst\) begin\n(?P<reset>(?:      .*\n)*)    end else |    )"
    r"if \((?P<condition>.*)\) begin\n(?P<body>(?:      .*\n)*)    end\n  end"
)
_UNCONDITIONAL = re.compile(r"  always @\(posedge clk\) begin\n((?:    .*\n)*)  end")
_PART = re.compile(
    r"    if \((?P<condition>.*)\)"
    r"(?: begin\n(?P<body>(?:      .*\n)*)    end\n|\n(?P<one>      .*;\n))"
    r"|(?P<other>    (?! ).*\n(?:     .*\n|    end.*\n)*)"
)
_TARGET = re.compile(r"^ *(\w[\w$]*|\\\S+ )(?:\[[^\]=]*\])? ?= |^ *(\{[^=]*\}) = ", re.M)
_STORE = re.compile(r"^ *(\w[\w$]*|\\\S+ )(?:\[[^<]*\])* <= |^ *(\{[^=]*\}) <= ", re.M)
_WIRE = re.compile(
    r"((?: *\(\*.*\*\)\n)*)  wire ((?:signed )?(?:\[\d+:\d+\] )?)(\w[\w$]*|\\\S+ );"
)
_MEMORY = re.compile(r"^ *reg \[(\d+):0\] (\S+) \[\d+:0\];", re.M)
_WRITE = re.compile(
    r"    if \((?P<enable>.*)\)\n"
    r"      (?P<name>\w[\w$]*)\[(?P<address>.*)\]"
    r"\[(?P<high>\d+):(?P<low>\d+)\] <= (?P<data>.*);\n"
)
_WRITTEN_IN_PARTS = re.compile(
    r"  always @\(posedge clk\) begin\n"
    r"(?P<writes>(?:    if \(.*\)\n      \w\S*\]\[\d+:\d+\] <= .*;\n){2,})  end"
)
_DECLARATION = re.compile(r" *(?:\(\*.*\*\)\s*)*(?:wire|reg) [^=\n]*(?:= [^;\n]*)?;$")
_NOISE = re.compile(r"\d*'s?[bdh][0-9a-fA-Fxz?_]+|\(\*.*?\*\)|//[^\n]*")
_NAME = re.compile(r"\\\S+|[A-Za-z_][\w$]*")
_WORDS = frozenset(
    "begin case casez default else end endcase full_case if signed unsigned".split()
)
_KEPT = "/*verilator public_flat_rd*/"
_OWN = "/*verilator public_flat_rw*/"
"""Behind a signal that Verilator must not replace with what drives it."""
MOST_CONDITIONS = 4
"""Conditions of the registers that feed logic which waits for them."""
LEAST_SIGNALS = 6
"""Signals for which a flag that tells whether to compute them pays."""


@dataclass
class _Logic:
    """A signal's combinational statements, and the names that they read."""

    outside: list[str] = field(default_factory=list)  # as they stand in the module
    inside: list[str] = field(default_factory=list)  # as they stand in a process
    reads: set[str] = field(default_factory=set)

    def add(self, outside: str, inside: str, reads: set[str]) -> None:
        self.outside.append(outside)
        self.inside.append(inside)
        self.reads |= reads


@dataclass
class _Process:
    """All registers under one condition."""

    plain: list[str] = field(default_factory=list)
    with_reset: list[str] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)

    def reads(self) -> set[str]:
        return _names("".join([*self.plain, *self.with_reset, *self.resets]))

    def written(self, condition: str, logic: Iterable[str]) -> str:
        """The process, with what it alone needs at its start."""
        body = "".join([*(f"{line}\n" for line in logic), *self.plain])
        resets = "".join(self.resets)
        start = f"  always @(posedge clk) begin\n    if ({condition}) begin\n{body}"
        if not resets:
            return f"{start}    end\n  end"
        reset = f"if (rst) begin\n{resets}"
        kept = "".join(self.with_reset)
        start += f"      {reset}      end else begin\n{kept}      end\n"
        return f"{start}    end else {reset}    end\n  end"


def prepare(design: VerilogDesign, *, everything_shows: bool) -> str:
    """The design's Verilog for the native simulator.

    External modules, which are instantiated many times, are compiled once each: half the time to
    build. `everything_shows` leaves all signals up to date in every cycle, for waves.
    """
    alone = [m.name for m in design.modules.values() if m.external]
    text = design.text
    if not everything_shows:
        text = gather(whole_words(flatten(text, design.name, alone)))
    whole, own = text, set[str]()

    def shared(module: re.Match[str]) -> str:
        return _shared(module, whole, own) if module["name"] in alone else module[0]

    text = MODULE.sub(shared, text)
    names = "|".join(re.escape(name) for name in sorted(own))
    return re.sub(rf"^(  wire (?:\[\d+:0\] )?(?:{names}));$", rf"\1 {_OWN};", text, flags=re.M)


def _shared(module: re.Match[str], text: str, own: set[str]) -> str:
    """A module whose instances all run the same code: their constant inputs are registers in it,
    and other inputs in which they differ signals of their own, as are the wires that lead there,
    whose names `own` gets.

    Verilator would write the constant, or the name of what drives the input, into each instance's
    code otherwise, and a program that holds the code of every row does not fit the processor's
    cache.
    """
    ports, body = module["ports"], module["body"]
    instances = _instances(module["name"], text)
    for port in re.finditer(r"^  input wire (\[\d+:0\] )?(\w+)", ports, re.M):
        width, name = port[1] or "", port[2]
        connections = re.findall(rf"^    \.{name}\((.*)\),?$", instances, re.M)
        if not connections or not all(re.fullmatch(r"\d+'h[0-9a-f]+", c) for c in connections):
            if len(set(connections)) > 1:
                ports = re.sub(rf"^{re.escape(port[0])}\b", f"{port[0]} {_OWN}", ports, flags=re.M)
                own.update(c for c in connections if _NAME.fullmatch(c))
            continue
        kept = f"{name}$kept"
        body = renamed(body, lambda word, n=name, k=kept: k if word == n else word)
        body = f"  reg {width}{kept} {_KEPT};\n  initial {kept} = {name};\n{body}"
    head = f"module {module['name']}({ports}\n); /*verilator no_inline_module*/"
    return f"{head}\n{body}endmodule"


def _instances(module: str, text: str) -> str:
    return "".join(re.findall(rf"^  {module} [^;]*;$", text, re.M))


def whole_words(text: str) -> str:
    """Verilog in which memories that are written in parts take whole words, old parts and new.

    One store instead of one per part, each of which costs something in every cycle.
    """
    widths = {name: int(high) + 1 for high, name in _MEMORY.findall(text)}

    def whole(process: re.Match[str]) -> str:
        parts = list(_WRITE.finditer(process["writes"]))
        name, address = parts[0]["name"], parts[0]["address"]
        places = [(int(p["low"]), int(p["high"]) + 1) for p in parts]
        ends = [0, *(high for _, high in places)]
        same = all((p["name"], p["address"]) == (name, address) for p in parts)
        if not same or [low for low, _ in places] != ends[:-1] or ends[-1] != widths.get(name):
            return process[0]
        word = f"{name}[{address}]"
        values = [
            f"({p['enable']}) ? {p['data']} : {word}[{p['high']}:{p['low']}]" for p in parts
        ]
        any_part = " | ".join(f"({p['enable']})" for p in parts)
        return (
            f"  always @(posedge clk) begin\n    if ({any_part}) begin\n"
            f"      {word} <= {{ {', '.join(reversed(values))} }};\n    end\n  end"
        )

    return _WRITTEN_IN_PARTS.sub(whole, text)


def gather(text: str) -> str:
    """Verilog with every module's logic moved as far as it can be."""
    return MODULE.sub(_gathered, text)


def _names(text: str) -> set[str]:
    return set(_NAME.findall(_NOISE.sub(" ", text)))


def _targets(process: str) -> set[str]:
    """The signals that a process assigns, whole or in parts."""
    return set().union(*(_names(single or parts) for single, parts in _TARGET.findall(process)))


def _gathered(module: re.Match[str]) -> str:
    logic: dict[str, _Logic] = {}
    processes: dict[str, _Process] = {}
    declarations: list[str] = []
    rest: list[str] = []
    several: set[str] = set()  # signals of processes that assign more than one
    for statement in statements(module["body"]):
        if match := _ASSIGN.fullmatch(statement) or _PARTS.fullmatch(statement):
            targets = _names(match[1])
            inside, reads = f"      {statement[9:]}", _names(match[2])
        elif match := _LOGIC.fullmatch(statement):
            targets = _targets(match[1])
            inside = "\n".join(f"  {line}" for line in match[1].split("\n"))
            reads = _names(match[1]) - targets
        elif match := _CLOCKED.fullmatch(statement):
            process = processes.setdefault(match["condition"], _Process())
            process.resets += [match["reset"]] if match["reset"] else []
            (process.with_reset if match["reset"] else process.plain).append(match["body"])
            continue
        elif match := _UNCONDITIONAL.fullmatch(statement):
            for condition, body in _parts(match[1]):
                if condition:
                    processes.setdefault(condition, _Process()).plain.append(body)
                else:
                    rest.append(f"  always @(posedge clk) begin\n{body}  end")
            continue
        else:
            (declarations if _DECLARATION.match(statement) else rest).append(statement)
            continue
        if len(targets) == 1:
            logic.setdefault(targets.pop(), _Logic()).add(statement, inside, reads)
        else:
            rest.append(statement)
            several |= targets
    for name in sorted(several & logic.keys()):
        rest += logic.pop(name).outside
    ports = _names(module["ports"])
    uses = {condition: process.reads() for condition, process in processes.items()}
    outside = ports | _names("\n".join(rest)) | _names(" ".join(processes))
    owners = _owners({n: x.reads for n, x in logic.items()}, uses, outside)
    moved: dict[str, list[str]] = {condition: [] for condition in processes}
    for name in _sources_first({name: logic[name].reads for name in owners}):
        moved[owners[name]].append(name)
    free = {n: x for n, x in logic.items() if n not in owners and n not in ports}
    guards = _guards(free, processes)
    inside = owners.keys() | {name for names in guards.values() for name in names}
    body = [*(_declared(s, inside) for s in declarations), *rest]
    body += [s for name, one in logic.items() if name not in inside for s in one.outside]
    for number, (conditions, names) in enumerate(guards.items()):
        body += _guarded(f"stirred_{number}", conditions, names, logic)
    for condition, process in processes.items():
        lines = [line for name in moved[condition] for line in logic[name].inside]
        body.append(process.written(condition, lines))
    return f"module {module['name']}({module['ports']}\n);\n" + "\n".join(body) + "\nendmodule"


def _parts(body: str) -> list[tuple[str, str]]:
    """The statements of a process without reset, with their conditions, if each stands alone."""
    parts = list(_PART.finditer(body))
    stored = [set().union(*map(_names, filter(None, sum(_STORE.findall(p[0]), ())))) for p in parts]
    apart = sum(map(len, stored)) == len(set().union(*stored))
    if not apart or "".join(p[0] for p in parts) != body:
        return [("", body)]
    return [(p["condition"] or "", p["body"] or p["one"] or p["other"]) for p in parts]


def _owners(
    logic: Mapping[str, set[str]],
    uses: Mapping[str, set[str]],
    outside: set[str],
) -> dict[str, str]:
    """The only user of a signal, itself or through other signals.

    `logic` has what signals read, `uses` what users do; `outside` is read otherwise, too.
    """
    owner: dict[str, str] = {}
    shared = outside | _in_loops(logic)
    pending = [name for name in shared if name in logic]
    owned: dict[str, str] = {}

    def read(name: str, by: str | None) -> None:
        if name not in logic or name in shared:
            return
        if by is not None and owner.setdefault(name, by) == by:
            owned[name] = by
            return
        shared.add(name)
        owner.pop(name, None)
        pending.append(name)

    for user, names in uses.items():
        for name in names:
            read(name, user)
    while pending or owned:
        if pending:
            for source in logic[pending.pop()]:
                read(source, None)
            continue
        name, by = owned.popitem()
        if owner.get(name) == by:
            for source in logic[name]:
                if owner.get(source) != by:
                    read(source, by)
    return owner


def _in_loops(graph: Mapping[str, set[str]]) -> set[str]:
    """Signals that depend on themselves, if by other bits: no order of statements computes them."""
    found: set[str] = set()
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    for root in graph:
        if root in number:
            continue
        work = [(root, iter(graph[root]))]
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while work:
            name, sources = work[-1]
            for source in sources:
                if source not in graph:
                    continue
                if source not in number:
                    number[source] = low[source] = len(number)
                    stack.append(source)
                    on_stack.add(source)
                    work.append((source, iter(graph[source])))
                    break
                if source in on_stack:
                    low[name] = min(low[name], number[source])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == number[name]:
                    group = []
                    while True:
                        group.append(stack.pop())
                        on_stack.discard(group[-1])
                        if group[-1] == name:
                            break
                    if len(group) > 1 or name in graph[name]:
                        found.update(group)
    return found


def _sources_first(graph: dict[str, set[str]]) -> list[str]:
    """The signals in an order in which each comes after those that it reads."""
    order: dict[str, None] = {}
    for root in sorted(graph):
        work = [(root, iter(sorted(graph[root])))] if root not in order else []
        while work:
            name, sources = work[-1]
            for source in sources:
                if source in graph and source not in order:
                    work.append((source, iter(sorted(graph[source]))))
                    break
            else:
                order[work.pop()[0]] = None
    return list(order)


def _guards(
    logic: dict[str, _Logic], processes: dict[str, _Process]
) -> dict[frozenset[str], list[str]]:
    """Signals that depend on registers of a few conditions only, by these conditions."""
    found: dict[str, frozenset[str] | None] = {}
    for condition, process in processes.items():
        for single, parts in _STORE.findall("".join([*process.plain, *process.with_reset])):
            for name in _names(single or parts):
                found[name] = (found.get(name) or frozenset()) | {condition}
    loops = _in_loops({name: one.reads for name, one in logic.items()})
    groups: dict[frozenset[str], list[str]] = {}
    for name in _sources_first({n: x.reads for n, x in logic.items() if n not in loops}):
        sources = [found.get(s) for s in logic[name].reads - _WORDS]
        known = [s for s in sources if s is not None]
        union = frozenset().union(*known)
        if len(known) == len(sources) and 0 < len(union) <= MOST_CONDITIONS:
            found[name] = union
            groups.setdefault(union, []).append(name)
    return {c: names for c, names in groups.items() if len(names) >= LEAST_SIGNALS}


def _guarded(
    flag: str, conditions: frozenset[str], names: list[str], logic: dict[str, _Logic]
) -> list[str]:
    """Logic that is computed only in the cycle after one of the conditions held."""
    changes = " | ".join(f"({c})" for c in sorted(conditions))
    lines = [f"  {line}" for name in names for line in logic[name].inside]
    return [
        f"  reg {flag} = 1'h1;",
        f"  always @(posedge clk) {flag} <= rst | {changes};",
        "\n".join([f"  always @* begin\n    if ({flag}) begin", *lines, "    end\n  end"]),
    ]


def _declared(statement: str, moved: Collection[str]) -> str:
    """A wire that is assigned in a process is declared as a variable."""
    match = _WIRE.fullmatch(statement)
    if match and match[3].strip() in moved:
        return f"{match[1]}  reg {match[2]}{match[3]};"
    return statement
