"""Interfaces between the core's blocks and its memory port, and the AXI signatures of the core."""

from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import CoreConfig

BEATS_BITS = 12
"""Width of a request's length in port beats (1 to 4,095)."""


def request_layout(config: CoreConfig) -> data.StructLayout:
    """A read or write request: port-aligned byte address and length in port beats (>= 1)."""
    return data.StructLayout({"address": config.address_bits, "beats": BEATS_BITS})


class ReadPort(wiring.Signature):
    """A requester's view of the memory's read side.

    Members
    -------
    request : Out(stream of request_layout)
        May cross 4 KiB boundaries and exceed AXI's burst length: the arbiter splits.
    data_valid, data, last, error : In
        The beats of all requests in order. There is no ready: a requester asks only for what it has
        room for. `last` marks the last beat of a *request*; `error` a beat with a bus error.
    """

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        super().__init__(
            {
                "request": Out(stream.Signature(request_layout(config))),
                "data_valid": In(1),
                "data": In(config.port_bits),
                "last": In(1),
                "error": In(1),
            }
        )


class WritePort(wiring.Signature):
    """A requester's view of the memory's write side.

    Members
    -------
    request : Out(stream of request_layout)
        One request, then its beats on `beat`; the next request may be offered at any time.
    beat : Out(stream)
        `data` and byte strobes `strobe` (not lane-compressed).
    done, error : In
        One pulse of `done` per request, in order, when memory has acknowledged all of it.
    """

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        super().__init__(
            {
                "request": Out(stream.Signature(request_layout(config))),
                "beat": Out(
                    stream.Signature(
                        data.StructLayout({"data": config.port_bits, "strobe": config.port_bytes})
                    )
                ),
                "done": In(1),
                "error": In(1),
            }
        )


ID_BITS = 4
"""Width of the core's AXI ids."""
CSR_BITS = 12
"""Width of a byte address of the core's registers."""


class Axi4(wiring.Signature):
    """AXI4 master, the subset that the core uses (INCR bursts of full beats).

    `extra` : id bits above the core's four.
    """

    def __init__(self, config: CoreConfig, extra: int = 0) -> None:
        ids = ID_BITS + extra
        address, width = config.address_bits, config.port_bits
        members = {}
        for channel in ("aw", "ar"):
            members |= {
                f"{channel}id": Out(ids),
                f"{channel}addr": Out(address),
                f"{channel}len": Out(8),
                f"{channel}size": Out(3),
                f"{channel}burst": Out(2),
                f"{channel}valid": Out(1),
                f"{channel}ready": In(1),
            }
        members |= {
            "wdata": Out(width), "wstrb": Out(width // 8), "wlast": Out(1), "wvalid": Out(1),
            "wready": In(1), "bid": In(ids), "bresp": In(2), "bvalid": In(1), "bready": Out(1),
            "rid": In(ids), "rdata": In(width), "rresp": In(2), "rlast": In(1), "rvalid": In(1),
            "rready": Out(1),
        }  # fmt: skip
        super().__init__(members)


class AxiLite(wiring.Signature):
    """AXI4-Lite, 32 bits of data; Out is the master's direction.

    `extra` : address bits above the core's twelve.
    """

    def __init__(self, extra: int = 0) -> None:
        address = CSR_BITS + extra
        super().__init__(
            {
                "awaddr": Out(address),
                "awprot": Out(3),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(32),
                "wstrb": Out(4),
                "wvalid": Out(1),
                "wready": In(1),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
                "araddr": Out(address),
                "arprot": Out(3),
                "arvalid": Out(1),
                "arready": In(1),
                "rdata": In(32),
                "rresp": In(2),
                "rvalid": In(1),
                "rready": Out(1),
            }  # fmt: skip
        )
