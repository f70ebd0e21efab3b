"""The helper for plain arrays against attention in float64."""

import numpy as np
import pytest

from m890.hdl.config import preset
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim.golden import attention

TINY = preset("tiny")


def exact(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray, cap: float = 0.0
) -> np.ndarray:
    """visible: [tokens, length]."""
    share = len(q) // len(k)
    k, v = np.repeat(k, share, 0), np.repeat(v, share, 0)
    s = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    s = cap * np.tanh(s / cap) if cap else s
    p = np.where(visible, np.exp(s), 0)
    return p @ v / p.sum(-1, keepdims=True)


def inputs(rng: np.random.Generator, heads: int, tokens: int, length: int, head: int) -> list:
    shapes = (heads, tokens, head), (heads // 2, length, head), (heads // 2, length, head)
    return [rng.standard_normal(shape) for shape in shapes]


def test_grouped_causal_window_and_sinks(rng: np.random.Generator) -> None:
    """Sizes that are no multiples of lanes or rows."""
    q, k, v = inputs(rng, 6, 3, 29, 12)
    place, t = np.arange(26, 29)[:, None], np.arange(29)
    visible = (t <= place) & ((t > place - 10) | (t < 2))
    got = attention(TINY, q, k, v, causal=True, window=10, sinks=2)
    assert got.shape == q.shape and got.dtype == np.float32
    np.testing.assert_allclose(got, exact(q, k, v, visible), rtol=3e-3, atol=3e-3)


def test_soft_cap_is_in_the_natural_domain(rng: np.random.Generator) -> None:
    q, k, v = inputs(rng, 2, 4, 40, 16)
    got = attention(TINY, 4 * q, k, v, softcap=2.5)
    np.testing.assert_allclose(
        got, exact(4 * q, k, v, np.ones((4, 40), bool), 2.5), rtol=3e-3, atol=3e-3
    )


@pytest.mark.parametrize(
    ("format", "tolerance"),
    [
        (Format.BF16, 0.03),
        (Format.FP16, 0.003),
        (Format.E4M3, 0.15),
        (Format.E5M2, 0.3),
        (Format.INT8, 0.03),
    ],
)
def test_every_format(format: Format, tolerance: float, rng: np.random.Generator) -> None:
    q, k, v = inputs(rng, 2, 4, 64, 32)
    query = Format.BF16 if format is Format.BF16 else Format.FP16
    for output in (OutputFormat.FP16, OutputFormat.FP32, OutputFormat.BF16):
        got = attention(
            TINY, q, k, v, format=format, query_format=query, output_format=output
        )  # fmt: skip
        reference = exact(q, k, v, np.ones((4, 64), bool))
        np.testing.assert_allclose(got, reference, atol=tolerance, rtol=tolerance)


def test_a_scale_and_positions_of_the_user(rng: np.random.Generator) -> None:
    q, k, v = inputs(rng, 2, 3, 16, 8)
    position = np.array([5, 0, 15])
    got = attention(TINY, q, k, v, scale=1.0, causal=True, position=position)
    visible = np.arange(16) <= position[:, None]
    np.testing.assert_allclose(got, exact(q * np.sqrt(8), k, v, visible), rtol=5e-3, atol=5e-3)


def test_heads_that_share_unevenly_are_refused(rng: np.random.Generator) -> None:
    q, k, v = inputs(rng, 6, 1, 8, 8)
    with pytest.raises(ValueError, match="5 query heads do not share 3 KV heads evenly"):
        attention(TINY, q[:5], k, v)
