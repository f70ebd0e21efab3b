"""What firmware does about damaged tokens, on every device: the text is what it would have been."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from m890.firmware import errors
from m890.firmware.backend import DeviceBackend
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.models.backend import Floats, Span
from m890.firmware.models.draft import generate
from m890.firmware.models.llama import Config, Decoder
from m890.firmware.repair import ATTEMPTS, Repair
from m890.hdl.commands import Error, Opcode
from m890.hdl.numerics.formats import Format

MEMORY = 4 << 20
MODEL = Config(
    width=64, hidden=48, layers=2, heads=4, kv_heads=2, vocabulary=23, limit=160, epsilon=1e-5
)
"""Two tiles a head on `tiny`, two planes a layer."""
FORMATS = pytest.mark.parametrize("format", list(Format), ids=lambda f: f.name)


@dataclass
class World:
    """A backend with its decoder; bits flip in what sequences have in memory."""

    backend: DeviceBackend
    decoder: Decoder
    rng: np.random.Generator
    flipped: list[Repair] = field(default_factory=list)

    def step(self, tokens: dict[int, list[int]]) -> Floats:
        """New tokens of some sequences: the logits of all."""
        spans = [Span(s, self.backend.length(s), len(t)) for s, t in tokens.items()]
        fed = [token for part in tokens.values() for token in part]
        return self.decoder.step(spans, fed, self.backend, every=True)

    def flip(self, sequence: int, token: int, plane: int | None = None, bits: int = 1) -> None:
        """Some bits of a token, anywhere in rows, scales and tags."""
        cache, rng = self.backend.cache, self.rng
        if plane is None:
            plane = int(rng.integers(cache.shape.planes))
        at = cache.token_addresses(plane, sequence, token)
        layout = cache.shape.layout(cache.config)
        row, half = len(at) // 2 - layout.half_bytes, layout.half_bytes
        value = int(rng.integers(2)) * (row + half)
        # half of them in the header, which has few of the bits; all in one row: three are seen
        place = row + rng.integers(half) if rng.random() < 0.5 else rng.integers(row)
        for bit in rng.choice(8, bits, replace=False).tolist():
            self.backend.driver.memory[at[value + place]] ^= 1 << bit
        self.flipped.append(Repair(sequence, plane, token))

    def flip_some(self, sequence: int, most: int) -> None:
        """Up to `most` different tokens of a sequence."""
        length = self.backend.length(sequence)
        tokens = self.rng.choice(length, min(length, int(self.rng.integers(most + 1))), False)
        for token in tokens.tolist():
            self.flip(sequence, token, bits=int(self.rng.integers(1, 4)))

    @property
    def stored(self) -> list[bytes]:
        """All that open sequences have in memory."""
        cache, memory = self.backend.cache, self.backend.driver.memory
        self.backend.driver.wait_all()
        return [
            memory[cache.token_addresses(plane, s, token)].tobytes()
            for s in cache.sequences
            for plane in range(cache.shape.planes)
            for token in range(cache.length(s))
        ]


class RepairSuite:
    """Tests of one device; `flips` is how many bits of a token are struck in each format."""

    flips = 4

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> Iterator[Device]:
        raise NotImplementedError
        yield

    def world(
        self, device: Device, seed: int, format: Format = Format.FP16, recompute: bool = True,
        model: Config = MODEL,
    ) -> World:  # fmt: skip
        """The same decoder for the same seed, on a device with nothing in it."""
        rng = np.random.default_rng(seed)
        decoder = Decoder.random(model, rng)
        backend = DeviceBackend(
            Driver(device, ring=16, scratch_bytes=1 << 18),
            layers=model.layers, heads=model.heads, kv_heads=model.kv_heads,
            head_size=model.head_dim, format=format, tags=True,
            recompute=decoder.recompute if recompute else None,
        )  # fmt: skip
        return World(backend, decoder, rng)

    @FORMATS
    def test_the_text_is_what_it_would_have_been(
        self, device: Device, seed: int, format: Format
    ) -> None:
        """Prefill, forks, decoding, with bits that flip in between: every logit, every byte."""

        def play(flips: int) -> tuple[list[bytes], list[bytes], World]:
            world = self.world(device, seed, format)
            prompt = world.rng.integers(0, MODEL.vocabulary, 21).tolist()
            root, seen = world.backend.create(), []
            world.rng = np.random.default_rng(seed + 1)  # flips leave the texts alone
            seen.append(world.step({root: prompt[:13]}))
            world.flip_some(root, flips)
            seen.append(world.step({root: prompt[13:]}))
            agents = [root, world.backend.fork(root, 21), world.backend.fork(root, 16)]
            last = {s: [n] for n, s in enumerate(agents)}
            for _ in range(6):
                for s in agents:
                    world.flip_some(s, flips)
                seen.append(world.step(last))
                last = {s: [int(seen[-1][n].argmax())] for n, s in enumerate(agents)}
            return [x.tobytes() for x in seen], world.stored, world

        want, bytes_, _ = play(0)
        found, healed, world = play(3)
        assert found == want
        assert healed == bytes_
        assert len(world.flipped) > 10
        assert world.backend.total.repaired == len(world.backend.repairer.repairs)
        assert set(world.backend.repairer.repairs) <= set(world.flipped) | self._shared(world)
        assert world.backend.total.repaired >= 10

    def _shared(self, world: World) -> set[Repair]:
        """Flipped tokens by the names of the others who share their pages."""
        cache = world.backend.cache
        pages = {s: cache.block_table(s) for s in cache.sequences}
        size = cache.page_tokens
        return {
            Repair(s, f.plane, f.token)
            for f in world.flipped
            for s in pages
            if f.token < cache.length(s)
            and pages[s][f.token // size] == pages[f.sequence][f.token // size]
        }

    @FORMATS
    def test_bits_of_a_page(self, device: Device, seed: int, format: Format) -> None:
        self._strike(device, seed, format, self.flips)

    @pytest.mark.soak
    @FORMATS
    def test_every_bit(self, device: Device, seed: int, format: Format) -> None:
        """Of the written tokens of a page, their scales and their tags, in all planes."""
        self._strike(device, seed, format, None)

    def _strike(self, device: Device, seed: int, format: Format, some: int | None) -> None:
        """Flips bits of a page, all or `some`, one in each token: all are detected and repaired."""
        model = replace(MODEL, width=MODEL.width // 2, heads=2, kv_heads=1)
        world = self.world(device, seed, format, model=model)
        backend, rng = world.backend, world.rng
        cache, memory, repairs = backend.cache, backend.driver.memory, backend.repairer.repairs
        root, size = backend.create(), cache.page_tokens
        length = 2 * size + 3
        world.step({root: rng.integers(0, MODEL.vocabulary, length).tolist()})
        span = [Span(root, length, 1)]
        for layer in range(model.layers):
            q, k, v = (
                rng.standard_normal((1, heads, model.head_dim), np.float32) for heads in (2, 1, 1)
            )
            want = backend.attend(layer, span, q, k, v)
            backend.trim(root, length)
            tokens = range(size, 2 * size)
            addresses = np.array([cache.token_addresses(layer, root, t) for t in tokens])
            before, every = memory[addresses], np.arange(8 * addresses.shape[1])
            bits = np.array([rng.permutation(every) for _ in tokens])  # one column after the other
            for column in bits[:, :some].T:
                memory[addresses[np.arange(size), column // 8]] ^= (1 << column % 8).astype("u1")
                count = len(repairs)
                found = backend.attend(layer, span, q, k, v)
                backend.trim(root, length)
                assert sorted(repairs[count:]) == [Repair(root, layer, t) for t in tokens]
                assert found.tobytes() == want.tobytes()
                assert np.array_equal(memory[addresses], before)

    def test_a_shared_page_is_healed_for_all(self, device: Device, seed: int) -> None:
        """The first who reads it repairs it; the others, and the pinned page, never know."""
        world = self.world(device, seed)
        root = world.backend.create()
        world.step({root: list(range(20))})
        one, two = world.backend.fork(root, 20), world.backend.fork(root, 17)
        before = world.stored
        for plane in range(4):
            world.flip(root, 3 + 4 * plane, plane)
        assert world.stored != before
        world.step({one: [5]})
        world.backend.trim(one, 20)
        assert world.stored == before
        repairs = [Repair(one, plane, 3 + 4 * plane) for plane in range(4)]
        assert sorted(world.backend.repairer.repairs) == repairs
        world.step({root: [5], two: [1, 2]})
        assert len(world.backend.repairer.repairs) == 4

    def test_what_the_repair_reads_is_repaired_first(
        self, device: Device, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Damage to both layers once the first has been read."""
        world = self.world(device, seed)
        root = world.backend.create()
        world.step({root: list(range(20))})
        before, attend = world.stored, world.backend.attend

        def meddle(layer: int, *rest, **options) -> Floats:  # noqa: ANN002, ANN003
            if layer == 1:
                for token, plane in ((4, 0), (9, 1), (9, 2), (14, 3), (19, 2)):
                    world.flip(root, token, plane)
            return attend(layer, *rest, **options)

        monkeypatch.setattr(world.backend, "attend", meddle)
        found = world.step({root: [7]})
        assert [(r.plane, r.token) for r in world.backend.repairer.repairs] == [
            (0, 4), (1, 9), (2, 9), (3, 14), (2, 19)
        ]  # fmt: skip
        world.backend.trim(root, 20)
        assert world.stored == before
        monkeypatch.undo()
        np.testing.assert_array_equal(world.step({root: [7]}), found)

    def test_tokens_of_the_step_itself(
        self, device: Device, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Damaged after their APPEND, before they are committed."""
        world = self.world(device, seed, Format.E4M3)
        one, two = world.backend.create(), world.backend.create()
        world.step({one: [1, 2, 3], two: [4]})
        cache = world.backend.cache
        perform, planes = cache.perform, iter(range(0, 4, 2))

        def meddle(commands, *rest) -> np.ndarray:  # noqa: ANN001, ANN002
            done = perform(commands, *rest)
            plane = next(planes)
            world.flip(one, 6, plane)
            world.flip(two, 1, plane + 1)
            jobs = commands[:, 0] == Opcode.ATTEND
            again = cache.driver.submit_many(commands[jobs])
            done[jobs] = cache.driver.wait(again, but=Error.BAD_TAG)
            return done

        monkeypatch.setattr(cache, "perform", meddle)
        tokens = {one: list(range(9)), two: [8, 9]}
        found, stored = world.step(tokens), world.stored
        assert len(world.backend.repairer.repairs) == 4
        monkeypatch.undo()
        for s, length in ((one, 3), (two, 1)):
            world.backend.trim(s, length)
        np.testing.assert_array_equal(world.step(tokens), found)
        assert world.stored == stored

    def test_memory_that_does_not_hold(
        self, device: Device, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bit that flips again after every repair ends the step by name."""
        world = self.world(device, seed)
        root = world.backend.create()
        world.step({root: list(range(12))})
        repairer, bit = world.backend.repairer, world.backend.cache.token_addresses(1, root, 5)[0]
        repair: Callable = repairer._repair

        def stuck(*arguments: object) -> None:
            repair(*arguments)
            repairer.driver.memory[bit] ^= 4

        monkeypatch.setattr(repairer, "_repair", stuck)
        repairer.driver.memory[bit] ^= 4
        with pytest.raises(errors.Unrepairable, match="token 5 of sequence 0 .* plane 1 after 3"):
            world.step({root: [1]})
        assert repairer.repairs == [Repair(root, 1, 5)] * ATTEMPTS

    @pytest.mark.parametrize("known", [False, True])
    def test_what_cannot_be_recomputed_is_named(
        self, device: Device, seed: int, known: bool
    ) -> None:
        """A sequence of unknown tokens, or no decoder: BadTag, as the device has it."""
        world = self.world(device, seed, recompute=not known)
        root = world.backend.create()
        world.step({root: list(range(12))})
        if not known:
            world.backend.cache._sequences[root].tokens = None
        world.flip(root, 7, 2)
        with pytest.raises(errors.BadTag, match="token 7 of sequence 0 is damaged in plane 2"):
            world.step({root: [1]})

    @pytest.mark.parametrize("nodes", [0, 6])
    def test_generated_text(self, device: Device, seed: int, nodes: int) -> None:
        """With and without drafts, flips between the steps."""

        def text(flips: int) -> list[int]:
            world = self.world(device, seed)
            prompt = [1, 2, 3, 4] * 6
            out: list[int] = []
            for added in generate(world.decoder, world.backend, prompt, 60, nodes=nodes):
                out += added
                world.flip_some(world.backend.cache.sequences[0], flips)
            assert (world.backend.total.repaired > 5) == bool(flips)
            return out

        assert text(3) == text(0)
