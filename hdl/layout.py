"""Where bytes lie in memory: pages, raw states (data only, no Amaranth)."""

from collections.abc import Iterator
from dataclasses import dataclass

from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import CODINGS, GROUP, Coding, Format

TAG_BYTES = 2
"""An integrity tag (CRC-16)."""
TAG_POLYNOMIAL = 0x1021
"""Of the tag, without x^16: see docs/decisions/0015-tags.md."""
TAG_START = 0xFFFF
"""What a row's tag starts from: not 0, so that a cleared row with a cleared tag is a bad one."""


@dataclass(frozen=True)
class Group:
    """Neighbouring tiles that lie next to each other, token by token. Sizes in bytes.

    start: from the first of K's (or V's) groups. row: a token's part.
    """

    first: int  # tile
    tiles: int
    start: int
    row: int


@dataclass(frozen=True)
class PageLayout:
    """Layout of a page of one plane. Per chunk of `lanes` tokens: header, K, V.

    **Header**: an entry per token, its K half, then its V half. A half holds the row's scale (BF16,
    or an E8M0 byte per 32 features) and in its last two bytes the row's integrity tag, as far as
    the plane has them; it is the next power of two of bytes, zeros between. The tag is a CRC over
    the row's codes as stored, in feature order, then over the half's bytes before the tag. The
    header comes first, since K scales are needed with K, and V scales multiply p, which exists
    before V arrives.

    **K and V**: groups of as many tiles as fill a port beat for one token: 1 of 16 bits, 2 of 8, 4
    of 4 bits; what is left of the head is in groups of 2 and 1. A group is [token][tile][lane], so
    that a token is written with one access per group. Of two 4-bit elements the even feature is the
    low one.

    All offsets are bytes; header, groups and chunks are multiples of the port's beat.
    """

    config: CoreConfig
    format: Format
    tiles: int  # head size / lanes
    tags: bool = False

    @property
    def coding(self) -> Coding:
        return CODINGS[self.format]

    @property
    def scale_bytes(self) -> int:
        """Of one row's scales."""
        if self.coding.grouped:
            return -(-self.tiles * self.config.lanes // GROUP)
        return 2 if self.coding.scaled else 0

    @property
    def half_bytes(self) -> int:
        """Half an entry of the header: scales and tag of a K (or V) row."""
        need = self.scale_bytes + (TAG_BYTES if self.tags else 0)
        return 1 << (need - 1).bit_length() if need else 0

    @property
    def header_beats(self) -> int:
        """Port beats of a chunk's header: `lanes` entries, as many bytes each as two halves."""
        return self.half_bytes

    @property
    def groups(self) -> Iterator[Group]:
        """Groups of tiles of K (or V) in the order in which they lie."""
        lanes, first, start = self.config.lanes, 0, 0
        while first < self.tiles:
            left, tiles = self.tiles - first, self.coding.packed
            while tiles > left:
                tiles //= 2
            row = tiles * lanes * self.coding.bits // 8
            yield Group(first, tiles, start, row)
            first, start = first + tiles, start + lanes * row

    @property
    def region_bytes(self) -> int:
        """All K (or V) elements of a chunk."""
        return self.tiles * self.config.lanes**2 * self.coding.bits // 8

    @property
    def region_beats(self) -> int:
        return self.region_bytes // self.config.port_bytes

    @property
    def k_offset(self) -> int:
        """First K group, from the chunk's start."""
        return self.header_beats * self.config.port_bytes

    @property
    def v_offset(self) -> int:
        """First V group, from the chunk's start."""
        return self.k_offset + self.region_bytes

    @property
    def chunk_bytes(self) -> int:
        return self.v_offset + self.region_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes of a page without padding: the least plane stride."""
        return self.chunk_bytes * self.config.chunks_per_page

    def element(self, token: int, feature: int, *, value: bool) -> int:
        """Byte offset in the page of a K (or V) element; token counts from the page's start."""
        lanes, bits = self.config.lanes, self.coding.bits
        chunk, t = divmod(token, lanes)
        tile = feature // lanes
        # Doublings of the tile's group: it lies before the last multiple of that size.
        doublings = range(1, self.coding.packed.bit_length())
        size = sum((tile < self.tiles >> n << n) * 1 for n in doublings)
        first = tile >> size << size
        row = (t * lanes << size) + feature - first * lanes
        base = chunk * self.chunk_bytes + (self.v_offset if value else self.k_offset)
        return base + (first * lanes * lanes + row) * bits // 8

    def scale(self, token: int, *, value: bool, group: int = 0) -> int:
        """Byte offset in the page of a token's K (or V) scale (of a group of 32 features)."""
        return self._half(token, value) + group

    def tag(self, token: int, *, value: bool) -> int:
        """Byte offset in the page of a token's K (or V) integrity tag."""
        return self._half(token, value) + self.half_bytes - TAG_BYTES

    def _half(self, token: int, value: bool) -> int:
        chunk, t = divmod(token, self.config.lanes)
        return chunk * self.chunk_bytes + (2 * t + value) * self.half_bytes


def raw_stride(config: CoreConfig, tiles: int) -> int:
    """Bytes of one row's raw state: a header beat [E: i32, l: FP32, 0 ...], then O as FP32."""
    return config.port_bytes * (1 + 2 * tiles)


def output_bytes(config: CoreConfig, tiles: int, element_bytes: int) -> int:
    """Bytes of one row's normalised output; a multiple of the port's beat for 16 and 32 bits."""
    return tiles * config.lanes * element_bytes
