"""How long commands take: a model of the core's time, calibrated against RTL (bench `timing`)."""

import math
from dataclasses import dataclass

from m890.hdl.config import CoreConfig
from m890.hdl.layout import PageLayout, raw_stride
from m890.hdl.numerics.formats import OutputFormat
from m890.sim.timing.manager import ManagerTime, Steps


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
    """Cycles of the core's stages, where they do not follow from the work.

    Parameters
        Cycles unless said otherwise. The defaults are read off completions of the RTL of `small`
        with the native simulator's ideal memory.
    """

    memory: int = 100  # from a read's address to its first beat, and from a write to its answer
    fetch: int = 15  # from the doorbell to the first command, without the memory
    command: int = 28  # from a command to the next in dispatch
    append: int = 52  # of an APPEND beside its memory accesses and tokens
    follow: int = 20  # of these, those in which the next APPEND has begun
    border: int = 6  # of each further page of an APPEND: its place and its owner
    writes: int = 16  # writes of an APPEND that memory has not acknowledged, at most
    turn: int = 3  # of such a write, beside the memory
    tables: int = 40  # of a job beside the memory: check, rows, segments
    load: int = 25  # ... queries
    first: int = 30  # ... first table entry and first K
    score: int = 40  # from the last beat to the last V
    drain: int = 10
    write: int = 45  # of the output's last beats
    steps: Steps = Steps()  # of the page manager
    ahead: int = 45  # of a beat of K or V that was asked for, beside the memory
    efficiency: float = 1.0  # of the memory's read side, as a share of the port


class Pipeline:
    """When commands start and end.

    Function
        Commands are dispatched in order, one per `command` cycles. APPENDs run one after the other:
        2 memory + append + tiles + tokens x (2 tiles x code_steps; one more with headers) + border
        for each page but the first; or, of the tokens, what the writes take: after every `writes`
        of them memory + turn, for the oldest one's answer.
        A job's tables and queries load ahead of the array, which has two slots: a slot is
        taken when its job before last has been drained. The array then is busy for
        max(beats, read bytes / (port bytes x efficiency)); the drain of rows x head / drain_lanes
        cycles and the write come after it. A job waits for all APPENDs before it.
        The page manager carries out one command after the other (ManagerTime). It waits for the
        APPENDs before; they and jobs wait for it, except for COPY.
    Members
        submit(cycle) : the doorbell. attend, append, manage, other : (start, end) of the next
        command.
    """

    def __init__(self, config: CoreConfig, timing: Timing) -> None:
        self.config, self.timing = config, timing
        self.manager = ManagerTime(config, timing.memory, timing.steps)
        self.dispatch = self.array = self.appended = 0
        self.managed = self.settled = 0  # the latter: without COPY
        self.slots = [0, 0]

    def submit(self, cycle: int) -> None:
        """Commands arrive: the first is dispatched no earlier than its fetch takes."""
        t = self.timing
        self.dispatch = max(self.dispatch, cycle + t.memory + t.fetch)

    def other(self) -> tuple[int, int]:
        """Commands that only dispatch handles."""
        start, self.dispatch = self.dispatch, self.dispatch + self.timing.command
        return start, self.dispatch + self.timing.memory

    def manage(self, cycles: int, *, background: bool = False) -> tuple[int, int]:
        start, self.dispatch = self.dispatch, self.dispatch + self.timing.command
        self.managed = max(start, self.managed, self.appended) + cycles
        if not background:
            self.settled = self.managed
        return start, self.managed

    def append(self, layout: PageLayout, tokens: int, prepare: int = 0) -> tuple[int, int]:
        """`prepare`: cycles of the page manager, where it has to give pages."""
        t = self.timing
        start = self.dispatch
        if prepare:  # dispatch waits until the pages are there
            self.dispatch = max(self.dispatch, self.settled) + prepare
        given, self.dispatch = self.dispatch, self.dispatch + t.command
        begin = max(given, self.appended - t.follow, self.settled)
        writes = 2 * len(list(layout.groups)) + (layout.header_beats > 0)
        token = 2 * layout.tiles * self.config.code_steps + (layout.header_beats > 0)
        last = tokens * writes - 1  # writes before it
        answers = last // t.writes * (t.memory + t.turn) + last % t.writes * token // writes
        cycles = max(tokens * token, answers) + (tokens - 1) // self.config.page_tokens * t.border
        self.appended = begin + 2 * t.memory + t.append + layout.tiles + cycles
        return start, self.appended

    def attend(self, work: Work) -> tuple[int, int]:
        t, config = self.timing, self.config
        start, self.dispatch = self.dispatch, self.dispatch + t.command
        ready = max(start + t.memory + t.tables + work.rows, self.appended, self.settled)
        loaded = max(ready, self.slots[0]) + t.memory + t.load + work.rows * work.layout.tiles
        begin = max(loaded + 2 * t.memory + t.first, self.array)
        # Of K's stream and V's, no more is on its way at a time than there is room for.
        held = max(1.0, (t.memory + t.ahead) / (2 * config.fifo_beats))
        port = math.ceil(work.read_bytes * held / (config.port_bytes * t.efficiency))
        self.array = begin + max(work.beats, port)
        drain = work.rows * work.layout.tiles * config.lanes // config.drain_lanes
        drained = self.array + t.score + drain + t.drain
        self.slots = [self.slots[1], drained]
        return start, drained + t.memory + t.write
