"""Wrong input ends in one sentence on standard error and exit code 2; a bug asks for a report."""

import os
import sys
import traceback

from typer import TyperException

from m890.sim.toolchain import ToolMissing

WRONG_INPUT = 2
"""Exit code: the user can cure it."""
BUG = 1
"""Exit code: m890 itself is wrong."""


class UserError(Exception):
    """Something that the user can cure; the message is one sentence that says how."""


def explain(error: BaseException) -> str | None:
    """The sentence for an error that the user can cure; None for a bug in m890.

    Of the user: `UserError`, typer's own usage errors, missing tools, files that cannot be read or
    written, every exception class that m890 defines, and a plain `ValueError` that m890's code
    raises itself (one that numpy raises inside m890 is a bug).
    """
    if isinstance(error, TyperException):
        return one_line(getattr(error, "format_message", error.__str__)())
    if isinstance(error, UserError | ToolMissing) or _defined_here(type(error)):
        return one_line(str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return one_line(f"{error.filename}: {(error.strerror or 'cannot be used').lower()}")
    if isinstance(error, ValueError) and _raised_here(error):
        return one_line(str(error))
    return None


def report(error: BaseException) -> int:
    """Prints what `explain` says, or the traceback of a bug; returns the exit code."""
    sentence = explain(error)
    if sentence is None or os.environ.get("M890_DEBUG"):
        traceback.print_exception(error)
    if sentence is None:
        print(
            "m890: this is a bug in m890: please report the lines above, the command and the"
            " output of `m890 doctor`.",
            file=sys.stderr,
        )
        return BUG
    print(f"m890: {sentence}", file=sys.stderr)
    return WRONG_INPUT


def one_line(message: str) -> str:
    """The message as one sentence on one line."""
    sentence = " ".join(message.split()) or "wrong input"
    return sentence if sentence[-1] in ".!?" else sentence + "."


def _defined_here(kind: type) -> bool:
    return kind.__module__.startswith("m890.")


def _raised_here(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").startswith("m890.")
