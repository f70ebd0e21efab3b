"""Cores on one memory: what the firmware asks of a cluster, and a decoder's heads divided on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from m890.firmware.backend import DeviceBackend, Usage
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.errors import ShapeError
from m890.firmware.layer import Floats
from m890.firmware.models.backend import Draft, Span
from m890.firmware.repair import Whole
from m890.hdl.config import ClusterConfig


@runtime_checkable
class Cluster(Protocol):
    """Attention cores on one memory: every core's `memory` is the whole."""

    @property
    def config(self) -> ClusterConfig:
        """Parameters the cluster was built with."""
        ...

    @property
    def cores(self) -> Sequence[Device]:
        """The cores. While one is waited for, the others go on."""
        ...

    @property
    def memory(self) -> NDArray[np.uint8]:
        """Every byte of memory."""
        ...

    def close(self) -> None:
        """Frees what the cluster holds; it cannot be used afterwards."""
        ...


def drivers(cluster: Cluster | Device, **options: Any) -> list[Driver]:
    """A driver per core; each core has an equal part of memory for its rings, planes and scratch.

    Addresses are those of the whole memory, so a core's job may read what another core has left.
    Of a device that is a core by itself: its one driver.
    """
    if not isinstance(cluster, Cluster):
        return [Driver(cluster, **options)]
    size = cluster.memory.size // len(cluster.cores) & ~4095
    return [
        Driver(core, part=(n * size, (n + 1) * size), **options)
        for n, core in enumerate(cluster.cores)
    ]


def shares(count: int, cores: int) -> list[slice]:
    """Which of `count` heads or pages each core has: as evenly as can be, the first ones more."""
    ends = np.cumsum([count // cores + (n < count % cores) for n in range(cores)])
    return [slice(int(a), int(b)) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass(frozen=True)
class Heads:
    """What a core has of a decoder: KV heads `kv`, and `queries`, the query heads on them."""

    kv: slice
    queries: slice

    @property
    def counts(self) -> tuple[int, int]:
        """How many query and KV heads."""
        return self.queries.stop - self.queries.start, self.kv.stop - self.kv.start


def divide(heads: int, kv_heads: int, cores: int) -> list[Heads]:
    """A decoder's heads on cores, in order.

    KV heads go whole to cores while there are enough of them. Else several cores have the same KV
    head, each with a copy of its KV and with some of its query heads.
    """
    if heads % kv_heads:
        raise ShapeError(f"{heads} heads cannot share {kv_heads} KV heads evenly")
    group = heads // kv_heads
    if kv_heads >= cores:
        own = shares(kv_heads, cores)
        return [Heads(kv, slice(kv.start * group, kv.stop * group)) for kv in own]
    out = []
    for head, sharing in enumerate(shares(cores, kv_heads)):
        count = sharing.stop - sharing.start
        if group < count:
            raise ShapeError(
                f"{heads} query heads on {kv_heads} KV heads leave some of {cores} cores without"
                " work: use fewer"
            )
        for own in shares(group, count):
            queries = slice(head * group + own.start, head * group + own.stop)
            out.append(Heads(slice(head, head + 1), queries))
    return out


class ClusterBackend:
    """A decoder's backend on the cores of a cluster, the heads divided between them (`divide`).

    Every core holds the planes of its heads, and a page manager of its own for them; what one core
    does to its sequences all do, in the same order. So sequences have the same numbers everywhere,
    pools are equally full, and what one core refuses all refuse. Sums follow the tokens' places,
    whatever else stands in the rows: the output is that of one core, to the bit.
    """

    def __init__(
        self,
        drivers: Sequence[Driver],
        *,
        layers: int,
        heads: int,
        kv_heads: int,
        head_size: int,
        pages: int | None = None,
        quotas: Mapping[int, int] | None = None,
        **options: Any,
    ) -> None:
        """`options` as of DeviceBackend."""
        self.heads = divide(heads, kv_heads, len(drivers))
        self.cores: list[DeviceBackend] = []
        for driver, own in zip(drivers, self.heads, strict=True):
            queries, planes = own.counts
            core = DeviceBackend(
                driver, layers=layers, heads=queries, kv_heads=planes, head_size=head_size,
                pages=pages, quotas=quotas, whole=Whole(own.kv, self._attend_again), **options,
            )  # fmt: skip
            pages = core.cache.pages  # the first has most heads, and so the fewest pages
            self.cores.append(core)
        self.total = Usage()
        self._usage: dict[int, Usage] = {}

    # ------------------------------------------------------------------ sequences

    @property
    def limit(self) -> int:
        """The longest context in tokens."""
        return self.cores[0].limit

    @property
    def now(self) -> int:
        """Cycle of the latest completion; the cores' counters begin a few hundred cycles apart."""
        return max(core.now for core in self.cores)

    def create(self, tokens: Sequence[int] = (), tenant: int = 0, *, public: bool = False) -> int:
        """As of DeviceBackend, and so are all methods below."""
        return self._made(self._all(lambda core: core.create(tokens, tenant, public=public)))

    def fork(self, sequence: int, tokens: int) -> int:
        return self._made(self._all(lambda core: core.fork(sequence, tokens)))

    def pause(self, sequence: int) -> None:
        self._all(lambda core: core.pause(sequence))

    def park(self, sequence: int) -> bool:
        return bool(self._alike(self._all(lambda core: core.park(sequence))))

    def release(self, sequence: int) -> None:
        self._all(lambda core: core.release(sequence))

    def trim(self, sequence: int, tokens: int) -> None:
        self._all(lambda core: core.trim(sequence, tokens))

    def length(self, sequence: int) -> int:
        return self.cores[0].length(sequence)

    def usage(self, sequence: int) -> Usage:
        """Bytes and beats of all cores; cycles of the one that took longest."""
        return self._usage[sequence]

    # ------------------------------------------------------------------ attention

    def attend(
        self,
        layer: int,
        spans: Sequence[Span],
        q: Floats,
        k: Floats,
        v: Floats,
        *,
        drafts: Sequence[Draft | None] | None = None,
    ) -> Floats:
        """All cores get their commands before the first is waited for."""
        waits: list[Callable[[], Floats]] = []
        failure: Exception | None = None
        for core, own in zip(self.cores, self.heads, strict=True):
            parts = q[:, own.queries], k[:, own.kv], v[:, own.kv]
            try:
                pending = core.begin(layer, spans, *parts, drafts=drafts)
            except Exception as error:  # what others have begun is still to be waited for
                failure = error
                break
            waits.append(partial(core.finish, pending))
        outputs = _every(waits)
        if failure is not None:
            raise failure
        out = np.concatenate(outputs, axis=1)
        self.total.add(_together([core.latest[0] for core in self.cores]))
        self.total.repaired = sum(len(core.repairer.repairs) for core in self.cores)
        for sequence in self.cores[0].latest[1]:
            part = _together([core.latest[1][sequence] for core in self.cores])
            self._usage[sequence].add(part)
        return out

    def commit(self, spans: Sequence[Span], tokens: Sequence[int] | None = None) -> None:
        self._all(lambda core: core.commit(spans, tokens))
        for span in spans:
            self._usage[span.sequence].tokens += span.count
            self.total.tokens += span.count

    def forget_step(self) -> None:
        self._all(DeviceBackend.forget_step)

    # ------------------------------------------------------------------ inside

    def _all(self, act: Callable[[DeviceBackend], Any]) -> list[Any]:
        return _every([partial(act, core) for core in self.cores])

    def _made(self, numbers: list[int]) -> int:
        """The number of a new sequence, which is the same on all cores."""
        number = self._alike(numbers)
        self._usage[number] = Usage()
        return number

    def _alike(self, answers: list[int]) -> int:
        """What all cores have answered: they are in step."""
        if len(set(answers)) > 1:
            raise RuntimeError(f"the cores are out of step: asked the same, they said {answers}")
        return answers[0]

    def _attend_again(self, layer: int, sequence: int, token: int, q: Floats) -> Floats:
        """Attention [1, H, dh] of a token that is there already, on all cores: for repairs."""
        parts = [
            core.repairer.attend(layer, sequence, token, q[:, own.queries])
            for core, own in zip(self.cores, self.heads, strict=True)
        ]
        return np.concatenate(parts, axis=1)


def _every(acts: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of all acts; the first error once all have been tried, so that none is left out."""
    results, errors = [], []
    for act in acts:
        try:
            results.append(act())
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return results


def _together(parts: Sequence[Usage]) -> Usage:
    """The cost of what cores did at the same time."""
    out = Usage()
    for part in parts:
        out.add(part)
    out.cycles = max(part.cycles for part in parts)
    return out
