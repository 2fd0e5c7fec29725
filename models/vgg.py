"""VGG-16, with and without BatchNorm, for CIFAR and for ImageNet. Simonyan and Zisserman 2015, arXiv:1409.1556."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import scale_channels

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # a 2x2 max-pool after each


def stack_convolutions(width: float, batchnorm: bool) -> tuple[nn.Sequential, int]:
    """Return the thirteen convolutions with their pools, and the number of channels they end with."""
    layers: list[nn.Module] = []
    n_in = 3
    for stage in STAGES:
        for n_channels in stage:
            n_out = scale_channels(n_channels, width)
            layers.append(nn.Conv2d(n_in, n_out, 3, padding=1))
            if batchnorm:
                layers.append(nn.BatchNorm2d(n_out))
            layers.append(nn.ReLU())
            n_in = n_out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers), n_in


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions and a head of linear layers behind a Flatten.

    Dropout is left out: it does nothing at inference.
    """

    def __init__(
        self,
        head: str = "imagenet",
        batchnorm: bool = False,
        width: float = 1.0,
        size: int = 224,
        n_classes: int = 1000,
    ) -> None:
        """Build the network.

        Args:
            head: "imagenet" (three linear layers with 4096 hidden units times `width`) or "cifar" (one linear layer).
            batchnorm: Whether a BatchNorm stands behind each convolution.
            width: Multiplier of all channel and hidden unit counts.
            size: Height and width of the image, a multiple of 32; it sets how many inputs the Flatten gives.
            n_classes: Length of the output.

        Raises:
            ValueError: If `head` is unknown or `size` is not a positive multiple of 32.
        """
        super().__init__()
        if size <= 0 or size % 32:
            raise ValueError(f"VGG16: size, got {size}; expected a positive multiple of 32.")
        self.features, n_channels = stack_convolutions(width, batchnorm)
        n_features = n_channels * (size // 32) ** 2  # 512 * 7 * 7 = 25088 on ImageNet
        if head == "imagenet":
            n_hidden = scale_channels(4096, width)
            self.classifier = nn.Sequential(
                nn.Linear(n_features, n_hidden),
                nn.ReLU(),
                nn.Linear(n_hidden, n_hidden),
                nn.ReLU(),
                nn.Linear(n_hidden, n_classes),
            )
        elif head == "cifar":
            self.classifier = nn.Sequential(nn.Linear(n_features, n_classes))
        else:
            raise ValueError(f"VGG16: unknown head, got {head!r}; expected imagenet or cifar.")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, n_classes) for x of (batch, 3, size, size)."""
        return self.classifier(torch.flatten(self.features(x), 1))
