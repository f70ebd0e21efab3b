"""ONNX Attention cases that the core computes within tolerance, of all cases (data: M890_DATA)."""

from m890.hdl.config import preset
from m890.sim.bench.registry import FACT, HIGHER, BenchContext, BenchError, Item
from m890.sim.onnx.attention import judge
from m890.sim.onnx.cases import DataError, find, load
from m890.sim.onnx.device import NAMES, executor

OPTIONS = {"device": f"what computes: {', '.join(NAMES)} (golden)"}
BETTER = {"conformance.onnx.passed": HIGHER, "conformance.onnx.total": FACT}


def run(context: BenchContext) -> list[Item]:
    """How many cases pass, and how many there are."""
    device = context.option("device", "golden")
    if device not in NAMES:
        raise BenchError(f"no device {device!r}: there are {', '.join(NAMES)}")
    try:
        cases = load(find())
    except DataError as error:
        raise BenchError(str(error)) from error
    name = context.preset or "tiny"
    with executor(device, preset(name)) as execute:
        verdicts = [judge(case, execute) for case in context.progress.track(cases, "conformance")]
    config = {"preset": name, "device": device, "format": "fp16"}
    passed = sum(v.passed for v in verdicts)
    return [
        context.item("conformance.onnx.passed", "cases", passed, **config),
        context.item("conformance.onnx.total", "cases", len(verdicts), **config),
    ]
