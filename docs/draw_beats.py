"""Draws docs/pictures/beats.svg: which beats the array took, from waves of the RTL.

Run from the repository's root: `.venv/bin/python docs/draw_beats.py`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from m890.hdl.registers import Stall
from m890.sim.docs.svg import GREY, INK, Picture
from m890.sim.report.fst import Fst

TICKS = 10
"""Time units of the waves per cycle."""
SHOWN = 470
"""Cycles in the picture."""
COLORS = {"k": "#3b6ea5", "v": "#3f9a63"}
IDLE = {
    Stall.QUERY: "#e9d8fd", Stall.WALK: "#fde7c7", Stall.KV_DATA: "#f6c9c9",
    Stall.SCORE: "#fff3a8", Stall.DRAIN: "#d9d9d9",
}  # fmt: skip


def main(target: Path, waves: str = "") -> None:
    """`waves`: an FST file of preset tiny that is there already."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(waves or f"{folder}/decode.fst")
        if not waves:
            m890 = str(Path(sys.executable).parent / "m890")
            subprocess.run(
                [m890, "waves", "decode", "--commands", "51:57", "-o", folder], check=True
            )
        file = Fst(path)
        head = "m890_core.attention.sequencer."
        names = [f"{kind}_beat__{wire}" for kind in "kv" for wire in ("valid", "ready")]
        traces = file.read(*(head + n for n in [*names, "cause"]))
    first = next(t for t in traces[1].times if t and traces[1].at(t)) // TICKS - 2
    beats = []
    for cycle in range(first, first + SHOWN):
        k_valid, k_ready, v_valid, v_ready, cause = (t.at(TICKS * cycle + 4) for t in traces)
        beats.append(("k" if k_valid and k_ready else "v" if v_valid and v_ready else "", cause))
    target.write_text(_draw(beats).text(), "utf-8")


def _draw(beats: list[tuple[str, int | None]]) -> Picture:
    scale, left, top = 2.3, 60.0, 46.0
    picture = Picture(left + scale * len(beats) + 20, 190, "Beats of the array, cycle by cycle")
    title = "One decode job, preset tiny, FP16 KV, memory latency 50: each column is a cycle"
    picture.write(20, 24, title, 12)
    rows = {"k": (top, "K"), "v": (top + 34, "V"), "": (top + 68, "stall")}
    for y, text in rows.values():
        picture.write(left - 8, y + 18, text, 12, INK, "end", bold=True)
    for kind, start, length, cause in _runs(beats):
        color = COLORS.get(kind) or IDLE.get(Stall(cause), "#ffffff")
        y = rows[kind][0]
        picture.box(left + scale * start, y, scale * length, 26, color, "none", 0)
    for cycle in range(0, len(beats), 50):
        x = left + scale * cycle
        picture.line(x, top - 6, x, top + 98, "#e2e8f0")
        picture.write(x, top + 112, str(cycle), 9.5, GREY, "middle")
    x = left
    for cause, color in IDLE.items():
        if any(not k and c == cause for k, c in beats):
            picture.box(x, top + 122, 12, 12, color, GREY, 1)
            picture.write(x + 17, top + 132, cause.name, 10, GREY)
            x += 100
    return picture


def _runs(beats: list[tuple[str, int | None]]) -> list[tuple[str, int, int, int]]:
    found: list[tuple[str, int, int, int]] = []
    for cycle, (kind, cause) in enumerate(beats):
        key = (kind, 0 if kind else cause or 0)
        if found and (found[-1][0], found[-1][3]) == key:
            found[-1] = (kind, found[-1][1], found[-1][2] + 1, key[1])
        else:
            found.append((kind, cycle, 1, key[1]))
    return found


if __name__ == "__main__":
    main(Path("docs/pictures/beats.svg"), *sys.argv[1:2])
