"""The samples of a run: those of the data card or, without one, made-up images where the network says what they are like."""

from __future__ import annotations

import math
from pathlib import Path

from agmc_onnx.graph.view import Graph
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.ops.conv import is_conv
from agmc_onnx.options import CompressOptions
from agmc_onnx.run.analysis import Analysis

DREAM_MACS = 1e12  # of the original, that images may cost: about a minute
MIN_IMAGES = 8
LARGE = (
    1 << 16
)  # entries of a sample of guessed size, beyond which a role has few: 224 x 224 pixels say no more than 64 x 64


def with_recovery(analysis: Analysis, data: str | Path | None, settings: CompressOptions) -> CompressOptions:
    """Return the settings with what depends on data and model filled in: the recovery, and the ranking that suits it.

    Refits need data, or normalisation that stores what data were like.

    Raises:
        ModelError: If an op of a model that is to be distilled has no gradient here.
    """
    if settings.recovery.recover is None and data is None:
        from agmc_onnx.refit.synthesis import can_imagine

        settings = settings.with_data(can_imagine(analysis.graph))
    elif settings.recovery.recover is None:
        settings = settings.with_data(True)
    if settings.recovery.recover == "distill":
        from agmc_onnx.torch_view.module import prepare

        for node in analysis.graph.nodes:  # what cannot be trained is said before the search, not after it
            prepare(node, analysis.graph.opset)
    if settings.search.importance is not None:
        return settings
    is_refitted = data is not None and settings.recovery.recover in ("compensate", "distill")
    return settings.but(importance="moments" if is_refitted and has_depthwise(analysis.graph) else "l2")


def has_depthwise(graph: Graph) -> bool:
    """Return whether a convolution has a kernel for every channel alone.

    Behind those a unit is its own only successor, so its norm says little of what the others can make up for
    (docs/recovery.md).
    """
    convolutions = [node for node in graph.nodes if is_conv(node) and node.inputs[1] in graph.tensors]
    return any(node.attribute("group", 1) > 1 == graph.tensors[node.inputs[1]].dims[1] for node in convolutions)


def roles_of(analysis: Analysis, data: str | Path | None, settings: CompressOptions) -> Roles:
    """Return the roles; without data, and with recovery, calibration and reward are made-up images.

    Args:
        analysis: Of the model.
        data: A card, an .npz, a folder, "digits", or None.
        settings: Of the run, settled.

    Raises:
        DataError: If the data cannot be used with this model.
        ModelError: If onnxruntime cannot run the model.
    """
    sizes = analysis.sizes
    is_large = sizes.source == "guessed" and max(map(math.prod, sizes.inputs.values()), default=0) > LARGE
    more = {"n_random": MIN_IMAGES} if is_large else {}
    roles = Roles(analysis.file.proto, data, settings.data, settings.execution, sizes.inputs, **more)
    if data is None and settings.recovery.recover != "none":
        from agmc_onnx.pruning.cost import macs_cost
        from agmc_onnx.refit.options import RecoverOptions
        from agmc_onnx.refit.synthesis import imagine

        units = [group.n_units for group in analysis.channels.groups]
        for number, name in enumerate(("calibration", "reward")):
            options = RecoverOptions(seed=settings.execution.seed + number)
            per_image = 3 * options.n_dream_steps * max(macs_cost(analysis.channels)(units), 1)
            samples = roles.role(name)
            few = samples.take(min(samples.n, max(MIN_IMAGES, int(DREAM_MACS / per_image))))
            roles.replace(name, imagine(analysis.graph, few, options))
    return roles
