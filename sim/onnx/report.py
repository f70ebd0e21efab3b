"""The page of conformance: every case with its result. `python -m m890.sim.onnx.report > PAGE`."""

import sys
from collections.abc import Sequence

from m890.hdl.config import preset
from m890.sim.onnx.attention import ABSOLUTE, RELATIVE, Verdict, golden, judge
from m890.sim.onnx.cases import find, load

PRESET = "tiny"
_HEAD = f"""# Conformance: ONNX Attention

The test cases of ONNX's backend for the Attention operator (opsets 23 and 24), run on the golden
model of the preset `{PRESET}` through `m890.sim.onnx`; a test holds the RTL to the same bits in
every request, through the firmware's driver. Each case becomes one request per batch
entry and KV head: the softmax scale and log2 e are folded into the queries, queries, keys and
values are rounded to FP16, masks become biases of 16 bits (-Inf masks a token), ragged lengths end
the segment early, and head sizes are padded to whole tiles. Present keys and values are compared as
the cache holds them. A case passes when every output has

|error| <= {ABSOLUTE} + {RELATIVE} |reference|.

The last column is the largest |error| as a share of that bound; where scores are asked for, of the
other outputs.
"""


def page(verdicts: Sequence[Verdict]) -> str:
    """The page in Markdown."""
    passed = sum(v.passed for v in verdicts)
    lines = [_HEAD, f"{passed} of {len(verdicts)} cases pass.\n"]
    missing = sorted({v.missing for v in verdicts if v.missing})
    for feature in missing:
        count = sum(v.missing == feature for v in verdicts)
        lines.append(f"- {count} {'lacks' if count == 1 else 'lack'} {feature}.")
    lines += ["", "| case | result | error / bound |", "|---|---|---|"]
    for v in verdicts:
        share = f"{v.error:.2f}" if v.error else ""
        lines.append(f"| `{v.name.removeprefix('test_attention_')}` | {v.text} | {share} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the page."""
    execute = golden(preset(PRESET))
    sys.stdout.write(page([judge(case, execute) for case in load(find())]))


if __name__ == "__main__":
    main()
