"""The bench of numerics at a small size: its names, its emulations, its inputs."""

import numpy as np
import pytest

from m890.hdl.numerics.formats import Format
from m890.sim.bench import numerics
from m890.sim.bench.registry import BenchContext

SMALL = {"seeds": "4", "rows": "32", "tokens": "512"}


def test_figures_and_ratios(seed: int) -> None:
    """So few rows scatter by half; the whole bench pools enough for its goal, 1.05."""
    items = {item.name: item for item in numerics.run(BenchContext(seed, options=SMALL))}
    for format in Format:
        for plane in ("plain", "rotated"):
            label = f"numerics.rmse.{format.name.lower()}.{plane}"
            assert items[label].config["preset"] == "m890"
            assert f"{label}.small" in items
    assert 0.5 < items["numerics.ratio.fp16_over_fa2"].value < 2
    assert items["numerics.ratio.e4m3_over_fa3"].value < 1
    assert items["numerics.ratio.int8_over_fa3"].value < 0.5
    assert items["numerics.ratio.int8_over_fa3"].config["plane"] == "rotated"
    ratio = items["numerics.rmse.fp16.plain"].value / items["numerics.rmse.fa2_fp16"].value
    assert items["numerics.ratio.fp16_over_fa2"].value == pytest.approx(ratio)


def test_one_preset_alone(seed: int) -> None:
    context = BenchContext(seed, "tiny", options={"seeds": "1", "rows": "4", "tokens": "64"})
    with pytest.raises(ValueError, match="head of 128"):
        numerics.run(context)
    names = [i.name for i in numerics.run(BenchContext(seed, "small", options=context.options))]
    assert "numerics.rmse.int8.plain" in names and not any(n.endswith(".small") for n in names)


def test_the_recipe(rng: np.random.Generator) -> None:
    """Variance 1 + 0.001 * 100; the outliers stand out."""
    x = np.concatenate([numerics.draw(rng, 512, 512).k for _ in range(8)])
    assert x.var() == pytest.approx(1.1, rel=0.03)
    assert (np.abs(x) > 6).mean() == pytest.approx(0.001 * 0.55, rel=0.25)


def test_the_rotation_keeps_scores(rng: np.random.Generator) -> None:
    h = numerics.hadamard(64)
    np.testing.assert_allclose(h @ h.T, np.eye(64), atol=1e-6)
