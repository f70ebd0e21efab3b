"""Timelines: pictures, and JSON that trace viewers open."""

import json
from pathlib import Path

import pytest

from m890.sim.report.timeline import Event, draw, perfetto

EVENTS = [
    Event("prefill", "agent 0", 0, 4000, "prefill", {"tokens": 64}),
    Event("calculator", "agent 0", 4000, 9500, "tool"),
    Event("decode", "agent 1", 1000, 1001, "decode"),
]


def test_perfetto_has_every_event_on_its_track(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    perfetto(EVENTS, path)
    items = json.loads(path.read_text())["traceEvents"]
    names = {i["tid"]: i["args"]["name"] for i in items if i["name"] == "thread_name"}
    shown = [i for i in items if i["ph"] == "X"]
    assert [(names[i["tid"]], i["name"], i["ts"], i["dur"]) for i in shown] == [
        ("agent 0", "prefill", 0, 4.0),
        ("agent 1", "decode", 1.0, 0.001),
        ("agent 0", "calculator", 4.0, 5.5),
    ]
    assert shown[0]["args"] == {"tokens": 64} and shown[2]["cat"] == "tool"


def test_picture_is_drawn(tmp_path: Path) -> None:
    draw(EVENTS, tmp_path / "t.png", title="two agents")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_and_backward_events_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no event"):
        draw([], tmp_path / "t.png")
    with pytest.raises(ValueError, match="ends at 3 before it starts"):
        Event("x", "t", 5, 3)
