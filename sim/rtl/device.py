"""The native device: the Verilated core, or cores, and the memory in this process."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from m890.firmware.errors import DeviceTimeout, FirmwareError
from m890.hdl.config import CoreConfig
from m890.hdl.registers import ADDRESS, COUNTERS
from m890.hdl.verilog import VerilogDesign
from m890.sim.rtl.build import build
from m890.sim.rtl.cache import core_design
from m890.sim.rtl.hbm import COUNTERS as MEMORY_COUNTERS
from m890.sim.rtl.hbm import HbmParameters, HbmTiming

PAGE = 4096
"""Memory is whole pages of the host, aligned, so that bursts never leave it half way."""
PATIENCE = 200_000
"""Cycles without any movement at the memory port after which a wait is hopeless."""
RESET_CYCLES = 4
"""As harness.cpp holds reset."""
FOREVER = 1 << 62
ALL = 0xFFFFFFFF
"""Every interrupt."""
_REASONS = ("cycles", "interrupt", "stuck", "breach")


class BusError(FirmwareError):
    """A register access that the core refused or never answered."""


class ProtocolError(FirmwareError):
    """The core broke a rule of AXI4 at its memory port."""


class _Parameters(ctypes.Structure):
    """As harness.cpp declares it."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("latency", "bandwidth", "stall", "seed", "error_start", "error_end", "check")
    ]


class RtlDevice:
    """The core's RTL, Verilated, with a memory: of fixed latency and bandwidth, or HBM3-like.

    Function
        Implements `m890.firmware.device.Device`. `memory` is shared with the simulation: no copy.
    Parameters
        config : of the core. design, library : other Verilog with the core's ports, and a library
            that was built of it.
        memory_bytes : size of the memory, a multiple of 4 KiB.
        latency : cycles from a burst's address to its first beat, and from its last beat to its
            answer. bandwidth : bytes per cycle of both directions together; None: no limit.
        hbm : an HBM3-like memory instead, which takes neither of them, nor `stall`.
        stall : probability that a channel pauses in a cycle. seed : of stalls and of the random
            words in registers and memories at start.
        errors : byte range whose accesses the memory answers with an error.
        waves : True for a simulator that can record waves (half as fast).
        check : hold the core to the rules of AXI4.
    """

    def __init__(
        self,
        config: CoreConfig,
        *,
        memory_bytes: int = 64 << 20,
        latency: int = 100,
        bandwidth: float | None = None,
        hbm: HbmTiming | None = None,
        stall: float = 0.0,
        seed: int = 0,
        errors: tuple[int, int] = (0, 0),
        waves: bool = False,
        check: bool = True,
        design: VerilogDesign | None = None,
        library: Path | None = None,
        patience: int = PATIENCE,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if memory_bytes <= 0 or memory_bytes % PAGE:
            raise ValueError(f"memory_bytes must be a multiple of {PAGE}, not {memory_bytes}")
        if latency < 1:
            raise ValueError(f"latency must be 1 or more cycles, not {latency}")
        if not 0 <= stall < 1:
            raise ValueError(f"stall must be a probability below 1, not {stall}")
        if bandwidth is not None and not 0 < bandwidth <= 2 * config.port_bytes:
            raise ValueError(
                f"bandwidth must be up to {2 * config.port_bytes} bytes per cycle, not {bandwidth}"
            )
        if hbm is not None and (stall or bandwidth is not None):
            raise ValueError("bandwidth and stall belong to the fixed memory, not to hbm")
        self._handle: int | None = None
        self.config = config
        self.design = design or core_design(config)
        self._library = _load(library or build(self.design, trace=waves, say=say).library)
        self.memory: NDArray[np.uint8] = _aligned(memory_bytes)
        self._patience = patience
        self._waves = waves
        parameters = _Parameters(
            latency=latency,
            bandwidth=round(256 * (bandwidth or 0)),
            stall=round(stall * (1 << 32)),
            seed=seed & (1 << 63) - 1,
            error_start=errors[0],
            error_end=errors[1],
            check=int(check),
        )
        banks = None if hbm is None else ctypes.byref(hbm.parameters())
        self._handle = self._library.m890_create(
            self.memory.ctypes.data, memory_bytes, ctypes.byref(parameters), banks
        )
        # Right after reset the counter's value is known, and so is how long a read takes. (CYCLES
        # then misses one cycle, which it does not after the driver has cleared the counters.)
        self._lag = self._counted() - RESET_CYCLES if waves else None

    @property
    def cycle(self) -> int:
        """Cycles since the simulation started, its reset included."""
        return self._library.m890_cycle(self._open())

    def read(self, address: int) -> int:
        """The register at a byte address; takes a few cycles."""
        value = ctypes.c_uint32()
        code = self._library.m890_read(self._open(), address, ctypes.byref(value))
        self._answered(code, address)
        return value.value

    def write(self, address: int, value: int) -> None:
        """Sets the register at a byte address; takes a few cycles."""
        self._answered(self._library.m890_write(self._open(), address, value), address)

    def run(self, cycles: int | None = None, *, interrupts: int = ALL) -> int:
        """Let time pass until the interrupt or for `cycles`; None: until the interrupt.

        `interrupts`: those to stop for, of a cluster, a bit per core. Returns the cycles that
        passed. Raises `DeviceTimeout` when nothing moved for long while waiting for the interrupt,
        `ProtocolError` when the core broke the rules of its port.
        """
        reason = ctypes.c_int32()
        patience = self._patience if cycles is None else FOREVER
        limit = FOREVER if cycles is None else cycles
        done = self._library.m890_run(
            self._open(), limit, patience, interrupts, ctypes.byref(reason)
        )
        if _REASONS[reason.value] == "stuck":
            raise DeviceTimeout(patience, "the interrupt")
        if _REASONS[reason.value] == "breach":
            breach = self._library.m890_breach(self._open()).decode()
            raise ProtocolError(f"in cycle {self.cycle} {breach}: record waves that end there")
        return done

    def counters(self) -> dict[str, int]:
        """All 64-bit counters of the core. Reading them takes cycles too."""
        values = {}
        for name in COUNTERS:  # the upper word is latched when the lower one is read
            low = self.read(ADDRESS[f"{name}_LO"])
            values[name] = low | self.read(ADDRESS[f"{name}_HI"]) << 32
        return values

    def port_beats(self) -> tuple[int, int]:
        """Beats of the memory port, or ports, so far: read, written."""
        found = (ctypes.c_uint64 * 2)()
        self._library.m890_port_beats(self._open(), found)
        return found[0], found[1]

    def memory_counters(self) -> dict[str, int]:
        """Commands that an HBM3-like memory was given; zeros of the fixed one."""
        found = (ctypes.c_uint64 * len(MEMORY_COUNTERS))()
        self._library.m890_memory_counters(self._open(), found)
        return dict(zip(MEMORY_COUNTERS, found, strict=True))

    def start_waves(self, path: str | Path, first: int = 0, last: int | None = None) -> None:
        """Record every signal into an FST file, from cycle `first` until before cycle `last`.

        Cycles are those of `cycle`; one nanosecond of the file is one cycle. The recording ends
        with `stop_waves` or `close` at the latest.
        """
        if not self._waves:
            raise ValueError("this device records no waves: make it with waves=True")
        end = FOREVER if last is None else last
        if end <= max(first, self.cycle):
            raise ValueError(f"the window from cycle {first} to {last} is empty or over")
        Path(path).open("wb").close()  # Verilator does not say that it cannot write
        if self._library.m890_waves_start(self._open(), str(path).encode(), first, end):
            raise OSError(None, "cannot be written", str(path))

    def stop_waves(self) -> None:
        """End the recording; the file is complete."""
        self._library.m890_waves_stop(self._open())

    @contextmanager
    def waves(self, path: str | Path) -> Iterator[None]:
        """Record waves while the block runs."""
        self.start_waves(path)
        try:
            yield
        finally:
            self.stop_waves()

    def counter_offset(self) -> int:
        """What to add to a cycle of a completion (the core's counter) to get one of `cycle`.

        Holds from one clearing of the counters, which a new driver does, to the next.
        """
        if self._lag is None:
            raise ValueError("only a device with waves=True relates the core's cycles to its own")
        return self._counted() - self._lag

    def _counted(self) -> int:
        """Cycles now, less those that CYCLES showed when it was read, a fixed time ago."""
        count = self.read(ADDRESS["CYCLES_LO"]) | self.read(ADDRESS["CYCLES_HI"]) << 32
        return self.cycle - count

    def close(self) -> None:
        """Ends the simulation and the recording; safe to call twice."""
        if self._handle is not None:
            self._library.m890_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> "RtlDevice":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _open(self) -> int:
        if self._handle is None:
            raise ValueError("the device is closed")
        return self._handle

    def _answered(self, code: int, address: int) -> None:
        if code < 0:
            raise BusError(f"register {address:#x} never answered: look at the waves")
        if code:
            raise BusError(f"register {address:#x} answered with bus error {code}")


def _aligned(size: int) -> NDArray[np.uint8]:
    block = np.zeros(size + PAGE, np.uint8)
    start = -block.ctypes.data % PAGE
    return block[start : start + size]


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    handle, word, long = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    signed = ctypes.c_int32
    for name, result, *arguments in (
        ("create", handle, handle, long, *map(ctypes.POINTER, (_Parameters, HbmParameters))),
        ("destroy", None, handle),
        ("run", long, handle, long, long, word, ctypes.POINTER(signed)),
        ("write", signed, handle, word, word),
        ("read", signed, handle, word, ctypes.POINTER(word)),
        ("cycle", long, handle),
        ("port_beats", None, handle, ctypes.POINTER(long)),
        ("memory_counters", None, handle, ctypes.POINTER(long)),
        ("breach", ctypes.c_char_p, handle),
        ("waves_start", signed, handle, ctypes.c_char_p, long, long),
        ("waves_stop", None, handle),
    ):
        function = getattr(library, f"m890_{name}")
        function.restype, function.argtypes = result, arguments
    return library
