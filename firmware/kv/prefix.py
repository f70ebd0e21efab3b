"""Full pages by the tokens that lead to them: a radix tree whose edges are pages of tokens."""

from collections import OrderedDict
from collections.abc import Sequence

Tokens = tuple[int, ...]


class Node:
    """A full page, reached by the tokens of its path from the root.

    `users` counts the sequences that hold it through the tree; as they hold its whole path, users
    of a node use its ancestors too.
    """

    __slots__ = ("parent", "key", "page", "children", "users")

    def __init__(self, parent: "Node | None", key: Tokens, page: int) -> None:
        self.parent, self.key, self.page = parent, key, page
        self.children: dict[Tokens, Node] = {}
        self.users = 0


class PrefixTree:
    """One tenant's committed full pages, found by their tokens, kept after release until evicted.

    Each page of the tree has one pin, so that the device neither frees nor rewrites it.
    """

    def __init__(self, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self.root = Node(None, (), -1)
        self._order: OrderedDict[Node, None] = OrderedDict()  # least recently used first
        self._unused = 0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def pages(self) -> list[int]:
        """Pages in the tree."""
        return [node.page for node in self._order]

    @property
    def evictable(self) -> int:
        """Pages that no sequence holds through the tree."""
        return self._unused

    def match(self, tokens: Sequence[int]) -> list[Node]:
        """The longest path of full pages that starts as `tokens` do."""
        node, found = self.root, []
        for at in range(0, len(tokens) - self.page_tokens + 1, self.page_tokens):
            child = node.children.get(tuple(tokens[at : at + self.page_tokens]))
            if child is None:
                break
            found.append(child)
            node = child
        return found

    def insert(self, parent: Node, tokens: Tokens, page: int) -> Node | None:
        """A node for a page with one user; None if these tokens have another page already."""
        if tokens in parent.children:
            return None
        node = Node(parent, tokens, page)
        parent.children[tokens] = node
        node.users = 1
        self._order[node] = None
        return node

    def use(self, path: Sequence[Node]) -> None:
        """One more user of every node of a path from the root."""
        for node in path:
            self._unused -= not node.users
            node.users += 1
        self._touch(path)

    def leave(self, path: Sequence[Node]) -> None:
        """One user less of every node of (the end of) a path."""
        for node in path:
            node.users -= 1
            self._unused += not node.users
        self._touch(path)

    def _touch(self, path: Sequence[Node]) -> None:
        # children first: a parent is always more recent than they, so leaves are evicted first
        for node in reversed(path):
            self._order.move_to_end(node)

    def evict(self, count: int) -> list[int]:
        """Takes the `count` least recently used pages without users out, leaves first."""
        gone = []
        for node in self._order:
            if len(gone) == count:
                break
            if not node.users:
                assert node.parent is not None and not node.children
                del node.parent.children[node.key]
                gone.append(node)
        for node in gone:
            del self._order[node]
        self._unused -= len(gone)
        return [node.page for node in gone]
