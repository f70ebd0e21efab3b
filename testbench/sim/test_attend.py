"""`m890 attend`: arrays of many shapes on the model device, one on RTL, and wrong input."""

import re
from pathlib import Path

import numpy as np
import pytest

from m890.hdl.config import ClusterConfig, preset
from m890.hdl.numerics.formats import Format
from m890.sim import arrays
from m890.sim.attend import memory_for, on_device
from m890.sim.cli import app
from m890.sim.timing.cluster import ModelCluster
from m890.sim.timing.device import ModelDevice

ERROR = {
    Format.FP16: 2e-3,
    Format.BF16: 2e-2,
    Format.E4M3: 0.1,
    Format.E5M2: 0.2,
    Format.INT8: 0.03,
    Format.INT4: 0.6,
    Format.MXFP4: 0.6,
}
"""Largest error of normal variables: a few times the format's step."""


@pytest.fixture
def m890(capsys):
    """Runs `m890 attend`; returns its exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = app.main(["attend", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def saved(tmp_path: Path):
    """Saves arrays and returns their paths."""

    def save(**named: np.ndarray) -> list[Path]:
        paths = []
        for name, array in named.items():
            paths.append(tmp_path / f"{name}.npy")
            np.save(paths[-1], array)
        return paths

    return save


def normal(rng: np.random.Generator, heads: int, groups: int, tokens: int, length: int, d: int):
    q = rng.normal(size=(heads, tokens, d))
    k, v = rng.normal(size=(2, groups, length, d))
    return q, k, v


@pytest.mark.parametrize("format", list(Format), ids=lambda f: f.name)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"causal": True, "window": 9, "sinks": 2},
        {"softcap": 2.0, "scale": 0.5},
        {"mask": True},
        {"rotate": True},
        {"rotate": False},
    ],
    ids=lambda o: "-".join(o) or "plain",
)
def test_near_double_precision_and_equal_to_golden(
    rng: np.random.Generator, format: Format, options: dict
) -> None:
    """GQA, a head size and a length that are no multiples of the lanes, rows beyond one job."""
    config = preset("tiny")
    options = dict(options)
    q, k, v = normal(rng, 6, 2, 5, 37, 19)
    if options.get("mask"):
        options["mask"] = np.where(rng.random((5, 37)) < 0.3, -np.inf, rng.normal(size=(5, 37)))
    problem = arrays.Problem(q, k, v[..., :11], format, **options)
    outcome = on_device(ModelDevice(config, memory_for(config, problem)), problem)
    np.testing.assert_array_equal(
        outcome.output.view(np.uint32), arrays.by_golden(config, problem).view(np.uint32)
    )
    error = np.abs(outcome.output - reference(problem))
    assert error.max() < ERROR[format]
    assert outcome.jobs == 2 * -(-3 * 5 // config.rows) and outcome.kv_bytes > 0


@pytest.mark.parametrize("cores", [2, 3, 4])
@pytest.mark.parametrize("heads", [(8, 4), (8, 2), (5, 1)], ids=str)
def test_on_several_cores_every_bit_is_that_of_one(
    rng: np.random.Generator, heads: tuple[int, int], cores: int
) -> None:
    """Whole KV heads, and KV heads that several cores have; a mask per query head."""
    config, (queries, groups) = preset("tiny"), heads
    q, k, v = normal(rng, queries, groups, 3, 29, 16)
    mask = rng.normal(size=(queries, 3, 29))
    problem = arrays.Problem(q, k, v, Format.E4M3, causal=True, mask=mask)
    size = memory_for(config, problem, cores)
    outcome = on_device(ModelCluster(ClusterConfig(config, cores), cores * size), problem)
    wanted = arrays.by_golden(config, problem)
    np.testing.assert_array_equal(outcome.output.view(np.uint32), wanted.view(np.uint32))
    assert len(outcome.useful_beats) == cores and min(outcome.useful_beats) > 0
    one = on_device(ModelDevice(config, memory_for(config, problem)), problem)
    assert outcome.cycles < one.cycles
    if groups >= cores:
        assert sum(outcome.useful_beats) == one.useful_beats[0]


def reference(problem: arrays.Problem) -> np.ndarray:
    """Token by token in double precision: independent of `arrays.by_float64`."""
    heads, tokens, d = problem.q.shape
    length, share = problem.k.shape[1], heads // len(problem.k)
    out = np.zeros((heads, tokens, problem.v.shape[2]))
    scale = 1 / np.sqrt(d) if problem.scale is None else problem.scale
    for h in range(heads):
        for t in range(tokens):
            here, total = length - tokens + t, 0.0
            for n in range(length):
                seen = not problem.causal or n <= here
                near = not problem.window or n > here - problem.window or n < problem.sinks
                if not (seen and near):
                    continue
                score = scale * float(problem.q[h, t] @ problem.k[h // share, n])
                if problem.softcap:
                    score = problem.softcap * np.tanh(score / problem.softcap)
                if problem.mask is not None:
                    score += problem.mask[t, n]
                total += np.exp(score)
                out[h, t] += np.exp(score) * problem.v[h // share, n]
            out[h, t] /= total
    return out


def test_files_in_and_out(m890, saved, rng: np.random.Generator, tmp_path: Path) -> None:
    """[tokens, d] files of FP32; the output file holds what the report is about."""
    q, k, v = (x[0].astype(np.float32) for x in normal(rng, 1, 1, 3, 20, 16))
    paths, out = saved(q=q, k=k, v=v), tmp_path / "out.npy"
    code, text, err = m890(*paths, "--device", "model", "--preset", "tiny", "--causal", "-o", out)
    assert (code, err) == (0, "")
    found = np.load(out)
    wanted = reference(arrays.Problem(q[None], k[None], v[None], causal=True))
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    assert f"{np.abs(found - wanted).max():.1e}"[:3] in text
    for part in ("RMSE", "relative", "cycles to attend", "utilisation", "KV bytes"):
        assert part in text


@pytest.mark.rtl
def test_rtl_is_golden(m890, saved, rng: np.random.Generator) -> None:
    paths = saved(**dict(zip("qkv", normal(rng, 4, 2, 3, 25, 16), strict=True)))
    code, text, _ = m890(*paths, "--preset", "tiny", "--format", "e4m3", "--causal")
    assert code == 0
    assert "bit for bit" in text and "rtl device, preset tiny" in " ".join(text.split())


@pytest.mark.rtl
def test_rtl_of_two_cores_is_golden(m890, saved, rng: np.random.Generator) -> None:
    paths = saved(**dict(zip("qkv", normal(rng, 4, 2, 3, 25, 16), strict=True)))
    code, text, _ = m890(*paths, "--preset", "tiny", "--format", "int8", "--cores", 2)
    assert code == 0
    assert "bit for bit" in text and "preset tiny, 2 cores" in " ".join(text.split())
    shares = re.search(r"([\d.]+)% useful beats \(([\d.]+)%, ([\d.]+)%\)", text)
    assert shares
    mean, *each = map(float, shares.groups())
    assert min(each) > 0 and abs(sum(each) / 2 - mean) < 0.1


def test_a_number_beyond_the_format_is_named(m890, saved) -> None:
    one = np.ones((1, 4, 8))
    paths = saved(q=one, k=one, v=one * 1e6)
    code, _, err = m890(*paths, "--device", "model", "--preset", "tiny")
    assert code == 0 and "beyond its format" in err


def test_demo_repeats_with_its_seed(m890) -> None:
    def lines(seed: int) -> list[str]:
        options = ("--demo", "--device", "model", "--preset", "tiny", "--seed", seed)
        code, text, _ = m890(*options)
        assert code == 0
        return [line for line in text.splitlines() if "time on" not in line]

    assert lines(3) == lines(3) != lines(4)


@pytest.mark.parametrize(
    "changes, options, part",
    [
        ({"q": None}, (), "q.npy: no such file or directory"),
        ({"q": np.ones(5)}, (), "the shape (5,)"),
        ({"q": np.ones((1, 2, 9))}, (), "head sizes of Q and K differ: 9 and 8"),
        ({"v": np.ones((1, 3, 8))}, (), "K and V have the same heads and tokens"),
        ({"k": np.ones((2, 4, 8)), "v": np.ones((2, 4, 8)), "q": np.ones((3, 2, 8))}, (),
         "3 query heads do not share 2 KV heads"),
        ({"q": np.ones((1, 5, 8))}, ("--causal",), "5 queries needs as many keys, not 4"),
        ({"q": np.ones((1, 2, 8), complex)}, (), "holds complex128"),
        ({"q": np.array([[["x"]]])}, (), "holds <U1"),
        ({"q": np.array([{}])}, (), "not an .npy file of numbers"),
        ({"q": np.ones((1, 0, 8))}, (), "at least one number"),
        ({"q": np.ones((1, 2, 40)), "k": np.ones((1, 4, 40)), "v": np.ones((1, 4, 40))}, (),
         "head size of 40 is beyond the 32 of the preset tiny"),
        ({"k": np.ones((1, 600, 8)), "v": np.ones((1, 600, 8))}, (), "the limit is 512"),
        ({"mask": np.ones((3, 4))}, (), "mask of shape (3, 4) does not fit"),
        ({"mask": np.ones(4)}, (), "a mask is"),
        ({}, ("--format", "fp4"), "no format 'fp4': there are bf16, fp16"),
        ({}, ("--preset", "huge"), "unknown preset 'huge'"),
        ({}, ("--device", "fpga"), "no device 'fpga': there are rtl, model"),
        ({}, ("--cores", "2"), "1 query heads on 1 KV heads leave some of 2 cores without work"),
        ({}, ("--cores", "5"), "less than or equal to 4"),
        ({}, ("--sinks", "2"), "give --window too"),
        ({}, ("--window", "-1"), "--window"),
        ({}, ("-o", "/no/such/out.npy"), "the folder of /no/such/out.npy does not exist"),
        ({}, ("--demo",), "leave the files away"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(m890, saved, tmp_path, changes, options, part) -> None:
    named = {"q": np.ones((1, 2, 8)), "k": np.ones((1, 4, 8)), "v": np.ones((1, 4, 8))}
    named |= {n: a for n, a in changes.items() if a is not None}
    saved(**named)
    files = [tmp_path / f"{n}.npy" for n in "qkv"]
    for name, array in changes.items():
        if array is None:
            (tmp_path / f"{name}.npy").unlink()
    if "mask" in changes:
        options = (*options, "--mask", tmp_path / "mask.npy")
    default = () if "--device" in options else ("--device", "model")
    preset_option = () if "--preset" in options else ("--preset", "tiny")
    code, out, err = m890(*files, *default, *preset_option, *options)
    assert (code, out) == (2, "")
    assert part in err and len(err.splitlines()) == 1


def test_files_are_needed(m890) -> None:
    code, _, err = m890()
    assert code == 2 and "three files" in err
