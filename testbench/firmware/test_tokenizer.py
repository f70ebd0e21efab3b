"""Tokenizers: round trips, merges of llama2.c, and what they refuse."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m890.firmware.agents.protocol import ALPHABET, TOKENIZER
from m890.firmware.models.tokenizer import BpeTokenizer, CharTokenizer, TokenizerError


@given(st.text(alphabet=ALPHABET))
def test_characters_round_trip(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert len(tokens) == len(text)
    assert TOKENIZER.decode(tokens) == text


def test_a_foreign_character_is_named() -> None:
    with pytest.raises(TokenizerError, match="character 'ß' is not in the alphabet"):
        TOKENIZER.encode("straße")


def test_an_alphabet_names_each_character_once() -> None:
    with pytest.raises(TokenizerError, match="twice"):
        CharTokenizer("aba")


def _write(path: Path, pieces: list[tuple[bytes, float]]) -> None:
    body = b"".join(struct.pack("<fi", score, len(p)) + p for p, score in pieces)
    path.write_bytes(struct.pack("<i", max(len(p) for p, _ in pieces)) + body)


def _small(path: Path) -> BpeTokenizer:
    pieces = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    pieces += [(b"<0x%02X>" % byte, 0.0) for byte in range(256)]
    pieces += [(b" ", -9.0), (b"a", -9.0), (b"b", -9.0), (b"ab", -2.0), (b" a", -1.0)]
    _write(path, pieces)
    return BpeTokenizer.load(path, len(pieces))


def test_the_best_scored_merge_goes_first(tmp_path: Path) -> None:
    bpe = _small(tmp_path / "tok.bin")
    pieces = [bpe.pieces[token] for token in bpe.encode("ab", bos=False)]
    assert pieces == [b" a", b"b"]


@given(st.text())
def test_bytes_carry_any_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    bpe = _small(tmp_path_factory.mktemp("bpe") / "tok.bin")
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert bpe.decode(bpe.encode(text)) == text


def test_a_truncated_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tok.bin"
    _small(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(TokenizerError, match="truncated: piece 263 of 264"):
        BpeTokenizer.load(path, 264)
    with pytest.raises(TokenizerError, match="holds more than 260 pieces"):
        BpeTokenizer.load(path, 260)


def test_published_pieces(data: Path) -> None:
    bpe = BpeTokenizer.load(data / "stories260k" / "tok512.bin", 512)
    text = "Once upon a time, there was a little girl"
    tokens = bpe.encode(text)
    assert tokens[:5] == [1, 403, 407, 261, 378]
    assert bpe.decode(tokens) == text
