"""Level 2 of the hierarchical graph: repeated regions of level 1 become edges.

An op and the normalisation and activation behind it stay together. Then, in this order: every join with weights (a
*block*: it ends in an addition, a concatenation or a product of matrices, not in a gating product) that occurs at least
twice is a motif, the largest first, with the activation behind it; in what is left, rows of such ops that occur at
least twice, those first that shorten the description of the network most. A row holds no immediate repetition (that
would be two motifs) and no block. Widths play no part.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from agmc_onnx.graph.view import Graph
from agmc_onnx.motifs.level1 import SINK, SOURCE, WEIGHTED, commutes, end_points, feature_graph
from agmc_onnx.motifs.regions import Regions, canonical_form, decompose, digest
from agmc_onnx.ops.table import node_macs

_FOLLOWING = frozenset(("batchnorm", "norm", "relu", "activation", "identity", "add", "mul"))
_OWN = ("op", "input", "output", "constants")  # attributes of an edge that differ between occurrences
_LONGEST_ROW = 16  # ops (each with what follows it) of a motif without a block


@dataclass(frozen=True, eq=False)
class Motif:
    """A repeated region, and an edge type of level 2.

    Attributes:
        key: Canonical key; the same in every process for the same structure.
        name: "M1", "M2", ... in the order of the network; unique in a hierarchy.
        graph: Template with nodes 0..n-1, 0 the entry and 1 the exit. Edges have the keys 0, 1, ... in canonical order
            and the attributes `type`, `signature` and `label`.
        count: Occurrences, at least 2.
    """

    key: str
    name: str
    graph: nx.MultiDiGraph
    count: int


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """The two-level graph of a network.

    Attributes:
        graph: The network.
        level1: See `agmc_onnx.motifs.level1.feature_graph`.
        level2: The same network with an edge for every occurrence of a motif. Its attributes are `type` (the motif's
            name), `motif` (position in `motifs`), `values` (feature maps in the order of the template's nodes), `edges`
            ((key, op, input, output, constants) in the order of the template's edges). All other edges are level 1's.
        motifs: In the order of their first occurrence.
    """

    graph: Graph
    level1: nx.MultiDiGraph
    level2: nx.MultiDiGraph
    motifs: tuple[Motif, ...]


def build(graph: Graph) -> Hierarchy:
    """Return the hierarchical graph of a network.

    Args:
        graph: Any network; ops it does not know are edges of type "unknown".
    """
    level1 = feature_graph(graph)
    network = _Network(graph, level1)
    regions = decompose(len(network.values), network.edges, network.labels, network.ops)
    level2 = nx.MultiDiGraph()
    motifs: list[Motif] = []
    hidden: set[int] = set()
    inside: set[int] = set()
    for rows in _choose(regions, network.types):
        name = f"M{len(motifs) + 1}"
        template: nx.MultiDiGraph | None = None
        key = ""
        for row in rows:
            nodes, edges = regions.expand(row)
            nodes[1 : len(row) + 1] = [nodes[len(row)], *nodes[1 : len(row)]]  # the exit is number 1
            renumbered = [0, *range(2, len(row) + 1), 1, *range(len(row) + 1, len(nodes))]
            edges = [(renumbered[a], renumbered[b], k) for a, b, k in edges]
            if template is None:
                template = _template(edges, network)
                key = canonical_form(((a, b, network.labels[k]) for a, b, k in edges), 0, 1)[0]
            assert _fits(template, edges, network), "equal keys, different regions"
            keys = [network.keys[k] for _, _, k in edges]
            data = [network.data[k] for _, _, k in edges]
            level2.add_edge(
                network.values[nodes[0]], network.values[nodes[1]], key=keys[0], type=name, motif=len(motifs),
                values=tuple(network.values[node] for node in nodes),
                edges=tuple((k, *(d[name] for name in _OWN)) for k, d in zip(keys, data, strict=True)),
            )  # fmt: skip
            hidden.update(k for _, _, k in edges)
            inside.update(nodes[2:])
        assert template is not None
        motifs.append(Motif(key, name, template, len(rows)))
    level2.add_nodes_from(value for node, value in enumerate(network.values) if value in level1 and node not in inside)
    for k, (source, target) in enumerate(network.edges):
        if k not in hidden and network.is_real[k]:
            level2.add_edge(network.values[source], network.values[target], key=network.keys[k], **network.data[k])
    return Hierarchy(graph, level1, level2, tuple(motifs))


def flatten(hierarchy: Hierarchy) -> nx.MultiDiGraph:
    """Return level 2 with every motif replaced by its template: level 1, exactly."""
    flat = nx.MultiDiGraph()
    flat.add_nodes_from(hierarchy.level2)
    templates = [sorted(m.graph.edges(keys=True, data=True), key=lambda edge: edge[2]) for m in hierarchy.motifs]
    for source, target, key, data in hierarchy.level2.edges(keys=True, data=True):
        if "motif" not in data:
            flat.add_edge(source, target, key=key, **data)
            continue
        values = data["values"]
        for (a, b, _, edge), (own, op, i, o, constants) in zip(templates[data["motif"]], data["edges"], strict=True):
            flat.add_edge(
                values[a], values[b], key=own, type=edge["type"], signature=edge["signature"], op=op, input=i, output=o,
                constants=constants,
            )  # fmt: skip
    return flat


def describe(hierarchy: Hierarchy) -> list[str]:
    """Return one line for every motif, those with the most MACs first, and one for the rest."""
    graph = hierarchy.graph
    macs = {node.index: node_macs(graph, node) for node in graph.nodes}
    total = max(1, sum(macs.values()))
    share: Counter[int] = Counter()
    for _, _, data in hierarchy.level2.edges(data=True):
        if "motif" in data:
            share[data["motif"]] += sum(macs[op] for op in {edge[1] for edge in data["edges"]})
    lines = []
    for index, motif in sorted(enumerate(hierarchy.motifs), key=lambda pair: (-share[pair[0]], pair[0])):
        lines.append(f"{motif.name}: {motif.count} times, {100 * share[index] / total:.1f}% of MACs: {_ops(motif)}")
    n_single = len({d["op"] for _, _, d in hierarchy.level2.edges(data=True) if "motif" not in d} - {-1})
    rest = 100 * (1 - sum(share.values()) / total) if sum(macs.values()) else 0.0
    return [*lines, f"no motif: {n_single} ops, {rest:.1f}% of MACs"]


def _ops(motif: Motif) -> str:
    """Return the op types of a template in topological order, with strides ("/2") and the number of inputs if not 1."""
    names = []
    for node in nx.lexicographical_topological_sort(motif.graph):
        ins = [data for _, _, data in motif.graph.in_edges(node, data=True)]
        if ins:
            strides = [word[len("strides=") :] for word in ins[0]["signature"].split() if word.startswith("strides=")]
            stride = "".join(f"/{'x'.join(dict.fromkeys(s.split(',')))}" for s in strides)
            names.append(ins[0]["type"] + stride + (f"({len(ins)})" if len(ins) > 1 else ""))
    return " ".join(names)


class _Network:
    """Level 1 with numbers: node 0 reaches all, all reach the last one."""

    def __init__(self, graph: Graph, level1: nx.MultiDiGraph) -> None:
        starts, ends = end_points(graph, level1)
        self.values = [SOURCE, *(v for v in level1 if v not in (SOURCE, SINK)), SINK]
        self.edges: list[tuple[int, int]] = []
        self.labels: list[str] = []
        self.ops: list[int] = []
        self.types: list[str] = []
        self.keys: list[tuple[int, int, int]] = []
        self.data: list[dict[str, Any]] = []
        self.is_real: list[bool] = []
        number = {value: i for i, value in enumerate(self.values)}
        for source, target, key, data in level1.edges(keys=True, data=True):
            self._add(number[source], number[target], key, data, True)
        ends_of = {SOURCE: starts, SINK: ends}
        for virtual, values in ends_of.items():
            if virtual not in level1:
                for value in values or [SINK if virtual == SOURCE else SOURCE]:
                    pair = (0, number[value]) if virtual == SOURCE else (number[value], len(self.values) - 1)
                    self._add(*pair, (-1, -1, -1), {"type": "virtual", "signature": "", "op": -1}, False)

    def _add(self, source: int, target: int, key: tuple[int, int, int], data: dict[str, Any], is_real: bool) -> None:
        self.edges.append((source, target))
        self.keys.append(key)
        self.data.append(data)
        self.types.append(data["type"])
        self.ops.append(data["op"])
        self.is_real.append(is_real)
        if data["op"] < 0:
            self.labels.append("")
            return
        text = data["signature"]
        slot = "" if commutes(text) else data["input"]
        self.labels.append(f"{text}|{slot}|{data['output']}")


def _template(edges: list[tuple[int, int, int]], network: _Network) -> nx.MultiDiGraph:
    template = nx.MultiDiGraph()
    template.add_nodes_from(range(1 + max(max(a, b) for a, b, _ in edges)))
    for position, (a, b, k) in enumerate(edges):
        data = network.data[k]
        template.add_edge(a, b, key=position, type=data["type"], signature=data["signature"], label=network.labels[k])
    return template


def _fits(template: nx.MultiDiGraph, edges: list[tuple[int, int, int]], network: _Network) -> bool:
    return all(
        template.has_edge(a, b, key=i) and template.edges[a, b, i]["label"] == network.labels[k]
        for i, (a, b, k) in enumerate(edges)
    ) and template.number_of_edges() == len(edges)


@dataclass(frozen=True)
class _Piece:
    """An atom with the normalisations and activations behind it, or such ones alone at the start of a chain."""

    atoms: tuple[int, ...]
    key: str
    size: int
    kind: str  # "block", "plain" or "closed" (never in a motif)


@dataclass
class _Choice:
    """Rows of atoms that were chosen, and the edges they take."""

    regions: Regions
    taken: bytearray
    rows: list[list[tuple[int, ...]]] = field(default_factory=list)

    def interval(self, row: tuple[int, ...]) -> tuple[int, int]:
        return self.regions.span[row[-1]][0], self.regions.span[row[0]][1]

    def free(self, rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the rows that can still be taken, without those that overlap an earlier one."""
        found = []
        for row in rows:
            start, stop = self.interval(row)
            if self.taken.find(1, start, stop) < 0:
                found.append(row)
                self.taken[start:stop] = b"\1" * (stop - start)
        for row in found:
            self._mark(row, 0)
        return found

    def take(self, rows: list[tuple[int, ...]]) -> None:
        self.rows.append(rows)
        for row in rows:
            self._mark(row, 1)

    def _mark(self, row: tuple[int, ...], value: int) -> None:
        start, stop = self.interval(row)
        self.taken[start:stop] = bytes([value]) * (stop - start)


def _choose(regions: Regions, types: list[str]) -> list[list[tuple[int, ...]]]:
    """Return the occurrences of every motif as rows of atoms; motifs and occurrences in the order of the network."""
    chains = _pieces(regions, types)
    choice = _Choice(regions, bytearray(len(types)))
    _choose_blocks(chains, choice)
    _choose_rows(chains, choice)
    return sorted((sorted(rows) for rows in choice.rows), key=lambda rows: rows[0])


def _choose_blocks(chains: list[list[_Piece]], choice: _Choice) -> None:
    groups: dict[str, tuple[int, list[tuple[int, ...]]]] = {}
    for chain in chains:
        for piece in chain:
            if piece.kind == "block":
                groups.setdefault(piece.key, (piece.size, []))[1].append(piece.atoms)
                if len(piece.atoms) > 1:  # the block alone, for where its followers differ
                    atom = piece.atoms[0]
                    start, stop = choice.regions.span[atom]
                    bare = digest("row", choice.regions.key[atom])
                    groups.setdefault(bare, (stop - start, []))[1].append(piece.atoms[:1])
    for size, rows in sorted(groups.values(), key=lambda group: (-group[0], min(group[1]))):
        if size > 1 and len(rows) > 1 and len(found := choice.free(sorted(rows))) > 1:
            choice.take(found)


def _choose_rows(chains: list[list[_Piece]], choice: _Choice) -> None:
    groups: dict[int, list[tuple[int, int]]] = {}  # identity of a row of keys -> where it starts (chain, piece)
    names: dict[tuple[int, Any], int] = {}

    def name(*parts: Any) -> int:
        return names.setdefault(parts, len(names))

    def is_open(c: int, i: int) -> bool:
        if i >= len(chains[c]) or chains[c][i].kind != "plain":
            return False
        start, stop = choice.interval(chains[c][i].atoms)
        return choice.taken.find(1, start, stop) < 0

    for c, chain in enumerate(chains):
        for i, piece in enumerate(chain):
            if is_open(c, i):
                groups.setdefault(name(-1, piece.key), []).append((c, i))
    of_length: list[dict[tuple[int, int], int]] = [{}]  # by length: the row that starts at a place and may be a motif
    heap: list[tuple[int, int, tuple[int, ...], int]] = []
    candidates: list[tuple[int, list[tuple[int, ...]]]] = []
    for length in range(1, _LONGEST_ROW + 1):
        here = {place: row for row, places in groups.items() if len(places) > 1 for place in places}
        if length % 2 == 0:
            half = of_length[length // 2]
            here = {(c, i): row for (c, i), row in here.items() if half.get((c, i)) != half.get((c, i + length // 2))}
        if length > 1:  # what starts one later must be free of repetitions as well
            here = {(c, i): row for (c, i), row in here.items() if (c, i + 1) in of_length[length - 1]}
        if not here:
            break
        of_length.append(here)
        found: dict[int, list[tuple[int, ...]]] = {}
        groups = {}
        for (c, i), row in sorted(here.items()):
            pieces = chains[c][i : i + length]
            found.setdefault(row, []).append(tuple(atom for piece in pieces for atom in piece.atoms))
            if is_open(c, i + length):
                groups.setdefault(name(row, chains[c][i + length].key), []).append((c, i))
        for rows in found.values():
            rows.sort()
            start, stop = choice.interval(rows[0])
            if stop - start > 1 and len(rows) > 1:
                candidates.append((stop - start, rows))
                heap.append((-_saving(len(rows), stop - start), -len(rows), rows[0], len(candidates) - 1))
    heapq.heapify(heap)
    while heap:
        entry = heapq.heappop(heap)
        size, rows = candidates[entry[-1]]
        rows = choice.free(rows)
        if len(rows) < 2:
            continue
        now = (-_saving(len(rows), size), -len(rows), rows[0], entry[-1])
        if now == entry:
            choice.take(rows)
        else:
            candidates[entry[-1]] = (size, rows)
            heapq.heappush(heap, now)


def _saving(count: int, size: int) -> int:
    """Return how many edges fewer it takes to write a template once and an edge for every occurrence."""
    return count * (size - 1) - size


def _pieces(regions: Regions, types: list[str]) -> list[list[_Piece]]:
    """Return every chain of atoms cut into pieces."""
    kinds = _atom_kinds(regions, types)
    cut: list[list[_Piece]] = []
    for chain in regions.chains:
        groups: list[list[int]] = []
        for atom in chain:
            if groups and kinds[atom] == "following" and kinds[groups[-1][0]] != "closed":
                groups[-1].append(atom)
            else:
                groups.append([atom])
        pieces = []
        for group in groups:
            kind = kinds[group[0]]
            key = digest("row", *(regions.key[atom] for atom in group))
            size = regions.span[group[0]][1] - regions.span[group[-1]][0]
            pieces.append(_Piece(tuple(group), key, size, "plain" if kind == "following" else kind))
        cut.append(pieces)
    return cut


def _atom_kinds(regions: Regions, types: list[str]) -> dict[int, str]:
    """Return what every atom is: "block", "following", "plain", or "closed" to all motifs."""
    kinds: dict[int, str] = {}
    types_in: dict[int, set[str]] = {}
    for atom, entry in enumerate(regions.entry):
        if entry < 0:
            continue
        if regions.edge[atom] >= 0:
            kind = types[regions.edge[atom]]
            types_in[atom] = {kind}
            if kind == "virtual" or atom in regions.parted:
                kinds[atom] = "closed"
            else:
                kinds[atom] = "following" if kind in _FOLLOWING else "plain"
            continue
        children = regions.inner[atom]
        found = types_in[atom] = set[str]()
        found.update(*({types[child]} if child >= 0 else types_in[~child] for _, _, child in children))
        is_gate = any(child >= 0 and target == 1 and types[child] == "mul" for _, target, child in children)
        if "virtual" in found:
            kinds[atom] = "closed"
        elif found <= _FOLLOWING | {"reduce"}:
            kinds[atom] = "following"
        else:
            kinds[atom] = "block" if found & WEIGHTED and not is_gate else "plain"
    return kinds
