"""What the KV read path must bring for a job, computed from the page layout alone."""

from binascii import crc_hqx
from dataclasses import dataclass, field

import numpy as np

from m890.hdl.commands import Error, SegmentKind
from m890.hdl.config import CoreConfig
from m890.hdl.control.layouts import ENTRIES
from m890.hdl.kv.items import ItemKind
from m890.hdl.layout import TAG_START, PageLayout, raw_stride
from m890.hdl.numerics.formats import CODINGS, GROUP, Format
from m890.hdl.numerics.four_bits import CODE_BITS
from m890.testbench.hdl.kv.support import Image


@dataclass
class Segment:
    """A segment and what the test's memory holds of it."""

    kind: SegmentKind
    start: int
    end: int
    row_mask: int
    table: int
    address: int
    sequence: int = 0
    pages: dict[int, int] = field(default_factory=dict)  # index in the block table -> page number

    def payload(self, *, index: int, last: bool) -> dict[str, int]:
        names = ("start", "end", "row_mask", "table", "address", "sequence")
        return {
            "kind": int(self.kind),
            "last": int(last),
            "index": index,
            **{name: getattr(self, name) for name in names},
        }


@dataclass
class Job:
    """A job, with the rows' masks that decide which chunks are visible."""

    slot: int
    ident: int
    format: Format
    tiles: int
    tags: bool
    base: int
    stride: int
    bias: int
    rows: int
    causal: bool
    window: int
    sinks: int
    positions: list[int]
    drafts: list[int]
    segments: list[Segment]
    tenant: int = 0

    def payload(self) -> dict[str, int]:
        names = (
            "slot", "ident", "format", "tiles", "tags", "base", "stride", "bias", "rows", "tenant",
        )  # fmt: skip
        return {name: int(getattr(self, name)) for name in names}

    def sees(self, row: int, token: int, segment_start: int, *, draft: bool) -> bool:
        """Whether a row's masks show it a token (docs/numerics.md, visibility)."""
        if draft:
            at = token - segment_start
            return at < 32 and bool(self.drafts[row] >> at & 1)
        position = self.positions[row]
        near = not self.window or token + self.window > position or token < self.sinks
        return (not self.causal or token <= position) and near

    def seen(self, low: int, high: int, start: int, row_mask: int, *, draft: bool) -> bool:
        """Whether any row of the mask sees a token of [low, high]."""
        return any(
            self.sees(row, token, start, draft=draft)
            for row in range(self.rows)
            if row_mask >> row & 1
            for token in range(low, high + 1)
        )


@dataclass
class Streams:
    """Everything that the path brings, in order; wide payloads as lists of codes."""

    item: list[dict[str, int]] = field(default_factory=list)
    k_beat: list[list[int]] = field(default_factory=list)
    v_beat: list[list[int]] = field(default_factory=list)
    scale: list[list[int]] = field(default_factory=list)  # K's, then V's
    bias_beat: list[list[int]] = field(default_factory=list)
    raw_beat: list[tuple[int, int, int]] = field(default_factory=list)  # (row, first, data)
    query: list[tuple[int, int]] = field(default_factory=list)  # (t_low, t_high) asked about
    table: list[int] = field(default_factory=list)  # table beats read
    k_fault: list[tuple[int, int, int]] = field(default_factory=list)  # (job, sequence, token)
    v_fault: list[tuple[int, int, int]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Payloads of the streams and questions."""
        return {name: len(value) for name, value in vars(self).items() if name != "table"}


def expect(config: CoreConfig, image: Image, jobs: list[Job]) -> Streams:
    """The streams of these jobs, bus errors of K, V, biases and states aside."""
    out = Streams()
    for job in jobs:
        _job(config, image, job, out)
    return out


def _job(config: CoreConfig, image: Image, job: Job, out: Streams) -> None:
    lanes, port = config.lanes, config.port_bytes
    error, index = Error.OK, 0
    common = {"slot": job.slot, "ident": job.ident, "tiles": job.tiles, "rows": job.rows}
    common |= {"format": int(job.format), "tags": int(job.tags)}
    for n, s in enumerate(job.segments):
        about = common | {"index": n, "start": s.start, "end": s.end, "row_mask": s.row_mask}
        if s.kind == SegmentKind.RAW:
            if error == Error.OK:
                out.item.append(about | {"kind": ItemKind.RAW})
                _raw(config, image, job, s, out)
            continue
        draft = s.kind == SegmentKind.DRAFT
        first, line = s.start // lanes, None
        for chunk in range(first, (s.end - 1) // lanes + 1 if s.end > s.start else first):
            token = chunk * lanes
            low, high = max(token, s.start), min(token + lanes, s.end) - 1
            out.query.append((low, high))
            if not job.seen(low, high, s.start, s.row_mask, draft=draft):
                continue
            entry = token // config.page_tokens
            if line != (line := (s.table + 4 * entry) // port * port):
                out.table.append(line)
            if error != Error.OK:
                continue
            page = s.pages[entry]
            if line in image.errors:
                error, index = Error.BUS_ERROR, n
                continue
            error = _reach(config, image, page, job.tenant)
            if error != Error.OK:
                index = n
                continue
            out.item.append(
                about
                | {"kind": ItemKind.CHUNK, "base_token": token, "draft": draft, "bias": job.bias}
            )
            inside = token % config.page_tokens
            _chunk(config, image, job, page, inside, out)
            for t in range(low, high + 1) if job.tags else ():
                for value in range(2):
                    if not _whole(config, image, job, page, inside + t - token, value=bool(value)):
                        fault = (job.ident % ENTRIES, s.sequence, t)
                        (out.k_fault, out.v_fault)[value].append(fault)
            if job.bias:
                at = s.address + (chunk - first) * job.rows * port
                for row in range(job.rows):
                    codes = image.codes(at + row * port + 2 * np.arange(lanes), 2)
                    out.bias_beat.append(codes.tolist())
    out.item.append(common | {"kind": ItemKind.END, "error": error, "index": index})


def _reach(config: CoreConfig, image: Image, page: int, tenant: int) -> Error:
    """Why a tenant cannot reach a page."""
    if page >= config.pages:
        return Error.BAD_PAGE
    owner = image.owner(page)
    if owner["damaged"]:
        return Error.TABLE_ERROR
    if not owner["live"]:
        return Error.BAD_PAGE
    return Error.OK if owner["tenant"] == tenant or owner["public"] else Error.BAD_TENANT


def _chunk(
    config: CoreConfig, image: Image, job: Job, page: int, inside: int, out: Streams
) -> None:
    layout = PageLayout(config, job.format, job.tiles, job.tags)
    coding = CODINGS[job.format]
    start = job.base + page * job.stride
    token = inside + np.arange(config.lanes)[:, None]
    feature = np.arange(job.tiles * config.lanes)[None]
    k, v = (
        _codes(image, start, layout, token, feature, value=value) for value in (False, True)
    )  # fmt: skip
    for tile in range(job.tiles):
        features = slice(tile * config.lanes, (tile + 1) * config.lanes)
        out.k_beat += k[:, features].tolist()
        out.v_beat += v[:, features].T.tolist()
    if coding.scaled:
        scales = [layout.scale(token[:, 0], value=value) for value in (False, True)]  # type: ignore
        out.scale.append(image.codes(start + np.concatenate(scales), 2).tolist())


def _codes(
    image: Image, start: int, layout: PageLayout, token: np.ndarray, feature: np.ndarray, *,
    value: bool,
) -> np.ndarray:  # fmt: skip
    """What the array gets of K (or V): stored codes, with the scale above where groups have one."""
    at = start + layout.element(token, feature, value=value)  # type: ignore[arg-type]
    codes = image.codes(np.asarray(at), max(1, layout.coding.bits // 8))
    if not layout.coding.grouped:
        return codes
    scales = [
        image.codes(start + layout.scale(token[:, 0], value=value, group=group), 1)  # type: ignore
        for group in range(layout.scale_bytes)
    ]
    beside = np.repeat(np.stack(scales, -1).astype(codes.dtype), GROUP, -1)[..., : codes.shape[-1]]
    return codes >> CODE_BITS * (feature % 2) & 15 | beside << CODE_BITS


def _whole(
    config: CoreConfig, image: Image, job: Job, page: int, token: int, *, value: bool
) -> bool:
    """Whether a row's tag is its own. In two of three rows it is made so."""
    layout = PageLayout(config, job.format, job.tiles, job.tags)
    start = job.base + page * job.stride
    elements = np.array(
        [
            layout.element(token, feature, value=value) + n
            for feature in range(0, job.tiles * config.lanes, max(1, 8 // layout.coding.bits))
            for n in range(max(1, layout.coding.bits // 8))
        ]
    )
    scale, at = layout.scale(token, value=value), start + layout.tag(token, value=value)
    half = image.bytes(start + np.arange(scale, layout.tag(token, value=value)))
    tag = crc_hqx(image.bytes(start + elements).tobytes() + half.tobytes(), TAG_START)
    low = at // 4 * 4
    word = image.words.get(low, int.from_bytes(image.bytes(low + np.arange(4)).tobytes(), "little"))
    if tag % 3:
        word = word & ~(0xFFFF << 8 * (at - low)) | tag << 8 * (at - low)
        image.words[low] = word
    return word >> 8 * (at - low) & 0xFFFF == tag


def _raw(config: CoreConfig, image: Image, job: Job, s: Segment, out: Streams) -> None:
    stride = raw_stride(config, job.tiles)
    for row in range(job.rows):
        for at in range(0, stride, config.port_bytes):
            out.raw_beat.append((row, int(at == 0), image.beat(s.address + row * stride + at)))
