"""Tenants and the host pool under a decoder, on every device: texts as with a pool for all."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from m890.firmware.backend import DeviceBackend
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.models.backend import Span
from m890.firmware.models.llama import Decoder
from m890.hdl.numerics.formats import Format
from m890.sim.faults import Flips
from m890.testbench.firmware.repair_suite import MODEL

AGENTS, ROUNDS = 4, 4
QUOTAS = {0: 3, 1: 6, 2: 6}
"""Tenant 0's prompt takes all; of the others each agent fits at last, two do not."""
HOST = 24


class TenantSuite:
    """Tests of one device."""

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        raise NotImplementedError
        yield

    @pytest.mark.parametrize("format", [Format.FP16, Format.MXFP4], ids=lambda f: f.name)
    def test_texts_are_the_same(self, device: Device, seed: int, format: Format) -> None:
        """Agents of two tenants behind a public prompt; those that wait go to the host pool."""
        want, _ = self._play(device, seed, format, [0] * AGENTS, {0: 60}, 0)
        found, backend = self._play(device, seed, format, [1, 2] * (AGENTS // 2), QUOTAS, HOST)
        assert found == want
        assert backend.cache.host.moved > 4
        assert len(backend.cache.host.free) < HOST
        assert all(backend.cache.held(tenant) <= pages for tenant, pages in QUOTAS.items())

    def test_damage_survives_the_host_pool(self, device: Device, seed: int) -> None:
        """Tags go with their rows: what was damaged before is repaired afterwards."""
        tenants = [1, 2] * (AGENTS // 2)
        want, _ = self._play(device, seed, Format.E4M3, tenants, QUOTAS, HOST)
        found, backend = self._play(device, seed, Format.E4M3, tenants, QUOTAS, HOST, flips=3)
        assert found == want
        assert backend.total.repaired > AGENTS * ROUNDS

    def _play(
        self, device: Device, seed: int, format: Format, tenants: list[int],
        quotas: dict[int, int], host: int, flips: int = 0,
    ) -> tuple[list[bytes], DeviceBackend]:  # fmt: skip
        """Logits of all steps: the agents in turn, in a random order, paused in between."""
        rng = np.random.default_rng(seed)
        model = replace(MODEL, width=MODEL.width // 2, kv_heads=1, heads=2)
        decoder = Decoder.random(model, rng)
        backend = DeviceBackend(
            Driver(device, ring=16, scratch_bytes=1 << 18), layers=model.layers, heads=model.heads,
            kv_heads=model.kv_heads, head_size=model.head_dim, format=format, quotas=quotas,
            host_pages=host, tags=True, recompute=decoder.recompute,
        )  # fmt: skip
        faults = Flips(backend.cores, flips, seed)
        prompt = rng.integers(0, model.vocabulary, 21).tolist()
        roots: dict[int, int] = {}
        for tenant in sorted({0, *tenants}):
            root = roots[tenant] = backend.create(prompt, tenant, public=tenant == 0)
            start = backend.length(root)
            assert start == (0 if tenant == 0 else 21 - 21 % device.config.page_tokens)
            decoder.step([Span(root, start, 21 - start)], prompt[start:], backend)
        agents = [backend.fork(roots[tenant], 21) for tenant in tenants]
        last, seen = [1, 2, 3, 4], []
        for n in [n for _ in range(ROUNDS) for n in rng.permutation(AGENTS).tolist()]:
            s, tokens = agents[n], [last[n], *rng.integers(0, model.vocabulary, 4).tolist()]
            logits = decoder.step([Span(s, backend.length(s), 5)], tokens, backend)
            seen.append(logits.tobytes())
            last[n] = int(logits[0].argmax())
            backend.pause(s)
            faults.strike()
        return seen, backend
