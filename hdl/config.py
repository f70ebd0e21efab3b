"""Core configuration: one frozen dataclass, derived values as properties, named presets."""

from dataclasses import dataclass, fields, replace

PAGE_NUMBER_BITS = 16
"""Width of a physical page number: pools of up to 65,536 pages."""
TOKEN_BITS = 24
"""Width of a token index inside a sequence: contexts of up to 16 M tokens."""
REFERENCE_BITS = 16
"""Width of a page's reference count: block table entries that name it."""
PIN_BITS = 4
"""Width of a page's pin count: a pin is the hold of one part of the firmware."""
DRAFT_BITS = 32
"""Tokens of a draft segment that a row's bit mask can name."""


class ConfigError(ValueError):
    """A configuration that no core can be built from; the message names the field and its value."""


@dataclass(frozen=True)
class CoreConfig:
    """Parameters of one attention core.

    A core is `rows x lanes` multipliers. `lanes` is also the chunk (tokens per V tile) and half the
    bytes of the memory port. All sizes are checked here, so blocks need not check them again.
    """

    name: str = "custom"
    rows: int = 8  # query vectors held at once (1 ... 64)
    lanes: int = 16  # multipliers per row; power of two, 8 ... 64
    page_tokens: int = 16  # tokens per page; multiple of `lanes`, power of two
    max_head: int = 128  # largest head size; power-of-two multiple of `lanes`
    pages: int = 8192  # page pool, <= 65,536
    planes: int = 64  # plane table entries (layer x KV head)
    sequences: int = 64  # sequence table entries
    tenants: int = 16  # tenant table entries
    max_segments: int = 16  # segments per job
    p_depth: int = 4  # chunks whose p may wait for V: how far K runs ahead of V
    drain_lanes: int = 4  # output features normalised per cycle; divides `lanes`
    load_lanes: int = 4  # features of queries and of new K and V per cycle: rotated, quantised
    fifo_beats: int = 64  # port beats buffered per KV stream (hides the memory latency)
    score_rows: int = 2  # rows that share one score unit: scale, soft cap, bias, mask, exp2, l
    softcap: bool = True  # build the soft-cap unit
    rotation: bool = True  # build the units that rotate K, V, queries and the output
    address_bits: int = 40

    def __post_init__(self) -> None:
        def power(value: int) -> bool:
            return value > 0 and value & (value - 1) == 0

        def need(ok: bool, field: str, rule: str) -> None:
            if not ok:
                raise ConfigError(f"{field} must be {rule}, not {getattr(self, field)!r}")

        need(1 <= self.rows <= 64, "rows", "1 to 64")
        need(power(self.lanes) and 8 <= self.lanes <= 64, "lanes", "8, 16, 32 or 64")
        need(
            power(self.page_tokens) and self.page_tokens >= self.lanes,
            "page_tokens",
            f"a power of two of at least lanes ({self.lanes})",
        )
        need(
            power(self.max_head) and self.lanes <= self.max_head <= min(512, 16 * self.lanes),
            "max_head",
            f"a power of two from lanes ({self.lanes}) to {min(512, 16 * self.lanes)}",
        )
        need(1 <= self.pages <= 1 << PAGE_NUMBER_BITS, "pages", "1 to 65,536")
        need(1 <= self.planes <= 4096, "planes", "1 to 4,096")
        need(1 <= self.sequences <= 65536, "sequences", "1 to 65,536")
        need(1 <= self.tenants <= 65536, "tenants", "1 to 65,536")
        need(1 <= self.max_segments <= 255, "max_segments", "1 to 255")
        need(power(self.p_depth) and self.p_depth >= 2, "p_depth", "a power of two of at least 2")
        need(self.score_rows in (1, 2, 4, 8), "score_rows", "1, 2, 4 or 8")
        need(
            power(self.drain_lanes) and self.drain_lanes <= self.lanes // 2,
            "drain_lanes",
            f"a power of two of at most lanes / 2 ({self.lanes // 2})",
        )
        need(
            power(self.load_lanes) and self.load_lanes <= self.lanes // 2,
            "load_lanes",
            f"a power of two of at most lanes / 2 ({self.lanes // 2})",
        )
        need(
            power(self.fifo_beats) and self.fifo_beats >= 2 * self.lanes,
            "fifo_beats",
            f"a power of two of at least 2 lanes ({2 * self.lanes})",
        )
        need(32 <= self.address_bits <= 56, "address_bits", "32 to 56")

    @property
    def port_bytes(self) -> int:
        """Bytes of one beat of the memory port: 2 x lanes."""
        return 2 * self.lanes

    @property
    def port_bits(self) -> int:
        return 8 * self.port_bytes

    @property
    def max_tiles(self) -> int:
        """Tiles of `lanes` features in the largest head."""
        return self.max_head // self.lanes

    @property
    def score_units(self) -> int:
        """Score units; the last has fewer rows where `score_rows` does not divide `rows`."""
        return -(-self.rows // self.score_rows)

    @property
    def score_depth(self) -> int:
        """Scores of a row that wait for its unit: two chunks, and enough of them to outlast the
        dot product's latency."""
        return max(32, 2 * self.lanes)

    @property
    def chunks_per_page(self) -> int:
        return self.page_tokens // self.lanes

    @property
    def code_lanes(self) -> int:
        """Elements of new K and V quantised per cycle: whole bytes of 4-bit codes."""
        return max(2, self.load_lanes)

    @property
    def code_steps(self) -> int:
        """Cycles that the elements of a beat take to be quantised."""
        return self.lanes // self.code_lanes

    def with_(self, **changes: object) -> "CoreConfig":
        """A copy with some fields changed; unknown names raise ConfigError."""
        known = {f.name for f in fields(self)}
        for key in changes:
            if key not in known:
                raise ConfigError(f"no parameter {key!r}; there are {', '.join(sorted(known))}")
        return replace(self, **changes)  # type: ignore[arg-type]


MAX_CORES = 4
"""Cores of a cluster: two bits of an AXI id and of a register's address."""


@dataclass(frozen=True)
class ClusterConfig:
    """Parameters of a cluster: cores of one configuration on one memory.

    `shared`: all cores behind one memory port; else each has a port of its own.
    """

    core: CoreConfig
    cores: int = 2
    shared: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.cores <= MAX_CORES:
            raise ConfigError(f"cores must be 2 to {MAX_CORES}, not {self.cores!r}")

    @property
    def name(self) -> str:
        return f"{self.core.name}_x{self.cores}{'_shared' if self.shared else ''}"

    @property
    def core_bits(self) -> int:
        """Bits that number a core."""
        return (self.cores - 1).bit_length()

    @property
    def ports(self) -> int:
        """Memory ports."""
        return 1 if self.shared else self.cores


PRESETS: dict[str, CoreConfig] = {
    c.name: c
    for c in (
        CoreConfig(
            "tiny", rows=4, lanes=8, page_tokens=8, max_head=32, pages=64, planes=16, sequences=16,
            tenants=4, max_segments=8, drain_lanes=2, load_lanes=2, fifo_beats=32,
        ),
        CoreConfig("small", drain_lanes=2, load_lanes=2, fifo_beats=128),
        CoreConfig(
            "edge", rows=16, lanes=32, page_tokens=32, max_head=128, pages=16384, planes=256,
            sequences=256, tenants=64, drain_lanes=8, load_lanes=8, fifo_beats=128,
        ),
        CoreConfig(
            "m890", rows=64, lanes=64, page_tokens=64, max_head=256, pages=65536, planes=1024,
            sequences=1024, tenants=1024, max_segments=64, drain_lanes=16, load_lanes=16,
            fifo_beats=256,
        ),
    )
}  # fmt: skip
"""tiny: unit tests, formal, Icarus; small: demos and FPGA; edge; m890: one core of the chip."""


def preset(name: str) -> CoreConfig:
    """The named preset; an unknown name raises ConfigError."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
