"""A model as a torch module, for formats whose converters read torch and no ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from agmc_onnx.exchange.exporters.row import Source


def module_of(source: Source) -> tuple[Any, tuple[Any, ...]]:
    """Return the model as a torch module, and the inputs it is to be traced with."""
    import torch

    from agmc_onnx.torch_view.module import TorchGraph

    module = TorchGraph(onnx.load(source.plain)).eval()
    return module, tuple(torch.from_numpy(np.ascontiguousarray(source.feed[name])) for name in module.inputs)


def flat_module_of(source: Source) -> tuple[Any, tuple[Any, ...]]:
    """Return the same as an fx graph of torch calls; torch.export cannot read shapes that the module keeps as tensors."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    module, inputs = module_of(source)
    with torch.no_grad():
        return make_fx(module)(*inputs).eval(), inputs
