"""An ATTEND job by the scalar reference: loops over rows, tokens and features, nothing clever."""

from fractions import Fraction
from typing import Any

import numpy as np

from m890.hdl.commands import Status
from m890.hdl.numerics.formats import CODINGS, Format, OutputFormat
from m890.sim.golden import Job, KvSegment, RawSegment
from m890.testbench.sim.golden import reference as ref
from m890.testbench.sim.golden import reference_rotate


def attend(job: Job) -> tuple[Any, int]:
    """(rows of output bits, or a list of raw states for RAW; status) of a job without batch."""
    rows, head = job.query.shape
    status: set[Status] = set()
    out = []
    for r in range(rows):
        codes = [int(c) for c in job.query[r]]
        if job.rotate:
            codes = reference_rotate.query(codes, job.query_format, job.config.lanes)
        query = [ref.decode(c, job.query_format) for c in codes]
        slots: list[ref.Wide] = [ref.ZERO] * 8
        o: list[ref.Wide] = [ref.ZERO] * head
        if job.sink is not None:
            p, event = ref.exp2(ref.from_fp32(int(np.float32(job.sink[r]).view(np.uint32))))
            _note(status, event)
            slots[0] = ref.add(ref.ZERO, ref.value(p))
        for segment in job.segments:
            if segment.row_mask is not None and not segment.row_mask[r]:
                continue
            if isinstance(segment, RawSegment):
                _add_raw(segment, r, slots, o, status)
            else:
                _stream(job, segment, r, query, slots, o, status)
        total = ref.sum_slots(slots)
        if total is None or (total != 0 and None in o):
            status.add(Status.INVALID)
        if job.output_format is OutputFormat.RAW:
            out.append(ref.raw(total, o))
        else:
            if job.rotate:
                o = reference_rotate.back(o, job.config.lanes)
            out.append([ref.output(total, x, job.output_format.name) for x in o])
    return out, sum(1 << bit for bit in status)


def _note(status: set[Status], event: str) -> None:
    if event and event != "invalid":  # NaN is judged by what comes out
        status.add(Status[event.upper()])


def _visible(job: Job, segment: KvSegment, r: int, t: int) -> bool:
    if not segment.start <= t < segment.end:
        return False
    if segment.draft:
        i = t - int(segment.start)
        return i < 32 and bool(int(np.asarray(job.draft)[r]) >> i & 1)
    position = int(np.broadcast_to(job.position, job.query.shape[:1])[r])
    if job.causal and t > position:
        return False
    return not job.window or t + job.window > position or t < job.sinks


def _stream(
    job: Job,
    segment: KvSegment,
    r: int,
    query: list[ref.Element],
    slots: list[ref.Wide],
    o: list[ref.Wide],
    status: set[Status],
) -> None:
    lanes, head = job.config.lanes, len(query)
    scaled = CODINGS[job.format].scaled
    for chunk in range(len(segment.k) // lanes):
        pv = []
        for lane in range(lanes):
            index = chunk * lanes + lane
            t = int(segment.base) + index
            key = _decode(job.format, segment.k[index], segment.k_scale, index)
            s: ref.Wide = None
            for at in range(0, head, lanes):
                part = ref.dot(query[at : at + lanes], key[at : at + lanes])
                s = part if at == 0 else ref.add(s, part)
            if scaled:
                assert segment.k_scale is not None
                s = ref.scale(s, int(segment.k_scale[index]))
            cap = np.float32(job.softcap)
            if cap:
                s = ref.soft_cap(s, Fraction(float(cap)), Fraction(float(np.float32(1) / cap)))
            visible = _visible(job, segment, r, t)
            if segment.bias is not None:
                bias = ref.decode_float(int(segment.bias[r, index]), job.query_format)
                if bias == float("-inf"):
                    visible = False
                elif isinstance(bias, float):
                    s = None
                else:
                    s = ref.add(s, ref.Fraction(bias))
            p, event = ref.exp2(s)
            if not visible:
                p, event = ref.Element(0, 0, 0, False), ""
            _note(status, event)
            slots[lane % 8] = ref.add(slots[lane % 8], ref.value(p))
            if scaled:
                assert segment.v_scale is not None
                p = ref.scale_p(p, int(segment.v_scale[index]))
            pv.append(p)
        values = [
            _decode(job.format, segment.v[index], segment.v_scale, index)
            for index in range(chunk * lanes, (chunk + 1) * lanes)
        ]
        for f in range(head):
            o[f] = ref.add(o[f], ref.dot(pv, [row[f] for row in values]))


def _decode(
    format: Format, codes: np.ndarray, scales: np.ndarray | None, index: int
) -> list[ref.Element]:
    """Elements of a token's row."""
    if not CODINGS[format].grouped:
        return [ref.decode(int(c), format) for c in codes]
    assert scales is not None
    wide = [ref.ungroup(int(c), int(scales[index][f // 32]), format) for f, c in enumerate(codes)]
    return [ref.decode(c, Format.BF16) for c in wide]


def _add_raw(
    segment: RawSegment, r: int, slots: list[ref.Wide], o: list[ref.Wide], status: set[Status]
) -> None:
    exponent = int(segment.exponent[r])
    x, event = ref.read_raw(exponent, int(segment.l[r].view(np.uint32)))
    _note(status, event)
    slots[0] = ref.add(slots[0], x)
    for f, value in enumerate(segment.o[r]):
        x, event = ref.read_raw(exponent, int(value.view(np.uint32)))
        _note(status, event)
        o[f] = ref.add(o[f], x)
