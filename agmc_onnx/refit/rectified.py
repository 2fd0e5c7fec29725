"""Refit of a node that a Relu or Clip follows: what the activation hides need not be right.

Below the least value that comes out of an activation, and above the greatest, any input is as good as any other. With t the
original's value and z the pruned network's, the squared error of what comes out is at most

    |z - t|^2 where t is between these bounds, max(z - low, 0)^2 where t <= low, min(z - high, 0)^2 where t >= high,

which is convex in z. It is minimised by solving again and again towards t, but towards z itself where t and z are hidden
alike, and towards the bound where only t is (majorisation; nonlinear reconstruction as in Zhang et al. 2015,
arXiv:1505.06798, sec. 3.2, whose auxiliary variables these aims are). Second moments of the inputs stay the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.refit.moments import Line, Moments

Bounds = tuple[float, float]
Rows = list[tuple[Tensor, Tensor, Tensor]]  # patches; the original's value; the pruned network's, before it is refitted


def visible_range(graph: Graph, value: str) -> Bounds | None:
    """Return (low, high): every consumer of a value computes the same of all inputs below low, and of all above high.

    Args:
        graph: Any graph.
        value: Its name.

    Returns:
        Of several consumers the wider range, -inf or inf for no bound; None where every value counts.
    """
    users = [node for node, _ in graph.consumers.get(value, [])]
    if not users or value in graph.outputs or value in graph.captured:
        return None
    found = [_range_of(graph, node) for node in users]
    low, high = min(low for low, _ in found), max(high for _, high in found)
    return None if math.isinf(low) and math.isinf(high) else (low, high)


def _range_of(graph: Graph, node: Node) -> Bounds:
    if node.op_type == "Relu" and not node.domain:
        return 0.0, math.inf
    if node.op_type != "Clip" or node.domain:
        return -math.inf, math.inf
    bounds = []
    for position, (name, default) in enumerate((("min", -math.inf), ("max", math.inf)), 1):
        given = node.inputs[position] if len(node.inputs) > position else ""
        if given and given not in graph.tensors:
            return -math.inf, math.inf
        bounds.append(float(graph.array(given).reshape(-1)[0]) if given else float(node.attribute(name, default)))
    return bounds[0], bounds[1]


def aim_again(moments: Moments, rows: Rows, line: Line, bounds: Bounds, step: Tensor, offset: Tensor) -> None:
    """Let moments lead towards what comes out of the activation, given what a correction has reached.

    Args:
        moments: Their residuals are replaced; what is known of the inputs stays.
        rows: All positions that the moments are of.
        line: Of the node.
        bounds: Of `visible_range`.
        step, offset: The correction, of `compensate.solve`.
    """
    moments.r.zero_()
    moments.ur.zero_()
    low, high = bounds
    for u, target, now in rows:
        reached = now + line.moved(u, step, offset)
        aim = torch.where(target > low, target, reached.clamp(max=low))
        aim = torch.where(target < high, aim, reached.clamp(min=high))
        moments.add_residual(u, line.before_scale(aim - now))
