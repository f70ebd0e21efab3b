"""From a component to Verilog: elaborate, merge identical modules, name them, write."""

import gc
import inspect
import re
from importlib import import_module
from typing import Any, Protocol, cast

from amaranth.back import rtlil  # type: ignore[attr-defined]
from amaranth.hdl import Fragment, Module, Signal, Value, ValueCastable
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring

from m890.hdl.config import ClusterConfig, CoreConfig
from m890.hdl.verilog import netlist, tidy
from m890.hdl.verilog.design import ModuleInfo, Port, VerilogDesign
from m890.hdl.verilog.merge import merge_identical
from m890.hdl.verilog.netlist import Netlist
from m890.hdl.verilog.writer import write

PORT_PREFIXES = {"axi": "m_axi", "csr": "s_axil"}
"""Interfaces of core and cluster to the prefixes that Verilog users know; other ports keep their
names."""


class _HasExternal(Protocol):
    def external_modules(self) -> list[tuple[str, wiring.Component]]: ...


def generate(
    config: CoreConfig | ClusterConfig,
    component: wiring.Component | None = None,
    *,
    name: str | None = None,
    prefix: str = "m890",
    merge: bool = True,
) -> VerilogDesign:
    """Verilog of `component`, by default the core, or the cluster, of `config`.

    The text is deterministic and names no path of this machine. Ports of the interfaces `axi` and
    `csr` get the prefixes `m_axi_` and `s_axil_` (`m_axi_N_` where there are several). A component
    with a method `external_modules()`, which returns names and components, instantiates these by
    name (`Instance`); each is elaborated here, once, and its Verilog is part of the text.
    """
    collecting = gc.isenabled()
    gc.disable()  # all that is made here stays to the end: looking for garbage takes half the time
    try:
        if component is None:  # large: only whoever asks for it waits
            if isinstance(config, ClusterConfig):
                whole = import_module("m890.hdl.cluster").Cluster(config)
                name = name or f"{prefix}_cluster"
            else:
                whole = import_module("m890.hdl.core").Core(config)
            component = cast(wiring.Component, whole)
        return _generate(config, component, name or f"{prefix}_core", prefix, merge)
    finally:
        if collecting:
            gc.enable()


def _generate(
    config: CoreConfig | ClusterConfig,
    component: wiring.Component,
    name: str,
    prefix: str,
    merge: bool,
) -> VerilogDesign:
    """What `generate` says."""
    cluster = config if isinstance(config, ClusterConfig) else None
    core = config.core if isinstance(config, ClusterConfig) else config
    modules, origins = _elaborate(component, name)
    external: list[str] = []
    if hasattr(component, "external_modules"):
        for other, part in cast(_HasExternal, component).external_modules():
            more, more_origins = _elaborate(part, other)
            modules += more
            origins |= more_origins
            external.append(other)
    if cluster is not None:  # the core first, so that its modules have the names they have alone
        modules.sort(key=lambda module: module.name.split(".")[0] == f"\\{name}")
    keep = {f"\\{n}" for n in (name, *external)}
    tidy.name_ports(modules, keep)
    for module in modules:
        tidy.drop_empty_contents(module)
        tidy.drop_copies(module)
        tidy.drop_elements(module)
        tidy.select_parts(module)
        tidy.fold_comparisons(module)
        tidy.drop_unread(module)
    if merge:
        modules, _ = merge_identical(modules, keep)
    names = _module_names(modules, origins, keep, prefix)
    floats = {m.name: _floats(m) for m in modules}
    by_name = {m.name: m for m in modules}
    for module in modules:
        tidy.readable_names(module, by_name)
        tidy.separate_names(module, by_name)
    infos = {}
    for module in modules:
        origin = origins.get(module.name)
        infos[module.name] = ModuleInfo(
            names[module.name],
            source=type(origin).__qualname__ if origin is not None else "",
            summary=_summary(origin),
            signals={n[1:]: w.width for n, w in module.wires.items() if n[1] != "_"},
            enums=_enums(module),
            floats={s: f for s, f in floats[module.name].items() if f"\\{s}" in module.wires},
            external=module.name[1:] in external,
        )
    top = by_name[f"\\{name}"]
    ports = [Port(n[1:], top.wires[n].direction, top.wires[n].width) for n in top.ports]
    for module in modules:
        module.name = f"\\{names[module.name]}"
        for item in module.instances:
            if item.type in names:
                item.type = f"\\{names[item.type]}"
    for module, info in zip(modules, infos.values(), strict=True):
        info.instances = [(i.name[1:], i.type[1:]) for i in module.instances]
    order = {info.name: info for info in infos.values()}
    design = VerilogDesign(name, core, "", ports, order, cluster)
    design.text = write(modules, order, name, design.parameters())
    return design


def _elaborate(component: wiring.Component, name: str) -> tuple[list[Netlist], dict[str, object]]:
    """The modules of a component, and for each the object that it comes from."""
    ports: dict[str, tuple[Value, PortDirection]] = {}
    for path, member, value in component.signature.flatten(component):
        if isinstance(value, ValueCastable):
            value = value.as_value()
        direction = PortDirection.Input if member.flow == wiring.In else PortDirection.Output
        parts = [str(p) for p in path]
        if parts[0] in PORT_PREFIXES:
            port = "_".join([PORT_PREFIXES[parts[0]], *parts[1:]])
        else:
            port = "__".join(parts)
        if isinstance(value, Signal):
            value.name = port  # one name for the port and its signal
        ports[port] = (cast(Value, value), direction)
    fragment = Fragment.get(component, None)
    design = cast(Any, fragment.prepare(ports=ports, hierarchy=(name,)))
    origins: dict[str, object] = {}
    states: dict[str, dict[str, list[str]]] = {}
    for fragment, info in design.fragments.items():
        path = "\\" + ".".join(info.name)
        for origin in fragment.origins or ():
            while (inner := getattr(origin, "_elaboratable_", None)) is not None:
                origin = inner
            if not isinstance(origin, Module):
                origins[path] = origin
                break
        states[path] = {
            f"\\{signal_name}": attributes
            for signal, signal_name in info.signal_names.items()
            if (attributes := _states(signal))
        }
    text, _ = rtlil.convert_fragment(design, name=name, emit_src=False)
    modules = netlist.parse(text)
    for module in modules:
        for signal, attributes in states[module.name].items():
            if signal in module.wires:
                module.wires[signal].attributes += attributes
    order = {port: n for n, port in enumerate(["\\clk", "\\rst", *(f"\\{p}" for p in ports)])}
    first = modules[0]  # clock and reset first, then the ports in the signature's order
    declared = sorted(first.ports, key=lambda p: order.get(p, len(order)))
    rest = {n: w for n, w in first.wires.items() if not w.direction}
    first.wires = {n: first.wires[n] for n in declared} | rest
    return modules, origins


def _states(signal: Signal) -> list[str]:
    """The attributes that name the states of an FSM's state register."""
    decoder = signal.decoder
    if decoder is None or isinstance(decoder, type) or not signal.name.endswith("_state"):
        return []
    width = len(signal)
    attributes = [f'attribute \\enum_base_type "{signal.name}"']
    for value in range(1 << width):
        try:
            state = str(decoder(value)).rsplit("/", 1)[0]
        except KeyError:
            break
        attributes.append(f'attribute \\enum_value_{value:0{width}b} "{state}"')
    return attributes


def _enums(module: Netlist) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {}
    for name, wire in module.wires.items():
        values = {}
        for attribute in wire.attributes:
            if match := re.match(r'attribute \\enum_value_([01]+) "(.*)"', attribute):
                values[int(match[1], 2)] = match[2]
        if values:
            found[name[1:]] = values
    return found


_FLOATS = {(24, 13): "wide", (11, 13): "operand", (11, 9): "element"}


def _floats(module: Netlist) -> dict[str, str]:
    """Signals that are internal floats, told by the widths of their significand and exponent."""
    found = {}
    for name, wire in module.wires.items():
        if name.endswith(".sig") and (exponent := module.wires.get(name[:-3] + "exp")):
            if kind := _FLOATS.get((wire.width, exponent.width)):
                found[name[1:-4].replace(".", "__")] = kind
    return found


def _summary(origin: object) -> str:
    doc = inspect.getdoc(type(origin)) if origin is not None else None
    return " ".join((doc or "").split("\n\n")[0].split())


def _module_names(
    modules: list[Netlist], origins: dict[str, object], keep: set[str], prefix: str
) -> dict[str, str]:
    """PREFIX_CLASS for every module; several modules of a class are told apart by instance name."""
    names = {m.name: m.name[1:] for m in modules if m.name in keep}
    taken = set(names.values())
    wanted: dict[str, list[str]] = {}
    for module in modules:
        if module.name in keep:
            continue
        instance = _snake(module.name.split(".")[-1])
        origin = origins.get(module.name)
        base = _snake(type(origin).__name__) if origin is not None else instance
        wanted.setdefault(base, []).append(module.name)
    for base, paths in wanted.items():
        for path in paths:
            name = f"{prefix}_{base}"
            if len(paths) > 1:
                parts = [_snake(p) for p in path[1:].split(".")]
                last = parts[-1] if parts[-1] != base else parts[-2]
                name += f"_{last}"
            number, candidate = 1, name
            while candidate in taken:
                number += 1
                candidate = f"{name}_{number}"
            taken.add(candidate)
            names[path] = candidate
    return names


def _snake(name: str) -> str:
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"\W+", "_", name).strip("_").lower()
