"""The network of a report, as data: ops, the feature maps between them, and the motifs they stand in."""

from __future__ import annotations

from typing import Any

from agmc_onnx.graph.view import Graph
from agmc_onnx.motifs import SINK, SOURCE, build, describe
from agmc_onnx.pruning.cost import count_macs


def network_of(original: Graph, compressed: Graph) -> dict[str, Any]:
    """Return the two-level graph of a network before and after, ready for JSON.

    Args:
        original: The network, normalised.
        compressed: What was made of it; values keep their names.

    Returns:
        "values": one [name, shape before, shape after] per feature map, a shape being a list of sizes or None; "ops": name,
        type (of `hierarchy.EDGE_TYPES`), "reads" and "makes" (positions in "values"), "macs" ([before, after], only where
        there are some); "boxes": the nodes of level 2, each with its ops, and its motif (position in "motifs", or None for
        a single op), ops of one motif in the order of its template; "motifs": name, count, and "says", a line of words.
    """
    hierarchy = build(original)
    macs = count_macs(original), count_macs(compressed)
    names = [name for name in hierarchy.level1 if name not in (SOURCE, SINK)]
    number = {name: i for i, name in enumerate(names)}
    kinds = {data["op"]: data["type"] for _, _, data in hierarchy.level1.edges(data=True) if data["op"] >= 0}
    place = {op: i for i, op in enumerate(sorted(kinds))}
    ops = []
    for op in place:
        node = original.nodes[op]
        made = node.outputs[0] or node.label
        record: dict[str, Any] = {"name": node.label, "type": kinds[op]}
        record["reads"] = list(dict.fromkeys(number[name] for name in node.inputs if name in number))
        record["makes"] = [number[name] for name in node.outputs if name in number]
        if made in macs[0]:
            record["macs"] = [macs[0][made], macs[1].get(made, 0)]
        ops.append(record)
    boxes = [
        {"motif": data["motif"], "ops": list(dict.fromkeys(place[edge[1]] for edge in data["edges"]))}
        for _, _, data in hierarchy.level2.edges(data=True)
        if "motif" in data
    ]
    inside = {op for box in boxes for op in box["ops"]}
    boxes += [{"motif": None, "ops": [op]} for op in place.values() if op not in inside]
    boxes.sort(key=lambda box: min(box["ops"]))
    says = {line.split(":", 1)[0]: line.split(": ", 1)[1] for line in describe(hierarchy) if ": " in line}
    return {
        "values": [[name, _dims(original, name), _dims(compressed, name)] for name in names],
        "ops": ops,
        "boxes": boxes,
        "motifs": [{"name": m.name, "count": m.count, "says": says.get(m.name, "")} for m in hierarchy.motifs],
    }


def _dims(graph: Graph, value: str) -> list[int] | None:
    shape = graph.shape(value)
    return None if shape is None else list(shape.dims)
