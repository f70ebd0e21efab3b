"""Registers as people write them: one clocked process per condition, without next-state signals.

Yosys writes a process that computes a register's next value (and keeps the present one by default)
and a second one that stores it. Joined, the condition is the process' first line; registers under
the same condition stand together. A simulator then passes over all of them with one test, which is
where most of its time would go otherwise.
"""

import re
from collections import Counter
from dataclasses import dataclass

_STORE = re.compile(r"  always @\(posedge clk\)\n    (\w+|\\\S+ ) ?<= (\w+__next);\n")
_PLAIN = re.compile(r"  always @\(posedge clk\)\n    ((?:\w+|\\\S+ ) ?<= [^;]+;)\n")
_NEXT = re.compile(r"  always @\* begin\n    if \(_at_start\) ;\n(.*?)\n  end\n", re.S)
_WORD = re.compile(r"\w+")
_RESET = re.compile(r"    if \(rst\) begin\n      (\S.*;)\n    end\n?")
_START = "  reg _at_start;\n  initial _at_start = 0;\n"


@dataclass
class _Register:
    """One register's process: what reset does, the condition around the rest, the rest."""

    reset: str
    condition: str
    body: str


def join(text: str) -> str:
    """A module's text with each register's two processes joined, and grouped by condition."""
    stores = {match[2]: match[1].strip() for match in _STORE.finditer(text)}
    uses = Counter(_WORD.findall(text))
    registers: list[_Register] = []
    joined: set[str] = set()

    def next_value(match: re.Match[str]) -> str:
        body = match[1] + "\n"
        target = _WORD.search(body)
        name = target[0] if target else ""
        # its declaration, its store and its assignments here: read nowhere else
        if name not in stores or uses[name] != 2 + len(re.findall(rf"\b{name}\b", body)):
            return match[0]
        joined.add(name)
        registers.append(_register(body, name, stores[name]))
        return ""

    text = _NEXT.sub(next_value, text)
    text = _STORE.sub(lambda match: "" if match[2] in joined else match[0], text)
    for name in joined:
        text = re.sub(rf"^  reg (\[\d+:0\] )?{name};\n", "", text, count=1, flags=re.M)

    def plain(match: re.Match[str]) -> str:
        registers.append(_Register("", "", f"    {match[1]}\n"))
        return ""

    text = _PLAIN.sub(plain, text)
    if "_at_start" in text and "if (_at_start)" not in text:
        text = text.replace(_START, "")
    return text.replace("\nendmodule", "\n" + "".join(_written(registers)) + "endmodule", 1)


def _register(body: str, name: str, register: str) -> _Register:
    """Splits the process of a next value."""
    escaped = register + " " if register.startswith("\\") else register
    body = body.removeprefix(f"    {name} = {escaped};\n")
    # a target is the signal, a part of it, or several parts in braces
    target = rf"\{{[^{{}}=]*\}}|{name}(?:\[[^\]]*\])?"
    body = re.sub(rf"^( *(?:{target})) = ", r"\1 <= ", body, flags=re.M)
    body = re.sub(rf"\b{name}\b", lambda _: escaped, body)
    reset = ""
    if (match := re.search(rf"{_RESET.pattern}$", body)) and match[1].startswith(f"{escaped} <="):
        reset, body = match[1], body[: match.start()]
    match = re.fullmatch(r"    if \(([^\n]*)\) begin\n(.*?)\n    end\n", body, re.S)
    if match and not re.search(r"^    \S", match[2], re.M):
        inner = re.sub(r"^  ", "", match[2], flags=re.M) + "\n"
        return _Register(reset, match[1], inner)
    return _Register(reset, "", body)


def _written(registers: list[_Register]) -> list[str]:
    """Processes of registers with the same reset and condition, each as one."""
    groups: dict[tuple[bool, str], list[_Register]] = {}
    for register in registers:
        groups.setdefault((bool(register.reset), register.condition), []).append(register)
    out = []
    for (reset, condition), members in groups.items():
        lines = ["  always @(posedge clk) begin"]
        if reset:
            lines += ["    if (rst) begin", *(f"      {r.reset}" for r in members)]
        start = f"if ({condition}) begin" if condition else "begin"
        if reset or condition:
            lines.append(f"    end else {start}" if reset else f"    {start}")
        deeper = "  " if reset or condition else ""
        for register in members:
            lines += [deeper + line for line in register.body.splitlines()]
        if reset or condition:
            lines.append("    end")
        out.append("\n".join([*lines, "  end", ""]))
    return out
