"""Control and status registers: AXI4-Lite slave, doorbell, ring set-up, interrupt."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import COMMAND_BYTES, COMPLETION_BYTES, Error
from m890.hdl.config import CoreConfig
from m890.hdl.memory.burst import beat_bits
from m890.hdl.memory.ports import AxiLite
from m890.hdl.registers import ADDRESS, COUNTERS, IDENT, REGISTERS, VERSION
from m890.hdl.wake import Gated, sleeps

RING_ALIGN = 128
RING_LIMIT = 32768
OKAY, SLVERR = 0, 2

_STORED = {
    "IRQ_ENABLE": 2, "MEMORY_LIMIT_LO": 32, "MEMORY_LIMIT_HI": 32, "RING_BASE_LO": 32,
    "RING_BASE_HI": 32, "RING_SIZE": 32, "COMPLETION_BASE_LO": 32, "COMPLETION_BASE_HI": 32,
    "COMPLETION_SIZE": 32, "COMPLETION_HEAD": 16, "PAGE_INJECT": 2,
}  # fmt: skip
"""Registers that simply hold what was written, and their width."""
_SETUP = {n for n in _STORED if n not in ("IRQ_ENABLE", "COMPLETION_HEAD", "PAGE_INJECT")}
"""Of these, the ones that cannot change while the ring is enabled."""


class Csr(wiring.Component):
    """The register file of `m890.hdl.registers`.

    Function
        Writing RING_TAIL is the doorbell. A tail more than RING_SIZE commands ahead of the head, or
        an unusable ring when CONTROL enables it, is refused: STATUS shows the error, bit 1 of
        IRQ_STATUS is set, nothing else happens. Clearing that bit, or CONTROL bit 1, clears the
        error.
        CONTROL bit 1 stops the core (`reset`), forgets commands that have not started, waits until
        those in flight are done, and only then clears ring pointers and counters and answers.
        Set-up registers ignore writes while the ring is enabled.
    Members
        bus : AXI4-Lite. irq : level, an enabled interrupt is pending.
        enable : commands may be fetched. reset : commands are to be dropped. clear : one pulse, the
        core is idle and pointers and counters return to zero.
        limit : memory in port beats. ring_base, ring_size, ring_tail, completion_base,
        completion_size, completion_head : as the registers.
        busy, ring_head, completion_tail, completed (pulse), failed (pulse: a completion could not
        be written) : from the core.
        page_reset : pulse, the page manager is to forget everything. page_inject : as the register.
        page_corrected, page_fatal : pulses that PAGE_ERRORS counts.
        counter : number of the counter that is read; counter_low is its lower word, and
        counter_high its upper word one cycle later.
    Latency
        Read 5 cycles; write 5 cycles, RING_TAIL and enabling 3 more, reset 8 more, until the
        core is idle, and with bit 2 until the page manager has cleared its tables.
    Errors
        SLVERR for addresses without a register and for writes with some of the four strobes only.
    """

    bus: Any
    irq: Signal
    enable: Signal
    reset: Signal
    clear: Signal
    limit: Signal
    ring_base: Signal
    ring_size: Signal
    ring_tail: Signal
    completion_base: Signal
    completion_size: Signal
    completion_head: Signal
    busy: Signal
    ring_head: Signal
    completion_tail: Signal
    completed: Signal
    failed: Signal
    page_reset: Signal
    page_inject: Signal
    page_corrected: Signal
    page_fatal: Signal
    counter: Signal
    counter_low: Signal
    counter_high: Signal

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        address = config.address_bits
        super().__init__(
            {
                "bus": In(AxiLite()),
                "irq": Out(1),
                "enable": Out(1),
                "reset": Out(1),
                "clear": Out(1),
                "limit": Out(address - beat_bits(config) + 1),
                "ring_base": Out(address),
                "ring_size": Out(16),
                "ring_tail": Out(16),
                "completion_base": Out(address),
                "completion_size": Out(16),
                "completion_head": Out(16),
                "busy": In(1),
                "ring_head": In(16),
                "completion_tail": In(16),
                "completed": In(1),
                "failed": In(1),
                "page_reset": Out(1),
                "page_inject": Out(2),
                "page_corrected": In(1),
                "page_fatal": In(1),
                "counter": Out(range(len(COUNTERS))),
                "counter_low": In(32),
                "counter_high": In(32),
            }
        )

    def elaborate(self, platform: object) -> Gated:
        m = Module()
        config, address = self._config, self._config.address_bits
        stored = {n: Signal(width, name=n.lower()) for n, width in _STORED.items()}
        irq_status = Signal(2)
        failure = Signal(8)  # ring error (Error), zero if none
        limit = Cat(stored["MEMORY_LIMIT_LO"], stored["MEMORY_LIMIT_HI"])
        low = beat_bits(config)
        m.d.sync += [
            self.irq.eq((irq_status & stored["IRQ_ENABLE"]).any()),
            # Whole beats, and no more than addresses reach: then no later check sees a carry.
            self.limit.eq(
                Mux(limit[address:].any(), 1 << (address - low), limit[low : address + 1])
            ),
        ]
        m.d.comb += [
            self.ring_base.eq(Cat(stored["RING_BASE_LO"], stored["RING_BASE_HI"])),
            self.completion_base.eq(
                Cat(stored["COMPLETION_BASE_LO"], stored["COMPLETION_BASE_HI"])
            ),
            self.ring_size.eq(stored["RING_SIZE"]),
            self.completion_size.eq(stored["COMPLETION_SIZE"]),
            self.completion_head.eq(stored["COMPLETION_HEAD"]),
            self.page_inject.eq(stored["PAGE_INJECT"]),
        ]
        self._page_errors = [Signal(16, name=f"page_{n}") for n in ("corrected", "fatal")]
        for total, event in zip(
            self._page_errors, (self.page_corrected, self.page_fatal), strict=True
        ):
            with m.If(event & ~total.all()):
                m.d.sync += total.eq(total + 1)
        refuse = Signal(8)  # Error to raise in this cycle
        acknowledge = Signal(2)  # interrupts cleared in this cycle
        forget = Signal()  # the ring error is cleared
        m.d.sync += irq_status.eq(
            irq_status & ~acknowledge | Cat(self.completed, refuse.any() | self.failed)
        )
        with m.If(refuse.any()):
            m.d.sync += failure.eq(refuse)
        with m.Elif(self.failed):
            m.d.sync += failure.eq(Error.BUS_ERROR)
        with m.Elif(forget):
            m.d.sync += failure.eq(0)
        bad_ring = self._check_setup(m, stored)
        written = self._writes(m, stored, refuse, acknowledge, forget, bad_ring)
        read = self._reads(m, stored, irq_status, failure)
        bus = self.bus
        return sleeps(
            m, bus.awvalid, bus.wvalid, bus.arvalid, ~written, ~read, self.completed, self.failed,
            self.page_corrected, self.page_fatal,
        )  # fmt: skip

    def _check_setup(self, m: Module, stored: dict[str, Signal]) -> Value:
        """Whether the ring cannot be used; valid three cycles after the last change."""
        bad = []
        for name, entry in (("RING", COMMAND_BYTES), ("COMPLETION", COMPLETION_BYTES)):
            base = Cat(stored[f"{name}_BASE_LO"], stored[f"{name}_BASE_HI"])
            size = stored[f"{name}_SIZE"]
            odd, outside = (
                Signal(name=f"{name.lower()}_odd"),
                Signal(name=f"{name.lower()}_outside"),
            )
            end = Signal(self._config.address_bits + 1, name=f"{name.lower()}_end")
            align = (RING_ALIGN - 1).bit_length()
            m.d.sync += [
                end.eq(base[: self._config.address_bits] + (size[:16] << (entry - 1).bit_length())),
                odd.eq(
                    (size == 0)
                    | (size & (size - 1)).any()
                    | size[RING_LIMIT.bit_length() :].any()
                    | base[:align].any()
                    | base[self._config.address_bits :].any()
                ),
                outside.eq(end > Cat(Const(0, beat_bits(self._config)), self.limit)),
            ]
            bad += [odd, outside]
        return Cat(*bad).any()

    def _writes(
        self,
        m: Module,
        stored: dict[str, Signal],
        refuse: Signal,
        acknowledge: Signal,
        forget: Signal,
        bad_ring: Value,
    ) -> Value:
        """The bus' writes; whether none is under way."""
        bus = self.bus
        address, word, strobe = Signal(10), Signal(32), Signal(4)
        have_address, have_word = Signal(), Signal()
        full = strobe.all()
        wait = Signal(2)
        ahead, over = Signal(16), Signal()

        def selects(name: str) -> Value:
            return address == ADDRESS[name] // 4

        m.d.comb += [bus.awready.eq(~have_address), bus.wready.eq(~have_word)]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [address.eq(bus.awaddr[2:]), have_address.eq(1)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [word.eq(bus.wdata), strobe.eq(bus.wstrb), have_word.eq(1)]
        m.d.sync += [
            ahead.eq(word[:16] - self.ring_head),
            over.eq(ahead > stored["RING_SIZE"]),
            self.clear.eq(0),
        ]
        with m.FSM(name="write") as fsm:
            with m.State("ACCEPT"):
                m.d.sync += wait.eq(3)
                with m.If(have_address & have_word):
                    m.d.sync += bus.bresp.eq(Mux(full & (address < len(REGISTERS)), OKAY, SLVERR))
                    with m.If(full & selects("CONTROL")):
                        m.d.sync += self.enable.eq(self.enable & word[0] & ~word[1])
                        with m.If(word[1]):
                            m.d.sync += self.reset.eq(1)
                            m.next = "RESET"
                        with m.Else():
                            m.next = "CONTROL"
                    with m.Elif(full & selects("RING_TAIL")):
                        m.next = "DOORBELL"
                    with m.Else():
                        m.next = "STORE"
            with m.State("STORE"):
                with m.If(full):
                    for name, register in stored.items():
                        allowed = ~self.enable if name in _SETUP else Const(1)
                        with m.If(selects(name) & allowed):
                            m.d.sync += register.eq(word)
                    with m.If(selects("IRQ_STATUS")):
                        m.d.comb += [acknowledge.eq(word), forget.eq(word[1])]
                m.next = "RESPOND"
            with m.State("DOORBELL"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    with m.If(over):
                        m.d.comb += refuse.eq(Error.RING_OVERRUN)
                    with m.Else():
                        m.d.sync += self.ring_tail.eq(word)
                    m.next = "RESPOND"
            with m.State("RESET"):
                with m.If(~self.busy):
                    m.d.comb += [
                        acknowledge.eq(0b10), forget.eq(1), self.page_reset.eq(word[2])
                    ]  # fmt: skip
                    m.d.sync += [
                        self.clear.eq(1),
                        self.reset.eq(0),
                        self.ring_tail.eq(0),
                        stored["COMPLETION_HEAD"].eq(0),
                    ]
                    m.next = "SWEEP"
            with m.State("SWEEP"):  # the page manager is busy while it clears its tables
                with m.If(wait != 0):
                    m.d.sync += wait.eq(wait - 1)
                with m.Elif(~self.busy):
                    m.d.sync += wait.eq(3)
                    m.next = "CONTROL"
            with m.State("CONTROL"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    with m.If(word[0] & bad_ring & ~self.enable):
                        m.d.comb += refuse.eq(Error.BAD_RING)
                    with m.Else():
                        m.d.sync += self.enable.eq(word[0])
                    m.next = "RESPOND"
            with m.State("RESPOND"):
                m.d.comb += bus.bvalid.eq(1)
                with m.If(bus.bready):
                    m.d.sync += [have_address.eq(0), have_word.eq(0)]
                    m.next = "ACCEPT"
        return fsm.ongoing("ACCEPT")

    def _reads(
        self, m: Module, stored: dict[str, Signal], irq_status: Signal, failure: Signal
    ) -> Value:
        """The bus' reads; whether none is under way."""
        bus, config = self.bus, self._config
        address, upper, word = Signal(10), Signal(32), Signal(32)
        latched = Signal.like(self.counter)  # counter whose upper word is held
        values: dict[str, Value] = {
            **stored,
            "IDENT": Const(IDENT, 32),
            "VERSION": Const(VERSION, 32),
            "GEOMETRY": Const(config.rows | config.lanes << 8 | config.page_tokens << 16, 32),
            "LIMITS": Const(
                config.max_tiles | config.max_segments << 8 | (config.planes - 1) << 16, 32
            ),
            "POOL": Const(config.pages - 1 | (config.sequences - 1) << 16, 32),
            "CONTROL": Cat(self.enable, self.reset),
            "STATUS": Cat(self.busy, failure.any(), Const(0, 6), failure),
            "IRQ_STATUS": irq_status,
            "RING_TAIL": self.ring_tail,
            "RING_HEAD": self.ring_head,
            "COMPLETION_TAIL": self.completion_tail,
            "TENANTS": Const(config.tenants - 1, 32),
            "PAGE_ERRORS": Cat(*self._page_errors),
        }
        first = ADDRESS[f"{COUNTERS[0]}_LO"] // 4
        offset = address - first
        counts = (address >= first) & (address < len(REGISTERS))
        m.d.comb += self.counter.eq(offset[1:])
        with m.FSM(name="read") as fsm:
            with m.State("ACCEPT"):
                m.d.comb += bus.arready.eq(1)
                with m.If(bus.arvalid):
                    m.d.sync += address.eq(bus.araddr[2:])
                    m.next = "SELECT"
            with m.State("SELECT"):
                m.d.sync += bus.rresp.eq(Mux(address < len(REGISTERS), OKAY, SLVERR))
                with m.Switch(address):
                    for name, value in values.items():
                        with m.Case(ADDRESS[name] // 4):
                            m.d.sync += word.eq(value)
                    with m.Default():
                        m.d.sync += word.eq(Mux(counts, self.counter_low, 0))
                m.next = "UPPER"
            with m.State("UPPER"):
                m.d.sync += bus.rdata.eq(word)
                with m.If(counts & ~offset[0]):
                    m.d.sync += [upper.eq(self.counter_high), latched.eq(self.counter)]
                with m.Elif(counts):
                    m.d.sync += bus.rdata.eq(Mux(latched == self.counter, upper, self.counter_high))
                m.next = "RESPOND"
            with m.State("RESPOND"):
                m.d.comb += bus.rvalid.eq(1)
                with m.If(bus.rready):
                    m.next = "ACCEPT"
        return fsm.ongoing("ACCEPT")
