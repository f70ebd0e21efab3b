"""The page manager's commands on behalf of a KV cache."""

import numpy as np

from m890.firmware.driver import Driver
from m890.firmware.memory_map import round_up
from m890.hdl.commands import Query


class PageCommands:
    """Block tables of all sequences, and commands that name pages; `limit`: tokens of a table."""

    def __init__(self, driver: Driver, limit: int) -> None:
        config = driver.config
        self.driver, self.page_tokens = driver, config.page_tokens
        self._table_bytes = round_up(4 * -(-limit // self.page_tokens), config.port_bytes)
        tables = driver.map.allocate("block tables", self._table_bytes * config.sequences)
        self._at = tables.start
        self.tables = driver.view(self._at, (config.sequences, self._table_bytes // 4), "<u4")

    def table(self, number: int, tenant: int) -> dict[str, int]:
        """Fields of a command that opens a sequence."""
        at = self._at + number * self._table_bytes
        return {"table": at, "limit": self._table_bytes // 4 * self.page_tokens, "tenant": tenant}

    def open(self, number: int, pages: list[int], tokens: int, tenant: int) -> None:
        """Opens a sequence with pages that are pinned."""
        self.listed("CREATE", pages, sequence=number, tokens=tokens, **self.table(number, tenant))

    def unpin(self, pages: list[int], tenant: int) -> None:
        """Takes a pin away from each page."""
        if pages:
            self.listed("UNPIN", pages, listed=1, count=len(pages), tenant=tenant)

    def listed(self, opcode: str, pages: list[int], **fields: int) -> None:
        """A command with a list of pages."""
        at = self.driver.place(np.array(pages or [0], "<u4"))
        try:
            self.driver.wait(self.driver.submit(opcode, list=at, **fields))
        finally:
            self.driver.free(at)

    def held(self, tenant: int) -> int:
        """Pages that a tenant holds."""
        return self.ask(Query.HELD, tenant=tenant)

    def ask(self, what: Query, **fields: int) -> int:
        """The answer of a QUERY."""
        done = self.driver.wait(self.driver.submit("QUERY", what=int(what), **fields))
        return int(done["beats"][0])
