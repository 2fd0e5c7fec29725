"""Random inputs that a model really runs on."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from agmc_onnx.data.samples import Samples, synthetic
from agmc_onnx.errors import DataError, ModelError
from agmc_onnx.graph.sizes import InputSizes, guesses, input_dims, sizes_at
from agmc_onnx.measuring.session import make_session, model_inputs, run_model


def runnable(model: onnx.ModelProto, n: int, seed: int, sizes: InputSizes | None = None) -> Samples:
    """Return `synthetic` samples of given sizes, or of the likeliest that the model runs on.

    Args:
        model: The model.
        n: Number of samples.
        seed: Of the random generator.
        sizes: Of its inputs, with batch 1; None: the first of `agmc_onnx.graph.sizes.guesses` that it runs on.

    Raises:
        ModelError: If onnxruntime cannot load the model.
        DataError: If an input takes no numbers, or it runs on none of the sizes.
    """
    specs, inputs = model_inputs(model), input_dims(model)
    session = make_session(model)
    synthetic(
        specs, 1, seed, {f"{spec.name}:{at}": 1 for spec in specs for at in range(len(spec.shape))}
    )  # of numbers at all
    problem, tried = "", None

    def candidates() -> Iterator[InputSizes]:
        if sizes is not None:
            yield sizes
        else:
            yield from (sizes_at(inputs, setting) for setting in guesses(inputs, model))

    for tried in candidates():
        named = {f"{name}:{at}": size for name, dims in tried.items() for at, size in enumerate(dims)}
        try:
            run_model(session, synthetic(specs, 1, seed, named).feeds(1)[0])
            return synthetic(specs, n, seed, named)
        except (ModelError, DataError) as error:
            problem = problem or str(error)
    names = ", ".join(spec.name for spec in specs)
    shapes = ", ".join(f"{name}={','.join(map(str, dims))}" for name, dims in (tried or {}).items())
    raise DataError(
        f"synthetic inputs: the model runs on none of the sizes tried, last {shapes}, got {problem[:200]!r}; expected outputs."
        f" Say --input-shape {shapes} with sizes that fit, or give real inputs with --data FILE.npz, arrays named {names}."
    )
