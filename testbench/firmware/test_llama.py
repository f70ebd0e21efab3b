"""The decoder and its reference backend: the published text, raggedness, forks, limits."""

from pathlib import Path

import numpy as np
import pytest

from m890.firmware.models.backend import ContextLimitError, Span
from m890.firmware.models.checkpoint import load_llama2c
from m890.firmware.models.llama import Config, Decoder
from m890.firmware.models.reference import ReferenceBackend
from m890.firmware.models.tokenizer import BpeTokenizer

SMALL = Config(width=32, hidden=48, layers=2, heads=4, kv_heads=2, vocabulary=17, limit=40)


@pytest.fixture
def decoder(rng: np.random.Generator) -> Decoder:
    return Decoder(
        SMALL,
        {
            name: rng.standard_normal(shape) * (0.3 if len(shape) > 1 else 1.0)
            for name, shape in SMALL.shapes().items()
        },
    )


def _whole(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, vocabulary] of one sequence in a single step."""
    backend = ReferenceBackend(SMALL)
    return decoder.step([Span(backend.create(), 0, len(tokens))], tokens, backend, every=True)


def test_stories260k_gives_the_published_text(data: Path) -> None:
    folder = data / "stories260k"
    config, weights = load_llama2c(folder / "stories260K.bin")
    decoder, backend = Decoder(config, weights), ReferenceBackend(config)
    tokenizer = BpeTokenizer.load(folder / "tok512.bin", config.vocabulary)
    sequence, tokens = backend.create(), [tokenizer.BOS]
    for position in range(256):
        logits = decoder.step([Span(sequence, position, 1)], tokens[-1:], backend)
        tokens.append(int(logits[0].argmax()))
    expected = (folder / "expected_greedy_karpathy.txt").read_text()
    assert tokenizer.decode(tokens).strip() == expected.strip()


def test_ragged_chunks_equal_whole_sequences(decoder: Decoder, rng: np.random.Generator) -> None:
    backend = ReferenceBackend(SMALL)
    texts = [rng.integers(0, SMALL.vocabulary, int(n)) for n in rng.integers(20, 40, 40)]
    sequences = [backend.create() for _ in texts]
    rows: list[list[np.ndarray]] = [[] for _ in texts]
    while any(backend.length(s) < len(t) for s, t in zip(sequences, texts, strict=True)):
        spans, tokens, owners = [], [], []
        for index, (sequence, text) in enumerate(zip(sequences, texts, strict=True)):
            start = backend.length(sequence)
            count = min(int(rng.choice([0, 1, 1, 3, 8])), len(text) - start)
            if count:
                spans.append(Span(sequence, start, count))
                tokens += text[start : start + count].tolist()
                owners += [index] * count
        if spans:
            for owner, row in zip(
                owners, decoder.step(spans, tokens, backend, every=True), strict=True
            ):
                rows[owner].append(row)
    for text, got in zip(texts, rows, strict=True):
        np.testing.assert_allclose(np.stack(got), _whole(decoder, text), rtol=1e-4, atol=1e-4)


def test_a_token_is_the_same_in_every_batch(decoder: Decoder, rng: np.random.Generator) -> None:
    """To the bit, where attention is: alone, among others, and computed anew in any layer."""

    class Echo(ReferenceBackend):
        """Attention that does nothing; K and V of each layer as they came."""

        def attend(self, layer, spans, q, k, v, *, drafts=None) -> np.ndarray:  # noqa: ANN001
            self.kv = {**getattr(self, "kv", {}), layer: (k, v)}
            return q

    backend = Echo(SMALL)
    text = rng.integers(0, SMALL.vocabulary, 39)
    sequence = backend.create()
    whole = decoder.step([Span(sequence, 0, len(text))], text, backend, every=True)
    kv = backend.kv
    for start, count in ((0, 1), (7, 2), (12, 5), (20, 19)):
        backend.trim(sequence, 0)
        backend.commit([Span(sequence, 0, start)])
        span = Span(sequence, start, count)
        here = slice(start, start + count)
        part = decoder.step([span], text[here], backend, every=True)
        np.testing.assert_array_equal(part, whole[here])
    for layer in range(SMALL.layers):
        for token in (0, 17, 38):
            found = decoder.recompute(int(text[token]), token, layer, lambda _, q: q)
            for one, other in zip(found, kv[layer], strict=True):
                np.testing.assert_array_equal(one[0], other[token])


def test_a_fork_continues_alone(decoder: Decoder, rng: np.random.Generator) -> None:
    backend = ReferenceBackend(SMALL)
    text = rng.integers(0, SMALL.vocabulary, 20)
    root = backend.create()
    decoder.step([Span(root, 0, 20)], text, backend)
    child = backend.fork(root, 12)
    other = np.concatenate([text[:12], rng.integers(0, SMALL.vocabulary, 5)])
    got = decoder.step([Span(child, 12, 5)], other[12:], backend)
    np.testing.assert_allclose(got[0], _whole(decoder, other)[-1], rtol=1e-4, atol=1e-4)
    assert (backend.length(root), backend.length(child)) == (20, 17)
    backend.release(child)
    backend.trim(root, 12)
    again = decoder.step([Span(root, 12, 5)], other[12:], backend)
    np.testing.assert_allclose(again, got, rtol=1e-5, atol=1e-5)


def test_the_limit_is_named_and_changes_nothing(decoder: Decoder) -> None:
    backend = ReferenceBackend(SMALL, limit=8)
    full, other = backend.create(), backend.create()
    decoder.step([Span(full, 0, 8)], [1] * 8, backend)
    with pytest.raises(ContextLimitError, match=r"would hold 9 tokens, the limit is 8"):
        decoder.step([Span(other, 0, 2), Span(full, 8, 1)], [1, 2, 3], backend)
    assert (backend.length(full), backend.length(other)) == (8, 0)
    alone = decoder.step([Span(other, 0, 2)], [1, 2], backend)
    np.testing.assert_allclose(alone[0], _whole(decoder, np.array([1, 2]))[-1], atol=1e-4)


def test_wrong_calls_are_named(decoder: Decoder) -> None:
    backend = ReferenceBackend(SMALL)
    sequence = backend.create()
    with pytest.raises(ValueError, match="do not fill"):
        decoder.step([Span(sequence, 0, 2)], [1], backend)
    with pytest.raises(ValueError, match="outside the vocabulary of 17"):
        decoder.step([Span(sequence, 0, 1)], [17], backend)
    with pytest.raises(ValueError, match="a span starts at 3"):
        decoder.step([Span(sequence, 3, 1)], [1], backend)
    with pytest.raises(ValueError, match="has 0 tokens, not 4"):
        backend.fork(sequence, 4)
    backend.release(sequence)
    with pytest.raises(ValueError, match="there is no sequence"):
        backend.length(sequence)


def test_impossible_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="even head size"):
        Config(width=30, hidden=8, layers=1, heads=4, kv_heads=2, vocabulary=8, limit=8)
    with pytest.raises(ValueError, match="4 heads cannot share 3 KV heads"):
        Config(width=32, hidden=8, layers=1, heads=4, kv_heads=3, vocabulary=8, limit=8)
    with pytest.raises(ValueError, match="weight embedding is missing"):
        Decoder(SMALL, {})
