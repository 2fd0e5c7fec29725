"""Normalisation with stored statistics folded into the convolution before it, and taken out again.

While its statistics stand still, BatchNormalization is a scale and a shift. Folded away, a training step is a seventh
shorter; the trained numbers go back into the model as it was, so its nodes stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from agmc_onnx.arrays import FloatArray
from agmc_onnx.graph.edit import Change, Gone, Input, Output, edited, with_arrays
from agmc_onnx.graph.view import Graph, Node, graph_of
from agmc_onnx.ops.conv import is_conv
from agmc_onnx.ops.norm import is_stored

_DEAD = 1e-4  # a scale this small beside the largest cannot be divided by: it is replaced by one


@dataclass(frozen=True, eq=False)
class _Pair:
    """A convolution and the normalisation behind it.

    Attributes:
        weight: Name of the kernel.
        bias: Name of the bias in the folded model.
        own_bias: float64 (channels,), what the convolution adds itself.
        norm: The normalisation.
        scale, mean: float64 (channels,); y = scale * (convolution - mean) + beta.
        gamma: float64 (channels,), that gives this scale.
    """

    weight: str
    bias: str
    own_bias: FloatArray
    norm: Node
    scale: FloatArray
    mean: FloatArray
    gamma: FloatArray


class Folded:
    """A model without the normalisation that can be folded away.

    Attributes:
        model: The folded model; values behind a pair keep their names.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        """Fold.

        Args:
            proto: Not changed.
        """
        self._proto = proto
        graph = graph_of(proto)
        self._pairs = [pair for node in graph.nodes if (pair := _pair(graph, node)) is not None]
        self.model = self._fold(graph) if self._pairs else proto

    def _fold(self, graph: Graph) -> onnx.ModelProto:
        changes: list[Change] = []
        arrays: dict[str, np.ndarray] = {}
        for pair in self._pairs:
            array, scale = graph.array(pair.weight), _old_scale(graph, pair.norm)
            arrays[pair.weight] = array.astype(np.float64) * _along(scale, array.ndim)
            beta = graph.array(pair.norm.inputs[2]).astype(np.float64)
            arrays[pair.bias] = ((pair.own_bias - pair.mean) * scale + beta).astype(array.dtype)
            conv, output = pair.norm.inputs[0], pair.norm.outputs[0]
            changes += [Gone(output), Output(conv, output), Input(conv, 2, pair.bias)]
        return edited(self._proto, changes, arrays)

    def unfold(self, folded: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model as it was, with the numbers of the folded one.

        Args:
            folded: `model`, with other numbers in its constants.
        """
        if not self._pairs:
            return folded
        graph = graph_of(folded)
        new: dict[str, np.ndarray] = {
            name: graph.array(name) for name in graph.tensors if np.issubdtype(graph.array(name).dtype, np.floating)
        }
        for pair in self._pairs:
            array = new[pair.weight]
            new[pair.weight] = array.astype(np.float64) / _along(pair.scale, array.ndim)
            new[pair.norm.inputs[1]] = pair.gamma
            new[pair.norm.inputs[2]] = new.pop(pair.bias).astype(np.float64) - (pair.own_bias - pair.mean) * pair.scale
        return with_arrays(self._proto, new)


def _pair(graph: Graph, norm: Node) -> _Pair | None:
    """Return the pair that a normalisation makes with the convolution before it, if its numbers are all their own."""
    if not is_stored(norm):
        return None
    conv = graph.producer.get(norm.inputs[0])
    if conv is None or not is_conv(conv):
        return None
    own = [conv.inputs[1], *norm.inputs[1:3]]
    if any(n not in graph.tensors or len(graph.consumers[n]) != 1 or n in graph.captured for n in own):
        return None
    biases = [n for n in conv.inputs[2:3] if n]
    if any(n not in graph.tensors for n in (*norm.inputs[3:5], *biases)):
        return None
    value = norm.inputs[0]
    if len(graph.consumers[value]) != 1 or value in graph.outputs or value in graph.captured:
        return None
    if any(graph.array(n).dtype != np.float32 for n in own):
        return None
    mean, var = (graph.array(n).astype(np.float64) for n in norm.inputs[3:5])
    scale, deviation = _old_scale(graph, norm), np.sqrt(var + norm.attribute("epsilon", 1e-5))
    scale = np.where(np.abs(scale) > _DEAD * np.abs(scale).max(), scale, 1.0)
    bias = graph.array(biases[0]).astype(np.float64) if biases else np.zeros(mean.size)
    return _Pair(conv.inputs[1], f"{norm.outputs[0]}__folded", bias, norm, scale, mean, scale * deviation)


def _old_scale(graph: Graph, norm: Node) -> FloatArray:
    gamma, var = (graph.array(norm.inputs[i]).astype(np.float64) for i in (1, 4))
    return np.asarray(gamma / np.sqrt(var + norm.attribute("epsilon", 1e-5)))


def _along(scale: FloatArray, rank: int) -> FloatArray:
    return scale.reshape(-1, *[1] * (rank - 1))
