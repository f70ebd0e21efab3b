"""Tokenizers: one token per character (our agent) and the byte-pair merges of llama2.c."""

import struct
from collections.abc import Sequence
from pathlib import Path


class TokenizerError(ValueError):
    """A text that a tokenizer cannot encode, or a tokenizer file that it cannot read."""


class CharTokenizer:
    """One token per character of a fixed alphabet; the token is the character's index."""

    def __init__(self, alphabet: str) -> None:
        if len(set(alphabet)) != len(alphabet):
            raise TokenizerError("the alphabet names a character twice")
        self.alphabet = alphabet
        self._index = {character: index for index, character in enumerate(alphabet)}

    def __len__(self) -> int:
        return len(self.alphabet)

    def encode(self, text: str) -> list[int]:
        """Characters to tokens; a character outside the alphabet is a ``TokenizerError``."""
        try:
            return [self._index[character] for character in text]
        except KeyError as error:
            raise TokenizerError(f"character {error.args[0]!r} is not in the alphabet") from None

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens to text."""
        return "".join(self.alphabet[token] for token in tokens)


class BpeTokenizer:
    """The tokenizer of llama2.c: sentencepiece pieces with scores, merged best score first.

    Token 1 opens a text, token 2 would close it, tokens 3 to 258 stand for single bytes.
    """

    BOS, EOS, _BYTES = 1, 2, 3

    def __init__(self, pieces: Sequence[bytes], scores: Sequence[float]) -> None:
        self.pieces = list(pieces)
        self.scores = list(scores)
        self._index = {piece: index for index, piece in enumerate(self.pieces)}

    def __len__(self) -> int:
        return len(self.pieces)

    @classmethod
    def load(cls, path: Path, vocabulary: int) -> "BpeTokenizer":
        """Read a llama2.c ``tok*.bin`` of ``vocabulary`` pieces.

        Layout, little-endian: longest piece (i32), then per piece its score (f32), its length
        (i32) and its bytes.
        """
        data = path.read_bytes()
        pieces: list[bytes] = []
        scores: list[float] = []
        offset = 4
        for index in range(vocabulary):
            if offset + 8 > len(data):
                raise TokenizerError(
                    f"{path.name} is truncated: piece {index} of {vocabulary} is missing"
                )
            score, length = struct.unpack_from("<fi", data, offset)
            offset += 8
            if length < 0 or offset + length > len(data):
                raise TokenizerError(
                    f"{path.name} is truncated or no tokenizer: piece {index} has length {length}"
                )
            pieces.append(data[offset : offset + length])
            scores.append(score)
            offset += length
        if offset != len(data):
            raise TokenizerError(
                f"{path.name} holds more than {vocabulary} pieces: it belongs to another model"
            )
        return cls(pieces, scores)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Text to tokens: characters or bytes first, then best-scored merges until none is left."""
        tokens = [self.BOS] if bos else []
        body: list[int] = []
        # sentencepiece puts a space before the first word
        for character in (" " + text) if text else "":
            data = character.encode()
            found = self._index.get(data)
            body += [found] if found is not None else [byte + self._BYTES for byte in data]
        while True:
            best: tuple[float, int, int] | None = None
            for place in range(len(body) - 1):
                merged = self._index.get(self.pieces[body[place]] + self.pieces[body[place + 1]])
                if merged is not None and (best is None or self.scores[merged] > best[0]):
                    best = (self.scores[merged], place, merged)
            if best is None:
                return tokens + body
            _, place, merged = best
            body[place : place + 2] = [merged]

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens to text; the space before the first word is dropped, as llama2.c does."""
        out = bytearray()
        previous = -1
        for token in tokens:
            piece = self.pieces[token]
            if previous == self.BOS and piece.startswith(b" "):
                piece = piece[1:]
            if len(piece) == 6 and piece.startswith(b"<0x") and piece.endswith(b">"):
                piece = bytes([int(piece[3:5], 16)])
            if token not in (self.BOS, self.EOS):
                out += piece
            previous = token
        return out.decode("utf-8", errors="replace")
