"""In the simulation: cocotbext-axi's memory and register master, with random pauses and rules."""

import itertools
import logging
import random
from collections.abc import Iterator
from typing import Any

from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam


def pauses(seed: object, stall: float) -> Iterator[bool]:
    """For pause generators: True in a share `stall` of the cycles."""
    chance = random.Random(str(seed))
    return (chance.random() < stall for _ in itertools.count())


def axi_memory(
    dut: Any, memory: bytearray, *, prefix: str = "m_axi", seed: int = 0, stall: float = 0.0
) -> AxiRam:
    """A memory at an AXI4 master port; an access beyond it is a bus error."""
    _quiet(dut)
    ram = AxiRam(AxiBus.from_prefix(dut, prefix), dut.clk, dut.rst, mem=memory)
    _guard(ram.read_if, "_read", len(memory))
    _guard(ram.write_if, "_write", len(memory))
    _pause(ram.write_if, ("aw", "w", "b"), seed, stall)
    _pause(ram.read_if, ("ar", "r"), seed, stall)
    return ram


def register_master(
    dut: Any, *, prefix: str = "s_axil", seed: int = 0, stall: float = 0.0
) -> Any:
    """An `AxiLiteMaster` for an AXI4-Lite slave port."""
    _quiet(dut)
    master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, prefix), dut.clk, dut.rst)
    _pause(master.write_if, ("aw", "w", "b"), seed, stall)
    _pause(master.read_if, ("ar", "r"), seed, stall)
    return master


async def held_offers(dut: Any) -> None:
    """Until it is taken, what the core offers at its memory port stays as it is."""
    channels = []
    for name, fields in (("ar", ("id", "addr", "len")), ("aw", ("id", "addr", "len")),
                         ("w", ("data", "strb", "last"))):  # fmt: skip
        handles = [getattr(dut, f"m_axi_{name}{x}") for x in ("valid", "ready", *fields)]
        channels.append((name, *handles))
    offers: dict[str, list[int]] = {}
    edge = RisingEdge(dut.clk)
    while True:
        await edge
        for name, valid, ready, *payload in channels:
            offered = [int(x.value) for x in payload] if int(valid.value) else []
            before = offers.pop(name, offered)
            assert before == offered, f"{name}: an offer was not held: {before}, then {offered}"
            if offered and not int(ready.value):
                offers[name] = offered


def _quiet(dut: Any) -> None:
    """cocotbext-axi logs every signal and every burst, which takes longer than the bursts."""
    logging.getLogger(f"cocotb.{dut._name}").setLevel(logging.WARNING)


def _pause(half: Any, channels: tuple[str, ...], seed: int, stall: float) -> None:
    half.log.setLevel(logging.WARNING)
    for name in channels if stall else ():
        channel = getattr(half, f"{name}_channel")
        channel.set_pause_generator(pauses(f"{seed} {name}", stall))


def _guard(half: Any, name: str, size: int) -> None:
    plain = getattr(half, name)

    async def access(address: int, what: Any) -> Any:
        if address >= size:
            raise IndexError(f"{address:#x} lies beyond the memory")
        return await plain(address, what)

    setattr(half, name, access)
