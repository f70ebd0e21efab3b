"""The worlds that tasks play in: price list, rules, notes and accounts, and the system prompt.

A world is drawn from a seed. Training worlds and held-out worlds share no name and no drawn value:
training uses random letter strings and values outside ``held_value``; held-out worlds use real
words (none of which training ever draws) and only values inside it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

CLAUSES = ("deal", "tax", "ship", "card")
"""Rule clauses whose order of work the system prompt dictates."""

ALIASES: dict[str, tuple[str, ...]] = {
    "calc": ("calc", "math", "eval"),
    "find": ("find", "grep", "seek"),
    "look": ("look", "peek", "view"),
    "save": ("save", "post", "file"),
}
"""Tool -> the names under which a system prompt may offer it."""

ITEMS = (
    "pear lamp sofa desk bowl tent coat boot drum vase soap bulb "
    "chair stool towel spoon brush paint glove scarf clock cable plate "
    "apron easel hinge iron jeans mixer nails onion quilt wagon"
).split()
TOWNS = (
    "oslo rome bonn kyiv lima bern cork nice pisa turin delhi quito dakar perth osaka minsk".split()
)
CLIENTS = (
    "mora finn ivan olga hugo nora emil lena oscar clara jonas maria pedro alice bruno irina"
).split()
HELD_WORDS = frozenset(ITEMS + TOWNS + CLIENTS)

CARD, FEE, TAX, CUT, OVER = "KFXYZ"
"""Codes before numbers that are no prices; an item's code is the capital of its first letter."""
_RESERVED = frozenset((CARD + FEE + TAX + CUT + OVER + "R").lower())

_VOWELS, _CONSONANTS = "aeiouy", "bcdfghjklmnpqrstvwxz"
_SHAPES = (
    "cvcv",
    "cvcc",
    "ccvc",
    "vccv",
    "cvvc",
    "vcvc",
    "cvcvc",
    "ccvcc",
    "ccvvc",
    "cvccv",
    "vcvcv",
)


def code(item: str) -> str:
    """The letter before an item's price."""
    return item[0].upper()


def held_value(value: int) -> bool:
    """Whether a price, fee, credit or rate is kept out of training."""
    return value % 6 == 5


def _value(rng: random.Random, low: int, high: int, held: bool) -> int:
    while True:
        value = rng.randint(low, high)
        if held_value(value) == held:
            return value


def random_names(rng: random.Random, count: int, used: set[str] | None = None) -> list[str]:
    """``count`` different names of random letters, none of them a held-out word or in ``used``."""
    taken = set() if used is None else used
    names: list[str] = []
    while len(names) < count:
        shape = rng.choice(_SHAPES)
        name = "".join(rng.choice(_VOWELS if c == "v" else _CONSONANTS) for c in shape)
        if name not in taken and name not in HELD_WORDS:
            taken.add(name)
            names.append(name)
    return names


def _goods(rng: random.Random, count: int, held: bool, used: set[str]) -> list[str]:
    """``count`` items with different first letters, none of them a code of something else."""
    goods: dict[str, str] = {}
    while len(goods) < count:
        name = rng.choice(ITEMS) if held else random_names(rng, 1, used)[0]
        if name[0] not in _RESERVED and name not in goods.values():
            goods.setdefault(name[0], name)
    used.update(goods.values())
    names = list(goods.values())
    rng.shuffle(names)
    return names


def _names(rng: random.Random, count: int, words: Sequence[str], used: set[str]) -> list[str]:
    """Draw ``count`` new names: from ``words``, or of random letters where there are none."""
    if not words:
        return random_names(rng, count, used)
    names = rng.sample([word for word in words if word not in used], count)
    used.update(names)
    return names


@dataclass(frozen=True)
class World:
    """What the tools know and what the system prompt says.

    ``prices``: item -> price. ``tax``: per cent. ``deal``: (per cent off, threshold).
    ``order``: the clauses of ``CLAUSES`` in the order of work. ``names``: tool -> its name here.
    ``notes``: lines for text search. ``towns``: town -> fee. ``cards``: client -> card.
    ``credits``: card -> credit, or absent. ``receipt``: number of the first receipt.
    """

    prices: dict[str, int]
    tax: int
    deal: tuple[int, int]
    order: tuple[str, ...]
    names: dict[str, str]
    notes: tuple[str, ...]
    towns: dict[str, int]
    cards: dict[str, str]
    credits: dict[str, int]
    receipt: int
    held: bool

    def prompt(self) -> str:
        """The system prompt, about 200 characters; ends with a newline."""
        tools = " ".join(f"{tool}:{self.names[tool]}" for tool in ALIASES)
        prices = ",".join(f"{item} {code(item)}{price}" for item, price in self.prices.items())
        order = " ".join(f"{rank}{clause}" for rank, clause in enumerate(self.order, 1))
        cut, over = self.deal
        return (
            f"#tools {tools}\n#price {prices}\n#tax {TAX}{self.tax}\n"
            f"#deal {CUT}{cut} over {OVER}{over}\n#order {order}\n"
        )


def make_world(rng: random.Random, held: bool, items: int = 10, people: int = 8) -> World:
    """Draw a world with ``items`` prices and ``people`` towns and clients."""
    used: set[str] = {name for names in ALIASES.values() for name in names} | set(CLAUSES)
    goods = _goods(rng, items, held, used)
    towns = _names(rng, people, TOWNS if held else (), used)
    clients = _names(rng, people, CLIENTS if held else (), used)
    notes: list[str] = []
    fees: dict[str, int] = {}
    cards: dict[str, str] = {}
    credits: dict[str, int] = {}
    for town in towns:
        fees[town] = _value(rng, 11, 98, held)
        zone = rng.randint(1, 9)
        notes.append(
            rng.choice(
                (f"{town} {FEE}{fees[town]} zone {zone}", f"{town} zone {zone} {FEE}{fees[town]}")
            )
        )
    for client in clients:
        card = CARD + str(rng.randint(10, 99))
        while card in cards.values():
            card = CARD + str(rng.randint(10, 99))
        cards[client] = card
        notes.append(rng.choice((f"{client} has card {card}", f"card {card} is of {client}")))
        if rng.random() < 0.75:
            credits[card] = _value(rng, 11, 98, held)
    order = list(CLAUSES)
    rng.shuffle(order)
    rng.shuffle(notes)
    return World(
        prices={item: _value(rng, 11, 98, held) for item in goods},
        tax=_value(rng, 10, 29, held),
        deal=(_value(rng, 10, 35, held), _value(rng, 100, 900, held)),
        order=tuple(order),
        names={tool: rng.choice(aliases) for tool, aliases in ALIASES.items()},
        notes=tuple(notes),
        towns=fees,
        cards=cards,
        credits=credits,
        receipt=rng.randint(10, 60),
        held=held,
    )
