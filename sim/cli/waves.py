"""`m890 waves`: records a session, or some of its commands, for GTKWave."""

import re
from pathlib import Path
from typing import Annotated

import typer

from m890.firmware.log import LogEntry
from m890.hdl.config import PRESETS, preset
from m890.hdl.numerics.formats import Format
from m890.sim import toolchain
from m890.sim.cli import errors, output
from m890.sim.report import timeline
from m890.sim.rtl import gtkw, sessions
from m890.sim.rtl.device import RtlDevice

MARGIN = 16
"""Cycles that are shown before the first and after the last chosen command."""


def command(
    session: Annotated[
        str, typer.Argument(help=f"One of {', '.join(sessions.SESSIONS)}.", metavar="[SESSION]")
    ] = "decode",
    folder: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path(
        "build/waves"
    ),
    preset_name: Annotated[str, typer.Option("--preset", help=f"{', '.join(PRESETS)}.")] = "tiny",
    commands: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Record only commands A to B - 1, as numbered here."),
    ] = None,
    format_name: Annotated[
        str, typer.Option("--format", help=f"{', '.join(f.name.lower() for f in Format)}.")
    ] = "fp16",
    context: Annotated[int, typer.Option(help="Tokens of context.", min=1)] = 48,
    steps: Annotated[int, typer.Option(help="Steps after the context.", min=1)] = 2,
    agents: Annotated[int, typer.Option(help="Agents that share the context.", min=1)] = 4,
    latency: Annotated[int, typer.Option(help="Of the memory, in cycles.", min=1)] = 50,
    seed: Annotated[int, typer.Option(help="Of the random numbers.", min=0)] = 0,
) -> None:
    """Record waves of a session or of a range of commands for GTKWave.

    Written are the waves (.fst), a save file (.gtkw) with groups by block, names of states and
    commands, floats and a marker at each command's start and end, and a picture of the commands.

    Example: m890 waves shared --commands 3:9 -o build/waves
    """
    if session not in sessions.SESSIONS:
        raise errors.UserError(f"no session {session!r}: there are {', '.join(sessions.SESSIONS)}")
    known = {f.name.lower(): f for f in Format}
    if format_name.lower() not in known:
        raise errors.UserError(f"no format {format_name!r}: there are {', '.join(known)}")
    config, form = preset(preset_name), known[format_name.lower()]
    chosen = _range(commands)
    folder.mkdir(parents=True, exist_ok=True)
    scale = sessions.Scale(context, steps, agents)

    def device() -> RtlDevice:
        return RtlDevice(
            config, memory_bytes=64 << 20, latency=latency, seed=seed, waves=True,
            say=output.stderr().print,
        )  # fmt: skip

    # The same session twice: the first run says in which cycles the chosen commands are.
    with device() as first:
        log = sessions.play(session, first, format=form, seed=seed, scale=scale)
        offset = first.counter_offset()
    log.sort(key=lambda entry: entry.tag)
    shown = log[chosen]
    if not shown:
        raise errors.UserError(
            f"the session has commands 0 to {len(log) - 1}, and {commands} chooses none of them"
        )
    start = max(min(e.start for e in shown) + offset - MARGIN, 0)
    end = max(e.end for e in shown) + offset + MARGIN
    path = folder / f"{session}.fst"
    with device() as second:
        second.start_waves(path, start, end)
        sessions.play(session, second, format=form, seed=seed, scale=scale)
        second.stop_waves()
        save = gtkw.write(second.design, path, _markers(shown, offset), start)
    picture = folder / f"{session}.png"
    timeline.draw(_events(shown), picture, title=f"{session}, {config.name}, {form.name}")
    output.stderr().print(
        f"recorded {len(shown)} of {len(log)} commands, cycles {start} to {end}, in {path}"
    )
    for written in (path, save, picture):
        print(written)
    print(f"gtkwave {path} {save}")
    if not (tool := toolchain.find_gtkwave()):
        output.stderr().print(tool.reason)


def _range(text: str | None) -> slice:
    """`A:B`, `A:`, `:B` or `A`, of commands in the order of submission."""
    if text is None:
        return slice(None)
    match = re.fullmatch(r"(\d*)(:?)(\d*)", text)
    if not match or text in ("", ":") or (match[3] and int(match[3]) <= int(match[1] or 0)):
        raise errors.UserError(f"a range of commands is written 3:9, not {text!r}")
    first = int(match[1] or 0)
    if not match[2]:
        return slice(first, first + 1)
    return slice(first, int(match[3]) if match[3] else None)


def _title(entry: LogEntry) -> str:
    return f"{entry.name} {entry.tag}" + (f" ({entry.label})" if entry.label else "")


def _markers(log: list[LogEntry], offset: int) -> list[tuple[str, int]]:
    """Start and end of every command; of the array's and append's jobs alone if there are many."""
    if 2 * len(log) > gtkw.MARKERS:
        log = [entry for entry in log if entry.name in ("ATTEND", "APPEND")]
    marks = []
    for entry in log:
        marks.append((f"{_title(entry)} starts", entry.start + offset))
        marks.append((f"{_title(entry)} ends", entry.end + offset))
    return sorted(marks, key=lambda mark: mark[1])


def _events(log: list[LogEntry]) -> list[timeline.Event]:
    """One event per command, on a track per label; what overlaps is still told apart by name."""
    return [
        timeline.Event(
            f"{e.name} {e.tag}", e.label or "firmware", e.start, e.end, e.name.lower(),
            {"beats": e.beats, "error": e.error.name},
        )
        for e in log
    ]  # fmt: skip
