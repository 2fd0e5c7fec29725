"""Keras, TensorFlow SavedModels and TFLite to ONNX, by tf2onnx or, for Keras on another backend, by Keras itself."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
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

OPSET = 17
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow logs to stderr from C++


def convert_keras(source: Source, options: ImportOptions) -> Conversion:
    """Convert a Keras 3 model of a file, or of a function; its layers must be Keras' own or registered ones."""
    if "KERAS_BACKEND" not in os.environ and importlib.util.find_spec("tensorflow") is None:
        os.environ["KERAS_BACKEND"] = "torch"  # this package depends on torch in any case
    need(source, "import-keras", "keras")
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        need(source, "import-keras", "tensorflow", "tf2onnx")
        _teach_erfc()
    model = source.value if source.is_reference else _load_keras(source, options)
    if options.weights is not None:
        with converting(source, "keras.Model.load_weights"):
            model.load_weights(str(options.weights))
    with converting(source, f"keras.Model.export ({backend})"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        _call_once(source, model, options)
        model.export(str(path), format="onnx", verbose=False, opset_version=options.opset or OPSET)
        proto = onnx.load(path)
    names = [value.name for value in proto.graph.input]

    def answer(feed: Feed) -> list[np.ndarray]:
        given = [feed[name] for name in names]
        found = model(given if len(given) > 1 else given[0], training=False)
        return [np.asarray(keras.ops.convert_to_numpy(part)) for part in keras.tree.flatten(found)]

    framework = (
        f"{version('keras')} on {version('tensorflow', 'tensorflow-cpu') if backend == 'tensorflow' else backend}"
    )
    return Conversion(proto, answer, framework, version("tf2onnx") if backend == "tensorflow" else "keras.Model.export")


def convert_saved_model(source: Source, options: ImportOptions) -> Conversion:
    """Convert the serving signature of a SavedModel folder."""
    need(source, "import-tensorflow", "tensorflow", "tf2onnx")
    import tensorflow as tf
    import tf2onnx

    _teach_erfc()
    with converting(source, "tf.saved_model.load"):
        loaded = tf.saved_model.load(str(source.path))
    signature = _signature(source, loaded)
    specs = signature.structured_input_signature[1]
    names = list(specs)
    inputs = [_spec(tf, name, specs[name]) for name in names]

    @tf.function(input_signature=inputs)  # type: ignore[untyped-decorator, unused-ignore]
    def serve(*tensors: Any) -> Any:
        return tf.nest.flatten(signature(**dict(zip(names, tensors, strict=True))))

    with converting(source, "tf2onnx"):
        model, _ = tf2onnx.convert.from_function(serve, inputs, opset=options.opset or OPSET)
    order = [value.name for value in model.graph.input]
    if len(order) != len(names):
        raise UsageError(
            f"{source}: {len(names)} inputs, of which the graph uses {len(order)}, got {', '.join(names)}; expected that all are"
            " used. Save a signature without the others."
        )

    def answer(feed: Feed) -> list[np.ndarray]:
        return [part.numpy() for part in serve(*(tf.constant(feed[name]) for name in order))]

    return Conversion(model, answer, version("tensorflow", "tensorflow-cpu"), version("tf2onnx"))


def convert_tflite(source: Source, options: ImportOptions) -> Conversion:
    """Convert a TFLite file; what it answers is computed by LiteRT where that is installed, else by TensorFlow."""
    need(source, "import-tensorflow", "tensorflow", "tf2onnx")
    import tf2onnx

    with converting(source, "TFLite"):
        interpreter = _interpreter(source.path)
        interpreter.allocate_tensors()
    with converting(source, "tf2onnx"):
        model, _ = tf2onnx.convert.from_tflite(str(source.path), opset=options.opset or OPSET)
    names = [value.name for value in model.graph.input]

    def answer(feed: Feed) -> list[np.ndarray]:
        for name, detail in zip(names, interpreter.get_input_details(), strict=True):
            interpreter.resize_tensor_input(detail["index"], feed[name].shape)
        interpreter.allocate_tensors()
        for name, detail in zip(names, interpreter.get_input_details(), strict=True):
            interpreter.set_tensor(detail["index"], feed[name].astype(detail["dtype"]))
        interpreter.invoke()
        return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]

    runtime = version("ai-edge-litert", "tensorflow", "tensorflow-cpu")
    is_open = all(detail["shape_signature"][0] < 0 for detail in interpreter.get_input_details())
    notes = () if is_open else ("the TFLite file fixes its batch",)
    return Conversion(model, answer, runtime, version("tf2onnx"), notes=notes)


def _load_keras(source: Source, options: ImportOptions) -> Any:
    import keras

    try:
        with silence():
            return keras.saving.load_model(source.path, compile=False, safe_mode=not options.allow_pickle)
    except Exception as error:  # Keras raises whatever a layer raises
        if "safe_mode" in str(error) or "unsafe" in str(error).lower():
            raise UsageError(
                f"{source}: has a Lambda layer, whose Python code would run when it is opened; expected layers of Keras. Give"
                " --allow-pickle if you trust where the file is from."
            ) from None
        raise UsageError(
            f"{source}: Keras cannot open it, got {one_line(error)!r}; expected a file of Keras 3. A model with layers of"
            " your own: give module:function, which makes it, with --weights."
        ) from error


def _call_once(source: Source, model: Any, options: ImportOptions) -> None:
    """Call a model on zeros: Keras exports only what has been called since it was opened."""
    inputs = getattr(model, "inputs", None)
    if inputs:
        sizes = [([2 if size is None else size for size in tensor.shape], tensor.dtype) for tensor in inputs]
    elif options.input_shapes:
        sizes = [(list(shape.sizes(2)), shape.dtype) for shape in options.input_shapes]
    else:
        raise UsageError(
            f"{source}: does not say what it is fed, got a model without inputs; expected a shape. Give --input-shape, such as"
            " --input-shape 1,224,224,3."
        )
    zeros = [np.zeros(size, dtype) for size, dtype in sizes]
    model(zeros if len(zeros) > 1 else zeros[0], training=False)


def _teach_erfc() -> None:
    """Give tf2onnx the op that TensorFlow's exact GELU is made of; tf2onnx 1.17 lacks it."""
    from tf2onnx import utils
    from tf2onnx.handler import tf_op

    class Erfc:
        """erfc(x) = 1 - erf(x)."""

        @classmethod
        def version_9(cls, ctx: Any, node: Any, **kwargs: Any) -> None:
            shape, dtype = ctx.get_shape(node.output[0]), ctx.get_dtype(node.output[0])
            erf = ctx.make_node("Erf", node.input, shapes=[shape], dtypes=[dtype])
            one = ctx.make_const(utils.make_name(node.name), np.array(1, utils.map_onnx_to_numpy_type(dtype)))
            ctx.remove_node(node.name)
            between = [one.output[0], erf.output[0]]
            ctx.make_node("Sub", between, name=node.name, outputs=node.output, shapes=[shape], dtypes=[dtype])

    tf_op("Erfc")(Erfc)


def _signature(source: Source, loaded: Any) -> Any:
    signatures = dict(loaded.signatures)
    if "serving_default" in signatures:
        return signatures["serving_default"]
    if len(signatures) == 1:
        return next(iter(signatures.values()))
    raise UsageError(
        f"{source}: no serving signature, got {', '.join(signatures) or 'none'}; expected serving_default. Save it with"
        " model.export, or tf.saved_model.save(..., signatures=...)."
    )


def _spec(tf: Any, name: str, spec: Any) -> Any:
    return tf.TensorSpec(spec.shape, spec.dtype, name=name)


def _interpreter(path: Path) -> Any:
    if importlib.util.find_spec("ai_edge_litert") is not None:
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tensorflow.lite import Interpreter
    return Interpreter(model_path=str(path))
