"""The frame of the `m890` command: finds the command's module, runs it, ends well whatever happens.

A command NAME is the function `command` of `m890.sim.cli.NAME`, with typer's annotations; its
docstring is its help and ends with an example. Only the module of the command that is called is
imported, so `m890 --help` stays fast; a module that is not there leaves its command out.
"""

import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from m890.sim import toolchain
from m890.sim.cli import errors

COMMANDS = {
    "run": "Play tool-calling agents, or a language model, on the device.",
    "attend": "Put your own Q, K and V through the device and compare with double precision.",
    "verilog": "Write the Verilog of a preset or of your own parameters, and what goes with it.",
    "synth": "Synthesise a core or one block: LUTs, DSPs, block RAM, Fmax on ECP5.",
    "waves": "Record waves of a session or of a range of commands for GTKWave.",
    "bench": "Measure one figure, or all, and print them or write them as JSON.",
    "doctor": "Say what is installed, what is missing and how to get it.",
}
"""Each command and the sentence that stands for it in `m890 --help`."""

BROKEN_PIPE = 141
"""Exit code when who reads the output has gone (`m890 bench | head`), as the shell has it."""
STOPPED = 128
"""Exit code after Ctrl-C or SIGTERM, and the signal's number to it, as the shell has it."""


class Stopped(BaseException):
    """Somebody has stopped the command: what it began is put in order on the way out.

    No KeyboardInterrupt, which typer would end the command with, silently.
    """


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise Stopped meanwhile."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0, 2 for wrong input, 1 for a bug."""
    line = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    called = next((word for word in line if not word.startswith("-")), None)
    try:
        if called is not None and called not in available():
            raise errors.UserError(f"no command {called!r}: m890 has {', '.join(available())}")
        with stoppable():
            result = build(called)(line, prog_name="m890", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Stopped as stop:
        print("m890: stopped.", file=sys.stderr)
        return STOPPED + stop.args[0]
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        return errors.report(error)


def build(called: str | None = None) -> typer.Typer:
    """The application, in which only the command `called` is more than its sentence."""
    app = typer.Typer(
        name="m890",
        help="An open attention and KV-cache core for AI agents: RTL, simulators, firmware.",
        epilog="Example: m890 run --demo",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_options)
    for name in available():
        function = _function(name) if name == called else _placeholder
        app.command(name, short_help=COMMANDS[name])(function)
    return app


def available() -> list[str]:
    """The commands whose modules are there."""
    return [name for name in COMMANDS if importlib.util.find_spec(f"m890.sim.cli.{name}")]


def _function(name: str) -> Callable[..., Any]:
    return importlib.import_module(f"m890.sim.cli.{name}").command


def _placeholder() -> None:
    """Stands for a command that is not called."""


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"m890 {toolchain.package_version('m890') or 'not installed'}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """An open attention and KV-cache core for AI agents: RTL, simulators, firmware."""


if __name__ == "__main__":
    sys.exit(main())
