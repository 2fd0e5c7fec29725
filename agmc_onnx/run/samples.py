"""The samples of a run: those of the data card or, without one, made-up images where the network says what they are like."""

from __future__ import annotations

from pathlib import Path

from agmc_onnx.config import CompressOptions
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.run.analysis import Analysis

DREAM_MACS = 1e12  # of the original, that images may cost: about a minute
MIN_IMAGES = 8


def with_recovery(analysis: Analysis, data: str | Path | None, settings: CompressOptions) -> CompressOptions:
    """Return the settings with the recovery filled in: refits need data, or normalisation that stores what data were like."""
    if settings.recover is not None:
        return settings
    if data is not None:
        return settings.with_data(True)
    from agmc_onnx.recover.synthesis import can_imagine

    return settings.with_data(can_imagine(analysis.graph))


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
    roles = Roles(analysis.file.proto, data, settings)
    if data is None and settings.recover != "none":
        from agmc_onnx.pruning.cost import macs_cost
        from agmc_onnx.recover.options import RecoverOptions
        from agmc_onnx.recover.synthesis import imagine

        units = [group.n_units for group in analysis.channels.groups]
        for number, name in enumerate(("calibration", "reward")):
            options = RecoverOptions(seed=settings.seed + number)
            per_image = 3 * options.n_dream_steps * max(macs_cost(analysis.channels)(units), 1)
            samples = roles.role(name)
            few = samples.take(min(samples.n, max(MIN_IMAGES, int(DREAM_MACS / per_image))))
            roles.replace(name, imagine(analysis.graph, few, options))
    return roles
