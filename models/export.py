"""PyTorch modules to ONNX, by both of PyTorch's exporters, silently."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import nn

INPUT, OUTPUT, BATCH = "input", "output", "batch"  # names of the graph input, the graph output and the dynamic dim
DYNAMO_OPSET = 18  # the lowest that the dynamo exporter writes by itself


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop Python warnings, log records and printed text while the block runs."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def trace_torchscript(module: nn.Module, sample: torch.Tensor, opset: int, keep_batchnorm: bool) -> onnx.ModelProto:
    """Return the graph of the older exporter (`dynamo=False`), which records one run of the module."""
    mode = torch.onnx.TrainingMode.PRESERVE if keep_batchnorm else torch.onnx.TrainingMode.EVAL
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(
            module,
            (sample,),
            path,
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
            opset_version=opset,
            training=mode,
        )
        return onnx.load(path)


def trace_dynamo(module: nn.Module, sample: torch.Tensor, opset: int, keep_batchnorm: bool) -> onnx.ModelProto:
    """Return the graph of the newer exporter (`dynamo=True`), which needs the package onnxscript."""
    program = torch.onnx.export(
        module,
        (sample,),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: BATCH},),
        opset_version=max(opset, DYNAMO_OPSET),
        optimize=not keep_batchnorm,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


EXPORTERS = {"torchscript": trace_torchscript, "dynamo": trace_dynamo}


def to_onnx(
    module: nn.Module,
    input_shape: tuple[int, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    exporter: str = "torchscript",
    keep_batchnorm: bool = False,
    opset: int = 17,
) -> onnx.ModelProto:
    """Return the module as an ONNX model with input `input`, output `output` and a dynamic batch dim `batch`.

    Args:
        module: Takes and returns one tensor; exported in evaluation mode, and left in the mode it was in.
        input_shape: (N, ...) of the input; N is ignored, all other dims become fixed.
        path: Where to write the model too, if given.
        exporter: A key of `EXPORTERS`.
        keep_batchnorm: Whether BatchNormalization nodes stay; otherwise they are folded into the convolutions before
            them. The dynamo exporter then leaves its graph unsimplified in all other respects too: zero biases come
            out of Shape, CastLike and Expand nodes.
        opset: Of the default domain; the dynamo exporter raises it to `DYNAMO_OPSET`.

    Raises:
        ValueError: If `exporter` is not in the table.
    """
    if exporter not in EXPORTERS:
        raise ValueError(f"to_onnx: unknown exporter, got {exporter!r}; expected one of {', '.join(EXPORTERS)}.")
    sample = torch.zeros(2, *input_shape[1:])  # a batch of one would be taken for a constant by the dynamo exporter
    was_training = module.training
    module.eval()
    try:
        with silence(), torch.no_grad():
            model = EXPORTERS[exporter](module, sample, opset, keep_batchnorm)
    finally:
        module.train(was_training)
    onnx.checker.check_model(model)
    if path is not None:
        onnx.save(model, os.fspath(path))
    return model
