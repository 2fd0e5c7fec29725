"""MobileNet v1 (Howard et al. 2017, arXiv:1704.04861) and v2 (Sandler et al. 2018, arXiv:1801.04381)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import conv_norm, scale_channels
from models.weights import BRANCH_GAIN, LINEAR_GAIN

V1_BLOCKS = (  # (channels, stride) of each depthwise separable block; v1 table 1
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    *((512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1)),
)
V2_STAGES = (  # (expansion t, channels c, blocks n, stride s of the first block); v2 table 2
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV1(nn.Module):
    """A plain chain of 13 depthwise separable convolutions behind a 3x3 stem."""

    def __init__(self, width: float = 1.0, n_classes: int = 1000) -> None:
        """Build the network.

        Args:
            width: Multiplier of all channel counts, rounded to multiples of 8.
            n_classes: Length of the output.
        """
        super().__init__()
        n_in = scale_channels(32, width, 8)
        layers = [*conv_norm(3, n_in, 3, 2), nn.ReLU()]
        for n_channels, stride in V1_BLOCKS:
            n_out = scale_channels(n_channels, width, 8)
            layers += [*conv_norm(n_in, n_in, 3, stride, groups=n_in), nn.ReLU()]
            layers += [*conv_norm(n_in, n_out, 1), nn.ReLU()]
            n_in = n_out
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, n_classes) for x of (batch, 3, H, W)."""
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.fc(torch.flatten(x, 1))


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (3x3 depthwise), project (1x1, no activation); added to the input where shapes agree."""

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        n_inner = n_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*conv_norm(n_in, n_inner, 1), nn.ReLU6()]
        layers += [*conv_norm(n_inner, n_inner, 3, stride, groups=n_inner), nn.ReLU6()]
        layers += conv_norm(n_inner, n_out, 1)
        self.branch = nn.Sequential(*layers)
        self.is_residual = stride == 1 and n_in == n_out
        self.norm_gains = {f"branch.{len(layers) - 1}": BRANCH_GAIN if self.is_residual else LINEAR_GAIN}

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, n_out, H / stride, W / stride) for x of (batch, n_in, H, W)."""
        y = self.branch(x)
        return x + y if self.is_residual else y


class MobileNetV2(nn.Module):
    """Seven stages of inverted residual blocks between a 3x3 stem and a 1x1 convolution."""

    def __init__(self, width: float = 1.0, n_classes: int = 1000) -> None:
        """Build the network.

        Args:
            width: Multiplier of all channel counts, rounded to multiples of 8. The last convolution is scaled too,
                while the paper keeps its 1280 channels for widths below 1.
            n_classes: Length of the output.
        """
        super().__init__()
        n_in = scale_channels(32, width, 8)
        layers: list[nn.Module] = [*conv_norm(3, n_in, 3, 2), nn.ReLU6()]
        for expansion, n_channels, n_blocks, first_stride in V2_STAGES:
            n_out = scale_channels(n_channels, width, 8)
            for block in range(n_blocks):
                layers.append(InvertedResidual(n_in, n_out, first_stride if block == 0 else 1, expansion))
                n_in = n_out
        n_last = scale_channels(1280, width, 8)
        layers += [*conv_norm(n_in, n_last, 1), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(n_last, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, n_classes) for x of (batch, 3, H, W)."""
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.fc(torch.flatten(x, 1))
