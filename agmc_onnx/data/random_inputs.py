"""Random inputs that a model really runs on."""

from __future__ import annotations

import onnx

from agmc_onnx.data.samples import SYNTHETIC_DIM, Samples, synthetic
from agmc_onnx.errors import DataError, ModelError
from agmc_onnx.measuring.session import make_session, model_inputs, run_model

SIZES = (SYNTHETIC_DIM, 64, 224, 256, 512, 576, 1024, 16000)  # tokens, small and usual images, audio windows


def runnable(model: onnx.ModelProto, n: int, seed: int) -> Samples:
    """Return `synthetic` samples with the smallest usual size of open dims that the model accepts.

    Args:
        model: The model; without open dims one size is tried.
        n: Number of samples.
        seed: Of the random generator.

    Raises:
        ModelError: If onnxruntime cannot load the model.
        DataError: If it runs on none of the sizes.
    """
    inputs = model_inputs(model)
    session = make_session(model)
    problem = ""
    is_open = any(size is None for spec in inputs for size in spec.shape[1:])
    for size in SIZES if is_open else SIZES[:1]:
        try:
            run_model(session, synthetic(inputs, 1, seed, default_size=size).feeds(1)[0])
            return synthetic(inputs, n, seed, default_size=size)
        except (ModelError, DataError) as error:
            problem = problem or str(error)
    names = ", ".join(spec.name for spec in inputs)
    raise DataError(
        f"synthetic inputs: the model runs on none of the sizes tried, got {problem[:200]!r}; expected outputs."
        f" Give real inputs with --data FILE.npz whose arrays are named {names}."
    )
