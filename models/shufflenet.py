"""ShuffleNet v1 (Zhang et al. 2018, arXiv:1707.01083) and v2 (Ma et al. 2018, arXiv:1807.11164)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import conv_norm, scale_channels
from models.weights import BRANCH_GAIN, LINEAR_GAIN

BLOCKS = (4, 8, 4)  # units of each stage, in both versions; the first of a stage halves the image
V1_WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # channels of the first stage by groups; v1 table 1
V2_WIDTHS = {  # stem, three stages, last convolution; v2 table 5
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Return x (batch, groups * n, H, W) with channel g * n + i moved to i * groups + g."""
    batch, n_channels, height, width = x.shape
    x = x.view(batch, groups, n_channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, n_channels, height, width)


class ShuffleUnitV1(nn.Module):
    """Grouped 1x1, channel shuffle, depthwise 3x3, grouped 1x1; added to the input, or joined to its average pool.

    Arxiv 1707.01083, figure 2 (b) for stride 1 and (c) for stride 2.
    """

    def __init__(self, n_in: int, n_out: int, groups: int, stride: int, is_first: bool) -> None:
        super().__init__()
        n_inner = n_out // 4
        n_branch = n_out - n_in if stride == 2 else n_out
        self.groups = groups
        self.stride = stride
        reduce_groups = 1 if is_first else groups  # the stem has too few channels to be grouped; section 3.2
        self.reduce = nn.Sequential(*conv_norm(n_in, n_inner, 1, groups=reduce_groups), nn.ReLU())
        self.filter = nn.Sequential(*conv_norm(n_inner, n_inner, 3, stride, groups=n_inner))
        self.expand = nn.Sequential(*conv_norm(n_inner, n_branch, 1, groups=groups))
        self.norm_gains = {"filter.1": LINEAR_GAIN}
        if stride == 1:
            self.norm_gains["expand.1"] = BRANCH_GAIN

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, n_out, H / stride, W / stride) for x of (batch, n_in, H, W)."""
        y = self.reduce(x)
        if self.groups > 1:
            y = shuffle_channels(y, self.groups)
        y = self.expand(self.filter(y))
        if self.stride == 1:
            return F.relu(x + y)
        return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, padding=1), y], dim=1))


class ShuffleNetV1(nn.Module):
    """A 3x3 stem with max-pooling and three stages of shuffle units."""

    def __init__(self, groups: int = 3, width: float = 1.0, n_classes: int = 1000) -> None:
        """Build the network.

        Args:
            groups: Groups of the 1x1 convolutions. The paper has widths for 1, 2, 3, 4 and 8; any other number starts
                from the width of 3.
            width: Multiplier of all channel counts; rounded so that all groups are equal.
            n_classes: Length of the output.
        """
        super().__init__()
        n_in = scale_channels(24, width, groups)
        self.stem = nn.Sequential(*conv_norm(3, n_in, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
        first_width = V1_WIDTHS.get(groups, V1_WIDTHS[3])
        units: list[nn.Module] = []
        for stage, n_units in enumerate(BLOCKS):
            n_out = scale_channels(first_width << stage, width, 4 * groups)  # a quarter of it is grouped too
            for unit in range(n_units):
                is_first = stage == 0 and unit == 0
                units.append(ShuffleUnitV1(n_in, n_out, groups, 2 if unit == 0 else 1, is_first))
                n_in = n_out
        self.units = nn.Sequential(*units)
        self.fc = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, n_classes) for x of (batch, 3, H, W)."""
        x = F.adaptive_avg_pool2d(self.units(self.stem(x)), 1)
        return self.fc(torch.flatten(x, 1))


class ShuffleUnitV2(nn.Module):
    """Split the channels, convolve one half, join the halves and shuffle them.

    Arxiv 1807.11164, figure 3 (c) for stride 1 and (d) for stride 2, where both halves see the whole input.
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        n_half = n_out // 2
        n_branch_in = n_in if stride == 2 else n_half
        self.stride = stride
        self.branch = nn.Sequential(
            *conv_norm(n_branch_in, n_half, 1),
            nn.ReLU(),
            *conv_norm(n_half, n_half, 3, stride, groups=n_half),
            *conv_norm(n_half, n_half, 1),
            nn.ReLU(),
        )
        self.norm_gains = {"branch.4": LINEAR_GAIN}
        self.shortcut = nn.Sequential()
        if stride == 2:
            self.norm_gains["shortcut.1"] = LINEAR_GAIN
            self.shortcut = nn.Sequential(
                *conv_norm(n_in, n_in, 3, stride, groups=n_in), *conv_norm(n_in, n_half, 1), nn.ReLU()
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, n_out, H / stride, W / stride) for x of (batch, n_in, H, W)."""
        if self.stride == 1:
            kept, x = x.chunk(2, dim=1)
        else:
            kept = self.shortcut(x)
        return shuffle_channels(torch.cat([kept, self.branch(x)], dim=1), 2)


class ShuffleNetV2(nn.Module):
    """A 3x3 stem with max-pooling, three stages of split-and-shuffle units, a 1x1 convolution."""

    def __init__(self, width: float = 1.0, n_classes: int = 1000, small_images: bool = False) -> None:
        """Build the network.

        Args:
            width: 0.5, 1.0, 1.5 or 2.0 give the paper's widths; any other multiplies those of 1.0, rounded to even.
            n_classes: Length of the output.
            small_images: Leave out what makes a quarter of 224 pixels, so that 32 are enough: stride and pool of the stem.
        """
        super().__init__()
        widths = V2_WIDTHS.get(width) or tuple(scale_channels(n_channels, width, 2) for n_channels in V2_WIDTHS[1.0])
        n_in = widths[0]
        pool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, padding=1)
        self.stem = nn.Sequential(*conv_norm(3, n_in, 3, 1 if small_images else 2), nn.ReLU(), pool)
        units: list[nn.Module] = []
        for n_out, n_units in zip(widths[1:4], BLOCKS, strict=True):
            units.append(ShuffleUnitV2(n_in, n_out, 2))
            units += [ShuffleUnitV2(n_out, n_out, 1) for _ in range(n_units - 1)]
            n_in = n_out
        self.units = nn.Sequential(*units)
        self.last = nn.Sequential(*conv_norm(n_in, widths[4], 1), nn.ReLU())
        self.fc = nn.Linear(widths[4], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, n_classes) for x of (batch, 3, H, W)."""
        x = F.adaptive_avg_pool2d(self.last(self.units(self.stem(x))), 1)
        return self.fc(torch.flatten(x, 1))
