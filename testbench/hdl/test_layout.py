"""The page layout against its words: every byte has one owner, and a token is few accesses."""

import itertools

import numpy as np
import pytest

from m890.hdl.config import CoreConfig, preset
from m890.hdl.layout import TAG_BYTES, PageLayout
from m890.hdl.numerics.formats import CODINGS, GROUP, Format

CONFIGS = {
    "tiny": preset("tiny"),
    "small": preset("small"),
    "edge, 2 chunks a page": preset("edge").with_(page_tokens=64),
    "m890": preset("m890"),
}


def layouts(config: CoreConfig) -> list[PageLayout]:
    """All formats and head sizes up to 7 tiles, with and without tags."""
    sizes = range(1, min(config.max_tiles, 7) + 1)
    return [PageLayout(config, *some) for some in itertools.product(Format, sizes, (False, True))]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_bit_has_one_owner(name: str) -> None:
    """Elements, scales and tags never overlap, fill K and V and stay inside the page."""
    config = CONFIGS[name]
    for layout in layouts(config):
        bits, head = layout.coding.bits, layout.tiles * config.lanes
        owners = np.zeros(8 * layout.page_bytes, np.int8)
        for token, value in itertools.product(range(config.page_tokens), (False, True)):
            feature = np.arange(head)
            at = layout.element(token, feature, value=value)  # type: ignore[arg-type]
            first = 8 * np.asarray(at) + np.where(bits == 4, 4 * (feature % 2), 0)
            owners[first[:, None] + np.arange(bits)] += 1
            for group in range(layout.scale_bytes if layout.coding.grouped else 1):
                scale = 8 * layout.scale(token, value=value, group=group)
                size = 1 if layout.coding.grouped else layout.scale_bytes
                owners[scale : scale + 8 * size] += 1
            if layout.tags:
                tag = 8 * layout.tag(token, value=value)
                owners[tag : tag + 8 * TAG_BYTES] += 1
        assert owners.max() == 1, layout
        chunks = owners.reshape(config.chunks_per_page, -1)
        assert chunks[:, 8 * layout.k_offset :].all(), layout


@pytest.mark.parametrize("name", CONFIGS)
def test_everything_is_made_of_port_beats(name: str) -> None:
    config = CONFIGS[name]
    for layout in layouts(config):
        for size in (layout.k_offset, layout.region_bytes, layout.chunk_bytes):
            assert size % config.port_bytes == 0
        assert layout.header_beats * config.port_bytes == 2 * layout.half_bytes * config.lanes
        assert layout.half_bytes <= config.lanes  # an entry lies within a beat


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_is_a_write_per_group(name: str) -> None:
    """A row's bytes lie in as many beats as there are groups; the header's in one."""
    config = CONFIGS[name]
    for layout in layouts(config):
        feature = np.arange(layout.tiles * config.lanes)
        groups = list(layout.groups)
        assert sum(group.tiles for group in groups) == layout.tiles
        for token, value in ((0, False), (config.lanes - 1, True)):
            at = np.asarray(layout.element(token, feature, value=value))  # type: ignore[arg-type]
            assert len(set(at // config.port_bytes)) == len(groups)
        if layout.half_bytes:
            first = layout.scale(1, value=False) // config.port_bytes
            last = layout.scale(1, value=True) + layout.half_bytes - 1
            assert first == last // config.port_bytes


@pytest.mark.parametrize("format", Format)
def test_scale_bytes(format: Format) -> None:
    coding = CODINGS[format]
    for name, tiles in (("tiny", 3), ("small", 5), ("m890", 3)):
        config = preset(name)
        size = PageLayout(config, format, tiles).scale_bytes
        groups = -(-tiles * config.lanes // GROUP)
        assert size == (groups if coding.grouped else 2 if coding.scaled else 0)
