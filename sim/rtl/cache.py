"""Generated designs kept by content hash: generating the Verilog of a large core takes a while."""

import hashlib
import os
import pickle
import tempfile
from importlib.metadata import version
from pathlib import Path

from m890 import hdl
from m890.hdl.config import ClusterConfig, CoreConfig
from m890.hdl.verilog import VerilogDesign, generate
from m890.sim import toolchain


def core_design(config: CoreConfig | ClusterConfig, cache: Path | None = None) -> VerilogDesign:
    """Verilog of a core or a cluster, from the cache while neither it nor any source changes."""
    folder = (cache or toolchain.cache_folder()) / "designs"
    path = folder / f"{config.name}-{_key(config)}.pickle"
    if path.exists():
        try:
            return pickle.loads(path.read_bytes())
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError):
            path.unlink(missing_ok=True)  # cut off or of an old version
    design = generate(config)
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder)
    with os.fdopen(handle, "wb") as file:
        pickle.dump(design, file)
    os.replace(name, path)
    return design


def _key(config: CoreConfig | ClusterConfig) -> str:
    digest = hashlib.sha256(repr((config, version("amaranth"))).encode())
    root = Path(next(iter(hdl.__path__)))
    for source in sorted(root.rglob("*.py")):
        digest.update(str(source.relative_to(root)).encode() + source.read_bytes())
    return digest.hexdigest()[:20]
