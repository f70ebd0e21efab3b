"""Damaged tokens: computed anew, rewritten where they are, and the jobs that met them run again.

A job that reads a row of K or V whose tag is not its own ends with BAD_TAG and has written nothing.
K and V of a token in a layer follow from the token, its place, and attention in the layers before
over the tokens up to its own. So one token is taken through these layers once more, its outputs are
used for nothing else, and only the plane that was named is rewritten. What it reads on the way may
be damaged too, and is then repaired first: always in an earlier layer, so this comes to an end.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m890.firmware.errors import BadTag, Unrepairable
from m890.firmware.kvcache import KvCache
from m890.firmware.layer import Floats, LayerCommands
from m890.firmware.models.backend import Recompute
from m890.firmware.planner import Request, plan
from m890.firmware.records import unpack
from m890.hdl.commands import APPEND, ATTEND, Error, Opcode

ATTEMPTS = 3
"""Repairs of one token before its memory is given up."""


class Repair(NamedTuple):
    """A token of a sequence that was rewritten in a plane."""

    sequence: int
    plane: int
    token: int


class Whole(NamedTuple):
    """The decoder of which a core of a cluster has the KV heads `kv` only.

    `attend`: as `Repairer.attend`, of all heads [1, H, dh].
    """

    kv: slice
    attend: Callable[[int, int, int, Floats], Floats]


class Repairer:
    """Repairs what jobs of a KV cache report; `repairs` lists what has been rewritten so far.

    A committed token needs `recompute`, and a sequence whose tokens are known; without them its
    BadTag is raised. A token of the step at hand is appended once more from the step's own source.
    `whole`: where the cache has some heads of the decoder only.
    """

    def __init__(
        self,
        cache: KvCache,
        commands: LayerCommands,
        recompute: Recompute | None,
        whole: Whole | None = None,
    ) -> None:
        self.cache, self.driver, self.config = cache, cache.driver, cache.config
        self.commands, self.recompute = commands, recompute
        self.whole = whole or Whole(slice(None), self.attend)
        self.repairs: list[Repair] = []

    def finish(self, commands: NDArray[np.uint8], done: NDArray) -> NDArray:
        """Completions of commands once every job has read whole tokens; `done`: the first ones.

        Unrepairable if a token is damaged each time it has been rewritten.
        """
        tries: Counter[tuple[int, int, int]] = Counter()
        while (bad := np.flatnonzero(done["error"] == Error.BAD_TAG)).size:
            for place, damage in self._damages(commands[bad], done[bad]).items():
                if tries[place] == ATTEMPTS:
                    raise Unrepairable(damage, ATTEMPTS)
                tries[place] += 1
                self._repair(damage, commands)
            again = self.driver.submit_many(commands[bad])
            done[bad] = self.driver.wait(again, but=Error.BAD_TAG)
        return done

    def _damages(
        self, jobs: NDArray[np.uint8], done: NDArray
    ) -> dict[tuple[int, int, int], BadTag]:
        """What failed jobs have met, by plane, page and place: shared pages are named once."""
        found: dict[tuple[int, int, int], BadTag] = {}
        for plane, result in zip(unpack(ATTEND, jobs)["plane"].tolist(), done, strict=True):
            sequence, token = int(result["index"]), int(result["beats"])
            index, inside = divmod(token, self.config.page_tokens)
            page = self.cache.block_table(sequence)[index]
            damage = BadTag(sequence, plane, token, int(result["tag"]))
            found.setdefault((plane, page, inside), damage)
        return found

    def _repair(self, damage: BadTag, commands: NDArray[np.uint8]) -> None:
        sequence, plane, token = damage.sequence, damage.plane, damage.token
        if token >= self.cache.length(sequence):
            self.driver.wait(self.driver.submit_many(self._from_step(damage, commands)))
        else:
            self._rewrite(damage)
        self.repairs.append(Repair(sequence, plane, token))

    def _from_step(self, damage: BadTag, commands: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An APPEND of one token out of the step's own, which brought it."""
        appends = unpack(APPEND, commands[commands[:, 0] == Opcode.APPEND])
        offset = damage.token - appends["start"]
        here = (appends["plane"] == damage.plane) & (appends["sequence"] == damage.sequence)
        here &= (offset >= 0) & (offset < appends["tokens"])
        fields = {name: int(column[here][0]) for name, column in appends.items()}
        skip = int(offset[here][0]) * fields["source_stride"]
        fields |= {"k": fields["k"] + skip, "v": fields["v"] + skip}
        fields |= {"start": damage.token, "tokens": 1, "commit": 0}
        return self.driver.pack(Opcode.APPEND, 1, fields)

    def _rewrite(self, damage: BadTag) -> None:
        """Recomputes a committed token and writes it in place, for all who share its page."""
        sequence, token = damage.sequence, damage.token
        tokens = self.cache.tokens(sequence)
        if self.recompute is None or tokens is None:
            raise damage
        layer, head = divmod(damage.plane, self.commands.kv_heads)
        own, attend = self.whole
        k, v = self.recompute(
            tokens[token], token, layer, lambda before, q: attend(before, sequence, token, q)
        )
        k_row, v_row = self.commands.sources(k[:, own], v[:, own])[:, head]
        at = self.driver.place(np.stack([k_row, v_row]))
        append = self.driver.submit(
            Opcode.APPEND, plane=damage.plane, sequence=sequence, start=token, tokens=1,
            source_format=int(self.commands.source_format), k=at, v=at + k_row.nbytes,
            source_stride=k_row.nbytes, tenant=self.cache.tenant(sequence), repair=1,
        )  # fmt: skip
        self.driver.free(at)
        self.driver.wait(append)

    def attend(self, layer: int, sequence: int, token: int, q: Floats) -> Floats:
        """Attention [1, H, dh] of the cache's heads for a token that is there already."""
        request = Request(sequence, token, 1, (), tenant=self.cache.tenant(sequence))
        made = plan(self.config, [request], self.commands.group, share=False)
        tables, offsets = made.tables(self.config.port_bytes)
        buffers: list[int] = []
        try:
            buffers.append(tables_at := self.driver.place(tables))
            buffers.append(query_at := self.driver.place(self.commands.queries(made, q)))
            buffers.append(output_at := self.driver.buffer(self.commands.output_bytes(made)))
            jobs = self.commands.attends(
                made, tables_at + offsets, self.commands.planes(layer), query_at, output_at
            )
            done = self.driver.wait(self.driver.submit_many(jobs), but=Error.BAD_TAG)
            self.finish(jobs, done)
            return self.commands.outputs(made, output_at, 1)
        finally:
            self.driver.free(*buffers)
