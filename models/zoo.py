"""The table of networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.mobilenet import MobileNetV1, MobileNetV2
from models.resnet import bottleneck_resnet, cifar_resnet
from models.shufflenet import ShuffleNetV1, ShuffleNetV2
from models.vgg import VGG16
from models.weights import randomise


@dataclass(frozen=True)
class Builder:
    """How one network is made.

    Attributes:
        make: Returns the network with PyTorch's default weights; its keyword arguments are the options of `build`.
        input_shape: (N, C, H, W) of its usual input. All but VGG, which has an option `size`, take any H and W of at
            least 32.
    """

    make: Callable[..., nn.Module]
    input_shape: tuple[int, int, int, int]


CIFAR = (1, 3, 32, 32)
IMAGENET = (1, 3, 224, 224)

BUILDERS: dict[str, Builder] = {
    "resnet20": Builder(functools.partial(cifar_resnet, depth=20), CIFAR),
    "resnet32": Builder(functools.partial(cifar_resnet, depth=32), CIFAR),
    "resnet44": Builder(functools.partial(cifar_resnet, depth=44), CIFAR),
    "resnet56": Builder(functools.partial(cifar_resnet, depth=56), CIFAR),
    "resnet110": Builder(functools.partial(cifar_resnet, depth=110), CIFAR),
    "resnet50": Builder(functools.partial(bottleneck_resnet, blocks=(3, 4, 6, 3)), IMAGENET),
    "resnet_3466": Builder(functools.partial(bottleneck_resnet, blocks=(3, 4, 6, 6)), IMAGENET),
    "vgg16": Builder(VGG16, IMAGENET),
    "vgg16_bn": Builder(functools.partial(VGG16, batchnorm=True), IMAGENET),
    "vgg16_cifar": Builder(functools.partial(VGG16, head="cifar", size=32, n_classes=10), CIFAR),
    "vgg16_bn_cifar": Builder(functools.partial(VGG16, head="cifar", batchnorm=True, size=32, n_classes=10), CIFAR),
    "mobilenet_v1": Builder(MobileNetV1, IMAGENET),
    "mobilenet_v2": Builder(MobileNetV2, IMAGENET),
    "shufflenet_v1": Builder(ShuffleNetV1, IMAGENET),
    "shufflenet_v2": Builder(ShuffleNetV2, IMAGENET),
}


def build(name: str, seed: int = 0, **options: Any) -> nn.Module:
    """Return a network with random weights, in evaluation mode.

    Args:
        name: A key of `BUILDERS`.
        seed: Of the weights; the same seed gives the same weights. The global generator is left as it was.
        **options: Keyword arguments of the row's `make`, such as `width=0.25`, `n_classes=10`, `shortcut="B"`,
            `groups=2` or `size=64`; the module of the family documents them.

    Raises:
        ValueError: If `name` is not in the table.
    """
    if name not in BUILDERS:
        raise ValueError(f"build: unknown network, got {name!r}; expected one of {', '.join(BUILDERS)}.")
    with torch.random.fork_rng(devices=[]):  # the layers' constructors draw from the global generator
        module = BUILDERS[name].make(**options)
    randomise(module, torch.Generator().manual_seed(seed))
    return module.eval()
