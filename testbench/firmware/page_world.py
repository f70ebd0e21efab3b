"""A device's page manager beside its reference model: each command to both, outcomes compared."""

import random

import numpy as np
from numpy.typing import NDArray

from m890.firmware.driver import Driver
from m890.firmware.memory_map import PlaneShape, pool_bytes
from m890.firmware.records import pack
from m890.hdl.commands import COMMANDS, ROW, SEGMENT, Error, Opcode, Query
from m890.hdl.layout import PageLayout
from m890.hdl.numerics.formats import Format, OutputFormat
from m890.sim import golden
from m890.sim.golden.pages import PageManager
from m890.testbench.hdl.pages.traffic import Map, Traffic

PLANES = ((Format.FP16, 1), (Format.E4M3, 2))
"""Formats and tiles of the planes."""
TABLE_PAGES = 24
"""Pages that a block table has room for."""
HOST_SLOTS = 8


class PageWorld:
    """Planes, block tables, lists and a host pool on a device whose page manager is as after reset.

    `model` has a memory of its own, that starts as the device's. `do` gives a command to both and
    compares completions; `check` compares what lies in block tables, lists, planes and host pool.
    """

    def __init__(self, driver: Driver, rng: np.random.Generator) -> None:
        self.driver, self.config, self.rng = driver, driver.config, rng
        config = driver.config
        self.layouts = [PageLayout(config, format, tiles) for format, tiles in PLANES]
        self.map = self._map()
        self.model = PageManager(config, driver.memory.copy())
        self.model.planes = dict(enumerate(self.map.planes))
        self.size = config.page_tokens
        self.tokens: dict[int, list[int]] = {}  # of sequences that `grow` and `fork` make
        self._next = 0
        self._buffers: list[int] = []  # of scratch memory, since the last `recycle`
        for plane, (layout, (base, stride, _)) in enumerate(
            zip(self.layouts, self.map.planes, strict=True)
        ):
            driver.wait(
                driver.submit(
                    "PLANE", plane=plane, format=int(layout.format), head=layout.tiles, base=base,
                    stride=stride,
                )
            )  # fmt: skip

    def _map(self) -> Map:
        driver, config = self.driver, self.config
        port, table = config.port_bytes, -(-4 * TABLE_PAGES // config.port_bytes)
        tables = driver.map.allocate("tables", config.sequences * table * port).start
        lists = driver.map.allocate("lists", 2 * -(-4 * config.pages // port) * port).start
        planes = []
        for layout in self.layouts:
            shape = PlaneShape(1, layout.format, layout.tiles * config.lanes)
            at = driver.map.allocate("plane", pool_bytes(config, shape, config.pages)).start
            planes.append((at, layout.page_bytes, layout.page_bytes))
        stride = sum(layout.page_bytes for layout in self.layouts) + port
        host = driver.map.allocate("host", HOST_SLOTS * stride).start
        return Map(
            tables, table * port, lists, host, stride, HOST_SLOTS, tuple(planes), driver.memory.size
        )

    # ---------------------------------------------------------------- commands

    def fields(self, opcode: Opcode, **given: int) -> dict[str, int]:
        """All fields of a command; addresses of tables, lists and sources where none is given."""
        c = dict.fromkeys((f.name for f in COMMANDS[opcode].fields), 0)
        opened = given.get("target" if opcode == Opcode.FORK else "sequence", 0)
        usual = {
            "table": self.map.tables + opened * self.map.table_bytes,
            "limit": TABLE_PAGES * self.size, "list": self.map.lists, "slots": self.slots,
            "host": self.map.host, "host_stride": self.map.host_stride, "host_slots": HOST_SLOTS,
            "opcode": int(opcode),
        }  # fmt: skip
        return c | {name: usual[name] for name in c.keys() & usual.keys()} | given

    @property
    def slots(self) -> int:
        """Address of the second list."""
        port = self.config.port_bytes
        return self.map.lists + -(-4 * self.config.pages // port) * port

    def do(self, opcode: Opcode, **given: int) -> np.void:
        """One command, on the device and the model; its completion, equal to the model's."""
        return self.run(opcode, self.fields(opcode, **given))

    def run(self, opcode: Opcode, c: dict[str, int]) -> np.void:
        """As `do`, of all fields."""
        source = self._source(c) if opcode == Opcode.APPEND else None
        expected = self.model.run(opcode, c)
        done = self.driver.results(self.driver.submit_many([COMMANDS[opcode].pack(**c)]))[0]
        note = f"{opcode.name} {c}: {Error(done['error']).name}, not {expected}"
        assert done["error"] == expected.error, note
        assert done["field"] == expected.field, note
        if expected.error or opcode == Opcode.QUERY:
            assert done["index"] == expected.index, note
        if opcode == Opcode.QUERY:
            assert done["beats"] == expected.value, note
        if source is not None and not expected.error:
            self.model.committed(c)
            self._write(c, source)
        self.recycle()
        return done

    def recycle(self) -> None:
        """Sources, jobs and outputs made so far are done with."""
        self.driver.free(*self._buffers)
        self._buffers.clear()

    def query(self, what: Query, **given: int) -> int:
        return int(self.do(Opcode.QUERY, what=int(what), **given)["beats"])

    def put(self, numbers: list[int], at: int | None = None) -> None:
        """Page numbers into a list in both memories."""
        at = self.map.lists if at is None else at
        for memory in (self.driver.memory, self.model.memory):
            memory[at : at + 4 * len(numbers)].view("<u4")[:] = numbers

    def draw(self, traffic: Traffic) -> tuple[Opcode, dict[str, int]]:
        """A random command, its lists in both memories, and an APPEND with a plane and a source."""
        opcode, c = traffic.draw()
        end = self.slots + self.slots - self.map.lists
        self.driver.memory[self.map.lists : end] = self.model.memory[self.map.lists : end]
        if opcode == Opcode.APPEND:
            c["plane"] = int(self.rng.integers(len(PLANES)))
            c |= {"k": 0, "v": 0, "source_stride": 0, "source_format": int(Format.FP16)}
        return opcode, c

    def traffic(self, seed: int) -> Traffic:
        return Traffic(random.Random(seed), self.model, self.map)

    def check(self) -> None:
        """Block tables, lists, pages and host slots are the model's."""
        at = slice(self.map.tables, self.map.host + HOST_SLOTS * self.map.host_stride)
        assert np.array_equal(self.driver.memory[at], self.model.memory[at])
        assert self.query(Query.FREE) == len(self.model.free)

    # ---------------------------------------------------------------- tokens

    def open(self, sequence: int, tokens: int = 0, tenant: int = 0) -> None:
        """A new sequence with so many tokens, in all planes."""
        assert not self.do(Opcode.CREATE, sequence=sequence, tenant=tenant)["error"]
        self.tokens[sequence] = []
        if tokens:
            self.grow(sequence, tokens)

    def grow(self, sequence: int, tokens: int) -> None:
        """Appends tokens in all planes, and commits them."""
        one = self.model.sequences[sequence]
        start = one.length
        names = range(self._next, self._next + tokens)
        self._next += tokens
        self.tokens[sequence][start:] = list(names)
        for plane in range(len(PLANES)):
            done = self.do(
                Opcode.APPEND, plane=plane, sequence=sequence, tenant=one.tenant, start=start,
                tokens=tokens, commit=int(plane == len(PLANES) - 1), **self.place(plane, names),
            )  # fmt: skip
            assert not done["error"]

    def fork(self, sequence: int, target: int, tokens: int) -> None:
        tenant = self.model.sequences[sequence].tenant
        fields = {"sequence": sequence, "target": target, "tokens": tokens, "tenant": tenant}
        assert not self.do(Opcode.FORK, **fields)["error"]
        self.tokens[target] = self.tokens[sequence][:tokens]

    def rows(self, plane: int, names: list[int] | range) -> NDArray[np.uint16]:
        """K and V [2, tokens, head] of tokens by name, FP16 bits."""
        head = self.layouts[plane].tiles * self.config.lanes
        rows = [np.random.default_rng([plane, n]).normal(size=(2, head)) for n in names]
        return np.stack(rows, 1).astype(np.float16).view(np.uint16)

    def place(self, plane: int, names: list[int] | range) -> dict[str, int]:
        """K and V of tokens in scratch memory, as an APPEND names them."""
        rows = self.rows(plane, names)
        at = self.driver.place(rows)
        self._buffers.append(at)
        return {"k": at, "v": at + rows[0].nbytes, "source_stride": rows.shape[2] * 2,
                "source_format": int(Format.FP16)}  # fmt: skip

    def _source(self, c: dict[str, int]) -> NDArray[np.uint16] | None:
        """K and V of an APPEND [2, tokens, head]; a source where it has none."""
        if c["plane"] >= len(PLANES):
            return None
        head = self.layouts[c["plane"]].tiles * self.config.lanes
        tokens = max(1, min(c["tokens"], TABLE_PAGES * self.size))
        if not c["source_stride"]:
            c |= self.place(c["plane"], range(self._next, self._next + tokens))
            self._next += tokens
        found = [self.driver.view(c[n], (tokens, head), "<u2") for n in "kv"]
        return np.stack(found)

    def _write(self, c: dict[str, int], source: NDArray[np.uint16]) -> None:
        """What an APPEND leaves in the model's pages."""
        layout, (base, stride, _) = self.layouts[c["plane"]], self.map.planes[c["plane"]]
        table, lanes = self.model.block_table(c["sequence"]), self.config.lanes
        for value in (False, True):
            codes, scale, _ = golden.append(layout.format, source[int(value)], Format.FP16)
            for n, row in enumerate(codes.astype(f"<u{layout.coding.bits // 8}")):
                page, token = divmod(c["start"] + n, self.size)
                start = base + table[page] * stride
                for tile in range(layout.tiles):
                    part = np.ascontiguousarray(row[tile * lanes : (tile + 1) * lanes])
                    at = start + layout.element(token, tile * lanes, value=value)
                    self.model.memory[at : at + part.nbytes] = part.view(np.uint8)
                if scale is not None:
                    at = start + layout.scale(token, value=value)
                    self.model.memory[at : at + 2] = scale[n : n + 1].astype("<u2").view(np.uint8)

    # ---------------------------------------------------------------- jobs

    def attend(self, plane: int, sequences: list[int], tenant: int = 0) -> dict[str, int]:
        """An ATTEND of one query over whole sequences, one after the other; FP32 output."""
        port, head = self.config.port_bytes, self.layouts[plane].tiles * self.config.lanes
        rows = pack(ROW, 1, {"position": 0})
        entries = [
            SEGMENT.pack(sequence=s, end=self.model.sequences[s].length, row_mask=1)
            for s in sequences
        ]
        table = rows.tobytes() + bytes(-rows.size % port) + b"".join(entries)
        query = np.random.default_rng(plane).normal(size=head).astype(np.float16)
        placed = [self.driver.place(np.frombuffer(table, np.uint8)), self.driver.place(query)]
        output = self.driver.buffer(4 * head)
        self._buffers += [*placed, output]
        return self.fields(
            Opcode.ATTEND, plane=plane, rows=1, segments=len(sequences), tables=placed[0],
            query=placed[1], output=output, query_stride=2 * head, output_stride=4 * head,
            query_format=1, output_format=int(OutputFormat.FP32), tenant=tenant,
        )  # fmt: skip

    def expected(self, plane: int, sequences: list[int]) -> NDArray:
        """The golden model's output of that job, bits of FP32."""
        layout, segments = self.layouts[plane], []
        head = layout.tiles * self.config.lanes
        for sequence in sequences:
            names = self.tokens[sequence]
            codes, scales = np.zeros((2, 0, head), np.uint16), None
            rows = self.rows(plane, names)
            spare = -len(names) % self.config.lanes
            made = [golden.append(layout.format, row, Format.FP16) for row in rows]
            codes = np.stack([np.pad(m[0], ((0, spare), (0, 0))) for m in made])
            if layout.coding.scaled:
                scales = [np.pad(m[1], (0, spare)) for m in made if m[1] is not None]
            segments.append(
                golden.KvSegment(
                    codes[0], codes[1], len(names),
                    k_scale=scales[0] if scales else None, v_scale=scales[1] if scales else None,
                )
            )  # fmt: skip
        query = np.random.default_rng(plane).normal(size=head).astype(np.float16)
        job = golden.Job(
            self.config, layout.format, query.view(np.uint16)[None], segments,
            query_format=Format.FP16, position=np.zeros(1, np.int64), causal=False,
            output_format=OutputFormat.FP32,
        )  # fmt: skip
        found = golden.attend(job).output
        assert found is not None
        return found[0]

    def output(self, command: dict[str, int]) -> NDArray[np.uint32]:
        return self.driver.view(command["output"], (command["output_stride"] // 4,), "<u4")
