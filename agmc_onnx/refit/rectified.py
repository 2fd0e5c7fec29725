"""Refit of a node that an activation follows: what the activation hides need not be right.

Below the least value that comes out of an activation, and above the greatest, any input is as good as any other. With t the
original's value and z the pruned network's, the squared error of what comes out is at most

    |z - t|^2 where t is between these bounds, max(z - low, 0)^2 where t <= low, min(z - high, 0)^2 where t >= high,

which is convex in z. It is minimised by solving again and again towards t, but towards z itself where t and z are hidden
alike, and towards the bound where only t is (majorisation; nonlinear reconstruction as in Zhang et al. 2015,
arXiv:1505.06798, sec. 3.2, whose auxiliary variables these aims are). Second moments of the inputs stay the same.

That is for Relu and Clip. Of a smooth activation f, whose slope is at most s, the aim is z + (f(t) - f(z)) / s. It minimises
the matching loss, the integral of f(x) - f(t) from t to z: convex where f rises, and of a sigmoid the cross entropy (Auer et
al. 1996; the bound on the curvature is that of Boehning 1992).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.refit.moments import Line, Moments, Positions

Bounds = tuple[float, float]
Aim = Callable[[Tensor, Tensor], Tensor]  # the original's value, and what is reached: what to solve towards next
Rows = list[tuple[Tensor, Tensor, Tensor]]  # patches; the original's value; the pruned network's, before it is refitted
# Smooth activations of a single input, and their steepest slope.
_SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "HardSwish": (F.hardswish, 1.5), "Mish": (F.mish, 1.1), "Sigmoid": (torch.sigmoid, 0.25), "Tanh": (torch.tanh, 1.0),
}  # fmt: skip
_SWISH: tuple[Callable[[Tensor], Tensor], float] = (F.silu, 1.1)


def aim_through(graph: Graph, value: str) -> Aim | None:
    """Return what a refit of a value aims at, round by round; None where every value counts.

    Args:
        graph: Any graph.
        value: Its name.
    """
    bounds = visible_range(graph, value)
    if bounds is not None:
        return partial(_visible, bounds)
    smooth = _activation(graph, value)
    return None if smooth is None else partial(_smooth, *smooth)


def _visible(bounds: Bounds, target: Tensor, reached: Tensor) -> Tensor:
    low, high = bounds
    aim = torch.where(target > low, target, reached.clamp(max=low))
    return torch.where(target < high, aim, reached.clamp(min=high))


def _smooth(function: Callable[[Tensor], Tensor], slope: float, target: Tensor, reached: Tensor) -> Tensor:
    return reached + (function(target) - function(reached)) / slope


def _activation(graph: Graph, value: str) -> tuple[Callable[[Tensor], Tensor], float] | None:
    """Return the smooth activation that all of a value goes through, x * sigmoid(x) too, and its steepest slope."""
    users = [node for node, _ in graph.consumers.get(value, [])]
    if value in graph.outputs or value in graph.captured or any(node.domain for node in users):
        return None
    if len(users) == 1:
        return _SMOOTH.get(users[0].op_type)
    gates, products = ([node for node in users if node.op_type == op] for op in ("Sigmoid", "Mul"))
    if len(users) != 2 or not gates or not products:
        return None
    gate = gates[0].outputs[0]
    is_own = [node.index for node, _ in graph.consumers.get(gate, [])] == [products[0].index]
    return _SWISH if is_own and gate not in graph.outputs else None


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


def aim_again(moments: Moments | Positions, rows: Rows, line: Line, aim: Aim, step: Tensor, offset: Tensor) -> None:
    """Let moments lead towards what comes out of the activation, given what a correction has reached.

    Args:
        moments: Their residuals are replaced; what is known of the inputs stays.
        rows: All positions that the moments are of.
        line: Of the node.
        aim: Of `aim_through`.
        step, offset: The correction, of `compensate.solve`.
    """
    moments.restart()
    for u, target, now in rows:
        reached = now + line.moved(u, step, offset)
        moments.add_residual(u, line.before_scale(aim(target, reached) - now))
