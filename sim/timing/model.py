"""How long commands take: a model of the core's time, to be calibrated against RTL."""

import math
from dataclasses import dataclass

from m890.hdl.config import CoreConfig
from m890.hdl.layout import PageLayout, raw_stride
from m890.hdl.numerics.formats import OutputFormat


@dataclass(frozen=True)
class Work:
    """What an ATTEND job makes the core do. chunks: visible to at least one row."""

    layout: PageLayout
    rows: int
    segments: int
    chunks: int
    bias: bool
    raw_rows: int  # rows of all RAW segments
    output: OutputFormat

    @property
    def beats(self) -> int:
        """Array beats: every tile of K and V passes in `lanes` beats."""
        return 2 * self.layout.config.lanes * self.layout.tiles * self.chunks

    @property
    def kv_bytes(self) -> int:
        return self.chunks * self.layout.chunk_bytes

    @property
    def read_bytes(self) -> int:
        """KV, biases, queries, tables and stored states."""
        config, tiles = self.layout.config, self.layout.tiles
        port = config.port_bytes
        bias = self.chunks * self.rows * port if self.bias else 0
        tables = -(-16 * self.rows // port) * port + -(-32 * self.segments // port) * port
        states = self.raw_rows * raw_stride(config, tiles)
        return self.kv_bytes + bias + self.rows * tiles * port + tables + states

    @property
    def write_bytes(self) -> int:
        config, tiles = self.layout.config, self.layout.tiles
        if self.output == OutputFormat.RAW:
            return self.rows * raw_stride(config, tiles)
        element = 4 if self.output == OutputFormat.FP32 else 2
        return self.rows * tiles * config.lanes * element


@dataclass(frozen=True)
class Timing:
    """Cycles of commands.

    Function
        ATTEND:  max(beats, read bytes / (port bytes x efficiency), rows x head / drain_lanes)
                 + job, and + latency where the core was idle before.
        APPEND:  tokens x (2 x head / append_lanes + token) + append.
        others:  command.
    Parameters
        Cycles unless said otherwise. The defaults describe the RTL with the native simulator's
        ideal memory.
    """

    latency: int = 90  # from the doorbell to the first beat, and from the last beat to completion
    job: int = 8  # beats lost between two jobs that follow each other
    command: int = 20
    append: int = 60
    token: int = 8
    append_lanes: int = 4  # features quantised per cycle
    efficiency: float = 1.0  # of the memory's read side, as a share of the port

    def attend(self, work: Work, *, idle: bool) -> int:
        config = work.layout.config
        port = math.ceil(work.read_bytes / (config.port_bytes * self.efficiency))
        drain = work.rows * work.layout.tiles * config.lanes // config.drain_lanes
        return max(work.beats, port, drain) + self.job + (self.latency if idle else 0)

    def appended(self, config: CoreConfig, tiles: int, tokens: int) -> int:
        per_token = 2 * tiles * config.lanes // self.append_lanes + self.token
        return self.append + tokens * per_token
