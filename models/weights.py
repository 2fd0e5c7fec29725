"""Random weights that make a comparison of two networks mean something."""

from __future__ import annotations

import torch
from torch import nn

LINEAR_GAIN = 0.5**0.5  # of a BatchNorm that no ReLU follows: undoes the 2 in the next convolution's 2 / fan-in
BRANCH_GAIN = 0.3  # of the BatchNorm that ends a residual branch: ResNet-110 adds up 54 of them


def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Overwrite all weights, and all BatchNorm parameters and statistics, with random values.

    PyTorch's own values hide mistakes: BatchNorm starts as the identity, and deep networks give outputs that hardly
    depend on their input. Here weights are normal with the variance 2 / fan-in (He et al. 2015, arXiv:1502.01852,
    equation 10), biases uniform in [-0.2, 0.2]; BatchNorm variances are in [0.5, 1.5], means and shifts in
    [-0.3, 0.3], scales in [0.5, 1.3] (so that scale^2 / variance is 1 on average).

    That keeps the magnitude of activations through a chain of convolution, BatchNorm and ReLU. A block that is not
    such a chain has an attribute `norm_gains`, a dict from the name of a BatchNorm in it to a factor of its scale.

    Args:
        module: Changed in place. Its layers with weights are Conv2d, Linear and BatchNorm2d.
        generator: Source of all random numbers.

    Raises:
        ValueError: If another kind of layer has parameters of its own.
    """

    def fill(tensor: torch.Tensor | None, low: float, high: float) -> None:
        if tensor is not None:
            tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                fill(layer.weight, 0.5, 1.3)
                fill(layer.bias, -0.3, 0.3)
                fill(layer.running_mean, -0.3, 0.3)
                fill(layer.running_var, 0.5, 1.5)
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                fan_in = layer.weight[0].numel()
                layer.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
                fill(layer.bias, -0.2, 0.2)
            elif next(layer.parameters(recurse=False), None) is not None:
                raise ValueError(
                    f"randomise: {name or 'module'}: a layer with weights that is not known, got "
                    f"{type(layer).__name__}; expected Conv2d, Linear or BatchNorm2d."
                )
        for block in module.modules():
            for name, gain in getattr(block, "norm_gains", {}).items():
                norm = block.get_submodule(name)
                assert isinstance(norm, nn.BatchNorm2d)
                norm.weight.mul_(gain)
