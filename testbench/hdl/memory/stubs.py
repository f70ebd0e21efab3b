"""Memory behind a ReadPort or a WritePort, in Python, with random stalls."""

import random
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from m890.hdl.config import CoreConfig

Fault = Literal["keeps", "drops", "spoils"]
"""What memory does with a beat whose write it answers with a bus error."""


def read_server(
    config: CoreConfig,
    port: Any,
    memory: bytearray,
    rng: random.Random,
    *,
    latency: int = 3,
    steady: bool = False,
    bad: Callable[[int], bool] = lambda address: False,
    log: list[tuple[int, int]] | None = None,
) -> Callable[[Any], Any]:
    """A process that answers a requester's ReadPort; `steady`: without stalls of its own.

    `bad` names beats that meet a bus error.
    """
    size = config.port_bytes

    async def serve(ctx: Any) -> None:
        beats: deque[tuple[int, bool, int]] = deque()  # address, last, cycle from which it may come
        cycle = 0
        while True:
            ready = steady or rng.random() < 0.7
            ctx.set(port.request.ready, ready)
            give = bool(beats) and beats[0][2] <= cycle and (steady or rng.random() < 0.8)
            ctx.set(port.data_valid, give)
            if give:
                at, last, _ = beats.popleft()
                ctx.set(port.data, int.from_bytes(memory[at : at + size], "little"))
                ctx.set(port.last, last)
                ctx.set(port.error, bad(at))
            else:  # what stands beside an invalid beat must not matter
                ctx.set(port.data, rng.getrandbits(8 * size))
                ctx.set(port.last, rng.random() < 0.5)
                ctx.set(port.error, rng.random() < 0.5)
            _, _, valid, request = await ctx.tick().sample(port.request.valid, port.request.payload)
            cycle += 1
            if valid and ready:
                assert request.address % size == 0 and request.beats >= 1
                assert request.address + request.beats * size <= len(memory), "read beyond memory"
                if log is not None:
                    log.append((request.address, request.beats))
                for n in range(request.beats):
                    last = n == request.beats - 1
                    beats.append((request.address + n * size, last, cycle + latency))

    return serve


def write_server(
    config: CoreConfig,
    port: Any,
    memory: bytearray,
    rng: random.Random,
    *,
    latency: int = 3,
    steady: bool = False,
    bad: Callable[[int], bool] = lambda address: False,
    fault: Fault = "keeps",
) -> Callable[[Any], Any]:
    """A process that carries out a requester's writes when it acknowledges them, not before.

    `bad` names beats that meet a bus error, `fault` what becomes of them.
    """
    size = config.port_bytes
    flips = 0xFF * (fault == "spoils")

    async def serve(ctx: Any) -> None:
        requests: deque[tuple[int, int]] = deque()
        beats: deque[tuple[int, int]] = deque()
        done: deque[tuple[int, list[tuple[int, int, int]]]] = deque()
        cycle = 0
        while True:
            ready, take = steady or rng.random() < 0.6, steady or rng.random() < 0.6
            ctx.set(port.request.ready, ready)
            ctx.set(port.beat.ready, take)
            answer = bool(done) and done[0][0] <= cycle and (steady or rng.random() < 0.7)
            ctx.set(port.done, answer)
            ctx.set(port.error, rng.random() < 0.5)
            if answer:
                _, words = done.popleft()
                errors = [bad(at) for at, _, _ in words]
                ctx.set(port.error, any(errors))
                for (at, word, strobe), error in zip(words, errors, strict=True):
                    for n, byte in enumerate(word.to_bytes(size, "little")):
                        if strobe >> n & 1 and not (error and fault == "drops"):
                            memory[at + n] = byte ^ flips * error
            _, _, valid, request, given, beat = await ctx.tick().sample(
                port.request.valid, port.request.payload, port.beat.valid, port.beat.payload
            )
            cycle += 1
            if valid and ready:
                assert request.address % size == 0
                requests.append((request.address, request.beats))
            if given and take:
                beats.append((beat.data, beat.strobe))
            while requests and len(beats) >= requests[0][1]:
                at, count = requests.popleft()
                words = [(at + n * size, *beats.popleft()) for n in range(count)]
                done.append((cycle + latency, words))

    return serve
