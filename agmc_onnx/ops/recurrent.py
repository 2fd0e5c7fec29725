"""LSTM, GRU, RNN: the hidden units live and die together in all gates; both directions keep the same ones."""

from __future__ import annotations

import numpy as np
import onnx

from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.table import Op, Product, register, sizes_of
from agmc_onnx.ties.ledger import Ledger, tie_or_freeze

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_BIAS, _PEEPHOLES = 3, 7  # input positions
_STATES = (5, 6)


def recurrent_ties(ledger: Ledger, node: Node) -> None:
    """Tie hidden units across gates, recurrent weights, biases, initial states and outputs; inputs to W's last dim."""
    x, w, r = node.inputs[:3]
    if not {w, r} <= ledger.graph.weights:
        return
    gates, hidden = _GATES[node.op_type], node.attribute("hidden_size")
    source, weight = ledger.flat(node, x, 2), None
    if source is not None:
        weight = ledger.flat(node, w, 2)
        if weight is None:
            ledger.freeze(source, f"{node.label}: its weight {w} cannot be cut")
        else:
            ledger.tie(source, weight)
    units = ledger.flat(node, r, 2)
    if units is None or hidden == 1:
        return
    parts: list[tuple[str, int, int]] = [(w, 1, gates), (r, 1, gates)]  # value, dim, how often the units repeat
    parts += [(node.inputs[_BIAS], 1, 2 * gates)] if _has(node, _BIAS) else []
    parts += [(node.inputs[i], 2, 1) for i in _STATES if _has(node, i)]
    parts += [(node.inputs[_PEEPHOLES], 1, 3)] if _has(node, _PEEPHOLES) else []
    for value, dim, times in parts:
        tie_or_freeze(ledger, node, np.tile(units, times), value, dim)
    for position, output in enumerate(node.outputs):
        if output:
            ledger.set(output, 3 if position == 0 else 2, units)


def _has(node: Node, position: int) -> bool:
    return len(node.inputs) > position and bool(node.inputs[position])


def recurrent_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """LSTM, GRU, RNN: the number of hidden units."""
    if editor.cut.mask(node.inputs[2], 2) is not None:
        editor.attribute(proto, "hidden_size", editor.cut.size(node.inputs[2], 2))


def recurrent_macs(graph: Graph, node: Node) -> list[Product]:
    """Inputs and hidden units times their weights, at every step."""
    x, w, r = node.inputs[:3]
    source, *weights = sizes_of(graph, x, w, r)
    steps, batch = source[:2][:: -1 if node.attribute("layout", 0) else 1]
    return [
        ((steps, batch, *dims), [None, None, *((v, dim) for dim in range(len(dims)))])
        for v, dims in zip((w, r), weights, strict=True)
    ]


OPS = register(
    *(Op(name, recurrent_ties, repair=recurrent_repair, macs=recurrent_macs, edge="recurrent") for name in _GATES)
)
