"""How far a step may move a parameter: a share of what each of its filters measures.

Normalisation folded into the weights, and pixels from 0 to 255, leave filters of a thousandth and of twenty in one network
(YOLOX-nano): at a rate that hardly moves the large ones, ten steps destroy the first layers. Where normalisation with the
statistics of a batch is put in (`distill.inserted`), filters of one size do the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_LEAST_SHARE = 0.05  # of the whole tensor's size, for a filter that is nearly zero
_LEAST_VECTOR = 0.1  # biases that are zero must move too


def filter_sizes(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return for every parameter the root mean square of each filter, along the first dim, or of a vector as a whole.

    Args:
        parameters: Of any rank.
    """
    found = []
    for parameter in parameters:
        values = parameter.detach()
        whole = values.square().mean().sqrt()
        if values.dim() < 2:
            found.append(whole.clamp_min(_LEAST_VECTOR))
            continue
        own = values.flatten(1).square().mean(1).sqrt().clamp_min(_LEAST_SHARE * float(whole))
        found.append(own.view(-1, *[1] * (values.dim() - 1)))
    return found


def by_size(parameters: Sequence[nn.Parameter], before: Sequence[Tensor], sizes: Sequence[Tensor]) -> None:
    """Let every step that was taken count as a share of a filter's size.

    Args:
        parameters: After the step; changed.
        before: Their values before it.
        sizes: Of `filter_sizes`.
    """
    with torch.no_grad():
        for parameter, old, size in zip(parameters, before, sizes, strict=True):
            parameter.copy_(old + size * (parameter - old))
