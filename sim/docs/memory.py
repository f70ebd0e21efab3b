"""The parameters of the HBM3-like memory as a page: names, defaults and what their comments say."""

import inspect
import re
from pathlib import Path

from m890.hdl.config import PRESETS
from m890.sim.docs.markdown import code, page, table
from m890.sim.rtl import hbm

FIELD = re.compile(r"    (\w+): \w+ = \S+(?:  # (.*))?")
SOURCE = re.compile(r"\[\w+\] .*?(?=\n\n|\n\[)", re.DOTALL)


def parameters() -> list[tuple[str, object, str]]:
    """Every field: (name, default, comment)."""
    source = inspect.getsource(hbm.HbmTiming).split("def __post_init__")[0]
    default = hbm.HbmTiming()
    found = [m.groups() for m in map(FIELD.fullmatch, source.splitlines()) if m]
    return [(name, getattr(default, name), comment or "") for name, comment in found]


def write(folder: Path) -> None:
    """The reference page."""
    about = inspect.getdoc(hbm) or ""
    rows = [(code(n), _value(value), comment) for n, value, comment in parameters()]
    shares = [
        (code(name), hbm.share(config).pseudo_channels, f"{hbm.share(config).peak:.1f}",
         config.lanes, config.port_bytes)
        for name, config in PRESETS.items()
    ]  # fmt: skip
    parts = [
        "# Parameters of the HBM3-like memory",
        "Made from `sim/rtl/hbm.py`; [the memory model](../memory.md) says what they do.",
        *[f"- {' '.join(text.split())}" for text in SOURCE.findall(about)],
        inspect.getdoc(hbm.HbmTiming) or "",
        table(("parameter", "value", "source and meaning"), rows),
        "## Share of one core",
        " ".join((inspect.getdoc(hbm.share) or "").split()),
        table(
            ("preset", "pseudo-channels", "bytes per cycle", "needed (`lanes`)", "port's bytes"),
            shares,
        ),
    ]
    (folder / "memory.md").write_text(page(*parts), "utf-8")


def _value(value: object) -> str:
    if isinstance(value, hbm.AddressMap):
        slices = ", ".join(f"{bits} {field}" for field, bits in value.slices)
        hashed = "hashed" if value.hash else "no hash"
        return f"stripe {value.stripe}; bits from the lowest: {slices}; row; {hashed}"
    return value.name.lower() if isinstance(value, hbm.Refresh) else str(value)
