"""Verilog without hierarchy, for the native simulator.

Modules are written out where they are instantiated, except for those that stay on their own, and
wires that only rename another are left out. What reads a signal, and under which condition, can
then be seen across what were modules (`m890.sim.rtl.gather`).
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

MODULE = re.compile(
    r"^module (?P<name>\w+)\((?P<ports>.*?)\n\);\n(?P<body>.*?)^endmodule$", re.M | re.S
)
_INSTANCE = re.compile(r"  (\w+) ([\w$]+|\\\S+ ) ?\(\n(.*)\n  \);", re.S)
_CONNECTION = re.compile(r" *\.([\w$]+|\\\S+ ) ?\((.*)\),?")
_PORT = re.compile(
    r" *(input|output) (wire|reg) ((?:signed )?(?:\[\d+:\d+\] )?)(\w+|\\\S+ ?)( ?= .*)?"
)
_COPY = re.compile(r"  assign ([\w$]+|\\\S+ ) ?= ([\w$]+|\\\S+ );")
_DECLARED = re.compile(
    r" *(?:\(\*.*?\*\)\s*)*(?:wire|reg) ((?:signed )?(?:\[\d+:\d+\] )?)([\w$]+|\\\S+ )"
)
_TOKEN = re.compile(
    r"\d*'s?[bdh][0-9a-fA-Fxz?_]+|\(\*.*?\*\)|//[^\n]*|(\\\S+|(?<![\w$.])[A-Za-z_][\w$]*)"
)
AT_START = "_at_start"
"""A register of every module that makes its `always @*` run once (m890.hdl.verilog.writer)."""
_WORDS = frozenset(
    "always assign begin case casez default else end endcase if initial input integer negedge or "
    "output posedge reg signed wire".split()
)
_NOISE = re.compile(r"\d*'s?[bdh][0-9a-fA-Fxz?_]+|\(\*.*?\*\)|//[^\n]*|\\\S+")
_OPENING = re.compile(r"(?<![\w$])(?:begin|casez|case)(?![\w$])|\(")
_CLOSING = re.compile(r"(?<![\w$])(?:end|endcase)(?![\w$])|\)")


@dataclass
class _Module:
    """A module's ports as written, and its statements."""

    ports: str
    statements: list[str]


def statements(body: str) -> list[str]:
    """A module's statements at its outermost level."""
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


def renamed(text: str, name: Callable[[str], str]) -> str:
    """The text with every identifier (an escaped one with its backslash) given a new name."""

    def one(match: re.Match[str]) -> str:
        word = match[1]
        if word is None or word in _WORDS:
            return match[0]
        new = name(word)
        return f"{new} " if new[0] == "\\" != word[0] else new

    return _TOKEN.sub(one, text)


def flatten(text: str, top: str, alone: Collection[str] = ()) -> str:
    """The top module and those of `alone`, with everything else written out in them."""
    modules = {
        m["name"]: _Module(m["ports"], statements(m["body"])) for m in MODULE.finditer(text)
    }
    flat: dict[str, list[str]] = {}

    def inside(name: str) -> list[str]:
        if name not in flat:
            out: list[str] = []
            for statement in modules[name].statements:
                match = _INSTANCE.fullmatch(statement)
                if match and match[1] in modules and match[1] not in alone:
                    child = modules[match[1]].ports, inside(match[1])
                    out += _written_out(*child, match[2].strip(), match[3], alone)
                else:
                    out.append(statement)
            flat[name] = out
        return flat[name]

    parts = [text[: text.index("\nmodule ") + 1]]
    for name in (top, *alone):
        body = "\n".join(_without_copies(modules[name].ports, inside(name)))
        parts.append(f"module {name}({modules[name].ports}\n);\n{body}\nendmodule\n")
    return "\n".join(parts)


def _written_out(
    ports: str, body: list[str], instance: str, connections: str, alone: Collection[str]
) -> list[str]:
    """The statements of an instance, its signals named after it."""
    prefix = re.sub(r"\W", "_", instance) + "$"
    names = {word: word for word in (*alone, AT_START)}

    def name(word: str) -> str:
        if word not in names:
            escaped = word.startswith("\\")
            names[word] = f"\\{prefix}{word[1:]}" if escaped else prefix + word
        return names[word]

    wired = {m[1].strip(): m[2] for m in map(_CONNECTION.fullmatch, connections.split("\n")) if m}
    out = []
    for line in ports.split("\n"):
        match = _PORT.fullmatch(line.rstrip(","))
        if not match:
            continue
        direction, kind, shape, port, start = match.groups()
        port, start = port.strip(), start or ""
        new = name(port) + (" " if port.startswith("\\") else "")
        out.append(f"  {kind} {shape}{new}{start};")
        if wire := wired.get(port, "").strip():
            wire += " " if re.search(r"\\\S+$", wire) else ""
            pair = (new, wire) if direction == "input" else (wire, new)
            out.append("  assign {} = {};".format(*pair))
    return out + [renamed(statement, name) for statement in body]


def _without_copies(ports: str, body: list[str]) -> list[str]:
    """Statements without the wires that another wire or register of their width stands for."""
    shape: dict[str, str] = {}
    for line in ports.split("\n"):
        if match := _PORT.fullmatch(line.rstrip(",")):
            shape[match[4].strip()] = match[3]
    fixed = set(shape)
    for statement in body:
        if match := _DECLARED.match(statement):
            shape[match[2].strip()] = match[1]
    copies: dict[str, str] = {}
    for statement in body:
        if match := _COPY.fullmatch(statement):
            target, source = match[1].strip(), match[2].strip()
            if target not in fixed and shape.get(target) == shape.get(source):
                copies[target] = source

    def name(word: str) -> str:
        while word in copies:
            word = copies[word]
        return word

    out = []
    for statement in body:
        if (match := _COPY.fullmatch(statement)) and match[1].strip() in copies:
            continue
        if (match := _DECLARED.match(statement)) and match[2].strip() in copies:
            continue
        out.append(renamed(statement, name))
    return list(dict.fromkeys(out))  # each module has declared AT_START
