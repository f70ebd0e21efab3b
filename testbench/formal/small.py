"""Small instances for proofs: memories as registers in plain view, counts of few bits."""

import inspect
import sys
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
from amaranth.hdl import Module, Shape, ShapeLike, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl import config
from m890.hdl.config import CoreConfig, preset
from m890.hdl.pages import layouts, manager, prepare, rules

REFERENCE_BITS, PIN_BITS, TOKEN_BITS = 3, 2, 5
PAGES, SEQUENCES, TENANTS = 4, 2, 2
TABLE = r"word\d+"
"""Registers of a Table, for `anything`: an SRAM starts with any words."""


def small(**changes: int) -> CoreConfig:
    """A configuration of few pages, sequences and tenants, with addresses as short as may be."""
    few = {"pages": PAGES, "sequences": SEQUENCES, "tenants": TENANTS, "planes": 1}
    return preset("tiny").with_(**{**few, "address_bits": 32, **changes})


def few_bits(
    patch: pytest.MonkeyPatch, references: int = REFERENCE_BITS, pins: int = PIN_BITS
) -> None:
    """Counts of few bits in pages' words, so that they overflow soon, and short sequences."""
    patch.setattr(layouts, "REFERENCE_BITS", references)
    patch.setattr(layouts, "PIN_BITS", pins)
    patch.setattr(layouts, "MOST_REFERENCES", (1 << references) - 1)
    patch.setattr(layouts, "MOST_PINS", (1 << pins) - 1)
    for module in (config, layouts, manager, prepare, rules):
        patch.setattr(module, "TOKEN_BITS", TOKEN_BITS)


def again(module: ModuleType, *changes: tuple[str, str], **names: Any) -> Any:
    """A second copy of a module, with `names` replaced in it.

    Each change is an old and a new text: the old one must be there once. So a twin differs from
    the block in the line that the test shows.
    """
    source = inspect.getsource(module)
    for old, new in changes:
        if source.count(old) != 1:
            raise LookupError(f"{module.__name__} has {source.count(old)} times, not once: {old}")
        source = source.replace(old, new)
    copy = ModuleType(module.__name__)
    copy.__file__ = module.__file__
    exec(compile(source, str(module.__file__), "exec"), copy.__dict__)
    copy.__dict__.update(names)
    return copy


class Table(wiring.Component):
    """In the place of a SecdedSram: the same ports and cycles, `words` in registers.

    Its words start with anything, like an SRAM's.
    """

    write_address: Signal
    write_data: Any
    write_enable: Signal
    inject: Signal
    read_address: Any
    read_enable: Any
    read_data: Any
    corrected: Any
    fatal: Any

    def __init__(self, shape: ShapeLike, depth: int, *, reads: int = 1) -> None:
        address = range(max(2, depth))
        width = Shape.cast(shape).width
        self.words: list[Any] = []
        self.read: list[Any] = []
        for n in range(depth):
            self.words.append(self._register(shape, width, f"word{n}"))
        for n in range(reads):
            self.read.append(self._register(shape, width, f"read{n}"))
        super().__init__(
            {
                "write_address": In(address), "write_data": In(shape), "write_enable": In(1),
                "inject": In(2),
                "read_address": In(address).array(reads), "read_enable": In(1).array(reads),
                "read_data": Out(shape).array(reads),
                "corrected": Out(1).array(reads), "fatal": Out(1).array(reads),
            }
        )  # fmt: skip

    @staticmethod
    def _register(shape: Any, width: int, name: str) -> Any:
        register = Signal(width, name=name)
        return data.View(shape, register) if isinstance(shape, data.Layout) else register

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for n, word in enumerate(self.words):
            with m.If(self.write_enable & (self.write_address == n)):
                m.d.sync += Value.cast(word).eq(Value.cast(self.write_data))
        for n, read in enumerate(self.read):
            with m.If(self.read_enable[n]):
                with m.Switch(self.read_address[n]):
                    for k, word in enumerate(self.words):
                        with m.Case(k):
                            m.d.sync += Value.cast(read).eq(Value.cast(word))
            m.d.comb += Value.cast(self.read_data[n]).eq(Value.cast(read))
        return m


class Inside:
    """A block's elaborated module and the local names of the functions that made it.

    `names["_count"]["more"]` is the local `more` of the method `_count`, and of functions in other
    files of the folder `names["Prepare.states"]["one"]`; `blocks["store"]` is the inside of the
    submodule `store`.
    """

    def __init__(self, block: Any, platform: Any) -> None:
        self.names: dict[str, dict[str, Any]] = {}
        where = Path(inspect.getfile(type(block).elaborate))

        def seen(frame: FrameType, event: str, _: Any) -> None:
            code = frame.f_code
            if event == "return" and Path(code.co_filename).parent == where.parent:
                name = code.co_name if code.co_filename == str(where) else code.co_qualname
                self.names.setdefault(name, {}).update(frame.f_locals)

        before = sys.getprofile()
        sys.setprofile(seen)
        try:
            self.module: Module = block.elaborate(platform)
            block._MustUse__used = True  # or Amaranth warns: it is used by way of its module
        finally:
            sys.setprofile(before)
        self.blocks: dict[str, Inside] = {}
        named = self.module._named_submodules
        for name, (inner, place) in list(named.items()):
            if isinstance(inner, wiring.Component):
                self.blocks[name] = Inside(inner, platform)
                named[name] = (self.blocks[name].module, place)

    def __getitem__(self, name: str) -> Any:
        """A local of `elaborate`."""
        return self.names["elaborate"][name]

    def state(self, machine: str, state: str) -> Value:
        """Whether a state machine is in a state."""
        return self.module._generated[machine].ongoing(state)
