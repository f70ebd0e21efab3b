"""Keeps the signals of the documentation's picture in a save file that `m890 waves` wrote."""

import sys
from pathlib import Path

SHOWN = {
    "commands": [
        "control.dispatch.dispatch_state", "control.dispatch.opcode",
        "control.jobs.tables.tables_state", "control.jobs.queries.queries_state",
        "append.state_state",
    ],
    "memory port": ["m_axi_arvalid", "m_axi_arready", "m_axi_rid", "m_axi_rvalid"],
    "kv": [
        "attention.path.walker.walk_state", "attention.path.translator.locate_state",
        "attention.path.k_fetch.fetch_state", "attention.path.v_fetch.fetch_state",
    ],
    "attention": [
        "attention.sequencer.item__payload__kind", "attention.sequencer.raw_format",
        "attention.sequencer.k_beat__valid", "attention.sequencer.k_beat__ready",
        "attention.sequencer.v_beat__valid", "attention.sequencer.v_beat__ready",
        "attention.sequencer.cause", "attention.sequencer.p_done",
    ],
    "row 0": [
        "attention.array.row0.dot.o", "attention.array.row0.add.o",
        "attention.array.score0.exp2.s", "attention.array.score0.exp2.p",
        "attention.array.score0.add_l.o",
    ],
}  # fmt: skip
"""Groups of the picture."""
UNIT = 1000
"""GTKWave's time units, picoseconds, per cycle."""


def main(source: str, target: str, cycle: int, zoom: float) -> None:
    """The view begins `cycle` cycles after the first marker; `zoom` as GTKWave has it."""
    header, traces, flags, filter_ = [], {}, "", ""
    for line in Path(source).read_text("utf-8").splitlines():
        if line.startswith(("[", "*", "#")):
            header.append(line)
        elif line.startswith("@"):
            flags, filter_ = line, ""
        elif line.startswith("^"):
            filter_ = line
        elif not line.startswith("-") and line:
            name = line.split("[")[0].split(".", 1)[-1]
            traces.setdefault(name, [flags, *([filter_] if filter_ else []), line])
            filter_ = ""
    out = [line for line in header if not line.startswith(("[sst", "[timestart", "[size", "*"))]
    markers = next(line for line in header if line.startswith("*")).split()
    start = int(markers[1]) + UNIT * cycle
    out.append(" ".join([f"*{zoom:.6f}", *markers[1:]]))
    out += ["[size] 1500 1000", f"[timestart] {start}", "[signals_width] 360"]
    for group, names in SHOWN.items():
        out += ["@800200", f"-{group}"]
        for name in names:
            out += traces[name]
        out += ["@1000200", f"-{group}"]
    Path(target).write_text("\n".join(out) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
