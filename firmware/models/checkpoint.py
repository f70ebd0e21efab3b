"""Model files: the project's own weights (.npz, float16) and llama2.c checkpoints."""

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m890.firmware.models.llama import Config

FORMAT = 1
"""Version of the .npz layout, in its ``meta``."""

_FIELDS = ("width", "hidden", "layers", "heads", "kv_heads", "vocabulary", "limit")


class CheckpointError(ValueError):
    """A model file that cannot be used; the text says why in one sentence."""


class TruncatedCheckpointError(CheckpointError):
    """A model file that ends before its weights do."""


class CheckpointFormatError(CheckpointError):
    """A file that is no model, or one of another kind or size."""


def save_weights(
    path: Path, config: Config, weights: Mapping[str, NDArray[Any]], note: Mapping[str, Any]
) -> None:
    """Write weights rounded to float16, with the config and a ``note`` of where they come from."""
    fields = {name: getattr(config, name) for name in (*_FIELDS, "epsilon", "rope_base")}
    meta = json.dumps({"format": FORMAT, "config": fields, "note": dict(note)})
    arrays: dict[str, Any] = {
        name: np.asarray(weights[name], dtype=np.float16) for name in config.shapes()
    }
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise CheckpointFormatError("a weight does not fit float16")
    with path.open("wb") as file:
        np.savez_compressed(file, meta=np.frombuffer(meta.encode(), np.uint8), **arrays)


def load_weights(path: Path) -> tuple[Config, dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Read what ``save_weights`` wrote: the config, the weights in float32, the note."""
    if not path.is_file():
        raise CheckpointError(f"there is no model file {path}")
    try:
        with np.load(path) as file:
            meta = json.loads(file["meta"].tobytes())
            arrays = {name: file[name] for name in file.files if name != "meta"}
        if meta["format"] != FORMAT:
            raise CheckpointFormatError(
                f"{path.name} has format {meta['format']}, expected {FORMAT}"
            )
        config = Config(**meta["config"])
    except zipfile.BadZipFile:
        cut = path.read_bytes()[:2] == b"PK"
        kind = TruncatedCheckpointError if cut else CheckpointFormatError
        raise kind(f"{path.name} is {'truncated' if cut else 'no .npz model file'}") from None
    except (KeyError, ValueError, TypeError, EOFError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointFormatError(f"{path.name} is no model of this project: {error}") from None
    weights: dict[str, NDArray[np.float32]] = {}
    for name, shape in config.shapes().items():
        if name not in arrays:
            raise TruncatedCheckpointError(f"{path.name} lacks the weight {name}")
        if arrays[name].shape != shape:
            raise CheckpointFormatError(
                f"{path.name}: weight {name} has shape {arrays[name].shape}, expected {shape}"
            )
        weights[name] = arrays[name].astype(np.float32)
    return config, weights, meta["note"]


def load_llama2c(path: Path) -> tuple[Config, dict[str, NDArray[np.float32]]]:
    """Read a llama2.c version 0 checkpoint (``.bin``).

    Layout, little-endian: seven i32 (width, hidden, layers, heads, KV heads, vocabulary, longest
    context; a negative vocabulary means that the head is a weight of its own), then float32 arrays:
    embedding, per kind all layers (attention norm, wq, wk, wv, wo, ffn norm, w1, w2, w3), the final
    norm, two rotary tables that readers recompute, and the head where it is not the embedding.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no model file {path}")
    data = path.read_bytes()
    if len(data) < 28:
        raise TruncatedCheckpointError(f"{path.name} is truncated: it lacks the 28-byte header")
    fields = struct.unpack_from("<7i", data)
    untied = fields[5] < 0
    fields = (*fields[:5], abs(fields[5]), fields[6])
    if not all(0 < value <= 1 << 20 for value in fields):
        raise CheckpointFormatError(f"{path.name} is no llama2.c version 0 checkpoint")
    try:
        config = Config(**dict(zip(_FIELDS, fields, strict=True)))
    except ValueError as error:
        raise CheckpointFormatError(f"{path.name} is no llama2.c checkpoint: {error}") from None
    shapes = config.shapes()
    kinds = [name.removeprefix("layers.0.") for name in shapes if name.startswith("layers.0.")]
    names = [
        "embedding",
        *(f"layers.{i}.{kind}" for kind in kinds for i in range(config.layers)),
        "norm",
    ]
    tables = config.limit * config.head_dim
    sizes = {name: int(np.prod(shapes[name])) for name in shapes}
    total = sum(sizes[name] for name in names) + tables + (sizes["head"] if untied else 0)
    have = (len(data) - 28) // 4
    if have < total:
        raise TruncatedCheckpointError(
            f"{path.name} is truncated: {total} weights expected, {have} found"
        )
    if len(data) != 28 + 4 * total:
        raise CheckpointFormatError(
            f"{path.name} is {len(data) - 28 - 4 * total} bytes longer than its header says"
        )
    flat = np.frombuffer(data, "<f4", offset=28)
    weights: dict[str, NDArray[np.float32]] = {}
    place = 0
    for name in names:
        weights[name] = flat[place : place + sizes[name]].reshape(shapes[name]).astype(np.float32)
        place += sizes[name]
    if untied:
        weights["head"] = flat[place + tables :].reshape(shapes["head"]).astype(np.float32)
    return config, weights
