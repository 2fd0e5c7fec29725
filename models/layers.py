"""What the network families share: scaled channel counts, and a convolution with its BatchNorm."""

from __future__ import annotations

from torch import nn


def scale_channels(n_channels: int, width: float, multiple: int = 1) -> int:
    """Return `width * n_channels`, rounded to the nearest `multiple`.

    Args:
        n_channels: Channels of the unscaled network.
        width: Width multiplier, > 0.
        multiple: The result is divisible by this, and at least this.

    Returns:
        The scaled number of channels. Where rounding down would lose more than a tenth of the channels it is rounded
        up instead (Howard et al. 2017, the rule of the published MobileNet code).
    """
    scaled = width * n_channels
    rounded = max(multiple, int(scaled + multiple / 2) // multiple * multiple)
    if rounded < 0.9 * scaled:
        rounded += multiple
    return rounded


def conv_norm(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the image size (but for its stride), without bias, and its BatchNorm."""
    conv = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(n_out)]
