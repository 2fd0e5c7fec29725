"""What is known of every op, a family a file; the table of all of them is `agmc_onnx.ops.table`."""

from __future__ import annotations

from agmc_onnx.graph.bodies import cuttable_bodies
from agmc_onnx.graph.view import Graph
from agmc_onnx.ops import (  # noqa: F401  each puts its records into the table
    attention,
    conv,
    elementwise,
    heads,
    linear,
    move,
    norm,
    quantize,
    recurrent,
    reduce,
    reshape,
    sizes,
)
from agmc_onnx.ops.table import op_of
from agmc_onnx.ties import groups
from agmc_onnx.ties.groups import Channels


def analyse(graph: Graph) -> Channels:
    """Find the groups of a graph by what the table of ops says.

    Args:
        graph: A normalised graph (`agmc_onnx.graph.normal_form`).
    """
    return groups.analyse(graph, op_of, cuttable_bodies)
