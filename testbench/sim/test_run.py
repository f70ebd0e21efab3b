"""`m890 run`: agents and a plain model on the devices, and one sentence for wrong input."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from m890.sim.cli import app

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def m890(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line; returns its exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = app.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def _story(data: Path) -> str:
    return (data / "stories260k" / "expected_greedy_karpathy.txt").read_text().strip()


def test_agents_answer_on_the_model(m890: Run, tmp_path: Path) -> None:
    """Every agent's line, the totals, the timeline's two files; sharing saves reads."""
    code, out, _ = m890(
        "run", "--device", "model", "--agents", 3, "--seed", 4, "--out", tmp_path / "run"
    )
    assert code == 0
    rows = re.findall(r"^(a\d) +(\S.*?) +(yes|no) ", out, re.M)
    assert [name for name, _, _ in rows] == ["a0", "a1", "a2"]
    assert sum(right == "yes" for _, _, right in rows) >= 2
    saved = re.search(r"sharing\s+saved (\d+)%", out)
    assert saved and int(saved[1]) > 5
    trace = json.loads((tmp_path / "run" / "timeline.json").read_text())
    tracks = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert tracks == {"prompt", "a0", "a1", "a2"}
    assert {e["cat"] for e in trace["traceEvents"] if e["ph"] == "X"} == {
        "prefill", "decode", "tool wait"
    }  # fmt: skip
    assert (tmp_path / "run" / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_branches_join_by_vote(m890: Run) -> None:
    code, out, _ = m890("run", "--device", "model", "--agents", 1, "--branches", 2)
    assert code == 0 and re.search(r"^a0 +\S", out, re.M)


def test_agents_go_on_when_bits_flip(m890: Run) -> None:
    """Damaged tokens are repaired: every transcript is what it is without."""
    arguments = ("run", "--device", "model", "--agents", 2, "--seed", 5, "--show")
    _, expected, _ = m890(*arguments)
    code, out, _ = m890(*arguments, "--tags", "--flips", 2)
    assert code == 0
    wanted = re.split(r"^ *agent ", expected, flags=re.M)[0]
    assert len(wanted) > 300 and out.startswith(wanted)
    flipped, repaired = re.findall(r"(\d+) bits flipped, (\d+) damaged tokens repaired", out)[0]
    assert 0 < int(flipped) // 2 < int(repaired) <= int(flipped)


def test_agents_of_a_tenant_wait_in_the_host_pool(m890: Run) -> None:
    """A public prompt, a pool for one agent at a time: the same transcripts, pages that moved."""
    arguments = ("run", "--device", "model", "--agents", 2, "--seed", 5, "--show")
    _, expected, _ = m890(*arguments)
    code, out, _ = m890(*arguments, "--tenants", 1, "--pages", 44, "--host-pages", 64)
    assert code == 0
    wanted = re.split(r"^ *agent ", expected, flags=re.M)[0]
    assert len(wanted) > 300 and out.startswith(wanted)
    moved = re.search(r"(\d+) pages moved to the host pool", out)
    assert moved and int(moved[1]) > 10


CLUSTERED = [
    (2, ()),
    (3, ("--tags", "--flips", 2, "--drafts")),
    (4, ("--tenants", 1, "--pages", 44, "--host-pages", 64)),
]


@pytest.mark.parametrize("cores, options", CLUSTERED, ids=lambda o: str(o))
def test_agents_on_several_cores_write_what_they_write_on_one(
    m890: Run, cores: int, options: tuple
) -> None:
    """Shared prompts, repairs, drafts, tenants; what each core's array did is told."""
    arguments = ("run", "--device", "model", "--agents", 2, "--seed", 5, "--show")
    _, expected, _ = m890(*arguments)
    code, out, _ = m890(*arguments, "--cores", cores, *options)
    assert code == 0
    wanted = re.split(r"^ *agent ", expected, flags=re.M)[0]
    assert len(wanted) > 300 and out.startswith(wanted)
    told = re.search(rf"array utilisation ([\d.]+)\s+\({cores} cores:\s+([\d., \n]+)\)", out)
    assert told
    each = [float(share) for share in told[2].split(",")]
    assert len(each) == cores and 0 < min(each) and max(each) < 1
    assert abs(sum(each) / cores - float(told[1])) < 0.001
    assert ("damaged tokens repaired" in out) == ("--tags" in options)
    assert ("pages moved" in out) == ("--tenants" in options)


def test_branches_on_two_cores(m890: Run) -> None:
    """Sampled branches and their vote are those of one core."""
    arguments = ("run", "--device", "model", "--agents", 1, "--branches", 2, "--show")
    (_, one, _), (code, two, _) = m890(*arguments), m890(*arguments, "--cores", 2)
    assert code == 0
    assert re.split(r"^ *agent ", one, flags=re.M)[0] == re.split(r"^ *agent ", two, flags=re.M)[0]


def test_the_story_on_four_cores(m890: Run, data: Path) -> None:
    model = data / "stories260k" / "stories260K.bin"
    arguments = ("run", "--model", model, "--device", "model", "--tokens", 60, "--cores", 4)
    code, out, err = m890(*arguments)
    assert code == 0
    assert len(out.strip()) > 100 and _story(data).startswith(out.strip())
    assert re.search(r"\(4\s+cores:", err)


@pytest.mark.rtl
def test_an_agent_on_the_rtl_with_waves(m890: Run, tmp_path: Path) -> None:
    """RTL and model give the same answers, and a window of waves with its save file."""
    arguments = ("run", "--agents", 1, "--seed", 6, "--preset", "small")
    code, out, _ = m890(*arguments, "--out", tmp_path, "--waves", 200)
    assert code == 0
    assert (tmp_path / "waves.fst").stat().st_size > 1000
    save = (tmp_path / "waves.gtkw").read_text()
    assert "waves.fst" in save and "attention" in save
    _, expected, _ = m890(*arguments, "--device", "model")
    answer = re.compile(r"^a0 +(.*?) +(yes|no) +(\d+) +(\d+)", re.M)
    assert answer.findall(out) == answer.findall(expected) != []


def test_the_published_story_on_the_model(m890: Run, data: Path) -> None:
    model = data / "stories260k" / "stories260K.bin"
    code, out, err = m890("run", "--model", model, "--device", "model", "--tokens", 257)
    assert code == 0
    assert out.strip().startswith(_story(data))
    assert "KV bytes read" in err


@pytest.mark.rtl
def test_the_published_story_on_the_rtl(m890: Run, data: Path) -> None:
    model = data / "stories260k" / "stories260K.bin"
    code, out, _ = m890("run", "--model", model, "--tokens", 48)
    assert code == 0
    assert len(out.strip()) > 100 and _story(data).startswith(out.strip())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--preset", "huge"), "unknown preset 'huge'"),
        (("--device", "gpu"), "unknown device 'gpu'"),
        (("--memory", "ddr"), "unknown memory 'ddr'; there are fixed, hbm3"),
        (("--memory", "hbm3", "--device", "model"), "only the rtl device has the memory hbm3"),
        (("--format", "fp4"), "unknown KV format 'fp4'"),
        (("--waves", "100"), "add --out"),
        (("--waves", "100", "--out", "x", "--device", "model"), "only the rtl device has waves"),
        (("--model", "nowhere.bin"), "nowhere.bin"),
        (("--flips", "1"), "add --tags"),
        (("--cores", "5"), "less than or equal to 4"),
        (("--cores", "2", "--waves", "9", "--out", "x"), "waves of agents are of one core"),
        (("--cores", "2", "--demo"), "waves of agents are of one core"),
        (("--cores", "2", "--device", "gpu"), "unknown device 'gpu'"),
        (("--cores", "2", "--memory", "hbm3", "--device", "model"), "only the rtl device has"),
        (("--agents", "0"), "greater than or equal to 1"),
    ],
)
def test_wrong_input_is_one_sentence(
    m890: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = m890("run", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err and len(err.strip().splitlines()) == 1


def test_broken_model_files_are_named(m890: Run, tmp_path: Path, data: Path) -> None:
    whole = (data / "stories260k" / "stories260K.bin").read_bytes()
    for name, content, word in (
        ("cut.bin", whole[:5000], "truncated"),
        ("other.bin", b"\x7f" * 64, "no llama2.c"),
    ):
        (tmp_path / name).write_bytes(content)
        code, _, err = m890("run", "--model", tmp_path / name)
        assert code == 2 and word in err
    (tmp_path / "alone.bin").write_bytes(whole)
    code, _, err = m890("run", "--model", tmp_path / "alone.bin")
    assert code == 2 and "--tokenizer" in err


def test_a_prompt_over_the_context_is_refused(m890: Run, data: Path) -> None:
    model = data / "stories260k" / "stories260K.bin"
    code, _, err = m890("run", "--model", model, "--prompt", "once " * 600, "--device", "model")
    assert code == 2 and "beyond the model's 512" in err
