"""64-bit event counters and the cycle counter that stamps completions."""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig
from m890.hdl.registers import COUNTERS, Stall

WORD = 32


class Counters(wiring.Component):
    """The counters of `m890.hdl.registers`.

    Function
        Every cycle counts as a beat or as exactly one stall cause, so that CYCLES = BEATS + the sum
        of all STALL counters. Without an ATTEND job in the core a cycle without a beat is IDLE,
        whatever `stall` says; with one, IDLE counts as QUERY (its tables or queries are being
        read).
    Members
        beat, stall : of the array's cycle. useful : one of its beats, this or an earlier one, had a
        visible token. attending : an ATTEND job is in the core.
        job : an ATTEND completed without error. tokens : tokens appended in this cycle.
        read_beat, kv_beat : a beat was read. write_bytes : bytes written in this cycle.
        clear : all counters return to zero.
        select : counter to look at; low, high : its words.
        cycles : the cycle counter.
    Latency
        Events show after 2 cycles. The upper word lags one cycle behind the lower, so a reader
        takes `high` in the cycle after `low`. `cycles` is exact.
    Storage
        64 bits per counter.
    """

    beat: Signal
    useful: Signal
    stall: Signal
    attending: Signal
    job: Signal
    tokens: Signal
    read_beat: Signal
    kv_beat: Signal
    write_bytes: Signal
    clear: Signal
    select: Signal
    low: Signal
    high: Signal
    cycles: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        super().__init__(
            {
                "beat": In(1),
                "useful": In(1),
                "stall": In(Stall),
                "attending": In(1),
                "job": In(1),
                "tokens": In(16),
                "read_beat": In(1),
                "kv_beat": In(1),
                "write_bytes": In(range(config.port_bytes + 1)),
                "clear": In(1),
                "select": In(range(len(COUNTERS))),
                "low": Out(WORD),
                "high": Out(WORD),
                "cycles": Out(2 * WORD),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat, useful, stall = Signal(), Signal(), Signal(len(Stall))
        cause = Signal(Stall)
        with m.If(~self.attending):
            m.d.comb += cause.eq(Stall.IDLE)
        with m.Elif(Value.cast(self.stall) == Stall.IDLE):
            m.d.comb += cause.eq(Stall.QUERY)
        with m.Else():
            m.d.comb += cause.eq(self.stall)
        # The first cycle after a clear must count like every other: it is what `counted` delays.
        counted = Signal()
        m.d.sync += [
            counted.eq(1),
            beat.eq(self.beat),
            useful.eq(self.useful),
            stall.eq(Mux(self.beat, 0, 1 << Value.cast(cause))),
        ]
        port = self._config.port_bytes
        events: dict[str, Value] = {
            "CYCLES": counted,
            "BEATS": beat,
            "USEFUL_BEATS": useful,
            "JOBS": self.job,
            "READ_BYTES": Mux(self.read_beat, port, 0),
            "KV_BYTES": Mux(self.kv_beat, port, 0),
            "WRITE_BYTES": self.write_bytes,
            "TOKENS": self.tokens,
            **{f"STALL_{cause.name}": stall[cause] for cause in Stall},
        }
        for index, name in enumerate(COUNTERS):
            low, carry = (
                Signal(WORD, name=f"{name.lower()}_low"),
                Signal(name=f"{name.lower()}_carry"),
            )
            high = Signal(WORD, name=f"{name.lower()}_high")
            total = Signal(WORD + 1, name=f"{name.lower()}_total")
            m.d.comb += total.eq(low + events[name])
            with m.If(self.clear):
                m.d.sync += [low.eq(0), carry.eq(0), high.eq(0)]
            with m.Else():
                m.d.sync += [low.eq(total), carry.eq(total[WORD]), high.eq(high + carry)]
            with m.If(self.select == index):
                m.d.comb += [self.low.eq(low), self.high.eq(high)]
        # One is always added, so the carry is known a cycle ahead and no long chain is needed.
        wrap = Signal()
        low, high = self.cycles[:WORD], self.cycles[WORD:]
        m.d.sync += [
            low.eq(Mux(self.clear, 0, low + 1)),
            high.eq(Mux(self.clear, 0, high + wrap)),
            wrap.eq(~self.clear & (low == (1 << WORD) - 2)),
        ]
        return m
