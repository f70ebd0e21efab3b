"""The bench of append on the RTL of tiny, against the layout."""

import pytest

from m890.hdl.config import preset
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format
from m890.sim.bench import append, registry
from m890.sim.bench.registry import BenchContext, BenchError


@pytest.mark.rtl
@pytest.mark.parametrize(("head", "tags"), [(32, "no"), (24, "yes")])
def test_beats_are_those_of_the_layout(head: int, tags: str) -> None:
    options = {"head": str(head), "tags": tags, "tokens": "11"}
    items = registry.run("append", BenchContext(1, "tiny", options=options))
    assert len(items) == len(Format)
    for item, format in zip(items, Format, strict=True):
        layout = PageLayout(preset("tiny"), format, head // 8, tags == "yes")
        written = 2 * len(list(layout.groups)) + (layout.header_beats > 0)
        assert item.name == f"append.beats_ratio.{format.name.lower()}"
        assert (item.config["read"], item.config["written"]) == (2 * layout.tiles, written)
        assert item.value == (2 * layout.tiles + written) / append.least_beats(layout)


def test_least_beats() -> None:
    """Small, head 128: 16 source beats; stored bytes by hand."""
    for format, tags, stored in (
        (Format.FP16, False, 16),  # 2 x 256 bytes
        (Format.FP16, True, 17),  # ... and 4 bytes
        (Format.E4M3, False, 9),  # 2 x 128 bytes, 4 bytes of scales
        (Format.INT4, False, 5),  # 2 x 64 bytes, 8 bytes of scales
        (Format.MXFP4, True, 5),
    ):
        assert append.least_beats(PageLayout(preset("small"), format, 8, tags)) == 16 + stored


@pytest.mark.parametrize("name", ["small", "m890"])
@pytest.mark.parametrize("head", [64, 128])
@pytest.mark.parametrize("tags", [False, True])
def test_goal(name: str, head: int, tags: bool) -> None:
    """At most 1.5 times the least, also if K and V could share a beat (but one tile of 4 bits)."""
    config = preset(name)
    for format in Format:
        layout = PageLayout(config, format, head // config.lanes, tags)
        beats = 2 * layout.tiles + 2 * len(list(layout.groups)) + (layout.header_beats > 0)
        assert beats <= 1.5 * append.least_beats(layout)
        stored = 2 * (layout.tiles * config.lanes * layout.coding.bits // 8 + layout.scale_bytes)
        stored += 4 if tags else 0
        together = 2 * layout.tiles + -(-stored // config.port_bytes)
        assert beats <= 1.5 * together or (layout.coding.bits == 4 and layout.tiles == 1)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("head", "24", "head is a multiple of 16 up to 128"), ("tokens", "0", "tokens starts at 1")],
)
def test_wrong_options(option: str, value: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        registry.run("append", BenchContext(1, "small", options={option: value}))
