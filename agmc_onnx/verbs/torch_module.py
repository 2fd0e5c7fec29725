"""Models as networks of PyTorch, and back: `agmc_onnx.to_torch` and `agmc_onnx.from_torch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from agmc_onnx.graph.commit import settle
from agmc_onnx.graph.files import read_model
from agmc_onnx.graph.outputs import check_output, stamped, write_files
from agmc_onnx.measuring.session import model_inputs
from agmc_onnx.pruning.sparsity import dense
from agmc_onnx.run.inputs import inputs_of
from agmc_onnx.verbs.given import Given, on_files, path_of

if TYPE_CHECKING:
    from agmc_onnx.torch_view.network import Module, Network


@on_files
def to_torch(model: Given) -> Network:
    """Return a model as a network of PyTorch: an nn.Module of nested modules after the names of the weights.

    It trains as any other, with any loss. In training mode BatchNormalization takes statistics of the batch, where the file
    still has any. A model that is made for one sample at a time takes several where its Reshapes allow it.

    Args:
        model: An .onnx file; not changed.

    Returns:
        The network: `network(x)` answers as the file does, `network.names` says which parameter is which weight.

    Raises:
        ModelError: If it cannot be read, or torch has no counterpart of an op here.
    """
    from agmc_onnx.torch_view.batches import with_open_batch
    from agmc_onnx.torch_view.network import Network

    proto = dense(read_model(path_of(model)).proto)
    is_single = any(spec.shape[:1] == (1,) for spec in model_inputs(proto))
    return Network(with_open_batch(proto) if is_single else proto)


@on_files
def from_torch(
    module: Module, *, like: Given, output: str | Path | None = None, force: bool = False
) -> onnx.ModelProto:
    """Return a model with the numbers of a trained network: the same graph, with its zeros and shared weights.

    Args:
        module: What `to_torch` gave, or a copy of it.
        like: The model that it was made from; not changed.
        output: Where to write it; None writes nothing.
        force: Write over files at the output that are not ours; inputs are never written over.

    Raises:
        ModelError: If the module is not of this model.
        UsageError: If the output cannot be written.
    """
    from agmc_onnx.torch_view.network import written_back

    path = path_of(like)
    if output is not None:
        settle(output)
        check_output(output, inputs_of(path, None), force, alone=True)
    made = written_back(module, dense(read_model(path).proto))
    if output is not None:
        made, _ = stamped(made, "")
        write_files(made, {}, output)
    return made
