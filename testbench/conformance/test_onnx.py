"""ONNX's Attention cases on golden model, model device and RTL; their page; their archive."""

import io
import json
import tarfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from m890.hdl.config import preset
from m890.sim.bench import conformance
from m890.sim.bench.registry import BenchContext, BenchError
from m890.sim.onnx import cases as onnx
from m890.sim.onnx.attention import Executor, Request, Verdict, golden, judge
from m890.sim.onnx.device import executor
from m890.sim.onnx.report import PRESET, page

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
LEAST = 35
"""Cases that have to pass."""


@cache
def loaded(folder: Path) -> tuple[onnx.Case, ...]:
    return tuple(onnx.load(folder / onnx.ARCHIVE))


@cache
def verdicts(folder: Path, name: str) -> tuple[Verdict, ...]:
    return tuple(judge(case, golden(preset(name))) for case in loaded(folder))


@pytest.mark.parametrize("name", ["tiny", "small", "m890"])
def test_every_case_passes_or_lacks_a_named_feature(data: Path, name: str) -> None:
    results = verdicts(data, name)
    assert len(results) == 50
    assert [v.name for v in results if v.error > 1] == []
    assert [v.name for v in results if not v.passed and not v.missing] == []
    assert sum(v.passed for v in results) >= LEAST


@pytest.mark.parametrize("device", ["model", pytest.param("rtl", marks=pytest.mark.rtl)])
def test_devices_equal_the_golden_model(data: Path, device: str) -> None:
    """Every request through the firmware's driver, bit for bit; so the same cases pass."""
    config = preset("tiny")
    exact = golden(config)
    with executor(device, config) as execute:

        def both(request: Request) -> np.ndarray:
            got, expected = execute(request), exact(request)
            np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
            return got

        results = tuple(judge(case, both) for case in loaded(data))
    assert results == verdicts(data, "tiny")


def test_the_page_lists_every_case_as_it_went(data: Path) -> None:
    """`python -m m890.sim.onnx.report` writes the page."""
    assert PAGE.read_text("utf-8") == page(verdicts(data, PRESET))


def test_the_bench_counts_them(data: Path) -> None:
    items = conformance.run(BenchContext(seed=1))
    assert [item.name for item in items] == ["conformance.onnx.passed", "conformance.onnx.total"]
    assert items[0].value == sum(v.passed for v in verdicts(data, "tiny"))
    with pytest.raises(BenchError, match="no device 'abacus'"):
        conformance.run(BenchContext(seed=1, options={"device": "abacus"}))


def spoiled(request: Request, **changes: object) -> np.ndarray:
    return golden(preset("tiny"))(replace(request, **changes))  # type: ignore[arg-type]


MISTAKES: dict[str, Executor] = {
    "no bias": lambda r: spoiled(r, bias=None),
    "never causal": lambda r: spoiled(r, causal=False),
    "no soft cap": lambda r: spoiled(r, softcap=0.0),
    "full length": lambda r: spoiled(r, length=len(r.k)),
    "positions off by one": lambda r: spoiled(r, position=r.position - 1),
    "base e": lambda r: spoiled(r, query=(r.query.view(np.float16) * np.float16(0.69)).view("u2")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_cases_notice_a_mistake(data: Path, mistake: str) -> None:
    """An executor with one mistake fails at least one case."""
    for case in loaded(data):
        verdict = judge(case, MISTAKES[mistake])
        if not verdict.passed and not verdict.missing:
            return
    pytest.fail(f"no case notices: {mistake}")


def proto(array: np.ndarray, kind: int, packed: bool) -> bytes:
    """A TensorProto with a name (an unknown field) and the numbers as raw data."""
    dims = bytes(array.shape)
    head = b"\x0a" + bytes([len(dims)]) + dims if packed else b"".join(b"\x08%c" % d for d in dims)
    raw = array.tobytes()
    return head + b"\x10" + bytes([kind]) + b"\x42\x03abc" + b"\x4a" + bytes([len(raw)]) + raw


@pytest.mark.parametrize("packed", [False, True])
def test_tensors_are_read(packed: bool, rng: np.random.Generator) -> None:
    array = rng.standard_normal((2, 3)).astype(np.float32)
    np.testing.assert_array_equal(onnx.tensor(proto(array, 1, packed)), array)
    half = array.astype(np.float16)
    np.testing.assert_array_equal(onnx.tensor(proto(half, 10, packed)), half)


def test_malformed_tensors_are_refused() -> None:
    array = np.zeros(2, np.float32)
    with pytest.raises(onnx.DataError, match="element type 8"):
        onnx.tensor(proto(array, 8, False))
    with pytest.raises(onnx.DataError, match="ends inside a number"):
        onnx.tensor(b"\x08\x80")
    with pytest.raises(onnx.DataError, match="wire type 3"):
        onnx.tensor(b"\x0b")


def test_a_missing_or_broken_archive_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("M890_DATA", raising=False)
    with pytest.raises(BenchError, match="M890_DATA names no folder"):
        conformance.run(BenchContext(seed=1))
    monkeypatch.setenv("M890_DATA", str(tmp_path))
    with pytest.raises(onnx.DataError, match="there is no onnx_attention"):
        onnx.find()
    path = tmp_path / "broken.tar.xz"
    path.write_bytes(b"nothing")
    with pytest.raises(onnx.DataError, match="broken.tar.xz is no archive"):
        onnx.load(path)


def test_a_case_without_tensors_is_listed(tmp_path: Path) -> None:
    entry = {"name": "test_gone", "nodes": [{"in": ["Q"], "out": ["Y"], "attr": {}}]}
    text = json.dumps([entry]).encode()
    path = tmp_path / "cases.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        info = tarfile.TarInfo("manifest.json")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    (case,) = onnx.load(path)
    assert judge(case, golden(preset("tiny"))).missing.startswith("its tensors")
