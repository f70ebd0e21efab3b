"""Drafts: trees, verification, and text that is what plain decoding writes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from m890.firmware.backend import DeviceBackend
from m890.firmware.device import Device
from m890.firmware.driver import Driver
from m890.firmware.models.backend import AttentionBackend, Draft, Span
from m890.firmware.models.checkpoint import load_llama2c
from m890.firmware.models.draft import ROOT, Drafter, Tree, accept, generate, keep
from m890.firmware.models.llama import Config, Decoder
from m890.firmware.models.reference import ReferenceBackend
from m890.hdl.config import CoreConfig, preset
from m890.hdl.numerics.formats import Format
from m890.sim.timing.device import ModelDevice

TINY = preset("tiny")
TOY = Config(width=32, hidden=48, layers=2, heads=4, kv_heads=2, vocabulary=17, limit=96)
MARGIN = {"reference": 1e-3, "device": 0.1}
"""Texts are equal as far as the best two logits are further apart: float32, and FP16 KV."""


# ---------------------------------------------------------------------- trees


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Any tree: parents first, siblings with different tokens."""
    tokens: list[int] = []
    parents: list[int] = []
    for node in range(draw(st.integers(0, 16))):
        parent = draw(st.integers(ROOT, node - 1))
        used = {t for t, p in zip(tokens, parents, strict=True) if p == parent}
        free = [t for t in range(20) if t not in used]
        tokens.append(draw(st.sampled_from(free)))
        parents.append(parent)
    return Tree(tuple(tokens), tuple(parents))


def ancestors(tree: Tree, node: int) -> list[int]:
    """The path from the root down to a node, itself included."""
    path = [node]
    while tree.parents[path[0]] != ROOT:
        path.insert(0, tree.parents[path[0]])
    return path


@hypothesis.given(trees(), st.integers(1, 16), st.integers(0, 1000))
def test_masks_and_positions(tree: Tree, known: int, start: int) -> None:
    draft = tree.span(start, known)
    for i in range(known):
        assert draft.masks[i] == sum(1 << j for j in range(i + 1))
        assert draft.positions[i] == start + i
    for node in range(len(tree)):
        path = ancestors(tree, node)
        seen = {*range(known), *(known + n for n in path)}
        assert draft.masks[known + node] == sum(1 << i for i in seen)
        assert draft.positions[known + node] == start + known + len(path) - 1
        assert tree.depths[node] == len(path)
        assert tree.child(tree.parents[node], tree.tokens[node]) == node
    assert len(draft.masks) == len(draft.positions) == known + len(tree)


@hypothesis.given(
    st.lists(st.integers(0, 3), max_size=60), st.integers(0, 16), st.integers(1, 8)
)  # fmt: skip
def test_what_is_proposed_followed_before(text: list[int], nodes: int, order: int) -> None:
    tree = Drafter(order=order).propose(text, nodes)
    assert len(tree) <= nodes
    if nodes and text and text[-1] in text[:-1]:
        assert len(tree) > 0
    deepest = 0
    for node in range(len(tree)):
        path = [text[-1], *(tree.tokens[n] for n in ancestors(tree, node))]
        assert any(text[i : i + len(path)] == path for i in range(len(text)))
        # depth first: a node is the child of the one before it, or of one of that one's ancestors
        assert tree.parents[node] in (ROOT, *(ancestors(tree, node - 1) if node else ()))
        deepest = max(deepest, tree.depths[node])
    assert deepest <= nodes


def test_the_longest_agreement_comes_first() -> None:
    """After "abc" stood d once; after "c" alone mostly e, and later: d is tried first."""
    text = [ord(c) for c in "abcd ce ce ce abc"]
    tree = Drafter(depth=1).propose(text, 6)
    assert [chr(t) for t in tree.tokens] == ["d", "e"]
    equal = [ord(c) for c in "xyxzx"]
    tree = Drafter().propose(equal, 6)
    assert "".join(map(chr, tree.tokens)) == "zxyxzx", "the latest of equals comes first"
    assert len(Drafter(least=0.5).propose(equal, 6)) == 6
    assert not len(Drafter(least=0.6).propose(equal, 6))


def test_impossible_trees_are_named() -> None:
    with pytest.raises(ValueError, match="2 tokens do not fit 1 parents"):
        Tree((1, 2), (ROOT,))
    with pytest.raises(ValueError, match="node 0 cannot follow node 0"):
        Tree((1,), (0,))
    with pytest.raises(ValueError, match="node -1 has two children of token 4"):
        Tree((4, 4), (ROOT, ROOT))


@hypothesis.given(trees(), st.lists(st.integers(0, 19), min_size=20, max_size=20))
def test_the_walk_takes_what_is_chosen(tree: Tree, chosen: list[int]) -> None:
    asked: list[int] = []

    def choose(node: int) -> int:
        asked.append(node)
        return chosen[len(asked) - 1]

    tokens, kept = accept(tree, choose)
    assert tokens == chosen[: len(tokens)] and asked[0] == ROOT
    for node, token, after in zip(asked, tokens, [*asked[1:], None], strict=True):
        assert tree.child(node, token) == after
    assert all(tree.child(asked[i], tokens[i]) == i for i in range(kept))
    more = asked[kept + 1 : kept + 2]
    assert more != [kept], "all that lies in place is kept"
    asked.clear()
    one, kept = accept(tree, choose, lambda: False)
    assert one == chosen[:1] and kept == (tree.child(ROOT, chosen[0]) == 0)


# ---------------------------------------------------------------------- text


def toy(seed: int) -> Decoder:
    """A small decoder of random weights, whose greedy text soon repeats itself in part."""
    rng = np.random.default_rng(seed)
    weights = {
        name: rng.standard_normal(shape) * (0.3 if len(shape) > 1 else 1.0)
        for name, shape in TOY.shapes().items()
    }
    return Decoder(TOY, weights)


def device_backend(device: Device, config: Config) -> DeviceBackend:
    driver = Driver(device, ring=32, scratch_bytes=len(device.memory) // 4)
    return DeviceBackend(
        driver, layers=config.layers, heads=config.heads, kv_heads=config.kv_heads,
        head_size=config.head_dim,
    )  # fmt: skip


def write(
    decoder: Decoder, backend: AttentionBackend, prompt: list[int], limit: int, nodes: int
) -> tuple[list[int], int]:
    """The text of `generate`, and the steps that it took."""
    steps = list(generate(decoder, backend, prompt, limit, nodes=nodes))
    return [token for step in steps for token in step], len(steps)


def assert_equal_beyond(
    margin: float, decoder: Decoder, prompt: list[int], plain: list[int], drafted: list[int]
) -> None:
    """Equal texts, or logits closer than the margin where they first differ."""
    assert len(plain) == len(drafted)
    for i, (a, b) in enumerate(zip(plain, drafted, strict=True)):
        if a != b:
            backend = ReferenceBackend(decoder.config)
            text = [*prompt, *plain[:i]]
            logits = decoder.step([Span(backend.create(), 0, len(text))], text, backend)
            assert abs(logits[0, a] - logits[0, b]) < margin, f"token {i}"
            return


@pytest.mark.parametrize("nodes", [1, 3, 16])
def test_text_is_that_of_plain_decoding(nodes: int, seed: int) -> None:
    written = taken = 0
    for number in range(6):
        decoder, rng = toy(seed + number), np.random.default_rng(seed + number)
        prompt = rng.integers(0, TOY.vocabulary, 12).tolist()
        backend = ReferenceBackend(TOY)
        plain, steps = write(decoder, backend, prompt, TOY.limit, 0)
        assert steps == len(plain) == TOY.limit - len(prompt)
        drafted, steps = write(decoder, backend, prompt, TOY.limit, nodes)
        assert_equal_beyond(MARGIN["reference"], decoder, prompt, plain, drafted)
        written, taken = written + len(drafted), taken + steps
    assert written > 1.2 * taken


def test_text_on_a_device(seed: int) -> None:
    written = taken = 0
    for number in range(2):
        decoder, rng = toy(seed + number), np.random.default_rng(seed + number)
        prompt = rng.integers(0, TOY.vocabulary, 9).tolist()
        backend = device_backend(ModelDevice(TINY, 1 << 20), TOY)
        plain, _ = write(decoder, backend, prompt, 40, 0)
        drafted, steps = write(decoder, backend, prompt, 40, 16)
        assert_equal_beyond(MARGIN["device"], decoder, prompt, plain, drafted)
        written, taken = written + len(drafted), taken + steps
        assert backend.total.tokens == 2 * (40 - 1), "what was rejected is not counted"
        assert backend.cache.use.used == 0
    assert written > taken


def test_stories260k(data: Path) -> None:
    """The published text, written in fewer steps."""
    config, weights = load_llama2c(data / "stories260k" / "stories260K.bin")
    decoder = Decoder(config, weights)
    plain, _ = write(decoder, ReferenceBackend(config), [1], 256, 0)
    drafted, steps = write(decoder, ReferenceBackend(config), [1], 256, 16)
    assert_equal_beyond(MARGIN["reference"], decoder, [1], plain, drafted)
    assert steps < 0.8 * len(drafted)
    core = TINY.with_(planes=config.layers * config.kv_heads)
    backend = device_backend(ModelDevice(core, 4 << 20), config)
    prompt = [1, *plain[:59]]
    drafted, steps = write(decoder, backend, prompt, 80, 4)
    assert_equal_beyond(MARGIN["device"], decoder, prompt, plain[59:79], drafted)
    assert steps < len(drafted)


@pytest.mark.rtl
def test_text_on_the_rtl(seed: int) -> None:
    """The RTL writes what the model device writes, step by step."""
    from m890.sim.rtl.device import RtlDevice

    decoder = toy(seed)
    prompt = np.random.default_rng(seed).integers(0, TOY.vocabulary, 9).tolist()
    want = list(
        generate(decoder, device_backend(ModelDevice(TINY, 1 << 20), TOY), prompt, 40, nodes=8)
    )
    with RtlDevice(TINY, memory_bytes=1 << 20, latency=20, seed=seed) as device:
        found = list(generate(decoder, device_backend(device, TOY), prompt, 40, nodes=8))
    assert found == want


# ---------------------------------------------------------------------- state


@contextmanager
def _same_tokens(seed: int) -> Iterator[Callable[[int], tuple[np.ndarray, ...]]]:
    """q, k and v [2 heads or 1 KV head, 8] of any token number: the same whenever asked."""
    yield lambda token: tuple(
        np.random.default_rng([seed, token]).normal(size=(heads, 8)).astype(np.float32)
        for heads in (2, 1, 1)
    )


def _attend(
    backend: DeviceBackend, kv: Callable, span: Span, tokens: list[int], draft: Draft | None
) -> np.ndarray:
    q, k, v = (np.stack(rows) for rows in zip(*map(kv, tokens), strict=True))
    return backend.attend(0, [span], q, k, v, drafts=[draft])


@pytest.mark.parametrize("format", [Format.FP16, Format.INT8])
@pytest.mark.parametrize("start", range(13, 22))
def test_a_draft_leaves_what_plain_decoding_leaves(start: int, format: Format, seed: int) -> None:
    """Bits of outputs along the first path, bytes of the KV, pages: as if never drafted."""
    config: CoreConfig = TINY

    def fresh() -> tuple[DeviceBackend, int]:
        driver = Driver(ModelDevice(config, 1 << 19), ring=16, scratch_bytes=1 << 16)
        backend = DeviceBackend(
            driver, layers=1, heads=2, kv_heads=1, head_size=8, format=format, pages=16
        )
        return backend, backend.create()

    # tokens start, start + 1 are known; the model's path is nodes 0, 1, then node 4, out of place
    tree = Tree((100, 101, 999, 998, 102, 997), (ROOT, 0, 1, 0, 1, ROOT))
    truth = [start, start + 1, 100, 101, 102, 103]
    with _same_tokens(seed) as kv:
        plain, sequence = fresh()
        context = list(range(start))
        _attend(plain, kv, Span(sequence, 0, start), context, None)
        plain.commit([Span(sequence, 0, start)])
        want = []
        for i, token in enumerate(truth):
            span = Span(sequence, start + i, 1)
            want.append(_attend(plain, kv, span, [token], None)[0])
            plain.commit([span])

        drafted, sequence = fresh()
        _attend(drafted, kv, Span(sequence, 0, start), context, None)
        drafted.commit([Span(sequence, 0, start)])
        fed = [start, start + 1, *tree.tokens]
        span = Span(sequence, start, len(fed))
        found = _attend(drafted, kv, span, fed, tree.span(start, 2))
        np.testing.assert_array_equal(found[:4], want[:4])
        np.testing.assert_allclose(found[6], want[4], atol=2e-3)
        keep(drafted, [Span(sequence, start, 4)])
        again = Span(sequence, start + 4, 2)
        np.testing.assert_array_equal(
            _attend(drafted, kv, again, truth[4:], Tree().span(start + 4, 2)), want[4:]
        )
        keep(drafted, [again])
    assert drafted.cache.use == plain.cache.use
    assert drafted.cache.block_table(0) == plain.cache.block_table(0)
    for value in (False, True):
        np.testing.assert_array_equal(
            drafted.cache.read_tokens(0, 0, value=value), plain.cache.read_tokens(0, 0, value=value)
        )


def test_a_full_draft_step_may_be_planned_anew(rng: np.random.Generator) -> None:
    """The same spans with another tree, nothing committed between: the new masks count."""
    backend = device_backend(ModelDevice(TINY, 1 << 20), TOY)
    decoder, sequence = toy(3), backend.create()
    decoder.step([Span(sequence, 0, 5)], [1, 2, 3, 4, 5], backend)
    span, fed = Span(sequence, 5, 3), [6, 7, 8]
    chain, fork = Tree((7, 8), (ROOT, 0)), Tree((7, 8), (ROOT, ROOT))
    found = [
        decoder.step([span], fed, backend, every=True, drafts=[tree.span(5, 1)])
        for tree in (chain, fork, chain)
    ]
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)
    assert np.abs(found[0][2] - found[1][2]).max() > 1e-3
