"""MACs and parameters of a PyTorch module."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Return the MACs of all convolutions and linear layers for one image.

    Shapes are those of a real forward pass on the meta device, so nothing is computed. Biases, BatchNorm, pooling and
    activations count nothing.

    Args:
        module: Left as it is.
        input_shape: (N, C, H, W); N is ignored.
    """
    macs = 0

    def add_macs(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        weight = layer.weight  # (out, in / groups, kH, kW) or (out, in): one dot product makes one output number
        assert isinstance(weight, Tensor)
        macs += output[0].numel() * math.prod(weight.shape[1:])

    shadow = copy.deepcopy(module).to("meta")
    for layer in shadow.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add_macs)
    shadow(torch.empty(1, *input_shape[1:], device="meta"))
    return macs


def count_params(module: nn.Module) -> int:
    """Return the number of trainable numbers: weights, biases, scales and shifts, no running statistics."""
    return sum(parameter.numel() for parameter in module.parameters())
