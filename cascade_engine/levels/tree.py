"""Drafts as trees: proposals of several sources merged into a trie, and what a level reviews."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

MAX_NODES = 64
"""Nodes of one reviewed tree: native code keeps a bit for each."""

ROOT = -1
"""Parent of the tokens that follow the row directly."""


class TokenTree:
    """Up to 64 drafted tokens behind one token of a row, the root.

    Node j has the token `tokens[j]` and the parent `parents[j]` < j, or ROOT. `probs[j]` is the
    probability that the level which drafted it gave it behind its parent (1 for a copied text),
    `sources[j]` that level. Raises ValueError for lists of different lengths, too many nodes, a
    parent that does not come before its child, and for siblings with the same token.
    """

    __slots__ = ("ancestors", "depths", "parents", "probs", "sources", "tokens")

    def __init__(
        self,
        tokens: Sequence[int],
        parents: Sequence[int],
        probs: Sequence[float],
        sources: Sequence[int],
    ) -> None:
        lengths = {len(tokens), len(parents), len(probs), len(sources)}
        if len(lengths) != 1:
            raise ValueError(f"tokens, parents, probs and sources differ in length: {lengths}")
        if len(tokens) > MAX_NODES:
            raise ValueError(f"a tree has at most {MAX_NODES} nodes, got {len(tokens)}")
        self.tokens, self.parents = list(tokens), list(parents)
        self.probs, self.sources = list(probs), list(sources)
        self.depths: list[int] = []
        """0 for the root's children."""
        self.ancestors: list[int] = []
        """Words of 64 bits: bit i of word j says that node i is node j or an ancestor of it."""
        seen = set()
        for j, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            if not ROOT <= parent < j:
                raise ValueError(f"parents[{j}] must be in {ROOT}..{j - 1}, got {parent}")
            if (parent, token) in seen:
                raise ValueError(f"node {j}: node {parent} already has a child with token {token}")
            seen.add((parent, token))
            self.depths.append(0 if parent == ROOT else self.depths[parent] + 1)
            self.ancestors.append(1 << j | (0 if parent == ROOT else self.ancestors[parent]))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def reach(self) -> int:
        """Tokens on the longest path."""
        return max(self.depths, default=-1) + 1

    def chances(self) -> list[float]:
        """The probability of each node with those above it."""
        chances: list[float] = []
        for prob, parent in zip(self.probs, self.parents, strict=True):
            chances.append(prob if parent == ROOT else prob * chances[parent])
        return chances

    def ranks(self, path: Sequence[int]) -> list[int]:
        """For nodes of a path from the root: how many of the tree's nodes have likelier paths, or
        as likely ones before it, so that a smaller tree has a node if its rank is below that tree's
        size."""
        return [likelier.bit_count() for likelier in self._likelier(path)]

    def likeliest(self, path: Sequence[int], begin: int = 0) -> list[bool]:
        """For nodes of a path from the root, from number `begin` of them on: whether they are the
        likeliest of their siblings. Lastly, whether its end has children."""
        found = []
        for parent, node in zip((ROOT, *path), (*path, None), strict=True):
            siblings = [j for j, above in enumerate(self.parents) if above == parent]
            if node is None:
                found.append(bool(siblings))
            else:
                found.append(node == max(siblings, key=lambda j: self.probs[j]))
        return found[begin:]

    def needed(
        self, path: Sequence[int], sizes: Sequence[int], begin: int = 0
    ) -> list[tuple[int, int]]:
        """How many reviews of trees of each size would have given what this one gave behind the
        first `begin` nodes of the path: its other nodes and one token more. Where a tree ends, the
        next begins with what is below that node. And how many tokens of it the last of them gave,
        if it might have gone on, else 0."""
        likelier, below = self._likelier(path), [self._below(ROOT), *map(self._below, path)]
        found, end = [], path[-1] if path else ROOT
        ended = end in self.parents
        for size in sizes:
            reviews, at = 0, begin
            while at <= len(path):
                tree, first = below[at], at
                while at < len(path) and (likelier[at] & tree).bit_count() < size:
                    at += 1
                at += 1
                reviews += 1
            found.append((reviews, 0 if ended or first == begin else at - first))
        return found

    def _below(self, node: int) -> int:
        """The nodes below one, as bits."""
        if node == ROOT:
            return (1 << len(self)) - 1
        return sum(1 << j for j in range(node + 1, len(self)) if self.ancestors[j] >> node & 1)

    def _likelier(self, path: Sequence[int]) -> list[int]:
        """By node of a path, as bits: which have likelier paths, or as likely ones before it."""
        order = sorted(range(len(self)), key=self.chances().__getitem__, reverse=True)
        masks, seen = dict[int, int](), 0
        for node in order:
            masks[node] = seen
            seen |= 1 << node
        return [masks[node] for node in path]


class TokenTrie:
    """Everything that was drafted behind one row of tokens; grows until the target's review.

    A token that several sources propose behind the same tokens is one node: its source is the first
    that proposed it, its probability the highest.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._probs: list[float] = []
        self._sources: list[int] = []
        self._children: list[dict[int, int]] = [{}]
        """Token -> node, of the root at 0 and of node j at j + 1; as far as `_index` has come."""
        self._alone = False
        """The nodes are one proposed tree and nothing else."""

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, parent: int, token: int, prob: float, source: int) -> int:
        """The node of `token` behind node `parent` (or ROOT), new or not."""
        self._index()
        self._alone = False
        siblings = self._children[parent + 1]
        node = siblings.get(token)
        if node is None:
            node = siblings[token] = len(self._tokens)
            self._tokens.append(token)
            self._parents.append(parent)
            self._probs.append(prob)
            self._sources.append(source)
            self._children.append({})
        elif prob > self._probs[node]:
            self._probs[node] = prob
        return node

    def add_chain(
        self, parent: int, tokens: Sequence[int], probs: Sequence[float], sources: Sequence[int]
    ) -> list[int]:
        """Tokens behind each other; returns their nodes."""
        nodes = []
        for token, prob, source in zip(tokens, probs, sources, strict=True):
            parent = self.add(parent, token, prob, source)
            nodes.append(parent)
        return nodes

    def add_tree(
        self,
        parent: int,
        tokens: Sequence[int],
        parents: Sequence[int],
        probs: Sequence[float],
        source: int,
    ) -> None:
        """A tree in flat form, its root at node `parent`; `probs` are of whole paths."""
        shares = shares_of(parents, probs)
        if not self._tokens and parent == ROOT:
            self._tokens, self._parents, self._probs = list(tokens), list(parents), shares
            self._sources = [source] * len(shares)
            self._alone = True
            return
        nodes: list[int] = []
        for token, above, share in zip(tokens, parents, shares, strict=True):
            nodes.append(self.add(parent if above == ROOT else nodes[above], token, share, source))

    def overrule(self, node: int) -> None:
        """A level put `node` in place of its siblings: they share what it left them."""
        self._index()
        left = max(0.0, 1.0 - self._probs[node])
        for sibling in self._children[self._parents[node] + 1].values():
            if sibling != node:
                self._probs[sibling] = min(self._probs[sibling], left)

    def best(self, root: int, chain: Sequence[int], nodes: int, depth: int) -> TokenTree:
        """The tree behind node `root` that a review gets: `chain`, the row's own drafts, then the
        nodes with the most probable paths, `nodes` in all, none deeper than `depth` tokens.

        The likeliest path comes first, so that an accepted one mostly stands where it belongs.
        """
        nodes = min(nodes, MAX_NODES)
        if self._alone and root == ROOT and len(self) <= min(nodes, depth):
            picked = list(range(len(self)))
        else:
            picked = self._picked(root, chain, nodes, depth)
        order = self._likeliest_first(root, chain, picked)
        number = {node: j for j, node in enumerate(order)}
        return TokenTree(
            [self._tokens[node] for node in order],
            [number.get(self._parents[node], ROOT) for node in order],
            [self._probs[node] for node in order],
            [self._sources[node] for node in order],
        )

    def _index(self) -> None:
        """Every node stands among its parent's children."""
        for node in range(len(self._children) - 1, len(self._tokens)):
            self._children[self._parents[node] + 1][self._tokens[node]] = node
            self._children.append({})

    def _picked(self, root: int, chain: Sequence[int], nodes: int, depth: int) -> list[int]:
        """Nodes in the order of choice: the chain, then by path probability."""
        self._index()
        picked = list(chain)
        heap: list[tuple[float, int, int]] = []

        def offer(parent: int, prob: float, tokens: int) -> None:
            if tokens < depth:
                for child in self._children[parent + 1].values():
                    if child not in in_chain:
                        heapq.heappush(heap, (-prob * self._probs[child], child, tokens + 1))

        in_chain = set(chain)
        above, prob = root, 1.0
        for tokens, node in enumerate((*chain, ROOT)):
            offer(above, prob, tokens)
            above, prob = node, prob * self._probs[node] if node != ROOT else 0.0
        while heap and len(picked) < nodes:
            negative, node, tokens = heapq.heappop(heap)
            picked.append(node)
            offer(node, -negative, tokens)
        return picked

    def _likeliest_first(self, root: int, chain: Sequence[int], picked: list[int]) -> list[int]:
        """The chain, continued by the first picked child of each node, then the others."""
        order = list(chain)
        last = chain[-1] if chain else root
        for node in picked[len(chain) :]:
            if self._parents[node] == last:
                order.append(node)
                last = node
        first = set(order)
        return order + [node for node in picked if node not in first]


def shares_of(parents: Sequence[int], probs: Sequence[float]) -> list[float]:
    """Each node's probability behind its parent, from those of whole paths."""
    return [
        prob if above == ROOT else prob / probs[above] if probs[above] > 0.0 else 0.0
        for above, prob in zip(parents, probs, strict=True)
    ]


def unmoved(path: Sequence[int]) -> int:
    """Leading nodes of a path that stand in the slots of their positions: a tree begins with the
    row's own drafts."""
    return next((i for i, node in enumerate(path) if node != i), len(path))
