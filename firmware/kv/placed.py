"""Sequences on pages in an order of one's choice, whose KV does not come by APPEND.

What another chip or a file holds is written into the pages by whoever has it. The page manager
gives the pages and counts them as all others.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m890.firmware.driver import Driver


def take(driver: Driver, count: int, *, tenant: int = 0) -> NDArray[np.int64]:
    """Numbers of `count` new pages, each with a pin; what lies in them is left as it is."""
    at = driver.buffer(4 * count)
    driver.wait(driver.submit("COPY", inward=1, blank=1, tenant=tenant, list=at, count=count))
    pages = driver.view(at, (count,), "<u4").astype(np.int64)
    driver.free(at)
    return pages


def adopt(driver: Driver, sequence: int, pages: ArrayLike, table: int, *, tenant: int = 0) -> None:
    """Opens a sequence on taken pages, in this order and full of tokens; their pins are given up.

    table: address of its block table, which has room for these pages and no more.
    """
    numbers = np.asarray(pages, "<u4")
    at, tokens = driver.place(numbers), numbers.size * driver.config.page_tokens
    opened = driver.submit(
        "CREATE", sequence=sequence, tenant=tenant, table=table, limit=tokens, tokens=tokens,
        list=at,
    )  # fmt: skip
    loose = driver.submit("UNPIN", listed=1, tenant=tenant, list=at, count=numbers.size)
    driver.wait([opened, loose])
    driver.free(at)
