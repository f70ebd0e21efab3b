"""Model files: round trips, and one named error for every way in which a file can be wrong."""

import struct
from pathlib import Path

import numpy as np
import pytest

from m890.firmware.models.checkpoint import (
    CheckpointError,
    CheckpointFormatError,
    TruncatedCheckpointError,
    load_llama2c,
    load_weights,
    save_weights,
)
from m890.firmware.models.llama import Config

SMALL = Config(width=16, hidden=24, layers=2, heads=4, kv_heads=2, vocabulary=11, limit=32)


def _weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in SMALL.shapes().items()
    }


def _llama2c(weights: dict[str, np.ndarray], untied: bool) -> bytes:
    kinds = ["attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"]
    arrays = [weights["embedding"]]
    arrays += [weights[f"layers.{i}.{kind}"] for kind in kinds for i in range(SMALL.layers)]
    arrays += [weights["norm"], np.zeros(SMALL.limit * SMALL.head_dim, np.float32)]
    arrays += [weights["head"]] if untied else []
    vocabulary = -SMALL.vocabulary if untied else SMALL.vocabulary
    header = struct.pack("<7i", 16, 24, 2, 4, 2, vocabulary, 32)
    return header + b"".join(array.tobytes() for array in arrays)


def test_own_format_rounds_to_float16_once(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = _weights(rng)
    save_weights(tmp_path / "a.npz", SMALL, weights, {"seed": 7})
    config, loaded, note = load_weights(tmp_path / "a.npz")
    assert (config, note) == (SMALL, {"seed": 7})
    save_weights(tmp_path / "b.npz", config, loaded, note)
    _, again, _ = load_weights(tmp_path / "b.npz")
    for name, value in weights.items():
        assert np.array_equal(loaded[name], value.astype(np.float16).astype(np.float32))
        assert np.array_equal(loaded[name], again[name])


def test_weights_outside_float16_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = _weights(rng)
    weights["norm"][3] = 1e6
    with np.errstate(over="ignore"), pytest.raises(CheckpointFormatError, match="fit float16"):
        save_weights(tmp_path / "a.npz", SMALL, weights, {})


def test_wrong_npz_files_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(CheckpointError, match="there is no model file"):
        load_weights(path)
    save_weights(path, SMALL, _weights(rng), {})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TruncatedCheckpointError, match="a.npz is truncated"):
        load_weights(path)
    path.write_bytes(b"hello, world")
    with pytest.raises(CheckpointFormatError, match="a.npz is no"):
        load_weights(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(CheckpointFormatError, match="no model of this project"):
        load_weights(path)


@pytest.mark.parametrize("untied", [False, True])
def test_llama2c_files(tmp_path: Path, rng: np.random.Generator, untied: bool) -> None:
    weights = _weights(rng)
    path = tmp_path / "model.bin"
    path.write_bytes(_llama2c(weights, untied))
    config, loaded = load_llama2c(path)
    assert config == SMALL
    assert ("head" in loaded) == untied
    for name, value in loaded.items():
        assert np.array_equal(value, weights[name]), name


def test_wrong_llama2c_files_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "model.bin"
    whole = _llama2c(_weights(rng), False)
    cases = [
        (whole[:20], TruncatedCheckpointError, "lacks the 28-byte header"),
        (whole[:-4], TruncatedCheckpointError, "weights expected"),
        (whole + b"xxxx", CheckpointFormatError, "4 bytes longer"),
        (b"\xff" * 40, CheckpointFormatError, "no llama2.c"),
        (struct.pack("<7i", 16, 24, 2, 5, 2, 11, 32) + whole[28:], CheckpointFormatError, "heads"),
    ]
    for content, error, text in cases:
        path.write_bytes(content)
        with pytest.raises(error, match=text):
            load_llama2c(path)
