"""Which chunks of a job's segments the rows can see."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m890.hdl.commands import SegmentKind
from m890.hdl.config import TOKEN_BITS, CoreConfig
from m890.hdl.kv.items import (
    ITEM_DEPTH,
    ItemKind,
    entry_layout,
    job_layout,
    see_layout,
    segment_layout,
)
from m890.hdl.memory.queue import Queue
from m890.hdl.numerics.pipeline import bundle

SEEN_LATENCY = 2
"""Cycles from a question on `see` to its answer on `seen`."""


class Walker(wiring.Component):
    """Walks a job's segments and lets through the chunks that some row can see.

    Function
        KV and DRAFT segments: chunks start // lanes ... (end - 1) // lanes, in order; those that no
        row sees disappear (not translated, never fetched). RAW segments: one RAW entry. After a
        job's last segment: one END entry.
    Members
        job, segment : streams in. A job, then its segments; the one marked `last` ends the job.
        see : the question, one a cycle at most. seen : its answer, SEEN_LATENCY cycles later.
        o : stream of entries. An entry's `source` is the segment's `address`; for a chunk, advanced
            by `rows` port beats per chunk of the segment, skipped ones included.
    Latency
        Job to first entry: 9 cycles where its segment is there and its first chunk visible.
    Throughput
        One chunk per cycle, visible or not; 7 cycles between two segments.
    Backpressure
        A question is asked only when there is room for its chunk. No combinational paths.
    Storage
        ITEM_DEPTH entries.
    """

    job: stream.Interface
    segment: stream.Interface
    see: data.View
    seen: Signal
    o: stream.Interface

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        super().__init__(
            {
                "job": In(stream.Signature(job_layout(config))),
                "segment": In(stream.Signature(segment_layout(config))),
                "see": Out(see_layout(config)),
                "seen": In(1),
                "o": Out(stream.Signature(entry_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        config = self.config
        m = Module()
        m.submodules.entries = entries = Queue(entry_layout(config), ITEM_DEPTH)
        wiring.connect(m, entries.o, wiring.flipped(self.o))

        shift = config.lanes.bit_length() - 1
        zeros = Const(0, shift)
        job = Signal(job_layout(config))
        segment = Signal(segment_layout(config))
        top = Signal(TOKEN_BITS)  # the segment's last token
        chunk = Signal(TOKEN_BITS - shift)
        following = Signal(TOKEN_BITS - shift)
        source = Signal(config.address_bits)
        is_first, is_last, empty = Signal(), Signal(), Signal()
        step, push = Signal(), Signal()

        # Chunks whose visibility is being asked, oldest last; the segment waits for them to leave.
        stage = data.StructLayout({"valid": 1, "chunk": len(chunk), "source": len(source)})
        asked = [Signal(stage, name=f"asked{n}") for n in range(SEEN_LATENCY + 1)]
        m.d.sync += [
            asked[0].valid.eq(step),
            asked[0].chunk.eq(chunk),
            asked[0].source.eq(source),
            *(after.eq(before) for before, after in zip(asked, asked[1:], strict=False)),
        ]
        settled = ~Cat(one.valid for one in asked).any()
        question, is_question = bundle(self.see.shape(), name="question"), Signal()
        m.d.sync += is_question.eq(step)
        with m.If(step):  # otherwise what answers it stands still
            m.d.sync += [
                question.slot.eq(job.slot),
                question.t_low.eq(Mux(is_first, segment.start, Cat(zeros, chunk))),
                question.t_high.eq(Mux(is_last, top, Cat(~zeros, chunk))),
                question.start.eq(segment.start),
                question.draft.eq(segment.kind == SegmentKind.DRAFT),
                question.row_mask.eq(segment.row_mask),
            ]
        m.d.comb += [self.see.eq(question), self.see.valid.eq(is_question)]

        kind = Signal(2, init=ItemKind.CHUNK)
        entry = entries.i.payload
        m.d.comb += [
            entries.i.valid.eq(asked[-1].valid & self.seen | push),
            *(
                entry.item[name].eq(job[name])
                for name in ("slot", "ident", "tiles", "format", "tags", "rows")
            ),
            *(
                entry.item[name].eq(segment[name])
                for name in ("start", "end", "row_mask", "index", "sequence")
            ),
            entry.item.kind.eq(kind),
            entry.item.bias.eq(job.bias),
            entry.item.draft.eq(segment.kind == SegmentKind.DRAFT),
            entry.item.base_token.eq(Cat(zeros, asked[-1].chunk)),
            entry.base.eq(job.base),
            entry.stride.eq(job.stride),
            entry.tenant.eq(job.tenant),
            entry.table.eq(segment.table),
            entry.source.eq(Mux(kind == ItemKind.RAW, segment.address, asked[-1].source)),
        ]

        with m.FSM(name="walk"):
            with m.State("JOB"):
                m.d.comb += self.job.ready.eq(1)
                m.d.sync += job.eq(self.job.payload)
                with m.If(self.job.valid):
                    m.next = "SEGMENT"
            with m.State("SEGMENT"):
                m.d.comb += self.segment.ready.eq(settled)
                with m.If(settled & self.segment.valid):
                    m.d.sync += segment.eq(self.segment.payload)
                    m.next = "OPEN"
            with m.State("OPEN"):
                m.d.sync += [
                    top.eq(segment.end - 1),
                    empty.eq(segment.start >= segment.end),
                    chunk.eq(segment.start[shift:]),
                    following.eq(segment.start[shift:] + 1),
                    source.eq(segment.address),
                    is_first.eq(1),
                ]
                m.next = "MEASURE"
            with m.State("MEASURE"):
                m.d.sync += is_last.eq(chunk == top[shift:])
                with m.If(segment.kind == SegmentKind.RAW):
                    m.next = "RAW"
                with m.Elif(~empty):
                    m.next = "WALK"
                with m.Elif(segment.last):
                    m.next = "END"
                with m.Else():
                    m.next = "SEGMENT"
            with m.State("WALK"):
                # All chunks asked about and this one may turn out visible.
                m.d.comb += step.eq(entries.level < ITEM_DEPTH - len(asked))
                with m.If(step):
                    m.d.sync += [
                        is_first.eq(0),
                        is_last.eq(following == top[shift:]),
                        chunk.eq(following),
                        following.eq(following + 1),
                        source.eq(source + Cat(Const(0, shift + 1), job.rows)),
                    ]
                    with m.If(is_last):
                        m.next = "SEGMENT"
                        with m.If(segment.last):
                            m.next = "END"
            with m.State("RAW"):
                m.d.comb += [kind.eq(ItemKind.RAW), push.eq(1)]
                with m.If(entries.i.ready):
                    m.next = "SEGMENT"
                    with m.If(segment.last):
                        m.next = "END"
            with m.State("END"):
                with m.If(settled):
                    m.d.comb += [kind.eq(ItemKind.END), push.eq(1)]
                    with m.If(entries.i.ready):
                        m.next = "JOB"
        return m
