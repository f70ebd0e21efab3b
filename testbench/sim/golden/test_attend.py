"""Whole jobs: bit for bit the scalar reference, and close to attention in float64."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from m890.hdl.commands import Status
from m890.hdl.config import preset
from m890.hdl.numerics.formats import CODINGS, Format, OutputFormat
from m890.sim.golden import Job, KvSegment, RawSegment, Result, append, attend
from m890.testbench.sim.golden import reference_job

TINY = preset("tiny")
LANES = TINY.lanes


def normal16(rng: np.random.Generator, *shape: int, size: float = 1.0) -> np.ndarray:
    """Normal random numbers as FP16 bits."""
    return (size * rng.standard_normal(shape)).astype(np.float16).view(np.uint16)


def kv(
    rng: np.random.Generator, format: Format, tokens: int, head: int, size: float = 1.0
) -> KvSegment:
    """A segment of quantised normal keys and values."""
    k, k_scale, _ = append(format, normal16(rng, tokens, head, size=size), Format.FP16)
    v, v_scale, _ = append(format, normal16(rng, tokens, head), Format.FP16)
    return KvSegment(k, v, end=tokens, k_scale=k_scale, v_scale=v_scale)


def garble(
    rng: np.random.Generator, segment: KvSegment, share: float, format: Format
) -> KvSegment:
    """Random bits in a share of the elements: NaN, Inf, subnormals, extremes."""

    def spoil(codes: np.ndarray, bits: int) -> np.ndarray:
        noise = rng.integers(0, 1 << bits, codes.shape).astype(codes.dtype)
        return np.where(rng.random(codes.shape) < share, noise, codes)

    bits = CODINGS[format].bits
    k, v = spoil(segment.k, bits), spoil(segment.v, bits)
    scales = (
        None if scale is None else spoil(scale, 8 * scale.itemsize)
        for scale in (segment.k_scale, segment.v_scale)
    )  # fmt: skip
    return replace(segment, k=k, v=v, k_scale=next(scales), v_scale=next(scales))


def check(job: Job) -> Result:
    result = attend(job)
    expected, status = reference_job.attend(job)
    if job.output_format is OutputFormat.RAW:
        assert result.raw is not None
        e, l_value, o = result.raw
        for r, (exponent, total, row) in enumerate(expected):
            assert (int(e[r]), int(l_value[r].view(np.uint32))) == (exponent, total)
            assert o[r].view(np.uint32).tolist() == row
    else:
        assert result.output is not None
        assert result.output.tolist() == expected
    assert int(result.status) == status
    return result


def random_job(rng: np.random.Generator, format: Format) -> Job:
    """A small job that uses any of the features."""
    # Two groups where they have scales of their own, the last one not a whole one.
    longer = 40 if CODINGS[format].grouped else 16
    rows, head = int(rng.integers(1, 5)), int(rng.choice([8, longer]))

    def maybe(share: float = 0.5) -> bool:
        return bool(rng.random() < share)

    query_format = Format.FP16 if maybe(0.7) else Format.BF16
    query = normal16(rng, rows, head, size=float(rng.choice([0.3, 4.0, 60.0])))
    if query_format is Format.BF16:
        query, _, _ = append(Format.BF16, query, Format.FP16)
    segments: list[KvSegment | RawSegment] = []
    for _ in range(int(rng.integers(1, 4))):
        tokens = LANES * int(rng.integers(1, 4))
        mask = rng.random(rows) < 0.7 if maybe() else None
        if maybe(0.2):
            exponent = rng.choice([0, 3, -5, 3999, -4000, 100000], rows).astype(np.int32)
            lo = rng.standard_normal((rows, head + 1)).astype(np.float32)
            lo[:, 0] = np.abs(lo[:, 0])
            segments.append(RawSegment(exponent, lo[:, 0], lo[:, 1:], mask))
            continue
        base = LANES * int(rng.integers(0, 3))
        segment = kv(rng, format, tokens, head, size=float(rng.choice([1.0, 30.0])))
        if maybe(0.3):
            segment = garble(rng, segment, float(rng.choice([0.01, 0.5])), format)
        bias = None
        if maybe(0.3):
            bias = normal16(rng, rows, tokens)
            bias[rng.random(bias.shape) < 0.1] = rng.choice([0xFC00, 0xFF80, 0x7C00, 0x8000])
        start = base + int(rng.integers(0, tokens))
        end = int(rng.integers(start, base + tokens + 1))
        draft = maybe(0.3)
        segments.append(
            replace(segment, base=base, start=start, end=end, row_mask=mask, bias=bias, draft=draft)
        )
    return Job(
        TINY,
        format,
        query,
        segments,
        query_format=query_format,
        position=rng.integers(0, 40, rows),
        draft=rng.integers(0, 1 << 32, rows),
        sink=rng.normal(0, 3, rows).astype(np.float32) if maybe(0.3) else None,
        causal=maybe(),
        window=int(rng.choice([0, 0, 1, 9])),
        sinks=int(rng.choice([0, 2])),
        softcap=float(rng.choice([0.0, 0.0, 20.0, 0.5])),
        output_format=OutputFormat(rng.integers(0, 4)),
        rotate=maybe(0.3),
    )


@pytest.mark.parametrize("format", list(Format))
def test_random_jobs_equal_the_reference(format: Format, rng: np.random.Generator) -> None:
    for _ in range(30):
        check(random_job(rng, format))


def single(job: Job, r: int) -> Job:
    """Row r of a job on its own."""
    segments = []
    for s in job.segments:
        mask = None if s.row_mask is None else s.row_mask[r : r + 1]
        if isinstance(s, RawSegment):
            cut = RawSegment(s.exponent[r : r + 1], s.l[r : r + 1], s.o[r : r + 1], mask)
        else:
            bias = None if s.bias is None else s.bias[r : r + 1]
            cut = replace(s, row_mask=mask, bias=bias)
        segments.append(cut)
    assert job.sink is None or len(job.sink) > r
    return replace(
        job,
        query=job.query[r : r + 1],
        segments=segments,
        position=np.asarray(job.position)[r : r + 1],
        draft=np.asarray(job.draft)[r : r + 1],
        sink=None if job.sink is None else job.sink[r : r + 1],
    )


def test_rows_do_not_touch_each_other(rng: np.random.Generator) -> None:
    for _ in range(20):
        job = replace(random_job(rng, Format.INT8), output_format=OutputFormat.FP32)
        together = attend(job).output
        assert together is not None
        for r in range(len(job.query)):
            alone = attend(single(job, r)).output
            assert alone is not None
            np.testing.assert_array_equal(together[r], alone[0])


@pytest.mark.parametrize("name", ["tiny", "small", "m890"])
def test_a_batch_of_ragged_jobs_equals_each_job(name: str, rng: np.random.Generator) -> None:
    """Own keys and lengths per job, a shared prompt, causal rows."""
    config = preset(name)
    head, rows, tokens = config.lanes, 3, 3 * config.lanes
    shared = kv(rng, Format.E4M3, tokens, head)
    k, k_scale, _ = append(Format.E4M3, normal16(rng, 5, tokens, head), Format.FP16)
    v, v_scale, _ = append(Format.E4M3, normal16(rng, 5, tokens, head), Format.FP16)
    assert k_scale is not None and v_scale is not None
    end = rng.integers(1, tokens + 1, 5)
    query, position = normal16(rng, 5, rows, head), rng.integers(0, tokens, (5, rows))
    own = KvSegment(k, v, end=end, k_scale=k_scale, v_scale=v_scale)
    job = Job(config, Format.E4M3, query, [shared, own], position=position, causal=True)
    batch = attend(job)
    assert batch.output is not None and batch.output.shape == query.shape
    for i in range(5):
        part = KvSegment(k[i], v[i], end=int(end[i]), k_scale=k_scale[i], v_scale=v_scale[i])
        one = attend(replace(job, query=query[i], position=position[i], segments=[shared, part]))
        np.testing.assert_array_equal(batch.output[i], one.output)
        assert batch.status[i] == one.status


def test_what_lies_in_masked_tokens_never_matters(rng: np.random.Generator) -> None:
    segment = kv(rng, Format.FP16, 4 * LANES, 16)
    segment = replace(segment, start=5, end=2 * LANES + 3)
    hidden = (np.arange(4 * LANES) < 5) | (np.arange(4 * LANES) >= 2 * LANES + 3)
    spoiled = garble(rng, segment, 1.0, Format.FP16)
    other = replace(
        segment,
        k=np.where(hidden[:, None], spoiled.k, segment.k),
        v=np.where(hidden[:, None], spoiled.v, segment.v),
    )
    job = Job(TINY, Format.FP16, normal16(rng, 4, 16), [segment])
    a, b = attend(job), attend(replace(job, segments=[other]))
    np.testing.assert_array_equal(a.output, b.output)
    assert a.status == b.status == 0


def test_a_draft_mask_names_32_tokens_from_its_segment_on(rng: np.random.Generator) -> None:
    segment = replace(kv(rng, Format.FP16, 6 * LANES, 8), start=3, draft=True)
    job = Job(TINY, Format.FP16, normal16(rng, 2, 8), [segment], draft=np.array([2**32 - 1, 1]))
    output = check(job).output
    plain = replace(segment, end=3 + 32, draft=False)
    one = replace(segment, end=4, draft=False)
    expected = [attend(replace(job, segments=[s])).output for s in (plain, one)]
    assert output is not None
    for r, whole in enumerate(expected):
        assert whole is not None
        np.testing.assert_array_equal(output[r], whole[r])


def test_a_row_that_sees_nothing_is_zero(rng: np.random.Generator) -> None:
    segment = replace(kv(rng, Format.FP16, 16, 16), start=8)
    job = Job(
        TINY, Format.FP16, normal16(rng, 2, 16), [segment], position=np.array([3, 9]), causal=True
    )
    output = attend(job).output
    assert output is not None
    assert not output[0].any() and output[1].any()
    raw = attend(replace(job, output_format=OutputFormat.RAW)).raw
    assert raw is not None
    assert raw[0][0] == raw[1][0] == 0 and not raw[2][0].any()


def test_raw_states_merge_to_the_whole(rng: np.random.Generator) -> None:
    """Two halves of a context, the first stored raw: the whole, but for the order of rounding."""
    whole = kv(rng, Format.FP16, 8 * LANES, 16)
    half = 4 * LANES
    job = Job(TINY, Format.FP16, normal16(rng, 4, 16, size=3.0), [whole])
    first = attend(
        replace(job, segments=[replace(whole, end=half)], output_format=OutputFormat.RAW)
    )
    assert first.raw is not None
    rest = replace(whole, start=half)
    merged = attend(replace(job, segments=[RawSegment(*first.raw), rest])).values()
    np.testing.assert_allclose(merged, attend(job).values(), rtol=1e-5, atol=1e-6)


def test_status_bits_name_what_happened(rng: np.random.Generator) -> None:
    segment = kv(rng, Format.FP16, LANES, 8)
    job = Job(TINY, Format.FP16, normal16(rng, 1, 8), [segment])
    ones = np.full((LANES, 8), 0x3C00, np.uint16)
    big = np.full((1, 8), 0x6C00, np.uint16)  # 4096

    def status(query: np.ndarray, k: np.ndarray) -> int:
        return int(attend(replace(job, query=query, segments=[replace(segment, k=k)])).status)

    assert status(job.query, segment.k) == 0
    assert status(big, ones) == 1 << Status.OVERFLOW
    assert status(big, ones | 0x8000) == 1 << Status.UNDERFLOW
    assert status(big, np.where(np.arange(8) == 3, 0x7E00, ones)) == 1 << Status.INVALID


@pytest.mark.parametrize("format", list(Format))
@pytest.mark.parametrize("name", ["tiny", "m890"])
def test_close_to_attention_in_float64(name: str, format: Format, rng: np.random.Generator) -> None:
    """Against float64 on the same (quantised) keys: only the arithmetic is left."""
    config = preset(name)
    rows, tokens, head = config.rows, 4 * config.lanes, config.lanes
    segment = kv(rng, format, tokens, head)
    query = normal16(rng, rows, head)
    got = attend(Job(config, format, query, [segment])).values()
    k, v = (_dequantised(c, s, format) for c, s in (
        (segment.k, segment.k_scale), (segment.v, segment.v_scale)
    ))  # fmt: skip
    p = np.exp2(query.view(np.float16).astype(np.float64) @ k.T)
    np.testing.assert_allclose(got, p @ v / p.sum(-1, keepdims=True), rtol=2e-3, atol=2e-3)


def _dequantised(codes: np.ndarray, scale: np.ndarray | None, format: Format) -> np.ndarray:
    """Values by the types of ml_dtypes, times the scales."""
    if CODINGS[format].grouped:
        assert scale is not None
        unit = np.repeat(scale.view(ml_dtypes.float8_e8m0fnu).astype(np.float64), 32, -1)
        if format is Format.INT4:
            value = np.where(codes > 7, codes.astype(np.int64) - 16, codes).astype(np.float64)
        else:
            value = codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
        return value * unit[:, : codes.shape[-1]]
    kind = {
        Format.BF16: ml_dtypes.bfloat16,
        Format.FP16: np.float16,
        Format.E4M3: ml_dtypes.float8_e4m3fn,
        Format.E5M2: ml_dtypes.float8_e5m2,
        Format.INT8: np.int8,
    }[format]
    narrow = codes.astype(np.uint8 if CODINGS[format].bits == 8 else np.uint16)
    value = narrow.view(kind).astype(np.float64)
    if scale is None:
        return value
    return value * scale.view(ml_dtypes.bfloat16).astype(np.float64)[:, None]
