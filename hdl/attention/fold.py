"""Folding of a job's partial sums of l, in cycles that no score needs."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.enum import Enum
from amaranth.lib.wiring import In, Out


class FoldState(Enum):
    IDLE = 0
    WAIT = 1
    ISSUE = 2


class FoldL(wiring.Component):
    """Folds the eight partial sums of l into one, in cycles that no score needs, then captures it.

    Function
        (0,4) (1,5) (2,6) (3,7), then (0,2) (1,3), then (0,1); each group waits for the one before.
    Members
        start, slot, fold : In. A job's last score has been read at stage p - 1; fold = 0: only
            capture. busy_slot : In. A score uses the l adder in this cycle.
        issue, a, b, capture, bank : Out. An operation for stage p - 1.
        done, done_slot : Out. One pulse: l is captured.
    Latency
        3 (WideAdd latency + 2) + 9 cycles, and those that scores take.
    """

    start: Signal
    slot: Signal
    fold: Signal
    busy_slot: Signal
    issue: Signal
    a: Signal
    b: Signal
    capture: Signal
    bank: Signal
    done: Signal
    done_slot: Signal

    PAIRS = ((0, 4), (1, 5), (2, 6), (3, 7), (0, 2), (1, 3), (0, 1))
    GROUP_ENDS = (3, 5, 6)

    def __init__(self, add_latency: int) -> None:
        self._wait = add_latency + 2
        super().__init__(
            {
                "start": In(1), "slot": In(1), "fold": In(1), "busy_slot": In(1),
                "issue": Out(1), "a": Out(3), "b": Out(3), "capture": Out(1), "bank": Out(1),
                "done": Out(1), "done_slot": Out(1),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        state = Signal(FoldState)
        step = Signal(range(len(self.PAIRS) + 1))
        wait = Signal(range(self._wait + 1))
        m.d.comb += self.done_slot.eq(self.bank)
        with m.Switch(step):
            for n, (a, b) in enumerate(self.PAIRS):
                with m.Case(n):
                    m.d.comb += [self.a.eq(a), self.b.eq(b)]
            with m.Default():
                m.d.comb += self.capture.eq(1)
        with m.Switch(state):
            with m.Case(FoldState.IDLE):
                with m.If(self.start):
                    m.d.sync += [
                        self.bank.eq(self.slot),
                        step.eq(Mux(self.fold, 0, len(self.PAIRS))),
                        wait.eq(self._wait),
                        state.eq(FoldState.WAIT),
                    ]
            with m.Case(FoldState.WAIT):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 1):
                    m.d.sync += state.eq(FoldState.ISSUE)
            with m.Case(FoldState.ISSUE):
                m.d.comb += self.issue.eq(~self.busy_slot)
                with m.If(self.issue):
                    m.d.sync += step.eq(step + 1)
                    with m.Switch(step):
                        with m.Case(*self.GROUP_ENDS):
                            m.d.sync += [wait.eq(self._wait), state.eq(FoldState.WAIT)]
                        with m.Case(len(self.PAIRS)):
                            m.d.comb += self.done.eq(1)
                            m.d.sync += state.eq(FoldState.IDLE)
        return m
