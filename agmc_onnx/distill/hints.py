"""What is learned from inside of the original: the kept channels of some convolutions (Romero et al. 2015, arXiv:1412.6550).

Answers of a detector say much about few places. What a convolution computes says something everywhere, and the plan knows
which of the original's channels the pruned network still has, so nothing has to be matched by a learned projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agmc_onnx.graph.view import Graph
from agmc_onnx.ops.conv import is_conv

N_HINTS = 16  # convolutions, at equal distances through the network


@dataclass(frozen=True)
class Hint:
    """A value that both networks have.

    Attributes:
        value: Its name.
        kept: Channels of the original's that the student has; None: all of them.
    """

    value: str
    kept: Tensor | None

    def of(self, theirs: Tensor) -> Tensor:
        """Return what the student's value is to be."""
        return theirs if self.kept is None else theirs.index_select(1, self.kept)


def hints_of(
    student: Graph, teacher: Graph, cut: Mapping[str, Mapping[str, Any]], device: torch.device | None = None
) -> list[Hint]:
    """Return values to learn from.

    Args:
        student, teacher: The networks.
        cut: The plan's tensors: the kept indices of every cut axis of a weight.
        device: Of the indices.
    """
    found = []
    for value, node in teacher.producer.items():
        own, theirs = student.shape(value), teacher.shape(value)
        if not is_conv(node) or node.attribute("group", 1) != 1 or value not in student.producer:
            continue
        if own is None or theirs is None or own.rank != theirs.rank or own.dims[2:] != theirs.dims[2:]:
            continue
        kept = cut.get(node.inputs[1], {}).get("0")
        n = theirs.dims[1] if kept is None else len(kept)
        if own.dims[1] == n > 0:
            index = None if kept is None or n == theirs.dims[1] else torch.tensor([int(i) for i in kept], device=device)
            found.append(Hint(value, index))
    step = max(1, len(found) // N_HINTS)
    return found[step - 1 :: step]
