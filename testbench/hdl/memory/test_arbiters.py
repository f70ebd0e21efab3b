"""Arbiters between random requesters and an AXI4 memory that stalls and reorders at random."""

import random
from collections import deque

import pytest
from amaranth.sim import Simulator

from m890.hdl.config import preset
from m890.hdl.memory.burst import BULK_TURN, Picker
from m890.hdl.memory.read_arbiter import ReadArbiter
from m890.hdl.memory.write_arbiter import WriteArbiter

MEMORY = 0x40000
CONFIGS = [("tiny", 8), ("wide", 64)]


def config_of(lanes):
    return preset("tiny").with_(
        lanes=lanes, page_tokens=lanes, max_head=lanes, fifo_beats=2 * lanes
    )


class Channel:
    """An AW or AR channel as memory sees it; checks the rules that AXI has for it."""

    def __init__(self, axi, name, port_bytes, rng, ready):
        self.names = [f"{name}{n}" for n in ("valid", "id", "addr", "len", "size", "burst")]
        self.signals = [getattr(axi, n) for n in self.names]
        self.ready, self.rng, self.chance = getattr(axi, f"{name}ready"), rng, ready
        self.port_bytes, self.held = port_bytes, None
        self.bursts = 0

    def drive(self, ctx):
        self.is_ready = self.rng.random() < self.chance
        ctx.set(self.ready, self.is_ready)

    def see(self, values):
        """The burst (id, address, beats) taken in the cycle of these samples, if one was."""
        valid, ident, address, length, size, burst = values
        if self.held is not None:
            assert valid and values[1:] == self.held, "a burst was changed or withdrawn"
        self.held = values[1:] if valid and not self.is_ready else None
        if not valid or not self.is_ready:
            return None
        beats = length + 1
        assert 1 << size == self.port_bytes and burst == 1 and address % self.port_bytes == 0
        assert address // 4096 == (address + beats * self.port_bytes - 1) // 4096, "crosses 4 KiB"
        self.bursts += 1
        return ident, address, beats


def requests(rng, port_bytes, count):
    """Short ones, long ones, and some that end exactly at a 4 KiB boundary."""
    out = []
    for _ in range(count):
        beats = rng.choice((1, 1, 2, rng.randrange(1, 40), rng.randrange(1, 600)))
        address = rng.randrange((MEMORY - beats * port_bytes) // port_bytes) * port_bytes
        if rng.random() < 0.2:
            beats = min(beats, 4096 // port_bytes)
            address = address // 4096 * 4096 + 4096 - beats * port_bytes
        out.append((address, beats))
    return out


@pytest.mark.parametrize("name, lanes", CONFIGS)
@pytest.mark.parametrize("ready, outstanding", [(0.5, 2), (1.0, 16)])
def test_reads_come_back_in_order_and_whole(seed, name, lanes, ready, outstanding):
    print(f"seed {seed}")
    config, rng = config_of(lanes), random.Random(seed)
    size, count = config.port_bytes, 4
    dut = ReadArbiter(config, count, control=(0,), kv=(2, 3), outstanding=outstanding)
    memory = rng.randbytes(MEMORY)
    bad = {rng.randrange(MEMORY // size) * size for _ in range(40)}
    asked = [requests(rng, size, 12) for _ in range(count)]
    expected = [
        deque(
            (address + n * size, n == beats - 1)
            for address, beats in asked[r]
            for n in range(beats)
        )
        for r in range(count)
    ]
    total = sum(map(len, expected))
    of_kv = sum(map(len, expected[2:]))
    on_way = [0] * count

    async def memory_side(ctx):
        channel = Channel(dut.axi, "ar", size, rng, ready)
        queues = [deque() for _ in range(count)]
        while True:
            channel.drive(ctx)
            choices = [q for q in queues if q]
            give = bool(choices) and rng.random() < ready
            ctx.set(dut.axi.rvalid, give)
            if give:
                ident, address, last = rng.choice(choices).popleft()
                ctx.set(dut.axi.rid, ident)
                ctx.set(dut.axi.rdata, int.from_bytes(memory[address : address + size], "little"))
                ctx.set(dut.axi.rlast, last)
                ctx.set(dut.axi.rresp, 2 * (address in bad))
                on_way[ident] -= last
            else:
                ctx.set(dut.axi.rlast, rng.random() < 0.5)
                ctx.set(dut.axi.rresp, rng.randrange(4))
            _, _, rready, *sampled = await ctx.tick().sample(dut.axi.rready, *channel.signals)
            assert rready
            if burst := channel.see(tuple(sampled)):
                ident, address, beats = burst
                on_way[ident] += 1
                assert on_way[ident] <= outstanding
                for n in range(beats):
                    queues[ident].append((ident, address + n * size, n == beats - 1))

    def requester(r):
        async def ask(ctx):
            port = dut.port[r]
            for address, beats in asked[r]:
                while rng.random() < 0.5:
                    await ctx.tick()
                ctx.set(port.request.payload, {"address": address, "beats": beats})
                ctx.set(port.request.valid, 1)
                await ctx.tick().until(port.request.ready)
                ctx.set(port.request.valid, 0)

        return ask

    async def check(ctx):
        beats = kv = 0
        for _ in range(10 * total + 1000):
            seen = await ctx.tick().sample(
                dut.beat, dut.kv_beat, *(p.data_valid for p in dut.port), dut.port[0].data,
                *(p.last for p in dut.port), *(p.error for p in dut.port),
            )  # fmt: skip
            beat, kv_beat, *rest = seen[2:]
            valid, data = rest[:count], rest[count]
            last, error = rest[count + 1 : 2 * count + 1], rest[2 * count + 1 :]
            beats, kv = beats + beat, kv + kv_beat
            assert beat == any(valid) and sum(valid) <= 1
            for r in range(count):
                if valid[r]:
                    address, final = expected[r].popleft()
                    assert data == int.from_bytes(memory[address : address + size], "little")
                    assert (last[r], error[r]) == (final, address in bad)
            if not any(expected):
                break
        assert not any(expected)
        assert (beats, kv) == (total, of_kv)

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(memory_side, background=True)
    for r in range(count):
        sim.add_testbench(requester(r), background=True)
    sim.add_testbench(check)
    sim.run()


@pytest.mark.parametrize("name, lanes", CONFIGS)
@pytest.mark.parametrize("ready, outstanding", [(0.5, 2), (1.0, 16)])
def test_writes_land_and_are_acknowledged_per_request(seed, name, lanes, ready, outstanding):
    print(f"seed {seed}")
    config, rng = config_of(lanes), random.Random(seed)
    size, count = config.port_bytes, 3
    dut = WriteArbiter(config, count, control=(0,), outstanding=outstanding)
    memory, expected = bytearray(MEMORY), bytearray(MEMORY)
    bad = {rng.randrange(MEMORY // size) * size for _ in range(20)}
    # Each requester has a third of memory: writes of different ones have no order.
    third = MEMORY // count // 4096 * 4096
    asked = [
        [
            (address % (third - beats * size) // size * size + r * third, beats)
            for address, beats in requests(rng, size, 10)
        ]
        for r in range(count)
    ]
    failed = [
        [any(address + n * size in bad for n in range(beats)) for address, beats in asked[r]]
        for r in range(count)
    ]
    written = [0]

    async def memory_side(ctx):
        axi = dut.axi
        channel = Channel(axi, "aw", size, rng, ready)
        bursts, answers = deque(), [deque() for _ in range(count)]
        beat, held, gathered = 0, None, []
        while True:
            channel.drive(ctx)
            take = bool(bursts) and rng.random() < ready
            ctx.set(axi.wready, take)
            choices = [a for a in answers if a]
            give = bool(choices) and rng.random() < ready
            ctx.set(axi.bvalid, give)
            if give:
                ident, response, words = rng.choice(choices).popleft()
                ctx.set(axi.bid, ident)
                ctx.set(axi.bresp, response)
                for at, data, strobe in words:
                    for n in range(size):
                        if strobe >> n & 1:
                            memory[at + n] = data >> 8 * n & 255
            else:
                ctx.set(axi.bresp, rng.randrange(4))
            sampled = await ctx.tick().sample(
                axi.bready, axi.wvalid, axi.wdata, axi.wstrb, axi.wlast, *channel.signals
            )
            bready, valid, *word = sampled[2:7]
            assert bready
            if held is not None:
                assert valid and word == held, "a beat was changed or withdrawn"
            held = word if valid and not take else None
            if burst := channel.see(tuple(sampled[7:])):
                bursts.append(burst)
            if valid and take:
                ident, address, beats = bursts[0]
                data, strobe, last = word
                assert last == (beat == beats - 1)
                gathered.append((address + beat * size, data, strobe))
                beat += 1
                if last:
                    bursts.popleft()
                    response = 2 if any(at in bad for at, _, _ in gathered) else 0
                    answers[ident].append((ident, response, gathered))
                    beat, gathered = 0, []

    def requester(r):
        async def ask(ctx):
            for address, beats in asked[r]:
                while rng.random() < 0.3:
                    await ctx.tick()
                port = dut.port[r].request
                ctx.set(port.payload, {"address": address, "beats": beats})
                ctx.set(port.valid, 1)
                await ctx.tick().until(port.ready)
                ctx.set(port.valid, 0)

        async def give(ctx):
            port = dut.port[r].beat
            for address, beats in asked[r]:
                for n in range(beats):
                    while rng.random() < 0.3:
                        await ctx.tick()
                    data, strobe = rng.getrandbits(8 * size), rng.getrandbits(size)
                    at = address + n * size
                    for b in range(size):
                        if strobe >> b & 1:
                            expected[at + b] = data >> 8 * b & 255
                    written[0] += strobe.bit_count()
                    ctx.set(port.payload, {"data": data, "strobe": strobe})
                    ctx.set(port.valid, 1)
                    await ctx.tick().until(port.ready)
                    ctx.set(port.valid, 0)

        return ask, give

    async def check(ctx):
        results = [[] for _ in range(count)]
        bytes_ = 0
        for _ in range(30000):
            sampled = await ctx.tick().sample(
                dut.bytes, *(p.done for p in dut.port), *(p.error for p in dut.port)
            )
            number, *flags = sampled[2:]
            bytes_ += number
            for r in range(count):
                if flags[r]:
                    results[r].append(flags[count + r])
            if sum(map(len, results)) == sum(map(len, asked)):
                break
        assert results == failed
        assert memory == expected
        assert bytes_ == written[0]

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(memory_side, background=True)
    for r in range(count):
        for process in requester(r):
            sim.add_testbench(process, background=True)
    sim.add_testbench(check)
    sim.run()


def test_a_ready_memory_gets_a_burst_and_a_beat_every_cycle(seed):
    config = config_of(8)
    dut = ReadArbiter(config, 2)
    taken = []

    async def test(ctx):
        ctx.set(dut.axi.arready, 1)
        for port in dut.port:
            ctx.set(port.request.payload, {"address": 0, "beats": 1})
            ctx.set(port.request.valid, 1)
        for _ in range(15):
            _, _, valid, ident = await ctx.tick().sample(dut.axi.arvalid, dut.axi.arid)
            taken.append(ident if valid else None)

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(test)
    sim.run()
    start = taken.index(0)
    assert start == 2, "the latency that the docstring states"
    assert taken[start:] == [n % 2 for n in range(len(taken) - start)]


def test_bulk_gets_its_turn_beside_control():
    dut = Picker(4, control=(1, 2))
    order = []

    async def test(ctx):
        ctx.set(dut.request, 0b1111)
        ctx.set(dut.take, 1)
        for _ in range(20):
            _, _, grant = await ctx.tick().sample(dut.grant)
            order.append(grant.bit_length() - 1)

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(test)
    sim.run()
    assert order == ([1, 2] * (BULK_TURN // 2) + [0] + [1, 2] * (BULK_TURN // 2) + [3]) * 2
    assert (dut.bound(0), dut.bound(1)) == (2 * (BULK_TURN + 1), 3)


def test_wrong_parameters_are_refused():
    with pytest.raises(ValueError, match="serve 1 to 16 requesters, not 17"):
        ReadArbiter(config_of(8), 17)
    with pytest.raises(ValueError, match="serve 1 to 16 requesters, not 0"):
        WriteArbiter(config_of(8), 0)
    with pytest.raises(ValueError, match="control names requester 4, but there are 4"):
        Picker(4, control=(4,))
