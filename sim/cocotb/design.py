"""Verilog of single blocks, kept by the hash of the sources it was generated from."""

import hashlib
import inspect
import os
import pickle
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from amaranth.lib import wiring

from m890 import hdl
from m890.hdl.config import CoreConfig
from m890.hdl.verilog import VerilogDesign, generate
from m890.sim import toolchain

TOP = "bench"
"""Name of the top module of a block."""


def block_design(
    config: CoreConfig, make: Callable[[CoreConfig], wiring.Component]
) -> VerilogDesign:
    """The Verilog of `make(config)`, from the cache while configuration and sources are the same.

    Sources are those of `m890.hdl` and the file of `make`, a class or a function.
    """
    source, name = Path(inspect.getfile(make)), make.__qualname__.lower()
    key = _key(config, name, source)
    path = toolchain.cache_folder() / "designs" / f"{name}-{config.name}-{key}.pickle"
    if path.exists():
        try:
            return pickle.loads(path.read_bytes())
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError):
            path.unlink(missing_ok=True)  # cut off or of an old version
    design = generate(config, make(config), name=TOP)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        pickle.dump(design, file)
    os.replace(temporary, path)
    return design


def _key(config: CoreConfig, name: str, source: Path) -> str:
    digest = hashlib.sha256(repr((config, name, version("amaranth"))).encode())
    root = Path(next(iter(hdl.__path__)))
    for path in (*sorted(root.rglob("*.py")), source):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:20]
