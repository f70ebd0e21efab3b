"""The benches: one module per bench, each with `run(context) -> list[Item]`.

    \"\"\"Errors of attention in each number format.\"\"\"        # the sentence in `m890 bench`

    OPTIONS = {"seeds": "how many seeds are pooled"}           # `-o seeds=4`; may be left out
    BETTER = {"numerics.*": LOWER}                             # or HIGHER, FACT; first that fits

    def run(context: BenchContext) -> list[Item]:
        count = context.option("seeds", 16)
        errors = [one(s) for s in context.progress.track(range(count), "seeds")]
        return [context.item("numerics.rmse.fp16.plain", "1", pooled(errors), format="fp16")]

A module of this package without `run` is no bench.
"""

from m890.sim.bench.registry import BenchContext, BenchError, Item, Progress, Silent, names, run

__all__ = ["BenchContext", "BenchError", "Item", "Progress", "Silent", "names", "run"]
