"""The cluster's interconnect between random cores and an AXI4 memory that stalls and reorders."""

import random
from collections import deque

import pytest
from amaranth.sim import Simulator

from m890.hdl.config import ClusterConfig, ConfigError, preset
from m890.hdl.memory.interconnect import Interconnect
from m890.hdl.memory.ports import ID_BITS
from m890.testbench.hdl.memory.test_arbiters import Channel

TINY = preset("tiny")
SIZE = TINY.port_bytes
IDS = 3  # of each core


def address_of(rng, beats):
    """Somewhere that a burst of `beats` does not cross 4 KiB from."""
    return 4096 * rng.randrange(8) + SIZE * rng.randrange(4096 // SIZE - beats + 1)


def bursts_of(rng, count):
    """(id, address, beats) of one core: short ones, and some as long as they can be."""
    lengths = [256, *(rng.choice((1, 2, rng.randrange(1, 30))) for _ in range(count - 1))]
    rng.shuffle(lengths)
    return [(rng.randrange(IDS), address_of(rng, beats), beats) for beats in lengths]


def sender(rng, core, channel, bursts):
    """A core's AR or AW."""

    async def send(ctx):
        for ident, address, beats in bursts:
            while rng.random() < 0.5:
                await ctx.tick()
            for name, value in (("id", ident), ("addr", address), ("len", beats - 1), ("valid", 1)):
                ctx.set(getattr(core, f"{channel}{name}"), value)
            await ctx.tick().until(getattr(core, f"{channel}ready"))
            ctx.set(getattr(core, f"{channel}valid"), 0)

    return send


def giver(rng, core, bursts):
    """The beats of a core's writes, before or after their addresses."""

    async def give(ctx):
        for words in bursts:
            for number, (data, strobe) in enumerate(words):
                while rng.random() < 0.3:
                    await ctx.tick()
                ctx.set(core.wdata, data)
                ctx.set(core.wstrb, strobe)
                ctx.set(core.wlast, number == len(words) - 1)
                ctx.set(core.wvalid, 1)
                await ctx.tick().until(core.wready)
                ctx.set(core.wvalid, 0)

    return give


@pytest.mark.parametrize("cores, ready", [(2, 1.0), (3, 0.5), (4, 0.6)])
def test_reads_come_back_to_who_asked_in_order(seed, cores, ready):
    rng = random.Random(seed)
    dut = Interconnect(ClusterConfig(TINY, cores, shared=True))
    asked = [bursts_of(rng, 12) for _ in range(cores)]
    expected = {
        (n, i): deque(
            (address + b * SIZE, b == beats - 1)
            for ident, address, beats in asked[n]
            if ident == i
            for b in range(beats)
        )
        for n in range(cores)
        for i in range(IDS)
    }

    async def memory(ctx):
        channel = Channel(dut.axi, "ar", SIZE, rng, ready)
        queues = {}
        while True:
            channel.drive(ctx)
            choices = [q for q in queues.values() if q]
            give = bool(choices) and rng.random() < ready
            ctx.set(dut.axi.rvalid, give)
            if give:
                ident, address, last = rng.choice(choices).popleft()
                ctx.set(dut.axi.rid, ident)
                ctx.set(dut.axi.rdata, address)
                ctx.set(dut.axi.rresp, address // SIZE % 4)
                ctx.set(dut.axi.rlast, last)
            sampled = await ctx.tick().sample(dut.axi.rready, *channel.signals)
            assert sampled[2] or not give, "the cores are always ready"
            if burst := channel.see(tuple(sampled[3:])):
                ident, address, beats = burst
                queue = queues.setdefault(ident, deque())
                queue.extend((ident, address + b * SIZE, b == beats - 1) for b in range(beats))

    async def check(ctx):
        names = ("rvalid", "rid", "rdata", "rresp", "rlast")
        for core in dut.core:
            ctx.set(core.rready, 1)
        for _ in range(60000):
            seen = await ctx.tick().sample(*(getattr(c, x) for c in dut.core for x in names))
            for n in range(cores):
                valid, ident, data, response, last = seen[2 + 5 * n : 7 + 5 * n]
                if valid:
                    assert (data, last) == expected[n, ident].popleft()
                    assert response == data // SIZE % 4
            if not any(expected.values()):
                return
        raise AssertionError(f"never came: {expected}")

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(memory, background=True)
    for n in range(cores):
        sim.add_testbench(sender(rng, dut.core[n], "ar", asked[n]), background=True)
    sim.add_testbench(check)
    sim.run()


@pytest.mark.parametrize("cores, ready", [(2, 1.0), (3, 0.5), (4, 0.6)])
def test_writes_land_and_are_answered_to_who_wrote(seed, cores, ready):
    rng = random.Random(seed)
    dut = Interconnect(ClusterConfig(TINY, cores, shared=True))
    asked = [bursts_of(rng, 10) for _ in range(cores)]
    words = [
        [[(rng.getrandbits(8 * SIZE), rng.getrandbits(SIZE)) for _ in range(b)] for _, _, b in a]
        for a in asked
    ]
    written = [deque() for _ in range(cores)]  # (id, address, words) as memory saw them
    answered = {(n, i): deque() for n in range(cores) for i in range(IDS)}

    async def memory(ctx):
        axi = dut.axi
        channel = Channel(axi, "aw", SIZE, rng, ready)
        bursts, answers = deque(), {}
        gathered, held = [], None
        while True:
            channel.drive(ctx)
            take = bool(bursts) and rng.random() < ready
            ctx.set(axi.wready, take)
            choices = [a for a in answers.values() if a]
            answer = bool(choices) and rng.random() < ready
            ctx.set(axi.bvalid, answer)
            if answer:
                ident, response = rng.choice(choices).popleft()
                ctx.set(axi.bid, ident)
                ctx.set(axi.bresp, response)
            sampled = await ctx.tick().sample(
                axi.bready, axi.wvalid, axi.wdata, axi.wstrb, axi.wlast, *channel.signals
            )
            bready, valid, *word = sampled[2:7]
            assert bready or not answer
            if held is not None:
                assert valid and word == held, "a beat was changed or withdrawn"
            held = word if valid and not take else None
            if burst := channel.see(tuple(sampled[7:])):
                bursts.append(burst)
            if valid and take:
                ident, address, beats = bursts[0]
                data, strobe, last = word
                gathered.append((data, strobe))
                assert last == (len(gathered) == beats)
                if last:
                    bursts.popleft()
                    core, own = divmod(ident, 1 << ID_BITS)
                    written[core].append((own, address, gathered))
                    gathered = []
                    response = rng.randrange(4)
                    answered[core, own].append(response)
                    answers.setdefault(ident, deque()).append((ident, response))

    async def check(ctx):
        names = ("bvalid", "bid", "bresp")
        for core in dut.core:
            ctx.set(core.bready, 1)
        left = sum(map(len, asked))
        for _ in range(60000):
            seen = await ctx.tick().sample(*(getattr(c, x) for c in dut.core for x in names))
            for n in range(cores):
                valid, ident, response = seen[2 + 3 * n : 5 + 3 * n]
                if valid:
                    assert response == answered[n, ident].popleft()
                    left -= 1
            if not left:
                break
        assert not left and not any(answered.values())
        for n in range(cores):
            wanted = [(i, at, w) for (i, at, _), w in zip(asked[n], words[n], strict=True)]
            assert list(written[n]) == wanted

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(memory, background=True)
    for n in range(cores):
        sim.add_testbench(sender(rng, dut.core[n], "aw", asked[n]), background=True)
        sim.add_testbench(giver(rng, dut.core[n], words[n]), background=True)
    sim.add_testbench(check)
    sim.run()


def test_a_ready_memory_gets_a_burst_and_a_beat_every_cycle():
    """And the cores take turns, from the cycle after the first address on."""
    cores = 3
    dut = Interconnect(ClusterConfig(TINY, cores, shared=True))
    reads, beats = [], []

    async def test(ctx):
        for ready in (dut.axi.arready, dut.axi.awready, dut.axi.wready):
            ctx.set(ready, 1)
        for n, core in enumerate(dut.core):
            for signal in (core.arvalid, core.awvalid, core.wvalid, core.wlast):
                ctx.set(signal, 1)
            ctx.set(core.wdata, n)
        for _ in range(15):
            seen = await ctx.tick().sample(
                dut.axi.arvalid, dut.axi.arid, dut.axi.wvalid, dut.axi.wdata
            )
            _, _, address, ident, beat, word = seen
            reads.append(ident >> ID_BITS if address else None)
            beats.append(word if beat else None)

    sim = Simulator(dut)
    sim.add_clock(1e-9)
    sim.add_testbench(test)
    sim.run()
    assert reads == [None, *(n % cores for n in range(14))]
    assert beats == [None, None, *(n % cores for n in range(13))]


@pytest.mark.parametrize("cores", [0, 1, 5])
def test_wrong_numbers_of_cores_are_refused(cores):
    with pytest.raises(ConfigError, match=f"cores must be 2 to 4, not {cores}"):
        ClusterConfig(TINY, cores)
