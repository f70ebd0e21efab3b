"""Full pages by the tokens that lead to them: a radix tree whose edges are pages of tokens."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

Tokens = tuple[int, ...]


class Node:
    """A full page of a tree, reached by the tokens of its path from a root.

    `users` counts the sequences that hold it through a tree; as they hold its whole path, users
    of a node use its ancestors too. A node under those that another tenant has published uses them
    as long as it is there.
    """

    __slots__ = ("tree", "parent", "key", "page", "children", "users")

    def __init__(self, tree: "PrefixTree", parent: "Node | None", key: Tokens, page: int) -> None:
        self.tree, self.parent, self.key, self.page = tree, parent, key, page
        self.children: dict[tuple[PrefixTree, Tokens], Node] = {}
        self.users = 0

    @property
    def lent(self) -> "list[Node]":
        """Its ancestors that are another tenant's, from the root on."""
        node, out = self.parent, []
        while node is not None and node.parent is not None:
            if node.tree.tenant != self.tree.tenant:
                out.append(node)
            node = node.parent
        return out[::-1]


def use(path: Sequence[Node]) -> None:
    """One more user of every node of a path from a root."""
    for node in path:
        node.tree.unused -= not node.users
        node.users += 1
    _touch(path)


def leave(path: Sequence[Node]) -> None:
    """One user less of every node of (the end of) a path."""
    for node in path:
        node.users -= 1
        node.tree.unused += not node.users
    _touch(path)


def _touch(path: Sequence[Node]) -> None:
    # children first: a parent is always more recent than they, so leaves are evicted first
    for node in reversed(path):
        node.tree.touch(node)


class PrefixTree:
    """Committed full pages of a tenant, found by their tokens, kept after release until evicted.

    Each page of the tree has one pin, so that the device neither frees nor rewrites it. A tenant
    has a tree for itself, and one of the pages that it has published: under these its own nodes and
    those of others may stand. Its own are evicted first, so that none is left without its parent.
    """

    def __init__(self, page_tokens: int, tenant: int) -> None:
        self.page_tokens, self.tenant = page_tokens, tenant
        self.root = Node(self, None, (), -1)
        self.unused = 0
        self._order: OrderedDict[Node, None] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._order)

    @property
    def pages(self) -> list[int]:
        """Pages in the tree."""
        return [node.page for node in self._order]

    @property
    def evictable(self) -> int:
        """Pages that no sequence holds through the tree, and no other tenant."""
        return self.unused

    def match(self, tokens: Sequence[int], published: "Iterable[PrefixTree]" = ()) -> list[Node]:
        """The longest path of full pages that starts as `tokens` do, here or in published trees.

        Behind the pages of a published tree it may go on with this tree's.
        """
        best: list[Node] = []
        for start in (self, *published):
            node, found = start.root, []
            for at in range(0, len(tokens) - self.page_tokens + 1, self.page_tokens):
                key = tuple(tokens[at : at + self.page_tokens])
                child = node.children.get((start, key)) or node.children.get((self, key))
                if child is None:
                    break
                found.append(child)
                node = child
            best = max(best, found, key=len)  # of equals the first: its own
        return best

    def insert(self, parent: Node, tokens: Tokens, page: int) -> Node | None:
        """A node for a page with one user; None if these tokens have another page already."""
        if (self, tokens) in parent.children:
            return None
        node = Node(self, parent, tokens, page)
        parent.children[self, tokens] = node
        node.users = 1
        self._order[node] = None
        use(node.lent)
        return node

    def touch(self, node: Node) -> None:
        """The node is the most recent one."""
        self._order.move_to_end(node)

    def evict(self, count: int) -> list[int]:
        """Takes the `count` least recently used pages without users out, leaves first."""
        gone = []
        for node in self._order:
            if len(gone) == count:
                break
            if not node.users:
                gone.append(node)
                self._unlink(node)
        for node in gone:
            del self._order[node]
        self.unused -= len(gone)
        return [node.page for node in gone]

    def remove(self, node: Node) -> None:
        """Takes a leaf out that its last user gives up."""
        self._unlink(node)
        del self._order[node]

    def _unlink(self, node: Node) -> None:
        assert node.parent is not None and not node.children
        del node.parent.children[self, node.key]
        leave(node.lent)
