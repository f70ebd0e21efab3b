"""`m890 attend`: a user's own Q, K and V through the device, compared with double precision."""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from m890.hdl.commands import Status
from m890.hdl.config import MAX_CORES, PRESETS, CoreConfig, preset
from m890.hdl.numerics.formats import Format
from m890.sim import arrays
from m890.sim.attend import Outcome, memory_for, on_device
from m890.sim.cli import errors, output
from m890.sim.devices import DEVICES, open_cores

FORMATS = ", ".join(Format.__members__).lower()


def command(
    q: Annotated[Path | None, typer.Argument(help="Queries .npy: [heads, tokens, d].")] = None,
    k: Annotated[Path | None, typer.Argument(help="Keys .npy: [KV heads, length, d].")] = None,
    v: Annotated[Path | None, typer.Argument(help="Values .npy: [KV heads, length, d].")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Random Q, K and V.")] = False,
    kv_format: Annotated[str, typer.Option("--format", help=f"KV format: {FORMATS}.")] = "fp16",
    rotate: Annotated[
        bool | None, typer.Option(help="Rotate K and V (default: integers, 4 bits).")
    ] = None,
    causal: Annotated[
        bool,
        typer.Option(
            "--causal/--no-causal",
            help="See no later token; the last query stands at the last key.",
        ),
    ] = False,
    window: Annotated[int, typer.Option(help="Tokens seen back; 0: all.", min=0)] = 0,
    sinks: Annotated[int, typer.Option(help="First tokens seen beside the window.", min=0)] = 0,
    softcap: Annotated[float, typer.Option(help="Cap c: c tanh(score / c); 0: off.", min=0)] = 0.0,
    scale: Annotated[
        float | None, typer.Option(help="Of scores; 1 / sqrt(d) unless given.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Added to the scores, .npy: [[heads,] tokens, length].")
    ] = None,
    device: Annotated[str, typer.Option(help=f"What runs: {', '.join(DEVICES)}.")] = "rtl",
    cores: Annotated[
        int, typer.Option(help="Cores on one memory, the heads divided.", min=1, max=MAX_CORES)
    ] = 1,
    preset_name: Annotated[
        str, typer.Option("--preset", help=f"The core: {', '.join(PRESETS)}.")
    ] = "small",
    result: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the output to this .npy.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the demo's arrays.", min=0)] = 0,
) -> int:
    """Put your own Q, K and V through the device and compare with double precision.

    Arrays may also be [tokens, d], of one head. Query heads share KV heads evenly (GQA). On RTL the
    output is also held against the golden model, bit for bit.

    Example: m890 attend q.npy k.npy v.npy --format e4m3 --causal -o out.npy

    Example: m890 attend --demo --cores 2
    """
    config = preset(preset_name)
    if result is not None and not result.resolve().parent.is_dir():
        raise errors.UserError(f"the folder of {result} does not exist")
    if sinks and not window:
        raise errors.UserError("--sinks keeps tokens beside a window: give --window too")
    if device not in DEVICES:
        raise errors.UserError(f"no device {device!r}: there are {', '.join(DEVICES)}")
    if kv_format.upper() not in Format.__members__:
        raise errors.UserError(f"no format {kv_format!r}: there are {FORMATS}")
    if demo:
        if q is not None or mask is not None:
            raise errors.UserError("--demo makes its own arrays: leave the files away")
        queries, keys, values = _demo(config, seed)
    else:
        if q is None or k is None or v is None:
            raise errors.UserError("name three files, Q, K and V, or say --demo")
        queries, keys, values = (_heads(path) for path in (q, k, v))
    problem = arrays.Problem(
        queries, keys, values, Format[kv_format.upper()], causal, window, sinks, softcap, scale,
        None if mask is None else _mask(mask), rotate,
    )  # fmt: skip
    if softcap and not config.softcap:
        raise errors.UserError(f"the preset {config.name} is built without the soft-cap unit")
    outcome, seconds = _run(config, device, cores, problem)
    if result is not None:
        with result.open("wb") as file:
            np.save(file, outcome.output)
    equal = None
    if device == "rtl":
        golden = arrays.by_golden(config, problem)
        equal = np.array_equal(golden.view(np.uint32), outcome.output.view(np.uint32))
    _report(config, device, problem, outcome, equal, seconds)
    if equal is False:
        raise RuntimeError("the RTL's output differs from the golden model's")
    return 0


def _run(
    config: CoreConfig, kind: str, cores: int, problem: arrays.Problem
) -> tuple[Outcome, float]:
    size = memory_for(config, problem, cores)
    with output.Progress("attend") as progress:
        device = open_cores(kind, config, size, cores, say=progress.say)
        try:
            started = time.perf_counter()
            outcome = on_device(device, problem)
            return outcome, time.perf_counter() - started
        finally:
            device.close()


def _report(
    config: CoreConfig,
    kind: str,
    problem: arrays.Problem,
    outcome: Outcome,
    equal: bool | None,
    seconds: float,
) -> None:
    exact = arrays.by_float64(problem)
    error = outcome.output - exact
    norm = float(np.sqrt(np.mean(exact**2)))
    rmse = float(np.sqrt(np.mean(error**2)))
    heads, tokens, head = problem.q.shape
    plane = problem.format.name.lower()
    if problem.shape(config).rotated(config):
        plane = f"rotated {plane}"
    cores = len(outcome.utilisation)
    cores = f", {cores} cores" if cores > 1 else ""
    out = output.console()
    out.print(
        f"{heads} query heads, {len(problem.k)} KV heads, {tokens} queries on"
        f" {problem.k.shape[1]} tokens, head size {head}, {plane} KV;"
        f" {kind} device, preset {config.name}{cores}"
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    share = sum(outcome.utilisation) / len(outcome.utilisation)
    useful = f"{share:.1%} useful beats"
    if len(outcome.utilisation) > 1:
        useful += f" ({', '.join(f'{core:.1%}' for core in outcome.utilisation)})"
    for name, value in (
        ("largest error against fp64", f"{np.abs(error).max():.3e}"),
        ("RMSE against fp64", f"{rmse:.3e}"),
        ("relative error", f"{rmse / norm:.3e}" if norm else "output is zero"),
        ("equal to golden", {True: "bit for bit", False: "NO", None: "it is golden"}[equal]),
        ("cycles to append", f"{outcome.append_cycles:,}"),
        ("cycles to attend", f"{outcome.cycles:,} in {outcome.jobs} jobs"),
        ("array utilisation", useful),
        ("KV bytes read", f"{outcome.kv_bytes:,}"),
        ("time on this machine", f"{seconds:.2f} s"),
    ):
        table.add_row(name, value)
    out.print(table)
    remarks = {
        Status.OVERFLOW: "a score was beyond the core's range and saturated",
        Status.UNDERFLOW: "a score was below the core's range and became zero",
        Status.INVALID: "a visible number is not finite: its rows are NaN",
        Status.QUANTISE: "a key or value is beyond its format and saturated",
    }
    for status in sorted(outcome.status):
        output.stderr().print(f"Note: {remarks[status]}.")


def _demo(config: CoreConfig, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Eight query heads on two KV heads, four new tokens behind 124."""
    rng, head = np.random.default_rng(seed), min(64, config.max_head)
    q, k, v = (rng.normal(size=(heads, n, head)) for heads, n in ((8, 4), (2, 128), (2, 128)))
    return q, k, v


def _load(path: Path) -> NDArray[np.floating]:
    """Real numbers of an .npy file."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise errors.UserError(f"{path} is not an .npy file of numbers") from None
    if not isinstance(array, np.ndarray):
        raise errors.UserError(f"{path} holds several arrays: save each in an .npy of its own")
    if array.dtype.kind not in "fiu":
        raise errors.UserError(f"{path} holds {array.dtype}, and real numbers are needed")
    return array.astype(np.float64)


def _heads(path: Path) -> NDArray[np.floating]:
    array = _load(path)
    if array.ndim not in (2, 3):
        raise errors.UserError(
            f"{path} has the shape {array.shape}, and [heads, tokens, d] or [tokens, d] is needed"
        )
    return array if array.ndim == 3 else array[None]


def _mask(path: Path) -> NDArray[np.floating]:
    array = _load(path)
    if array.ndim not in (2, 3):
        raise errors.UserError(
            f"{path} has the shape {array.shape}, and a mask is [heads, tokens, length] or"
            " [tokens, length]"
        )
    return array
