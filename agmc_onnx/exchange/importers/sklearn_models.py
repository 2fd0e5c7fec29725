"""scikit-learn estimators to ONNX, by skl2onnx."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from agmc_onnx.errors import UsageError
from agmc_onnx.exchange.importers.source import (
    Conversion,
    Feed,
    ImportOptions,
    Source,
    converting,
    need,
    one_line,
    silence,
    version,
)
from agmc_onnx.graph.edit import Made, edited

OPSET, ML_OPSET = 18, 3
_OPTIMIZERS = "sklearn.neural_network._stochastic_optimizers."
PLAIN_TYPES = (_OPTIMIZERS + "AdamOptimizer", _OPTIMIZERS + "SGDOptimizer")  # hold numbers, and every MLP has one


def convert_estimator(source: Source, options: ImportOptions) -> Conversion:
    """Convert a fitted estimator or pipeline; a classifier's scores become the first output, its labels the second."""
    need(source, "import-sklearn", "sklearn", "skl2onnx")
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.base import is_classifier

    estimator = source.value if source.is_reference else _load(source, options)
    n_features = getattr(estimator, "n_features_in_", None)
    if n_features is None:
        raise UsageError(
            f"{source}: not a fitted estimator, got {type(estimator).__name__}; expected one with n_features_in_. Call its fit"
            " first."
        )
    score, other = _methods(estimator)
    with converting(source, "skl2onnx"):
        model = to_onnx(
            estimator,
            initial_types=[("input", FloatTensorType([None, n_features]))],
            options={"zipmap": False} if is_classifier(estimator) else None,
            target_opset={"": options.opset or OPSET, "ai.onnx.ml": ML_OPSET},
        )
    notes: tuple[str, ...] = ()
    classes = getattr(estimator, "classes_", np.empty(0))
    if other is not None and not np.issubdtype(np.asarray(classes).dtype, np.number):
        from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs

        scores = [value for value in model.graph.output if "label" not in value.name]
        model, other = select_model_inputs_outputs(model, outputs=[value.name for value in scores]), None
        del model.graph.output[:]
        model.graph.output.extend(scores)  # with their types again
        notes = (f"labels are no numbers: the graph gives the scores of {', '.join(map(str, classes))}, in this order",)
    model = _plain(_scores_first(model))

    def answer(feed: Feed) -> list[np.ndarray]:
        x = np.asarray(feed["input"], np.float64)
        found = np.asarray(getattr(estimator, score)(x))
        scores = found if found.ndim > 1 else found[:, None]
        return [scores] if other is None else [scores, np.asarray(getattr(estimator, other)(x))]

    return Conversion(model, answer, version("scikit-learn"), version("skl2onnx"), notes=notes)


def _methods(estimator: Any) -> tuple[str, str | None]:
    """Return the methods that say what the graph's outputs do: of the first, and of the second if there is one."""
    from sklearn.base import is_classifier

    if is_classifier(estimator):
        return ("predict_proba" if hasattr(estimator, "predict_proba") else "decision_function"), "predict"
    return ("predict" if hasattr(estimator, "predict") else "transform"), None


def _scores_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a classifier's graph with its labels as the last output; a metric looks at the first."""
    outputs = list(model.graph.output)
    scores = [value for value in outputs if "label" not in value.name]
    if len(outputs) < 2 or len(scores) == len(outputs):
        return model
    ordered = onnx.ModelProto()
    ordered.CopyFrom(model)
    del ordered.graph.output[:]
    ordered.graph.output.extend([*scores, *(value for value in outputs if value not in scores)])
    return ordered


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with standard ops for two of ai.onnx.ml, so that shapes can be inferred and weights refitted.

    Scaler, Y = (X - offset) * scale, becomes Sub and Mul; ArrayFeatureExtractor, which looks a class up by its number,
    becomes Gather where what follows flattens its answer.
    """
    changes: list[Made] = []
    arrays: dict[str, np.ndarray] = {}
    flattened = {node.input[0] for node in model.graph.node if node.op_type == "Reshape"}
    vectors = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 1}
    for node in model.graph.node:
        kind = node.op_type if node.domain == "ai.onnx.ml" else ""
        x, y = node.input[0] if node.input else "", node.output[0]
        if kind == "Scaler":
            arrays |= {f"{y}_{one.name}": np.asarray(one.floats, np.float32) for one in node.attribute}
            changes.append(Made("Sub", (x, f"{y}_offset"), (f"{y}_centred",)))
            changes.append(Made("Mul", (f"{y}_centred", f"{y}_scale"), (y,)))
        elif kind == "ArrayFeatureExtractor" and x in vectors and y in flattened:
            changes.append(Made("Gather", tuple(node.input), (y,), (("axis", 0),)))
    return edited(model, changes, arrays) if changes else model


def _load(source: Source, options: ImportOptions) -> Any:
    if source.suffix == ".skops":
        return _load_skops(source, options)
    if not options.allow_pickle:
        raise UsageError(
            f"{source}: a pickle, which can run any code when it is opened; expected --allow-pickle, given only to files you"
            " trust. Better: skops.io.dump writes a file without code, and module:name needs no file."
        )
    import joblib

    try:
        with silence():
            return joblib.load(source.path)
    except Exception as error:  # a pickle may raise anything
        raise UsageError(
            f"{source}: cannot be read, got {one_line(error)!r}; expected a file of joblib.dump."
        ) from None


def _load_skops(source: Source, options: ImportOptions) -> Any:
    need(source, "import-sklearn", "skops")
    from skops import io

    try:
        found = io.get_untrusted_types(file=source.path)
        unknown = [name for name in found if name not in PLAIN_TYPES]
        if unknown and not options.allow_pickle:
            raise UsageError(
                f"{source}: holds types that skops does not know to be safe, got {', '.join(unknown[:5])}; expected none."
                " Give --allow-pickle if you trust where the file is from."
            )
        with silence():
            return io.load(source.path, trusted=found)
    except UsageError:
        raise
    except Exception as error:  # a broken zip, an unknown protocol
        raise UsageError(
            f"{source}: cannot be read, got {one_line(error)!r}; expected a file of skops.io.dump."
        ) from None
