"""What is inside core and cluster, from the elaborated source: blocks, ports, who feeds whom."""

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amaranth.hdl import Elaboratable, Module, Value
from amaranth.lib import wiring

from m890.hdl.cluster import Cluster
from m890.hdl.config import PRESETS, ClusterConfig
from m890.hdl.core import Core

ROOT = Path(inspect.getfile(importlib.import_module("m890.hdl.config"))).resolve().parents[1]
"""Folder that holds hdl/, testbench/ and docs/."""


@dataclass(frozen=True)
class Edge:
    """Block `source` drives the members `names` of block `target`; "" is the block around them."""

    source: str
    target: str
    names: tuple[str, ...]
    stream: bool  # streams and memory ports, not single signals


@dataclass
class Block:
    """One instance: its component, the path of instance names, and what it is made of."""

    component: Any
    path: tuple[str, ...]
    children: list["Block"] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path[-1] if self.path else self.kind.lower()

    @property
    def kind(self) -> str:
        return type(self.component).__name__

    def walk(self) -> Iterator["Block"]:
        yield self
        for child in self.children:
            yield from child.walk()


@functools.cache
def hierarchy(preset: str) -> Block:
    """The core of a preset, each class of block opened once per place where it differs."""
    core = Core(PRESETS[preset])
    top = _open(core, ())
    for name, part in core.external_modules():
        owner = next(b for b in top.walk() if b.kind == "RowArray")
        owner.children.append(_open(part, (*owner.path, name)))
    return top


@functools.cache
def cluster(preset: str) -> Block:
    """A cluster with all that can stand around its cores."""
    whole = Cluster(ClusterConfig(PRESETS[preset], 2, shared=True))
    top = _open(whole, ())
    top.children.append(Block(hierarchy(preset).component, ("core",)))
    return top


def every(preset: str) -> Iterator[Block]:
    """All blocks of the core, then those of a cluster."""
    yield from hierarchy(preset).walk()
    yield from cluster(preset).walk()


@functools.cache
def first_of(preset: str) -> dict[str, Block]:
    """The first instance of every class of block."""
    found: dict[str, Block] = {}
    for block in every(preset):
        found.setdefault(block.kind, block)
    return found


def classes() -> dict[str, type]:
    """Every component that hdl/ defines (and the memory wrapper), by name."""
    found: dict[str, type] = {}
    for path in sorted((ROOT / "hdl").rglob("*.py")):
        names = [
            node.name
            for node in ast.parse(path.read_text("utf-8")).body
            if isinstance(node, ast.ClassDef)
        ]
        if not names or path.parent.name == "verilog":
            continue
        dotted = ".".join(("m890", *path.relative_to(ROOT).with_suffix("").parts))
        module = importlib.import_module(dotted)
        for name in names:
            value = getattr(module, name)
            if issubclass(value, Elaboratable):
                found[name] = value
    return found


def _open(component: Any, path: tuple[str, ...]) -> Block:
    """A block and, below it, one instance of each run of equal submodules (lane0 ... lane15)."""
    block = Block(component, path)
    if not hasattr(component, "elaborate") or not type(component).__module__.startswith("m890."):
        return block
    module = _unwrapped(component.elaborate(None))
    if not isinstance(module, Module):
        return block
    module._flush()
    parts = {n: _unwrapped(s) for n, (s, _) in module._named_submodules.items()}
    stems = _stems(parts)
    for name, part in parts.items():
        stem = stems[name]
        if not hasattr(part, "elaborate") or not type(part).__module__.startswith("m890."):
            continue
        if stem in (child.name for child in block.children):
            continue
        block.children.append(_open(part, (*path, stem)))
    block.edges = _edges(component, parts, module)
    return block


def _unwrapped(part: Any) -> Any:
    """The component itself, where its parent has put a clock enable around it."""
    while (inner := getattr(part, "_elaboratable_", None)) is not None:
        part = inner
    return part


def members(component: Any) -> list[tuple[str, wiring.Member]]:
    """Ports of a component as its signature lists them."""
    if not isinstance(component, wiring.Component):
        return []
    return list(component.signature.members.items())


def _edges(component: Any, parts: dict[str, Any], module: Module) -> list[Edge]:
    """Wires between the parts, followed through named signals but not through registers."""
    gives: dict[int, tuple[str, str, bool]] = {}  # signal -> instance, member, is interface
    takes: dict[int, tuple[str, str, bool]] = {}
    stems = _stems(parts)
    for name, part in (("", component), *parts.items()):
        stem = stems.get(name, "")
        for member, shape in members(part):
            inside = name == ""
            interface = shape.is_signature
            outward = (shape.flow == wiring.Out) != inside
            for flow, signal in _leaves(getattr(part, member), shape):
                if flow != shape.flow:
                    continue  # ready, and data that come back: the other way round
                (gives if outward else takes)[id(signal)] = (stem, member, interface)
    drivers: dict[int, set[int]] = {}
    signals: dict[int, Any] = {}
    for statement in _assigns(module):
        sources = {id(s): s for s in _signals(statement.rhs)}
        signals |= sources
        for target in statement.lhs._lhs_signals():
            drivers.setdefault(id(target), set()).update(sources)
    found: dict[tuple[str, str, bool], dict[str, None]] = {}
    for sink, (target, member, interface) in takes.items():
        queue, visited = [sink], set()
        while queue:
            here = queue.pop()
            if here in visited:
                continue
            visited.add(here)
            if here != sink and here in gives:
                source, label, of_interface = gives[here]
                if source != target:
                    stream = interface and of_interface
                    ours = not target or (label == "o" and source and member != "i")
                    name = member if ours else label
                    found.setdefault((source, target, stream), {})[name] = None
                continue
            queue += drivers.get(here, ())
    edges = [Edge(a, b, tuple(names), s) for (a, b, s), names in found.items()]
    both = {(e.source, e.target): e.names for e in edges if e.stream}
    return [
        e for e in edges if e.stream or not set(e.names) <= set(both.get((e.source, e.target), ()))
    ]


def _stems(parts: dict[str, Any]) -> dict[str, str]:
    """Instance names, one for all of a run of equal parts: lane0 ... lane15 are `lane`."""
    found: dict[str, str] = {}
    kinds = [(type(part), name.rstrip("0123456789")) for name, part in parts.items()]
    for name, kind in zip(parts, kinds, strict=True):
        found[name] = kind[1] if kinds.count(kind) > 1 else name
    return found


def _leaves(value: Any, member: Any) -> Iterator[tuple[Any, Any]]:
    """(flow, signal) of every wire of a port; arrays of ports are opened."""
    if member.dimensions and not isinstance(value, Value):
        inner = wiring.Member(member.flow, member._description)
        for item in value:
            yield from _leaves(item, inner)
    elif member.is_signature:
        port: Any = value
        for _, leaf, wire in port.signature.flatten(port):
            flow = leaf.flow if member.flow == wiring.Out else leaf.flow.flip()
            for signal in _signals(Value.cast(wire)):
                yield _as_seen(value, member, flow), signal
    else:
        for signal in _signals(Value.cast(value)):
            yield member.flow, signal


def _as_seen(value: Any, member: wiring.Member, flow: Any) -> Any:
    """Flow from the component's point of view, whatever side the attribute shows."""
    flipped = isinstance(value.signature, wiring.FlippedSignature)
    if member.flow == wiring.In:
        # The attribute of an In port is the flipped interface: its own flow is right already.
        return flow.flip() if flipped else flow
    return flow


def _signals(value: Any) -> list[Any]:
    cast: Any = Value.cast(value)
    return list(cast._rhs_signals())


def _assigns(module: Module) -> Iterator[Any]:
    """All combinational assignments, those under conditions too."""
    queue = [*module._statements.get("comb", ()), *module._top_comb_statements]
    while queue:
        statement = queue.pop()
        if hasattr(statement, "lhs"):
            yield statement
        elif hasattr(statement, "cases"):
            for case in statement.cases:
                queue += list(case[1])
