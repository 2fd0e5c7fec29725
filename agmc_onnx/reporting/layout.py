"""Where the boxes and lines of a directed graph go: layers from top to bottom, long edges in lanes at the right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

SWEEPS = 4  # over the layers, down and up, to order the boxes of each
MAX_LANES = 16  # side by side; more long edges than that share lanes
LANE, ROUND = 9, 6  # distance of two lanes, radius of their corners


@dataclass(frozen=True)
class Layout:
    """A drawing of a graph, in pixels.

    Attributes:
        at: Upper left corner (x, y) of every box.
        paths: One SVG path per edge, in the order given.
        width, height: Of the whole.
    """

    at: tuple[tuple[float, float], ...]
    paths: tuple[str, ...]
    width: float
    height: float


def layered(n: int, edges: Sequence[tuple[int, int]], box: tuple[int, int], gap: tuple[int, int] = (14, 20)) -> Layout:
    """Lay out a graph without cycles: every box below all that it depends on.

    Layers are those of the longest path from a start; boxes of a layer are ordered by the mean place of their neighbours
    (Sugiyama et al. 1981, the barycentre heuristic); an edge that passes layers runs in a lane beside them.

    Args:
        n: Number of boxes, numbered 0..n-1.
        edges: (source, target) pairs.
        box: Width and height of every box.
        gap: Least distance of two boxes side by side, and of two layers.
    """
    width, height = box
    layer = _layers(n, edges)
    rows = _ordered(layer, edges)
    pitch = width + gap[0]
    half = [(len(row) * pitch - gap[0]) / 2 for row in rows]  # of the width of every layer
    centre = max(half, default=0.0)
    left = {node: centre - half[r] + i * pitch for r, row in enumerate(rows) for i, node in enumerate(row)}
    top = [layer[node] * (height + gap[1]) for node in range(n)]
    lanes = _lanes(layer, edges)
    paths = []
    reach = centre
    for k, (a, b) in enumerate(edges):
        start, stop = (left[a] + width / 2, float(top[a] + height)), (left[b] + width / 2, float(top[b]))
        if k not in lanes:
            paths.append(_direct(start, stop))
            continue
        lane = max(half[layer[a] : layer[b] + 1]) + 10 + LANE * lanes[k]
        reach = max(reach, lane)
        leaves, enters = (len(rows[layer[node]]) == 1 for node in (a, b))
        start = (left[a] + width, top[a] + height * 0.7) if leaves else start
        stop = (left[b] + width, top[b] + height * 0.3) if enters else stop
        paths.append(_lane(start, stop, centre + lane, leaves, enters, gap[1] / 2))
    return Layout(
        tuple((left[node], float(top[node])) for node in range(n)),
        tuple(paths),
        centre + reach + 4,
        float(len(rows) * (height + gap[1]) - gap[1]) if rows else 0.0,
    )


def _layers(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the length of the longest path to every node."""
    targets: dict[int, list[int]] = defaultdict(list)
    waits = [0] * n
    for a, b in edges:
        targets[a].append(b)
        waits[b] += 1
    layer = [0] * n
    ready = [node for node in range(n) if not waits[node]]
    for node in ready:  # grows while it is read
        for target in targets[node]:
            layer[target] = max(layer[target], layer[node] + 1)
            waits[target] -= 1
            if not waits[target]:
                ready.append(target)
    return layer


def _ordered(layer: Sequence[int], edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the nodes of every layer from left to right."""
    rows: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for node, depth in enumerate(layer):
        rows[depth].append(node)
    above: dict[int, list[int]] = defaultdict(list)
    below: dict[int, list[int]] = defaultdict(list)
    for a, b in edges:
        above[b].append(a)
        below[a].append(b)
    place = {node: i - len(row) / 2 for row in rows for i, node in enumerate(row)}
    for sweep in range(SWEEPS):
        near = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else reversed(rows):
            if len(row) < 2:
                continue
            row.sort(
                key=lambda node: sum(place[o] for o in near[node]) / len(near[node]) if near[node] else place[node]
            )
            place.update((node, i - len(row) / 2) for i, node in enumerate(row))
    return rows


def _lanes(layer: Sequence[int], edges: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Return the lane of every edge that passes a layer; edges that pass the same one have different lanes."""
    long = sorted(
        (k for k, (a, b) in enumerate(edges) if layer[b] - layer[a] > 1), key=lambda k: _span(layer, edges[k])
    )
    taken: list[set[int]] = [set() for _ in range(max(layer, default=0) + 1)]
    lanes = {}
    for k in long:
        a, b = edges[k]
        crossed = taken[layer[a] : layer[b]]
        lane = next((i for i in range(MAX_LANES) if all(i not in used for used in crossed)), k % MAX_LANES)
        for used in crossed:
            used.add(lane)
        lanes[k] = lane
    return lanes


def _span(layer: Sequence[int], edge: tuple[int, int]) -> tuple[int, int]:
    return layer[edge[1]] - layer[edge[0]], layer[edge[0]]


Point = tuple[float, float]


def _direct(start: Point, stop: Point) -> str:
    """Return a path to the next layer."""
    (ax, ay), (bx, by) = start, stop
    if abs(ax - bx) < 0.5:
        return f"M{ax:g} {ay:g}V{by:g}"
    mid = (ay + by) / 2
    return f"M{ax:g} {ay:g}C{ax:g} {mid:g} {bx:g} {mid:g} {bx:g} {by:g}"


def _lane(start: Point, stop: Point, lane: float, leaves_right: bool, enters_right: bool, turn: float) -> str:
    """Return a path that goes to its lane, down, and back; from a box's side, or from below it where others are beside."""
    (ax, ay), (bx, by) = start, stop
    r = ROUND
    text = f"M{ax:g} {ay:g}"
    if not leaves_right:
        ay += turn
        text += f"V{ay:g}"
    text += f"H{lane - r:g}Q{lane:g} {ay:g} {lane:g} {ay + r:g}"
    end = by if enters_right else by - turn
    text += f"V{end - r:g}Q{lane:g} {end:g} {lane - r:g} {end:g}H{bx:g}"
    return text if enters_right else f"{text}V{by:g}"
