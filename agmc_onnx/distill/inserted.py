"""Normalisation put behind convolutions while they train, and folded away again (Ioffe and Szegedy 2015, arXiv:1502.03167).

A deployed model has its normalisation folded into its weights, and a refitted one has stored statistics that are no
longer those of its values: both learn slowly. So every convolution gets a BatchNormalization with the mean and deviation
of its own outputs as statistics, and as shift and scale too: it changes nothing, with stored statistics or with those of
a batch, until something is learned. Behind it the size of a filter does not matter, so all get the same: folded ones
differ by a factor of twenty from layer to layer (ResNet-56), and a step that is right for one is a tenth of another.
What was learned goes into the convolution's weight and bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from agmc_onnx.arrays import FloatArray
from agmc_onnx.graph.edit import Change, Input, Made, Output, edited
from agmc_onnx.graph.view import Graph, Node, graph_of
from agmc_onnx.ops.conv import is_conv
from agmc_onnx.torch_view.module import TorchGraph

EPSILON = 1e-5
FILTER_RMS = 0.1  # root of the mean square of a filter's weights: steps of AdamW are a share of it
_LEAST_DEVIATION = 1e-3  # of a channel, beside the largest of its convolution: what hardly varies is not blown up
_PARTS = ("scale", "shift", "mean", "var")


@dataclass(frozen=True)
class _Place:
    """A convolution that gets a normalisation.

    Attributes:
        weight: Name of its kernel.
        bias: Name of its bias, or of the one it gets.
        has_bias: Whether it has one.
        output: Name of what it computes.
    """

    weight: str
    bias: str
    has_bias: bool
    output: str

    def name(self, part: str) -> str:
        """Return the name of a tensor of the normalisation."""
        return f"{self.output}__{part}"


class Normalised:
    """A model with normalisation behind its convolutions.

    Attributes:
        model: The model; every value but the convolutions' own outputs keeps its name.
        outputs: Of the normalisations put in.
    """

    def __init__(self, proto: onnx.ModelProto, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Measure the statistics and put the nodes in.

        Args:
            proto: Not changed.
            batches: Feeds that the statistics are taken over.
        """
        self._proto = proto
        self._graph = graph = graph_of(proto)
        self._places = [place for node in graph.nodes if (place := _place(graph, node)) is not None]
        self.outputs = frozenset(place.output for place in self._places)
        self.model = self._with_nodes(_statistics(graph, self._places, batches)) if self._places else proto

    def _with_nodes(self, statistics: Mapping[str, tuple[npt.NDArray[np.float32], ...]]) -> onnx.ModelProto:
        changes: list[Change] = []
        arrays: dict[str, np.ndarray] = {}
        for place in self._places:
            raw = place.name("raw")
            inputs = (raw, *(place.name(part) for part in _PARTS))
            epsilon = (("epsilon", EPSILON),)
            changes += [
                Output(place.output, raw),
                Made("BatchNormalization", inputs, (place.output,), epsilon, behind=place.output),
            ]
            mean, variance = statistics[place.output]
            size = _sizes(self._graph.array(place.weight))
            for name in (place.weight, *([place.bias] if place.has_bias else [])):
                array = self._graph.array(name)
                arrays[name] = array / size.reshape(-1, *[1] * (array.ndim - 1))
            small = variance / size**2
            values: tuple[np.ndarray, ...] = (size * np.sqrt(small + EPSILON), mean, mean / size, small)
            arrays.update((place.name(part), v.astype(np.float32)) for part, v in zip(_PARTS, values, strict=True))
        return edited(self._proto, changes, arrays)

    def fold(self, trained: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model as it was, with the trained numbers; a convolution without a bias gets one.

        Args:
            trained: `model`, with other numbers in its constants.
        """
        if not self._places:
            return trained
        graph = graph_of(trained)
        new: dict[str, np.ndarray] = {
            name: graph.array(name) for name in graph.tensors if np.issubdtype(graph.array(name).dtype, np.floating)
        }
        for place in self._places:
            scale, shift, mean, variance = (new.pop(place.name(part)).astype(np.float64) for part in _PARTS)
            scale = scale / np.sqrt(variance + EPSILON)
            weight = new[place.weight]
            own = new[place.bias].astype(np.float64) if place.has_bias else 0.0
            new[place.weight] = weight.astype(np.float64) * scale.reshape(-1, *[1] * (weight.ndim - 1))
            new[place.bias] = ((own - mean) * scale + shift).astype(weight.dtype)
        biases = [Input(place.output, 2, place.bias) for place in self._places if not place.has_bias]
        return edited(self._proto, biases, new)

    def learn_statistics(self, module: TorchGraph) -> None:
        """Let these normalisations, and nothing else, use and update the statistics of the batch."""
        for call in module.calls:
            call.training = call.op_type == "BatchNormalization" and call.outputs[0] in self.outputs


def _sizes(weight: np.ndarray) -> FloatArray:
    """Return what the filters of a weight are divided by, (channels,)."""
    rms = np.sqrt((weight.reshape(len(weight), -1).astype(np.float64) ** 2).mean(1))
    return np.maximum(rms, max(_LEAST_DEVIATION * float(rms.max()), 1e-12)) / FILTER_RMS


def _place(graph: Graph, node: Node) -> _Place | None:
    """Return where a normalisation goes, if the convolution's numbers are its own and it has positions to average over."""
    if not is_conv(node):
        return None
    output, weight, biases = node.outputs[0], node.inputs[1], [name for name in node.inputs[2:3] if name]
    shape = graph.shape(output)
    if shape is None or all(dim == 1 for dim in shape.dims[2:]):
        return None  # of one position a batch says too little
    own = [weight, *biases]
    if any(n not in graph.tensors or len(graph.consumers[n]) != 1 or n in graph.captured for n in own):
        return None
    if any(graph.array(n).dtype != np.float32 for n in own) or output in graph.outputs or output in graph.captured:
        return None
    return _Place(weight, biases[0] if biases else f"{output}__bias", bool(biases), output)


def _statistics(
    graph: Graph, places: Sequence[_Place], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, tuple[npt.NDArray[np.float32], ...]]:
    """Return mean and variance float32 (channels,) of every convolution's output."""
    module = TorchGraph(graph).eval()
    wanted = [place.output for place in places]
    count: dict[str, int] = dict.fromkeys(wanted, 0)
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        for batch in batches:
            for name, value in module.run(batch, wanted).items():
                dims = [dim for dim in range(value.dim()) if dim != 1]
                both = torch.stack([value.double().sum(dims), value.double().square().sum(dims)])
                sums[name] = sums.get(name, torch.zeros_like(both)) + both
                count[name] += value.numel() // value.shape[1]
    found: dict[str, tuple[npt.NDArray[np.float32], ...]] = {}
    for name in wanted:
        mean, square = (sums[name] / count[name]).numpy()
        variance = np.maximum(square - mean**2, 0)
        variance = np.maximum(variance, _LEAST_DEVIATION**2 * max(float(variance.max()), 1e-12))
        found[name] = mean.astype(np.float32), variance.astype(np.float32)
    return found
