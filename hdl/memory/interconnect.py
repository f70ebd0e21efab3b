"""Several cores' memory ports on one: AXI4, told apart by the upper bits of the id."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.config import ClusterConfig
from m890.hdl.memory.burst import INCR, Picker, beat_bits, one_hot_mux
from m890.hdl.memory.ports import ID_BITS, Axi4
from m890.hdl.memory.queue import Queue

ORDER_DEPTH = 4
"""Write bursts whose address is out and whose beats are still to come."""


class Interconnect(wiring.Component):
    """Shares one AXI4 port between the cores of a cluster.

    Function
        Bursts of the cores take turns. The id outside is the core's number above the core's own id,
        by which answers find their way back. Bursts of one core and id stay in order.
    Members
        core[n] : AXI4 port of core n, seen from memory. axi : the port that they share.
    Latency
        Addresses 1 cycle, written beats 1 cycle behind theirs; answers and read beats 0.
    Throughput
        One burst, one read beat and one written beat per cycle. A core that waits for its turn gets
        one burst in `cores`.
    Backpressure
        The beats of write bursts follow in the order of their addresses: a core that has sent an
        address holds W until it has given all its beats. Ready to a core depends on registers and
        on the other cores' valid, never on the AXI port; `rready` and `bready` are the cores' own.
    Storage
        Two bursts at AR and AW each, two written beats, ORDER_DEPTH core numbers.
    Parameters
        config : the cluster, of which only the number of cores and the core's port matter.
    """

    core: Any
    axi: Any

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        super().__init__(
            {
                "core": In(Axi4(config.core)).array(config.cores),
                "axi": Out(Axi4(config.core, config.core_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, axi = self._config, self.axi
        order: Queue
        m.submodules.order = order = Queue(config.cores, ORDER_DEPTH, sram=False)
        self._addresses(m, "ar", Const(1))
        chosen = self._addresses(m, "aw", order.i.ready)
        m.d.comb += [order.i.valid.eq(chosen.any()), order.i.payload.eq(chosen)]

        beat = data.StructLayout(
            {"data": config.core.port_bits, "strobe": config.core.port_bytes, "last": 1}
        )
        m.submodules.w = w = Queue(beat, 2)
        turn = order.o.payload & order.o.valid.replicate(config.cores)
        sent = w.i.valid & w.i.ready
        m.d.comb += [
            w.i.valid.eq((turn & Cat(*(c.wvalid for c in self.core))).any()),
            w.i.payload.data.eq(one_hot_mux(turn, [c.wdata for c in self.core])),
            w.i.payload.strobe.eq(one_hot_mux(turn, [c.wstrb for c in self.core])),
            w.i.payload.last.eq(one_hot_mux(turn, [c.wlast for c in self.core])),
            order.o.ready.eq(sent & w.i.payload.last),
            axi.wvalid.eq(w.o.valid),
            w.o.ready.eq(axi.wready),
            axi.wdata.eq(w.o.payload.data),
            axi.wstrb.eq(w.o.payload.strobe),
            axi.wlast.eq(w.o.payload.last),
        ]
        back: dict[str, list[Value]] = {"r": [], "b": []}
        for n, core in enumerate(self.core):
            m.d.comb += core.wready.eq(turn[n] & w.i.ready)
            for channel, readies in back.items():
                ident = getattr(axi, f"{channel}id")
                mine = ident[ID_BITS:] == n
                valid, ready = (getattr(core, f"{channel}{x}") for x in ("valid", "ready"))
                m.d.comb += [
                    valid.eq(getattr(axi, f"{channel}valid") & mine),
                    getattr(core, f"{channel}id").eq(ident[:ID_BITS]),
                    getattr(core, f"{channel}resp").eq(getattr(axi, f"{channel}resp")),
                ]
                readies.append(ready & mine)
            m.d.comb += [core.rdata.eq(axi.rdata), core.rlast.eq(axi.rlast)]
        m.d.comb += [axi.rready.eq(Cat(*back["r"]).any()), axi.bready.eq(Cat(*back["b"]).any())]
        return m

    def _addresses(self, m: Module, channel: str, room: Value) -> Signal:
        """AR or AW; returns the core whose address is taken in this cycle, one-hot."""
        config, axi = self._config, self.axi

        def of(port: Any, name: str) -> Any:
            return getattr(port, f"{channel}{name}")

        names = ("id", "addr", "len")
        widths = {name: len(of(axi, name)) for name in names}
        m.submodules[f"{channel}_picker"] = picker = Picker(config.cores)
        m.submodules[channel] = queue = Queue(data.StructLayout(widths), 2)
        taken = Signal(config.cores, name=f"{channel}_taken")
        free = queue.i.ready & room
        m.d.comb += [
            picker.request.eq(Cat(*(of(core, "valid") for core in self.core))),
            picker.take.eq(picker.request.any() & free),
            taken.eq(Mux(free, picker.grant, 0)),
            queue.i.valid.eq(picker.take),
        ]
        for name in names:
            values: list[Value] = [of(core, name) for core in self.core]
            if name == "id":
                values = [Cat(v, Const(n, config.core_bits)) for n, v in enumerate(values)]
            m.d.comb += [
                queue.i.payload[name].eq(one_hot_mux(picker.grant, values)),
                of(axi, name).eq(queue.o.payload[name]),
            ]
        m.d.comb += [of(core, "ready").eq(taken[n]) for n, core in enumerate(self.core)]
        m.d.comb += [
            of(axi, "valid").eq(queue.o.valid),
            queue.o.ready.eq(of(axi, "ready")),
            of(axi, "size").eq(beat_bits(config.core)),
            of(axi, "burst").eq(INCR),
        ]
        return taken
