"""An ONNX graph as a network of PyTorch that a user trains, and the trained numbers back in the graph."""

from __future__ import annotations

import re

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.edit import with_arrays
from agmc_onnx.graph.view import Graph
from agmc_onnx.torch_view.module import TorchGraph

Module = nn.Module
ZEROS = 0.05  # share of zeros in a weight of two dims or more, from which on they stay zero


class Network(TorchGraph):
    """A graph whose parameters lie in nested modules after the names of its weights.

    `head.cls.2.weight` is the parameter `weight` of the module `2` in `cls` in `head`; slashes and colons part names too. Where
    a name is taken it gets an underscore behind. Weights with many zeros keep them: they get no gradient there.

    Attributes:
        names: Name of the weight in the graph of every parameter and buffer, by its name here.
    """

    def __init__(self, model: onnx.ModelProto | Graph) -> None:
        """Prepare every node, and put the constants where their names say.

        Args:
            model: Not changed.

        Raises:
            ModelError: If torch has no counterpart of some op here.
        """
        super().__init__(model)
        self._homes: dict[str, tuple[nn.Module, str]] = {}
        flat, self.names = self.names, {}
        for key, value in flat.items():
            is_parameter = key in self._parameters
            tensor = self._parameters.pop(key) if is_parameter else self._buffers.pop(key)
            assert tensor is not None
            path, home, leaf = self._place(value)
            if isinstance(tensor, nn.Parameter):
                home.register_parameter(leaf, tensor)
                if (mask := _zeros(tensor)) is not None:
                    tensor.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient.device))
            else:
                home.register_buffer(leaf, tensor)
            self._homes[value], self.names[path] = (home, leaf), value

    def _place(self, value: str) -> tuple[str, nn.Module, str]:
        """Return the path, the module and the name there of a weight; modules on the way are made."""
        parts = [part for part in re.split(r"[./:]+", value) if part] or ["weight"]
        home: nn.Module = self
        path = []
        for part in parts[:-1]:
            while not isinstance(home._modules.get(part), nn.Module) and hasattr(home, part):
                part += "_"
            if part not in home._modules:
                home.add_module(part, nn.Module())
            home = home._modules[part] or home
            path.append(part)
        leaf = parts[-1]
        while hasattr(home, leaf):
            leaf += "_"
        return ".".join([*path, leaf]), home, leaf

    def constant(self, name: str) -> Tensor | None:
        """Return the parameter, buffer or whole numbers of a constant value; None for any other value."""
        home = self.__dict__.get("_homes", {}).get(name)
        return super().constant(name) if home is None else getattr(*home)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]
        """Return the output, or all of them where there are several.

        Args:
            inputs: In the order of the graph's inputs.
        """
        found = super().forward(*inputs)
        return found[0] if len(found) == 1 else found


def _zeros(tensor: Tensor) -> Tensor | None:
    """Return 1 where a weight is not zero, if its zeros are to stay."""
    mask = (tensor.detach() != 0).to(tensor.dtype)
    return mask if tensor.dim() > 1 and float(mask.mean()) < 1 - ZEROS else None


def written_back(module: nn.Module, like: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the numbers of a trained network.

    Args:
        module: A `Network`, or anything with its parameters by the same names (one that was copied, compiled or wrapped).
        like: The model that it was made from; not changed.

    Raises:
        ModelError: If parameters are missing or of another shape.
    """
    known = Network(like)
    given = dict(module.state_dict())
    for before in ("_orig_mod.", "module."):  # of torch.compile, of DataParallel
        given = {key.removeprefix(before): value for key, value in given.items()}
    arrays: dict[str, np.ndarray] = {}
    for key, tensor in known.state_dict().items():
        if key not in known.names:
            continue
        new = given.get(key)
        if new is None or new.shape != tensor.shape:
            got = "nothing" if new is None else str(tuple(new.shape))
            raise ModelError(
                f"parameter {key!r}: does not belong to this model, got {got}; expected {tuple(tensor.shape)}. Give the model"
                " that the module was made from."
            )
        value = new.detach().to("cpu", tensor.dtype)
        mask = _zeros(tensor)
        value = value if mask is None else value * mask
        if not torch.equal(value, tensor):
            arrays[known.names[key]] = value.numpy()
    return with_arrays(like, arrays) if arrays else like
