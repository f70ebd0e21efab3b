"""Where bytes lie in memory: pages, raw states (data only, no Amaranth)."""

from dataclasses import dataclass

from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import CODINGS, Format


@dataclass(frozen=True)
class PageLayout:
    """Layout of a page of one plane. Per chunk of `lanes` tokens, in this order:

    K scales (lanes x BF16, one port beat) and V scales (likewise), if the format is scaled;
    K tiles, then V tiles: `tiles` tiles of [token][lanes features] elements each.

    Both scales come first: the V scale multiplies p, which exists before V arrives.
    All offsets are bytes; everything is a multiple of the port's beat.
    """

    config: CoreConfig
    format: Format
    tiles: int  # head size / lanes

    @property
    def beats_per_tile(self) -> int:
        """Port beats of a tile: lanes x lanes elements."""
        return self.config.lanes * CODINGS[self.format].bytes // 2

    @property
    def scale_beats(self) -> int:
        """Port beats of the scales of a chunk (K, then V)."""
        return 2 if CODINGS[self.format].scaled else 0

    @property
    def k_offset(self) -> int:
        """First K tile, from the chunk's start."""
        return self.scale_beats * self.config.port_bytes

    @property
    def v_offset(self) -> int:
        """First V tile, from the chunk's start."""
        return self.k_offset + self.tiles * self.beats_per_tile * self.config.port_bytes

    @property
    def chunk_bytes(self) -> int:
        return self.v_offset + self.tiles * self.beats_per_tile * self.config.port_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes of a page without padding: the least plane stride."""
        return self.chunk_bytes * self.config.chunks_per_page

    def element(self, token: int, feature: int, *, value: bool) -> int:
        """Byte offset in the page of a K (or V) element; token counts from the page's start."""
        lanes, size = self.config.lanes, CODINGS[self.format].bytes
        chunk, t = divmod(token, lanes)
        tile, f = divmod(feature, lanes)
        base = chunk * self.chunk_bytes + (self.v_offset if value else self.k_offset)
        return base + ((tile * lanes + t) * lanes + f) * size

    def scale(self, token: int, *, value: bool) -> int:
        """Byte offset in the page of a token's K (or V) scale."""
        chunk, t = divmod(token, self.config.lanes)
        return chunk * self.chunk_bytes + (self.config.port_bytes if value else 0) + 2 * t


def raw_stride(config: CoreConfig, tiles: int) -> int:
    """Bytes of one row's raw state: a header beat [E: i32, l: FP32, 0 ...], then O as FP32."""
    return config.port_bytes * (1 + 2 * tiles)


def output_bytes(config: CoreConfig, tiles: int, element_bytes: int) -> int:
    """Bytes of one row's normalised output; a multiple of the port's beat for 16 and 32 bits."""
    return tiles * config.lanes * element_bytes
