"""The command line: help, `doctor`, `bench`, and one sentence with exit code 2 for wrong input."""

import importlib
import json
import subprocess
import sys
import types

import numpy as np
import pytest

from m890.sim.bench import BenchContext, BenchError, Item, registry, report
from m890.sim.cli import app, errors, output
from m890.sim.cli import doctor as doctor_command
from m890.sim.toolchain import Tool, ToolMissing


@pytest.fixture
def m890(capsys):
    """Runs a command line; returns its exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = app.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def trial(monkeypatch):
    """A bench that exists in this test only."""
    module = types.ModuleType("m890.sim.bench.trial")

    def run(context: BenchContext) -> list[Item]:
        count = context.option("count", 2)
        context.progress.say("half way")
        done = sum(1 for _ in context.progress.track(range(count), "steps"))
        return [context.item("trial.count", "1", done, format="bf16")]

    module.OPTIONS = {"count": "how many"}  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "names", lambda: {"trial": "A trial."})
    monkeypatch.setattr(report, "names", lambda: {"trial": "A trial."})
    return module


def one_sentence(err: str) -> str:
    """The last line of standard error, which must be the only one beside the seed's."""
    lines = [line for line in err.splitlines() if not line.startswith("seed ")]
    assert len(lines) == 1 and lines[0].startswith("m890: ") and lines[0][-1] in ".!?"
    return lines[0]


def test_the_version_is_the_packages(m890):
    assert m890("--version") == (0, f"m890 {app.toolchain.package_version('m890')}\n", "")


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_lists_the_commands(m890, arguments):
    code, out, err = m890(*arguments)
    assert (code, err) == (0, "")
    assert all(f" {name} " in out for name in app.available())


def test_help_imports_nothing_heavy():
    program = "import sys; from m890.sim.cli import app; app.main(['--help']); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    modules = run.stdout.splitlines()[-1].split()
    assert "typer" in modules
    assert not {"numpy", "amaranth", "matplotlib", "m890.sim.cli.doctor"} & set(modules)


@pytest.mark.parametrize("name", app.available())
def test_every_command_has_help_with_an_example(m890, name):
    code, out, err = m890(name, "--help")
    assert (code, err) == (0, "")
    assert "Example: m890 " + name in out
    assert importlib.import_module(f"m890.sim.cli.{name}").command.__doc__


def test_a_module_that_is_missing_leaves_its_command_out(m890, monkeypatch):
    monkeypatch.setitem(app.COMMANDS, "absent", "Not written yet.")
    code, out, _ = m890("--help")
    assert code == 0 and "absent" not in out
    assert m890("absent")[0] == 2


@pytest.mark.parametrize(
    "arguments, part",
    [
        (("nope",), "no command 'nope'"),
        (("--nope",), "No such option: --nope"),
        (("doctor", "--nope"), "No such option: --nope"),
        (("doctor", "more"), "unexpected extra argument"),
        (("bench", "nope"), "no bench 'nope': the benches are"),
        (("bench", "--json"), "name a bench or say --all"),
        (("bench", "trial", "--all"), "not both"),
        (("bench", "trial", "--seed", "x"), "--seed"),
        (("bench", "trial", "--seed", "-1"), "--seed"),
        (("bench", "trial", "-o", "count"), "KEY=VALUE, not 'count'"),
        (("bench", "trial", "-o", "count=x"), "type int, not 'x'"),
        (("bench", "trial", "-o", "other=1"), "no option 'other': it has count"),
        (("bench", "trial", "--write-docs", "/no/such/page.md"), "/no/such"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(m890, trial, arguments, part):
    code, out, err = m890(*arguments)
    assert (code, out) == (2, "")
    assert part in err.splitlines()[-1]
    if "-o" not in arguments or "count=x" not in arguments:
        one_sentence(err)


def test_what_counts_as_the_users(tmp_path):
    for error in (
        errors.UserError("a preset that is unknown"),
        ToolMissing("g++ is missing: install the package g++."),
        BenchError("an option"),
        _raised(lambda: open(tmp_path / "none")),
        _raised(lambda: Item("x", "1", float("nan"))),
    ):
        assert errors.explain(error) == errors.one_line(errors.explain(error) or "")
    for bug in (
        _raised(lambda: np.zeros(2) + np.zeros(3)),
        _raised(lambda: {}["key"]),
        AssertionError("no"),
        OSError("without a file"),
    ):
        assert errors.explain(bug) is None
    assert errors.one_line("two\nlines ") == "two lines."


def _raised(action) -> BaseException:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_bug_shows_its_traceback_and_asks_for_a_report(m890, monkeypatch):
    monkeypatch.setattr(doctor_command, "examine", lambda: 1 // 0)
    code, _, err = m890("doctor")
    assert code == 1
    assert "ZeroDivisionError" in err and err.splitlines()[-1].startswith("m890: this is a bug")


def test_doctor_reports_as_text_and_json(m890):
    code, out, _ = m890("doctor")
    assert code == 0 and "everything required is there" in out
    code, out, _ = m890("doctor", "--json")
    findings = {entry["name"]: entry for entry in json.loads(out)}
    assert code == 0 and findings["verilator"]["state"] == "OK"


def test_doctor_fails_only_for_what_is_required(m890, monkeypatch):
    optional = Tool("GTKWave", reason="GTKWave is missing: install the package gtkwave.")
    monkeypatch.setattr(doctor_command.toolchain, "find_gtkwave", lambda: optional)
    assert m890("doctor")[0] == 0
    missing = Tool("C++ compiler", reason="A C++ compiler is missing: install the package g++.")
    monkeypatch.setattr(doctor_command.toolchain, "find_cxx", lambda: missing)
    code, out, _ = m890("doctor", "--build")
    assert code == 1
    assert out.count(missing.reason) == 2 and "missing: C++ compiler, trial build" in out


def test_bench_without_a_name_lists_the_benches(m890, trial):
    code, out, _ = m890("bench")
    assert code == 0 and "A trial." in out


def test_bench_json_follows_the_contract(m890, trial):
    code, out, err = m890("bench", "trial", "--json", "--seed", "5", "-o", "count=3")
    assert code == 0 and "half way" in err and "--seed 5" in err
    (item,) = json.loads(out)
    assert item["config"].pop("commit")
    config = {"count": "3", "format": "bf16", "seed": 5}
    assert item == {"name": "trial.count", "unit": "1", "value": 3.0, "config": config}


def test_seeds_are_fresh_by_default_and_printed(m890, trial):
    seeds = set()
    for _ in range(3):
        _, out, err = m890("bench", "trial", "--json")
        seeds.add(json.loads(out)[0]["config"]["seed"])
        assert str(json.loads(out)[0]["config"]["seed"]) in err
    assert len(seeds) == 3


def test_the_page_of_figures_keeps_what_people_wrote(m890, trial, tmp_path):
    page = tmp_path / "performance.md"
    assert m890("bench", "--all", "--write-docs", str(page))[0] == 0
    page.write_text(page.read_text() + "\nWhat this shows.\n")
    assert m890("bench", "trial", "--write-docs", str(page), "--seed", "7")[0] == 0
    text = page.read_text()
    assert "m890 bench trial --seed 7\n" in text
    assert text.count("| `trial.count` | 2 | 1 |") == 1
    assert "What this shows." in text and text.count("## trial") == 1


def test_one_bench_that_fails_does_not_stop_the_others(m890, trial, monkeypatch):
    monkeypatch.setattr(registry, "names", lambda: {"broken": "", "trial": "A trial."})
    broken = types.ModuleType("m890.sim.bench.broken")
    broken.run = lambda context: [1 // 0]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, broken.__name__, broken)
    code, out, err = m890("bench", "--all", "--json")
    assert code == 1 and [item["name"] for item in json.loads(out)] == ["trial.count"]
    assert "bench broken failed" in err


def test_items_refuse_what_json_cannot_say():
    with pytest.raises(ValueError, match=r"the figure a is nan"):
        Item("a", "1", float("nan"))
    with pytest.raises(TypeError, match=r"config\['k'\] is a list"):
        Item("a", "1", 1, {"k": []})  # type: ignore[dict-item]


def test_a_bench_names_each_figure_once(trial, monkeypatch):
    monkeypatch.setattr(trial, "run", lambda context: [context.item("a", "1", 1)] * 2)
    with pytest.raises(RuntimeError, match="gives a more than once"):
        registry.run("trial", BenchContext(1))


def test_options_take_the_type_of_their_default():
    context = BenchContext(1, options={"a": "2", "b": "0.5", "c": "yes", "d": "text"})
    assert context.option("a", 1) == 2
    assert context.option("b", 1.0) == 0.5
    assert context.option("c", False) is True
    assert context.option("d", "") == "text"
    assert context.option("e", 9) == 9


def test_real_benches_have_a_sentence():
    assert all(registry.names().values())


def test_json_is_plain_for_numpy(capsys):
    output.write_json({"a": np.float32(0.5), "b": np.arange(2), "c": Item("n", "1", 1)})
    assert json.loads(capsys.readouterr().out)["b"] == [0, 1]
    with pytest.raises(ValueError):
        output.write_json(float("nan"))


def test_numbers_are_short():
    shown = [report.number(v) for v in (0.333333, 12345678, 1.5e-7, 98765.4321, 0)]
    assert shown == ["0.3333", "12,345,678", "1.500e-07", "9.877e+04", "0"]


