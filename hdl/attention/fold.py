"""Folding of a job's partial sums of l."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.enum import Enum
from amaranth.lib.wiring import In, Out

from m890.hdl.attention.bundles import bits


class FoldState(Enum):
    IDLE = 0
    WAIT = 1
    ISSUE = 2


class FoldL(wiring.Component):
    """Folds the eight partial sums of l into one, for each of a unit's rows, then captures it.

    Function
        (0,4) (1,5) (2,6) (3,7), then (0,2) (1,3), then (0,1), each of all rows in turn; each group
        waits for the one before.
    Members
        start, slot, fold : In. A job's last score went before; fold = 0: only capture.
        issue, row, a, b, capture, bank : Out. An operation that takes a score's place.
        last : Out. It is the last one.
    Latency
        8 rows + 3 max(1, WideAdd latency + 2 - rows) cycles.
    """

    start: Signal
    slot: Signal
    fold: Signal
    issue: Signal
    row: Signal
    a: Signal
    b: Signal
    capture: Signal
    bank: Signal
    last: Signal

    PAIRS = ((0, 4), (1, 5), (2, 6), (3, 7), (0, 2), (1, 3), (0, 1))
    GROUP_ENDS = (3, 5, 6)

    def __init__(self, add_latency: int, rows: int) -> None:
        # A row's sum of one group is there when the row's turn comes in the next.
        self._wait = max(1, add_latency + 2 - rows)
        self._rows = rows
        super().__init__(
            {
                "start": In(1), "slot": In(1), "fold": In(1),
                "issue": Out(1), "row": Out(bits(rows)), "a": Out(3), "b": Out(3),
                "capture": Out(1), "bank": Out(1), "last": Out(1),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        state = Signal(FoldState)
        step = Signal(range(len(self.PAIRS) + 1))
        wait = Signal(range(self._wait + 1))
        with m.Switch(step):
            for n, (a, b) in enumerate(self.PAIRS):
                with m.Case(n):
                    m.d.comb += [self.a.eq(a), self.b.eq(b)]
            with m.Default():
                m.d.comb += self.capture.eq(1)
        all_rows = self.row == self._rows - 1
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
                m.d.comb += self.issue.eq(1)
                m.d.sync += self.row.eq(Mux(all_rows, 0, self.row + 1))
                with m.If(all_rows):
                    m.d.sync += step.eq(step + 1)
                    with m.Switch(step):
                        with m.Case(*self.GROUP_ENDS):
                            m.d.sync += [wait.eq(self._wait), state.eq(FoldState.WAIT)]
                        with m.Case(len(self.PAIRS)):
                            m.d.comb += self.last.eq(1)
                            m.d.sync += state.eq(FoldState.IDLE)
        return m
