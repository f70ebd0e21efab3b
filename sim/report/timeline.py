"""Timelines of jobs and agent steps: a PNG picture, and JSON for Perfetto and Chrome's tracing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that took from cycle `start` to cycle `end` on a track (an agent, the device).

    `kind` chooses the colour (think, tool, prefill, decode, ...); `details` are shown on a click.
    """

    name: str
    track: str
    start: float
    end: float
    kind: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"event {self.name!r} ends at {self.end} before it starts")


COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")
"""Told apart by colour-blind eyes too; kinds take them in the order of their first event."""


def draw(events: Sequence[Event], path: Path, *, title: str = "", unit: str = "cycles") -> None:
    """A picture with one line per track and one bar per event. Raises ValueError without events."""
    if not events:
        raise ValueError("there is no event to draw")
    from matplotlib.figure import Figure  # slow to import: only who draws waits

    tracks = list(dict.fromkeys(e.track for e in events))
    kinds = list(dict.fromkeys(e.kind for e in events))
    first = min(e.start for e in events)
    span = max(max(e.end for e in events) - first, 1)
    scale, prefix = next((s, p) for s, p in ((1e6, "M "), (1e3, "k "), (1, "")) if span >= s)
    figure = Figure(figsize=(14, 1.6 + 0.42 * len(tracks)), layout="constrained")
    axes = figure.add_subplot()
    for kind in kinds:
        chosen = [e for e in events if e.kind == kind]
        axes.barh(
            [tracks.index(e.track) for e in chosen],
            [max(e.end - e.start, span / 2000) / scale for e in chosen],
            left=[(e.start - first) / scale for e in chosen],
            height=0.72,
            color=COLOURS[kinds.index(kind) % len(COLOURS)],
            edgecolor="white",
            linewidth=0.4,
            label=kind or "job",
        )
    for event in events:
        room = (event.end - event.start) / span * 150  # characters that fit
        if room >= min(len(event.name), 4):
            text = event.name if len(event.name) <= room else event.name[: int(room) - 1] + "…"
            middle = ((event.start + event.end) / 2 - first) / scale
            axes.text(middle, tracks.index(event.track), text, ha="center", va="center",
                      fontsize=7, color="white", clip_on=True)  # fmt: skip
    axes.set_yticks(range(len(tracks)), tracks)
    axes.invert_yaxis()
    axes.set_xlim(0, span / scale)
    axes.set_xlabel(f"{prefix}{unit}")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(kinds) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def perfetto(events: Sequence[Event], path: Path, *, process: str = "m890") -> None:
    """A JSON trace that ui.perfetto.dev and chrome://tracing open. A cycle is a nanosecond."""
    tracks = {track: n + 1 for n, track in enumerate(dict.fromkeys(e.track for e in events))}
    items: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": process}}
    ]
    for track, number in tracks.items():
        base = {"ph": "M", "pid": 1, "tid": number}
        items.append({**base, "name": "thread_name", "args": {"name": track}})
        items.append({**base, "name": "thread_sort_index", "args": {"sort_index": number}})
    for event in sorted(events, key=lambda e: (e.start, -e.end)):
        items.append(
            {
                "ph": "X",
                "name": event.name,
                "cat": event.kind or "job",
                "pid": 1,
                "tid": tracks[event.track],
                "ts": event.start / 1000,
                "dur": (event.end - event.start) / 1000,
                "args": dict(event.details),
            }
        )
    text = json.dumps({"traceEvents": items, "displayTimeUnit": "ns"}, default=str)
    path.write_text(text, encoding="utf-8")
