"""A model, read and analysed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from agmc_onnx.arrays import IntArray
from agmc_onnx.data.samples import Samples, load_card, open_data
from agmc_onnx.graph.files import ModelFile, read_model
from agmc_onnx.graph.inline import unwrapped
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.shapes import Shape
from agmc_onnx.graph.view import Graph, graph_of
from agmc_onnx.measuring.session import model_inputs
from agmc_onnx.measuring.sizes import Sizes, graph_at, settle
from agmc_onnx.ops import analyse
from agmc_onnx.ties.groups import Channels


@dataclass(frozen=True)
class Analysis:
    """A model, read and analysed.

    Attributes:
        file: As it lies on disk.
        model: Normalised; what plans and surgery refer to.
        channels: Groups, prunable and frozen.
        sizes: Of the inputs, for cost, latency, memory and verification.
    """

    file: ModelFile
    model: onnx.ModelProto
    channels: Channels
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def graph(self) -> Graph:
        """The normalised model's graph."""
        return self.channels.graph


@dataclass(frozen=True)
class Base:
    """What a stage starts from: the recovered result of the one before, in the shapes of the original.

    Attributes:
        model: The original with other weights, and neutral ones where channels are gone.
        kept: For each prunable group the positions that are left.
        shapes: Of its values: the original's.
        is_last: Whether it is the last stage that starts from here.
    """

    model: onnx.ModelProto
    kept: list[IntArray]
    shapes: dict[str, Shape] | None = None
    is_last: bool = False

    @property
    def n_units(self) -> IntArray:
        """Units that are left in every group."""
        return np.array([len(positions) for positions in self.kept], np.int64)

    def channels(self, exclude: Sequence[str] = ()) -> Channels:
        """Return the analysis of the model; its groups are the original's."""
        return analyse(graph_of(self.model, shapes=self.shapes)).excluding(exclude)


def analyse_model(
    path: str | Path,
    exclude: Sequence[str] = (),
    data: str | Path | None = None,
    input_shape: Sequence[str] = (),
) -> Analysis:
    """Read a model and find its groups.

    Args:
        path: Of the model.
        exclude: Groups that stay whole; see `Channels.excluding`.
        data: A data card, an .npz, a folder, or "digits", whose samples say the sizes of open dims.
        input_shape: Texts NAME=1,3,H,W that say them.

    Raises:
        ModelError: If it is no ONNX model, or onnxruntime cannot run it.
        UsageError: If a name to exclude fits no group.
    """
    file = read_model(path)
    model = normalize(file.proto, dense=True)

    def samples() -> Samples:
        assert data is not None
        return open_data(load_card(data), model_inputs(file.proto)).role("calibration")

    sizes = settle(file.proto, input_shape, samples if data is not None else None)
    graph = graph_at(model, sizes.inputs)
    taken = unwrapped(model, graph.shapes)  # sizes at which it runs decide more than those guessed without a run
    if taken is not model:
        model = normalize(taken, dense=True)
        graph = graph_at(model, sizes.inputs)
    return Analysis(file, model, analyse(graph).excluding(exclude), sizes)
