"""The algebra knows no op: what it finds in graphs of made-up ones."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import agmc_onnx.ties
from agmc_onnx.graph.view import Node, graph_of
from agmc_onnx.ties.cut import Cut
from agmc_onnx.ties.groups import RESIDUAL, Channels, analyse
from agmc_onnx.ties.ledger import Handler, Ledger, tie_or_freeze
from tests.nets import model


@dataclass(frozen=True)
class Made:
    """A made-up op."""

    ties: Handler | None = None
    joins: bool = False
    contracts: bool = False
    kernel: bool = False
    out_dim: Callable[[Node, int], int] | None = None


def mix(ledger: Ledger, node: Node) -> None:
    """Every output is a sum of all inputs: weights (outputs, inputs)."""
    x, w = node.inputs
    source, out = ledger.flat(node, x, 1), ledger.flat(node, w, 0)
    if source is not None:
        tie_or_freeze(ledger, node, source, w, 1)
    if out is not None:
        ledger.set(node.outputs[0], 1, out)


def meet(ledger: Ledger, node: Node) -> None:
    """Entry by entry."""
    one, other = (ledger.axis(node, value, 1) for value in node.inputs)
    if one is not None and other is not None:
        ledger.set(node.outputs[0], 1, ledger.meet(one, other).ids)


def halves(ledger: Ledger, node: Node) -> None:
    """Both halves keep equally many."""
    ids = ledger.flat(node, node.inputs[0], 1)
    if ids is not None:
        ledger.balance(ids.reshape(2, -1))
        ledger.set(node.outputs[0], 1, ids)


OPS = {
    "Mix": Made(mix, contracts=True, out_dim=lambda node, rank: 0),
    "Meet": Made(meet, joins=True),
    "Halves": Made(halves),
}
W = dict.fromkeys(("v", "w", "last"), (6, 6))
VALUES = ", ".join(f"float[1, 6] {name}" for name in "abcd")


def found(nodes: str) -> Channels:
    text = f"""<ir_version: 8, opset_import: ["" : 17, "made" : 1]>
        g (float[1, 6] x) => (float[1, 6] y) <{VALUES}> {{ {nodes} d = made.Mix(c, last) y = Identity(d) }}"""
    proto = model(text, W)
    return analyse(graph_of(proto), lambda node: OPS.get(node.op_type, Made()))


def groups(channels: Channels) -> dict[str, int]:
    return {group.name: group.n_units for group in channels.groups}


def test_a_chain_is_a_group_for_each_weight() -> None:
    channels = found("a = made.Mix(x, v) c = made.Mix(a, w)")
    assert groups(channels) == {"v": 6, "w": 6}
    assert not channels.joined.any()
    assert [group.name for group in channels.frozen] == ["last"]  # what uses it is not known


def test_what_meets_is_one_group() -> None:
    channels = found("a = made.Mix(x, v) b = made.Mix(x, w) c = made.Meet(a, b)")
    assert groups(channels) == {"v": 6}
    assert channels.joined.tolist() == [True]
    assert channels.makers == [["v", "w"]]
    assert not channels.excluding([RESIDUAL]).groups


def test_rows_keep_equally_many() -> None:
    (group,) = found("a = made.Mix(x, v) c = made.Halves(a)").groups
    assert group.step == 2
    assert [blocks.tolist() for blocks in group.partitions] == [[0, 0, 0, 1, 1, 1]]


def test_an_op_that_is_not_known_freezes_what_it_touches() -> None:
    channels = found("a = made.Mix(x, v) b = made.Mix(a, w) c = made.Other(b)")
    assert groups(channels) == {"v": 6}
    assert [group.why_frozen for group in channels.frozen if group.name == "w"] == [
        "Other c: this op is not understood"
    ]


def test_every_axis_of_a_unit_is_cut() -> None:
    channels = found("a = made.Mix(x, v) c = made.Mix(a, w)")
    cut = Cut(channels, [np.array([1, 4]), np.arange(6)])
    masks = {name: sorted(axes) for name, axes in cut.tensor_axes().items()}
    assert masks == {"v": [0], "w": [1]}
    assert (cut.size("v", 0), cut.size("w", 1), cut.size("w", 0)) == (2, 2, 6)
    assert cut.mask("a", 1) is not None and not cut.is_cut("c")


def test_no_op_of_onnx_is_named() -> None:
    ops = {schema.name for schema in onnx.defs.get_all_schemas()}
    for path in Path(agmc_onnx.ties.__path__[0]).glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not ops & {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
