"""Cases of ONNX's backend tests of the Attention operator, read from their archive.

The archive holds a manifest (nodes, attributes, names of inputs and outputs) and one protobuf
message `TensorProto` per tensor, of which the four fields that these cases use are read here.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ARCHIVE = Path("onnx_attention/onnx_attention.tar.xz")
"""Where the archive lies in the folder that the variable M890_DATA names."""
_TYPES = {1: np.float32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}
_DIMS, _TYPE, _RAW = 1, 2, 9  # field numbers of TensorProto


class DataError(ValueError):
    """The archive is missing, or is not what it should be."""


@dataclass(frozen=True)
class Case:
    """One case: attributes and inputs of an Attention node, and the outputs that it must give.

    A case that the manifest names but whose tensors the archive lacks has no inputs and no outputs.
    """

    name: str
    attributes: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def find() -> Path:
    """The archive, by the variable M890_DATA."""
    folder = os.environ.get("M890_DATA")
    if not folder:
        raise DataError("the variable M890_DATA names no folder with the ONNX cases")
    path = Path(folder) / ARCHIVE
    if not path.is_file():
        raise DataError(f"there is no {ARCHIVE} in the folder that M890_DATA names")
    return path


def load(path: Path) -> list[Case]:
    """Every case of the archive, in the order of its manifest."""
    try:
        with tarfile.open(path) as archive:
            files = {
                member.name.removeprefix("./"): archive.extractfile(member).read()  # type: ignore
                for member in archive
                if member.isfile()
            }
        manifest = json.loads(files["manifest.json"])
        return [_case(entry, files) for entry in manifest]
    except (tarfile.TarError, KeyError, json.JSONDecodeError, EOFError) as error:
        raise DataError(f"{path.name} is no archive of ONNX cases: {error}") from error


def _case(entry: dict[str, Any], files: dict[str, bytes]) -> Case:
    (node,) = entry["nodes"]
    folder = f"{entry['name']}/test_data_set_0"
    if not any(name.startswith(folder) for name in files):
        return Case(entry["name"], node["attr"], {}, {})

    def tensors(kind: str, names: list[str]) -> dict[str, np.ndarray]:
        present = [name for name in names if name]
        return {name: tensor(files[f"{folder}/{kind}_{i}.pb"]) for i, name in enumerate(present)}

    return Case(
        entry["name"], node["attr"], tensors("input", node["in"]), tensors("output", node["out"])
    )


def tensor(raw: bytes) -> np.ndarray:
    """The array of a serialised TensorProto whose numbers lie in `raw_data`."""
    dims: list[int] = []
    kind, data = 0, b""
    for number, value in _fields(raw):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == _TYPE and isinstance(value, int):
            kind = value
        elif number == _RAW and isinstance(value, bytes):
            data = value
    if kind not in _TYPES:
        raise DataError(f"a tensor has the element type {kind}, which no case should use")
    return np.frombuffer(data, np.dtype(_TYPES[kind]).newbyteorder("<")).reshape(dims)


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: integers, or bytes of everything else."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(raw, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise DataError(f"a tensor has the protobuf wire type {wire}")
        yield key >> 3, raw[at : at + size]
        at += size


def _varints(raw: bytes) -> Iterator[int]:
    at = 0
    while at < len(raw):
        value, at = _varint(raw, at)
        yield value


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(raw):
            raise DataError("a tensor ends inside a number")
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
