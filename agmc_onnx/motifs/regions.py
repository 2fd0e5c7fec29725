"""Single-entry single-exit regions of a directed acyclic graph, and their canonical form.

The exit of a region is dominated by its entry, and all edges of the nodes between stay inside; the entry may have
further edges. The smallest region that ends in a node is its *atom*: one edge, or a join with all that leads to it.
Atoms in a row, each the only way on from the one before, are a chain. Regions nest, so every graph has one
decomposition (as the program structure tree of Johnson, Pearson and Pingali 1994).
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import networkx as nx

_SEARCHED = 2048  # a join inside a larger tangle is given up as a region after so many atoms; keeps the time linear

LocalEdge = tuple[Hashable, Hashable, str]


@dataclass(frozen=True, eq=False)
class Regions:
    """The decomposition of a graph with nodes 0..n-1 in topological order, source 0 and sink n-1.

    Attributes:
        edges: (source, target) of every edge.
        entry: Entry of the atom that ends in a node (its immediate dominator); -1 where there is no such region.
        key: Canonical key of that atom; "" where there is none.
        edge: The atom's edge where it is a single one, else -1.
        inner: For the others, the atom's edges in canonical order: (source, target, child). Sources and targets are
            numbered from 0 = entry, 1 = exit; a child is an edge, or ~node for the atom that ends in that node.
        span: [start, stop) of the atom's edges in `order`.
        order: All edges, so laid out that every region is an interval; the last edge of a chain comes first.
        chains: Ends of atoms in a row.
        parted: Atoms of one edge whose op makes other nodes too.
    """

    edges: Sequence[tuple[int, int]]
    entry: list[int]
    key: list[str]
    edge: list[int]
    inner: dict[int, list[tuple[int, int, int]]]
    span: list[tuple[int, int]]
    order: list[int]
    chains: list[list[int]]
    parted: frozenset[int]

    def expand(self, atoms: Sequence[int]) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Return the nodes of a row of atoms and its edges (source, target, edge), both in canonical order.

        Args:
            atoms: Ends of consecutive atoms of a chain.

        Returns:
            Nodes (the entry first), and edges whose source and target are positions in the list of nodes.
        """
        nodes = [self.entry[atoms[0]], *atoms]
        edges: list[tuple[int, int, int]] = []
        stack = [(atom, i, i + 1) for i, atom in reversed(list(enumerate(atoms)))]
        while stack:
            atom, first, last = stack.pop()
            if atom < 0:  # an edge, as ~edge
                edges.append((first, last, ~atom))
                continue
            if self.edge[atom] >= 0:
                edges.append((first, last, self.edge[atom]))
                continue
            numbers = {0: first, 1: last}
            children = []
            for source, target, child in self.inner[atom]:
                for local in (source, target):
                    if local not in numbers:
                        numbers[local] = len(nodes)
                        nodes.append(-1)
                nodes[numbers[target]] = ~child if child < 0 else self.edges[child][1]
                children.append((~child, numbers[source], numbers[target]))
            stack.extend(reversed(children))
        return nodes, edges


def canonical_form(
    edges: Iterable[LocalEdge], entry: Hashable, exit: Hashable
) -> tuple[str, list[int], list[int], list[int]]:
    """Return the canonical key of a directed acyclic two-terminal graph, and its edges in canonical order.

    The key spells out every edge with its direction, so equal keys mean isomorphic graphs. The order comes from colours
    refined along the edges' direction and against it; nodes that two rounds cannot tell apart are taken as they come.

    Args:
        edges: (source, target, label); every node is on a path from entry to exit.
        entry: The node without incoming edges.
        exit: The node without outgoing edges.

    Returns:
        The key, the positions in `edges` in canonical order, and each one's source and target numbers (entry 0, exit
        1).
    """
    listed = list(edges)
    ins: dict[Hashable, list[int]] = {entry: [], exit: []}
    outs: dict[Hashable, list[int]] = {entry: [], exit: []}
    for k, (source, target, _) in enumerate(listed):
        for node in (source, target):
            ins.setdefault(node, [])
            outs.setdefault(node, [])
        ins[target].append(k)
        outs[source].append(k)
    ordered = _topological(ins, outs, listed)
    colour = dict.fromkeys(ordered, "")
    for _ in range(2):
        back: dict[Hashable, str] = {}
        for node in ordered:
            back[node] = digest(colour[node], sorted((listed[k][2], back[listed[k][0]]) for k in ins[node]))
        ahead: dict[Hashable, str] = {}
        for node in reversed(ordered):
            ahead[node] = digest(colour[node], sorted((listed[k][2], ahead[listed[k][1]]) for k in outs[node]))
        colour = {node: back[node] + ahead[node] for node in ordered}
        if len(set(colour.values())) == len(colour):
            break
    number = {entry: 0, exit: 1}
    queue = [exit]
    order: list[int] = []
    for node in queue:  # breadth first, against the edges
        for k in sorted(ins[node], key=lambda k: (listed[k][2], colour[listed[k][0]])):
            source = listed[k][0]
            if source not in number:
                number[source] = len(number)
                queue.append(source)
            order.append(k)
    sources, targets = ([number[listed[k][side]] for k in order] for side in (0, 1))  # type: ignore[index]
    return digest(*zip(sources, targets, (listed[k][2] for k in order), strict=True)), order, sources, targets


def canonical_key(graph: nx.MultiDiGraph, entry: Hashable, exit: Hashable, label: str = "label") -> str:
    """Return the canonical key of a networkx graph whose edges are labelled by an attribute; see `canonical_form`."""
    return canonical_form(((u, v, str(d[label])) for u, v, d in graph.edges(data=True)), entry, exit)[0]


def digest(*parts: object) -> str:
    """Return 128 bits of a hash of strings, integers and their sequences; the same in every process."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def immediate_dominators(sources: Sequence[Sequence[int]]) -> list[int]:
    """Return the immediate dominator of every node but 0, whose own is 0.

    Args:
        sources: For every node the nodes its incoming edges come from, all of smaller number; empty for node 0 alone.
    """
    parent = [0] * len(sources)
    for node in range(1, len(sources)):
        found, *others = set(sources[node])
        for other in others:
            while found != other:  # numbers fall along the tree, so the larger one steps up
                if found > other:
                    found = parent[found]
                else:
                    other = parent[other]
        parent[node] = found
    return parent


def decompose(n_nodes: int, edges: Sequence[tuple[int, int]], labels: Sequence[str], ops: Sequence[int]) -> Regions:
    """Return all atoms and chains of a graph.

    Args:
        n_nodes: Nodes are in topological order; 0 reaches all, and all reach n_nodes - 1.
        edges: (source, target), parallel ones allowed.
        labels: Of every edge; a turned or differently labelled edge makes another key.
        ops: Edges with the same op >= 0 that lead to different nodes belong together: no region parts them.
    """
    return _Decomposition(n_nodes, edges, labels, ops).result()


class _Decomposition:
    def __init__(
        self, n_nodes: int, edges: Sequence[tuple[int, int]], labels: Sequence[str], ops: Sequence[int]
    ) -> None:
        self.n, self.edges, self.labels, self.ops = n_nodes, edges, labels, ops
        self.ins: list[list[int]] = [[] for _ in range(n_nodes)]
        below: list[list[int]] = [[] for _ in range(n_nodes)]  # for post-dominators all is turned round
        targets: dict[int, set[int]] = {}
        for k, (source, target) in enumerate(edges):
            self.ins[target].append(k)
            below[n_nodes - 1 - source].append(n_nodes - 1 - target)
            if ops[k] >= 0:
                targets.setdefault(ops[k], set()).add(target)
        self.parted = {op: found for op, found in targets.items() if len(found) > 1}
        self.above = immediate_dominators([[edges[k][0] for k in ins] for ins in self.ins])
        self.behind = [n_nodes - 1 - node for node in reversed(immediate_dominators(below))]
        self.dominated = _intervals(self.above, 0)
        self.passed = _intervals(self.behind, n_nodes - 1)
        self.entry = [-1] * n_nodes
        self.key = [""] * n_nodes
        self.edge = [-1] * n_nodes
        self.inner: dict[int, list[tuple[int, int, int]]] = {}
        self.members: dict[int, list[int]] = {}

    def result(self) -> Regions:
        keys: dict[str, str] = {}
        for node in range(1, self.n - 1):
            entry, ins = self.above[node], self.ins[node]
            if len(ins) == 1:
                label = self.labels[ins[0]]
                self.entry[node], self.edge[node] = entry, ins[0]
                self.key[node] = keys.setdefault(label, label and digest(label))
                continue
            members = self._members(entry, node, is_sure=self.behind[entry] == node)
            if members is not None:
                self.entry[node], self.members[node] = entry, members
                self._name(entry, node)
        span, order = self._lay_out()
        parted = frozenset(node for node, k in enumerate(self.edge) if k >= 0 and self.ops[k] in self.parted)
        return Regions(
            self.edges, self.entry, self.key, self.edge, self.inner, span, order, self._chains(), parted
        )  # fmt: skip

    def _members(self, entry: int, exit: int, is_sure: bool) -> list[int] | None:
        """Return the nodes between entry and exit that no smaller region hides, depth first; None if edges leave."""
        found: list[int] = []
        seen = {entry}
        stack = [self.edges[k][0] for k in self.ins[exit]]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            found.append(node)
            if not is_sure and (len(found) > _SEARCHED or not _holds(self.passed, exit, node)):
                return None
            stack.extend([self.entry[node]] if self.entry[node] >= 0 else [self.edges[k][0] for k in self.ins[node]])
        if not is_sure:
            for node in (*found, exit):
                for k in self.ins[node]:
                    if self.edges[k][0] == entry and any(
                        not (_holds(self.dominated, entry, other) and _holds(self.passed, exit, other))
                        for other in self.parted.get(self.ops[k], ())
                    ):
                        return None
        return found

    def _name(self, entry: int, exit: int) -> None:
        local: list[tuple[int, int, str]] = []
        children: list[int] = []
        for node in (*self.members[exit], exit):
            if self.entry[node] >= 0 and node != exit:
                local.append((self.entry[node], node, self.key[node]))
                children.append(~node)
            else:
                local += [(self.edges[k][0], node, self.labels[k]) for k in self.ins[node]]
                children += self.ins[node]
        self.key[exit], order, sources, targets = canonical_form(local, entry, exit)
        self.inner[exit] = [(s, t, children[k]) for k, s, t in zip(order, sources, targets, strict=True)]

    def _lay_out(self) -> tuple[list[tuple[int, int]], list[int]]:
        span = [(0, 0)] * self.n
        order: list[int] = []
        everything = self._members(0, self.n - 1, is_sure=True) or []
        order += self.ins[self.n - 1]
        stack: list[tuple[int, int]] = [(node, -1) for node in reversed(everything)]
        while stack:
            node, start = stack.pop()
            if start >= 0:  # all edges of this atom are laid out
                span[node] = (start, len(order))
            elif node in self.members:
                stack.append((node, len(order)))
                stack.extend((member, -1) for member in reversed(self.members[node]))
                order += self.ins[node]
            else:
                span[node] = (len(order), len(order) + len(self.ins[node]))
                order += self.ins[node]
        return span, order

    def _chains(self) -> list[list[int]]:
        chains: list[list[int]] = []
        chain_of: dict[int, list[int]] = {}
        for node in range(1, self.n - 1):
            entry = self.entry[node]
            if entry < 0:
                continue
            if entry in chain_of and self.behind[entry] == node:
                chain = chain_of[entry]
            else:
                chains.append(chain := [])
            chain.append(node)
            chain_of[node] = chain
        return chains


def _topological(
    ins: dict[Hashable, list[int]], outs: dict[Hashable, list[int]], edges: list[LocalEdge]
) -> list[Hashable]:
    missing = {node: len(found) for node, found in ins.items()}
    ready = [node for node, n in missing.items() if n == 0]
    for node in ready:
        for k in outs[node]:
            target = edges[k][1]
            missing[target] -= 1
            if missing[target] == 0:
                ready.append(target)
    return ready


def _intervals(parent: Sequence[int], root: int) -> list[tuple[int, int]]:
    """Return for every node of a tree the interval of visiting times of its subtree."""
    children: list[list[int]] = [[] for _ in parent]
    for node, above in enumerate(parent):
        if node != root:
            children[above].append(node)
    interval = [(0, 0)] * len(parent)
    time = 0
    stack = [(root, -1)]
    while stack:
        node, start = stack.pop()
        if start >= 0:
            interval[node] = (start, time)
            continue
        stack.append((node, time))
        time += 1
        stack.extend((child, -1) for child in children[node])
    return interval


def _holds(interval: Sequence[tuple[int, int]], ancestor: int, node: int) -> bool:
    return interval[ancestor][0] <= interval[node][0] < interval[ancestor][1]
