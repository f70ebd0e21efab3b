"""Registers of the model device: as the RTL's, without the time that an access takes."""

from m890.hdl.commands import COMMAND_BYTES, COMPLETION_BYTES, Error
from m890.hdl.config import CoreConfig
from m890.hdl.registers import COUNTERS, IDENT, REGISTERS, VERSION

RING_ALIGN = 128
RING_LIMIT = 32768
TAGS = 1 << 16
_BY_ADDRESS = {r.address: r for r in REGISTERS}
_SETUP = frozenset(
    f"{name}{part}"
    for name, part in (
        ("MEMORY_LIMIT", "_LO"), ("MEMORY_LIMIT", "_HI"), ("RING_BASE", "_LO"),
        ("RING_BASE", "_HI"), ("RING_SIZE", ""), ("COMPLETION_BASE", "_LO"),
        ("COMPLETION_BASE", "_HI"), ("COMPLETION_SIZE", ""),
    )
)  # fmt: skip
"""Registers that cannot change while the ring is enabled."""


class RegisterFile:
    """Control, rings, interrupts and counters; `m890.hdl.registers` says what each means."""

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self._values = {r.name: 0 for r in REGISTERS}
        self._upper = 0  # of the counter whose lower word was read last
        self._error = 0
        self.irq_status = 0
        self._clear()

    def _clear(self) -> None:
        """What CONTROL bit 1 resets."""
        self.head = self.tail = 0
        self.completed = 0  # not modulo anything
        self._values["COMPLETION_HEAD"] = 0
        self.cycles = 0
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._error = 0
        self.irq_status &= 1

    # ---------------------------------------------------------------- what the device asks

    @property
    def interrupt(self) -> bool:
        return bool(self.irq_status & self._values["IRQ_ENABLE"])

    @property
    def limit(self) -> int:
        return self._wide("MEMORY_LIMIT")

    @property
    def ring_base(self) -> int:
        return self._wide("RING_BASE")

    @property
    def ring_size(self) -> int:
        return self._values["RING_SIZE"]

    @property
    def completion_base(self) -> int:
        return self._wide("COMPLETION_BASE")

    @property
    def completion_size(self) -> int:
        return self._values["COMPLETION_SIZE"]

    @property
    def takeable(self) -> int:
        """Commands that may run now: announced, and with room for their completions."""
        if not self._values["CONTROL"] & 1:
            return 0
        unread = (self.completed - self._values["COMPLETION_HEAD"]) % TAGS
        return min((self.tail - self.head) % TAGS, self.completion_size - unread)

    # ---------------------------------------------------------------- bus

    def read(self, address: int) -> int:
        register = _BY_ADDRESS.get(address)
        if register is None:
            return 0
        name, config = register.name, self.config
        if name[:-3] in self.counters:
            if name.endswith("_HI"):
                return self._upper
            value = self._counter(name[:-3])
            self._upper = value >> 32 & 0xFFFFFFFF
            return value & 0xFFFFFFFF
        computed = {
            "IDENT": IDENT,
            "VERSION": VERSION,
            "GEOMETRY": config.rows | config.lanes << 8 | config.page_tokens << 16,
            "LIMITS": config.max_tiles | config.max_segments << 8 | (config.planes - 1) << 16,
            "POOL": config.pages - 1 | (config.sequences - 1) << 16,
            "STATUS": int(self.tail != self.head) | bool(self._error) << 1 | self._error << 8,
            "IRQ_STATUS": self.irq_status,
            "RING_TAIL": self.tail,
            "RING_HEAD": self.head,
            "COMPLETION_TAIL": self.completed % TAGS,
            "TENANTS": config.tenants - 1,
        }
        return computed.get(name, self._values[name])

    def write(self, address: int, value: int) -> None:
        register = _BY_ADDRESS.get(address)
        if register is None or register.access == "ro":
            return
        name = register.name
        if name == "CONTROL":
            self._control(value)
        elif name == "RING_TAIL":
            if (value - self.head) % TAGS > self.ring_size:
                self._refuse(Error.RING_OVERRUN)
            else:
                self.tail = value % TAGS
        elif name == "IRQ_STATUS":
            self.irq_status &= ~value
            if value & 2:
                self._error = 0
        elif name not in _SETUP or not self._values["CONTROL"] & 1:
            self._values[name] = value & 0xFFFFFFFF

    def _control(self, value: int) -> None:
        if value & 2:
            self._clear()
        if value & 1 and not self._values["CONTROL"] & 1 and self._bad_ring():
            self._refuse(Error.BAD_RING)
            value = 0
        self._values["CONTROL"] = value & 1

    def _refuse(self, error: Error) -> None:
        self._error = int(error)
        self.irq_status |= 2

    def _bad_ring(self) -> bool:
        def bad(base: int, size: int, entry: int) -> bool:
            power = 1 <= size <= RING_LIMIT and size & (size - 1) == 0
            return not power or base % RING_ALIGN > 0 or base + size * entry > self.limit

        return bad(self.ring_base, self.ring_size, COMMAND_BYTES) or bad(
            self.completion_base, self.completion_size, COMPLETION_BYTES
        )

    def _counter(self, name: str) -> int:
        if name == "CYCLES":
            return self.cycles
        if name == "STALL_IDLE":
            return max(0, self.cycles - self.counters["BEATS"])
        return self.counters[name]

    def _wide(self, name: str) -> int:
        return self._values[f"{name}_LO"] | self._values[f"{name}_HI"] << 32
