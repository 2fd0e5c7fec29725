"""Residual networks: the basic-block family for CIFAR and the bottleneck family for ImageNet.

He et al. 2016, arXiv:1512.03385: section 4.2 (CIFAR, 6n + 2 layers) and table 1 (ImageNet).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import scale_channels
from models.weights import BRANCH_GAIN


class PaddedSubsample(nn.Module):
    """Option A shortcut: every second pixel, new channels filled with zeros on both sides.

    Channel i of the input becomes channel i + (n_out - n_in) // 2 of the output. It has no parameters; in ONNX it is a
    Slice and a Pad on the channel axis.
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.n_before = (n_out - n_in) // 2
        self.n_after = n_out - n_in - self.n_before

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, n_out, ceil(H / stride), ceil(W / stride)) for x of (batch, n_in, H, W)."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.n_before, self.n_after))


def projection(n_in: int, n_out: int, stride: int) -> nn.Module:
    """Return an option B shortcut: a 1x1 convolution with BatchNorm."""
    return nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))


SHORTCUTS = {"A": PaddedSubsample, "B": projection}


def make_shortcut(option: str, n_in: int, n_out: int, stride: int) -> nn.Module:
    """Return the identity where the shapes agree, else the shortcut that `option` names.

    Raises:
        ValueError: If `option` is no key of `SHORTCUTS`.
    """
    if option not in SHORTCUTS:
        raise ValueError(f"make_shortcut: unknown option, got {option!r}; expected one of {', '.join(SHORTCUTS)}.")
    if n_in == n_out and stride == 1:
        return nn.Identity()
    return SHORTCUTS[option](n_in, n_out, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    norm_gains: ClassVar = {"bn2": BRANCH_GAIN}

    def __init__(self, n_in: int, n_out: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = make_shortcut(shortcut, n_in, n_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, n_out, H / stride, W / stride) for x of (batch, n_in, H, W)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a projection shortcut; the 3x3 convolution carries the stride."""

    expansion = 4
    norm_gains: ClassVar = {"bn3": BRANCH_GAIN}

    def __init__(self, n_in: int, n_inner: int, stride: int) -> None:
        super().__init__()
        n_out = n_inner * self.expansion
        self.conv1 = nn.Conv2d(n_in, n_inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_inner)
        self.conv2 = nn.Conv2d(n_inner, n_inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_inner)
        self.conv3 = nn.Conv2d(n_inner, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.shortcut = make_shortcut("B", n_in, n_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 4 * n_inner, H / stride, W / stride) for x of (batch, n_in, H, W)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


class BasicResNet(nn.Module):
    """A 3x3 stem without pooling, stages of basic blocks, global average pooling, one linear layer."""

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        strides: Sequence[int],
        *,
        shortcut: str = "A",
        n_classes: int = 10,
        n_input_channels: int = 3,
    ) -> None:
        """Build the stages.

        Args:
            blocks: Blocks of each stage.
            widths: Channels of each stage; the stem has those of the first.
            strides: Stride of the first block of each stage.
            shortcut: A key of `SHORTCUTS`, used where a stage changes the shape.
            n_classes: Length of the output.
            n_input_channels: Channels of the image.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(n_input_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        n_in = widths[0]
        for n_blocks, n_out, stride in zip(blocks, widths, strides, strict=True):
            stage = [BasicBlock(n_in, n_out, stride, shortcut)]
            stage += [BasicBlock(n_out, n_out, 1, shortcut) for _ in range(n_blocks - 1)]
            stages.append(nn.Sequential(*stage))
            n_in = n_out
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, n_classes) for x of (batch, n_input_channels, H, W)."""
        x = self.stages(F.relu(self.bn1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.fc(torch.flatten(x, 1))


class BottleneckResNet(nn.Module):
    """A 7x7 stem with max-pooling, stages of bottlenecks, global average pooling, one linear layer."""

    def __init__(self, blocks: Sequence[int], width: float = 1.0, n_classes: int = 1000) -> None:
        """Build the stages, of inner widths 64, 128, 256, ... times `width`.

        Args:
            blocks: Bottlenecks of each stage; all stages but the first halve the image.
            width: Multiplier of all channel counts.
            n_classes: Length of the output.
        """
        super().__init__()
        n_in = scale_channels(64, width)
        self.conv1 = nn.Conv2d(3, n_in, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(n_in)
        stages: list[nn.Module] = []
        for index, n_blocks in enumerate(blocks):
            n_inner = scale_channels(64 << index, width)
            stage: list[nn.Module] = []
            for block in range(n_blocks):
                stage.append(Bottleneck(n_in, n_inner, stride=2 if index > 0 and block == 0 else 1))
                n_in = n_inner * Bottleneck.expansion
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, n_classes) for x of (batch, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.stages(F.max_pool2d(x, 3, 2, padding=1))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.fc(torch.flatten(x, 1))


def cifar_resnet(depth: int, shortcut: str = "A", width: float = 1.0, n_classes: int = 10) -> BasicResNet:
    """Return the CIFAR ResNet of 6n + 2 layers and widths 16, 32, 64 (arXiv:1512.03385, section 4.2).

    Args:
        depth: 20, 32, 44, 56, 110 or any other 6n + 2.
        shortcut: "A" (subsample and pad with zeros, no parameters) or "B" (1x1 convolution).
        width: Multiplier of the three widths.
        n_classes: Length of the output.

    Raises:
        ValueError: If `depth` is not 6n + 2 with n > 0, or `shortcut` is unknown.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"cifar_resnet: no such depth, got {depth}; expected 6n + 2 with n > 0.")
    widths = [scale_channels(n_channels, width) for n_channels in (16, 32, 64)]
    return BasicResNet([(depth - 2) // 6] * 3, widths, (1, 2, 2), shortcut=shortcut, n_classes=n_classes)


def bottleneck_resnet(
    blocks: Sequence[int] = (3, 4, 6, 3), width: float = 1.0, n_classes: int = 1000
) -> BottleneckResNet:
    """Return an ImageNet ResNet of bottlenecks; (3, 4, 6, 3) is ResNet-50.

    (3, 4, 6, 6) is the network whose channel graph has the 31,997 nodes of the AGMC paper's "ResNet-54".
    """
    return BottleneckResNet(blocks, width, n_classes)
