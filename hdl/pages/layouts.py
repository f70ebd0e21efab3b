"""What the page manager keeps, and what flows between its blocks."""

from amaranth.lib import data, enum

from m890.hdl.config import PIN_BITS, REFERENCE_BITS, TOKEN_BITS, CoreConfig
from m890.hdl.control.layouts import bits

MOST_REFERENCES = (1 << REFERENCE_BITS) - 1
MOST_PINS = (1 << PIN_BITS) - 1


class Op(enum.Enum, shape=4):  # type: ignore[call-arg]
    """What to do with a page, or with a tenant's counts."""

    LOOK = 0  # only check that it is there and the tenant's
    PINNED = 1  # the same, and that it is pinned
    HOLD = 2  # one reference or pin more
    DROP = 3  # one less; at 0 the page is still nobody else's
    MARK = 4  # it is public now
    COLLECT = 5  # free it, if nobody holds it
    TAKE = 6  # a free page, with one reference or pin
    TENANT = 7  # tell a tenant's counts
    QUOTA = 8  # set a tenant's quota


def page_bits(config: CoreConfig) -> int:
    """Width of a page number of this pool."""
    return bits(config.pages)


def count_bits(config: CoreConfig) -> int:
    """Width of a number of pages of this pool."""
    return config.pages.bit_length()


def places_bits(config: CoreConfig) -> int:
    """Width of a number of block table entries."""
    return TOKEN_BITS - (config.page_tokens.bit_length() - 1) + 1


def page_layout(config: CoreConfig) -> data.StructLayout:
    """A page's word. live: not free; then `references`, else the next free page in its place."""
    return data.StructLayout(
        {
            "live": 1, "public": 1, "tenant": bits(config.tenants), "pins": PIN_BITS,
            "references": REFERENCE_BITS,
        }
    )  # fmt: skip


def tenant_layout(config: CoreConfig) -> data.StructLayout:
    """Pages that a tenant holds and may hold."""
    return data.StructLayout({"held": count_bits(config), "quota": count_bits(config)})


def sequence_layout(config: CoreConfig) -> data.StructLayout:
    """Entry of the sequence table.

    shared: pages from this one on are the sequence's alone.
    """
    places = places_bits(config)
    return data.StructLayout(
        {
            "open": 1, "table": config.address_bits, "limit": TOKEN_BITS,
            "tenant": bits(config.tenants), "pages": places, "shared": places,
        }
    )  # fmt: skip


def operation_layout(config: CoreConfig) -> data.StructLayout:
    """For PageStore. bad: `number` is no page; pin: of pins, not of references; value: QUOTA."""
    return data.StructLayout(
        {
            "op": Op, "number": page_bits(config), "bad": 1, "pin": 1,
            "tenant": bits(config.tenants), "value": count_bits(config),
        }
    )  # fmt: skip


def outcome_layout(config: CoreConfig) -> data.StructLayout:
    """From PageStore. shared: others hold the page too; number: TAKE's page; word: zero if free."""
    return data.StructLayout(
        {
            "error": 8, "shared": 1, "number": page_bits(config), "word": page_layout(config),
            "counts": tenant_layout(config),
        }
    )  # fmt: skip


def move_layout(config: CoreConfig) -> data.StructLayout:
    """`beats` port beats from `source` to `target`; of the last one `tail` bytes (0: all)."""
    port = bits(config.port_bytes)
    return data.StructLayout(
        {
            "source": config.address_bits, "target": config.address_bits, "beats": 20,
            "tail": port,
        }
    )  # fmt: skip
