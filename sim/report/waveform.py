"""A picture of a window of an FST file, for documents and for machines without GTKWave."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m890.sim.report.fst import Fst, Trace


def draw(
    fst: Path,
    signals: Sequence[str],
    path: Path,
    *,
    start: int = 0,
    end: int | None = None,
    names: Mapping[str, Mapping[int, str]] | None = None,
    ticks: int = 10,
    title: str = "",
) -> None:
    """Draw signals (paths in the FST) from cycle `start` to `end` into a PNG file.

    `names` gives names to the values of a signal (its states, say); other vectors show hexadecimal.
    Raises ValueError for a signal that is not in the file or an empty window.
    """
    from matplotlib.figure import Figure  # slow to import: only who draws waits

    reader = Fst(fst)
    for signal in signals:
        if signal not in reader.signals:
            raise ValueError(f"{fst.name} has no signal {signal}")
    last = end if end is not None else reader.end // ticks
    if last <= start:
        raise ValueError(f"the window from cycle {start} to {last} is empty")
    figure = Figure(figsize=(14, 0.8 + 0.38 * len(signals)), layout="constrained")
    axes = figure.add_subplot()
    common = signals[0].rsplit(".", 1)[0] if len(signals) == 1 else _common(signals)
    for row, (signal, trace) in enumerate(zip(signals, reader.read(*signals), strict=True)):
        labels = (names or {}).get(signal, {})
        _draw_signal(axes, -row, trace, start * ticks, last * ticks, ticks, labels)
    axes.set_yticks(
        [-row + 0.35 for row in range(len(signals))],
        [s.removeprefix(common + ".") for s in signals],
        fontfamily="monospace",
        fontsize=8,
    )
    axes.set_xlim(start, last)
    axes.set_ylim(-len(signals) + 0.85, 1)
    axes.set_xlabel("cycle")
    axes.set_title(title or common, loc="left", fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _common(signals: Sequence[str]) -> str:
    parts = [s.split(".")[:-1] for s in signals]
    same = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        same.append(column[0])
    return ".".join(same)


def _draw_signal(
    axes: Any, base: float, trace: Trace, start: int, end: int, ticks: int, names: Mapping[int, str]
) -> None:
    steps = [(t, v) for t, v in zip(trace.times, trace.values, strict=True) if start < t < end]
    steps = [(start, trace.at(start)), *steps]
    ends = [t for t, _ in steps[1:]] + [end]
    if trace.width == 1:
        xs, ys = [], []
        for (t, value), stop in zip(steps, ends, strict=True):
            xs += [t / ticks, stop / ticks]
            ys += [base + 0.7 * (value or 0)] * 2
        axes.plot(xs, ys, color="#228833", linewidth=1.1)
        return
    for (t, value), stop in zip(steps, ends, strict=True):
        left, right = t / ticks, stop / ticks
        slope = min(0.25, (right - left) / 4)
        xs = [left, left + slope, right - slope, right, right - slope, left + slope, left]
        ys = [base + y for y in (0.35, 0.7, 0.7, 0.35, 0, 0, 0.35)]
        axes.plot(xs, ys, color="#4477aa", linewidth=0.9)
        text = "x" if value is None else names.get(value, f"{value:x}")
        room = int((right - left) / (end - start) * ticks * 165)
        if room >= 1 and (len(text) <= room or room > 3):
            shown = text if len(text) <= room else text[: room - 1] + "…"
            axes.text((left + right) / 2, base + 0.33, shown, ha="center", va="center", fontsize=7)
