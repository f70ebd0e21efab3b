"""Repair of damaged tokens on the model device, and on clusters of them."""

from collections.abc import Iterator

import numpy as np
import pytest

from m890.firmware.cluster import ClusterBackend, drivers
from m890.firmware.device import Device
from m890.firmware.errors import BadTag
from m890.firmware.models.backend import Floats, Span
from m890.firmware.models.llama import Decoder
from m890.firmware.repair import Repair
from m890.hdl.config import ClusterConfig, preset
from m890.hdl.numerics.formats import Format
from m890.sim.faults import Flips
from m890.sim.timing.cluster import ModelCluster
from m890.sim.timing.device import ModelDevice
from m890.testbench.firmware.repair_suite import MEMORY, MODEL, RepairSuite


class TestRepair(RepairSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        yield ModelDevice(preset("tiny"), MEMORY, seed=1)


class TestRepairOfTwoChunksPerPage(RepairSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        yield ModelDevice(preset("tiny").with_(page_tokens=16), MEMORY, seed=2)


class Cores:
    """MODEL's decoder on a cluster of tiny: two cores with a KV head each, or more that share."""

    def __init__(self, seed: int, cores: int, format: Format = Format.FP16) -> None:
        self.decoder = Decoder.random(MODEL, np.random.default_rng(seed))
        cluster = ModelCluster(ClusterConfig(preset("tiny"), cores), cores * MEMORY)
        self.backend = ClusterBackend(
            drivers(cluster, ring=16, scratch_bytes=1 << 18),
            layers=MODEL.layers, heads=MODEL.heads, kv_heads=MODEL.kv_heads,
            head_size=MODEL.head_dim, format=format, tags=True, recompute=self.decoder.recompute,
        )  # fmt: skip

    def step(self, tokens: dict[int, list[int]]) -> Floats:
        """New tokens of some sequences: the logits of all."""
        spans = [Span(s, self.backend.length(s), len(t)) for s, t in tokens.items()]
        fed = [token for part in tokens.values() for token in part]
        return self.decoder.step(spans, fed, self.backend, every=True)

    def flip(self, core: int, plane: int, sequence: int, token: int) -> None:
        cache = self.backend.cores[core].cache
        cache.driver.memory[cache.token_addresses(plane, sequence, token)[3]] ^= 16

    @property
    def stored(self) -> list[bytes]:
        """All that open sequences have in memory, core by core."""
        caches = [core.cache for core in self.backend.cores]
        return [
            cache.driver.memory[cache.token_addresses(plane, s, token)].tobytes()
            for cache in caches
            for s in cache.sequences
            for plane in range(cache.shape.planes)
            for token in range(cache.length(s))
        ]


@pytest.mark.parametrize("format", [Format.FP16, Format.INT8], ids=lambda f: f.name)
@pytest.mark.parametrize("cores", [2, 3, 4])
def test_the_text_of_a_cluster_is_what_it_would_have_been(
    seed: int, cores: int, format: Format
) -> None:
    """A token's K and V need the heads of all cores: flips anywhere, every logit, every byte."""

    def play(flips: int) -> tuple[list[bytes], list[bytes], int, int]:
        world = Cores(seed, cores, format)
        backend = world.backend
        faults = Flips(backend.cores, flips, seed)
        root = backend.create()
        seen = [world.step({root: [*range(13)]})]
        faults.strike()
        seen.append(world.step({root: [*range(8)]}))
        agents = [root, backend.fork(root, 21), backend.fork(root, 16)]
        last = {s: [n] for n, s in enumerate(agents)}
        for _ in range(6):
            faults.strike()
            seen.append(world.step(last))
            last = {s: [int(seen[-1][n].argmax())] for n, s in enumerate(agents)}
        return [x.tobytes() for x in seen], world.stored, faults.count, backend.total.repaired

    want, stored, _, none = play(0)
    found, healed, flipped, repaired = play(3)
    assert found == want
    assert healed == stored
    assert none == 0 and 10 < repaired <= flipped == 21


def test_a_repair_on_one_core_meets_damage_on_the_other(seed: int) -> None:
    """Both are named, each by the core that holds it."""
    world = Cores(seed, 2)
    backend = world.backend
    root = backend.create()
    world.step({root: [*range(20)]})
    want = world.step({root: [7]})
    backend.trim(root, 20)
    before, attend = world.stored, backend.attend

    def meddle(layer: int, *rest, **options) -> Floats:  # noqa: ANN002, ANN003
        if layer == 1:  # once the first layer's K and V have been read
            world.flip(0, 1, root, 9)
            world.flip(1, 0, root, 4)
        return attend(layer, *rest, **options)

    backend.attend = meddle  # type: ignore[method-assign]
    np.testing.assert_array_equal(world.step({root: [7]}), want)
    assert [core.repairer.repairs for core in backend.cores] == [
        [Repair(root, 1, 9)], [Repair(root, 0, 4)]
    ]  # fmt: skip
    assert backend.total.repaired == 2
    backend.trim(root, 20)
    assert world.stored == before


def test_what_a_cluster_cannot_recompute_is_named(seed: int) -> None:
    """The other core has run its own jobs, and the cluster goes on."""
    world = Cores(seed, 2)
    backend = world.backend
    root, other = backend.create(), backend.create()
    world.step({root: [*range(12)], other: [5, 6]})
    for core in backend.cores:
        core.repairer.recompute = None
    world.flip(1, 0, root, 7)
    with pytest.raises(BadTag, match="token 7 of sequence 0 is damaged in plane 0"):
        world.step({root: [1]})
    assert world.step({other: [1]}).shape == (1, MODEL.vocabulary)
