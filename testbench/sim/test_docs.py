"""The documentation: every block has its page, links lead somewhere, examples run."""

import inspect
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from m890.hdl.commands import RECORDS, Error
from m890.hdl.config import preset
from m890.hdl.registers import REGISTERS, Stall
from m890.hdl.verilog import emit
from m890.sim import docs, toolchain
from m890.sim.docs import blocks, graph, records
from m890.sim.docs.svg import Arrow, Layered, Node
from m890.sim.rtl import hbm
from m890.sim.rtl.cache import core_design

DOCS = graph.ROOT / "docs"
LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of docs/ with the generated pages."""
    folder = tmp_path_factory.mktemp("docs") / "docs"
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("_build", "_generated"))
    docs.generate(folder / "_generated", presets=("tiny",))
    return folder


@pytest.mark.parametrize("name", list(graph.classes()))
def test_block_says_what_it_does(name: str) -> None:
    kind = graph.classes()[name]
    said = blocks.sections(kind)
    assert said[""], f"{name} has no summary"
    for section in ("Function", "Members"):
        assert said.get(section), f"the docstring of {name} has no section {section}"
    assert list(said)[1:] == [s for s in blocks.SECTIONS if s in said], f"order in {name}"


def test_every_block_has_a_page_with_ports(pages: Path) -> None:
    assert len(graph.classes()) > 40
    for name, kind in graph.classes().items():
        text = (pages / f"_generated/blocks/{blocks.slug(name)}.md").read_text("utf-8")
        assert "## Ports" in text, f"{name} is not in the core"
        for port, _ in graph.members(graph.first_of("tiny")[name].component):
            assert f"| `{port}" in text, f"{name} lacks the port {port}"
        assert Path(inspect.getfile(kind)).name in text


def test_reference_is_complete(pages: Path) -> None:
    commands = (pages / "_generated/commands.md").read_text("utf-8")
    for record in RECORDS:
        picture = records.record_picture(record).text()
        for number, field in enumerate(record.fields):
            assert f"| {number} | `{field.name}` |" in commands
            assert field.name in picture or f"({number})" in picture
    for error in Error:
        row = next(
            x for x in commands.split("\n") if x.startswith(f"| {error.value} | `{error.name}`")
        )
        assert row.count("|") == 4 and len(row.split("|")[3]) > 8, f"no word on {error.name}"
    registers = (pages / "_generated/registers.md").read_text("utf-8")
    for register in REGISTERS:
        assert f"| 0x{register.address:03X} | `{register.name}` |" in registers
    for stall in Stall:
        assert f"`{stall.name}`" in registers


def test_every_parameter_of_the_memory_is_told(pages: Path) -> None:
    text = (pages / "_generated/memory.md").read_text("utf-8")
    timing = hbm.HbmTiming()
    for field in fields(hbm.HbmTiming):
        value = getattr(timing, field.name)
        shown = re.search(rf"^\| `{field.name}` \| ([^|]+) \|", text, re.M)
        assert shown, field.name
        if type(value) is int:
            assert int(shown[1]) == value
    assert "scale-snu/attacc_simulator" in text and "HBM2_8Gb_x128.ini" in text


def test_links_lead_somewhere(pages: Path) -> None:
    anchors = {page: _anchors(page) for page in pages.rglob("*.md")}
    everywhere = set().union(*anchors.values())
    for page in anchors:
        for target in LINK.findall(_prose(page)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            # Written by `make bench` only.
            if path and file.name != "performance.md":
                assert file.exists(), f"{page.name} links {target}"
            if anchor:
                known = anchors.get(file, everywhere) if path else everywhere
                assert anchor in known, f"{page.name} links {target}: no such heading"


def test_readme_links_and_picture(pages: Path) -> None:
    readme = graph.ROOT / "README.md"
    for target in LINK.findall(readme.read_text("utf-8")):
        if "performance.md" not in target:
            assert (graph.ROOT / target).exists(), target
    drawn = (pages / "_generated/diagram-core.svg").read_text("utf-8")
    committed = (graph.ROOT / docs.README_PICTURE).read_text("utf-8")
    assert committed == drawn, "run python -m m890.sim.docs: the core's diagram has changed"


def test_diagram_shows_the_wires_of_the_source() -> None:
    core = graph.first_of("tiny")["Core"]
    streams = {(e.source, e.target): e.names for e in core.edges if e.stream}
    assert streams["control", "attention"] == ("job", "segment")
    assert set(streams["attention", "reads"]) == {"table", "k", "v", "bias", "raw"}
    assert {c.name for c in core.children} == {"control", "attention", "append", "reads", "writes"}


def test_boxes_do_not_overlap() -> None:
    nodes = [Node(n, n) for n in "abcde"]
    arrows = [Arrow(*pair) for pair in ("ab", "ac", "bd", "cd", "da", "ae", "ed")]
    Layered("", nodes, arrows).draw()
    for one in nodes:
        for other in nodes:
            if one is not other and abs(one.x - other.x) < min(one.width, other.width):
                assert abs(one.y - other.y) >= min(one.text_height(), other.text_height())


@pytest.mark.parametrize("name", ["first-steps.md", "firmware.md"])
def test_python_in_the_text_runs(name: str, tmp_path: Path) -> None:
    text = (DOCS / name).read_text("utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        subprocess.run([sys.executable, "-c", block], check=True, cwd=tmp_path, timeout=60)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core of preset tiny and the memory image of the Verilog tutorial."""
    folder = tmp_path_factory.mktemp("verilog")
    emit(core_design(preset("tiny")), folder)
    script = DOCS / "examples/make_image.py"
    subprocess.run([sys.executable, script, folder], check=True, timeout=60)
    return folder


@pytest.mark.icarus
def test_verilog_tutorial_on_icarus(example: Path) -> None:
    testbench = DOCS / "examples/testbench.v"
    command = ["iverilog", "-g2005-sv", "-o", "simulate", "m890_core.v", testbench]
    subprocess.run(command, cwd=example, check=True, timeout=300)
    done = subprocess.run(
        ["vvp", "simulate"], cwd=example, check=True, timeout=300, capture_output=True, text=True
    )
    assert "PASS" in done.stdout, done.stdout
    printed = [line for line in done.stdout.splitlines() if line.startswith(("ident", "tag"))]
    assert "\n".join(printed) in (DOCS / "verilog.md").read_text("utf-8")


@pytest.mark.rtl
def test_verilog_tutorial_on_verilator(example: Path) -> None:
    command = [
        toolchain.find_verilator().require(), "--binary", "--timing", "-Wno-fatal",
        "--top-module", "testbench", "m890_core.vlt", "m890_core.v",
        DOCS / "examples/testbench.v", "-CFLAGS", "-O0", "-o", "simulate",
    ]  # fmt: skip
    built = subprocess.run(
        command, cwd=example, env=toolchain.verilator_env(), timeout=600, capture_output=True,
        text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-2000:]
    done = subprocess.run(
        [example / "obj_dir/simulate"], cwd=example, timeout=300, capture_output=True, text=True
    )
    assert "PASS" in done.stdout, done.stdout


def _prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "`", text)


def _anchors(page: Path) -> set[str]:
    """Headings as MyST names them, and targets."""
    text = _prose(page)
    full = page.read_text("utf-8")
    headings = re.findall(
        r"^#{1,3} (.+)$", re.sub(r"^```.*?^```", "", full, flags=re.M | re.S), re.M
    )
    slugs = {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}
    return slugs | set(re.findall(r"^\((.+)\)=$", text, re.M))
