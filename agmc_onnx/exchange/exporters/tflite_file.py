"""TensorFlow Lite's format, LiteRT: OUT.tflite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agmc_onnx.exchange.exporters.row import Source
from agmc_onnx.exchange.exporters.through_torch import flat_module_of
from agmc_onnx.measuring.session import Run


def convert(source: Source, path: Path) -> None:
    """Write the model with float32 weights; inputs keep the layout and the names' order of the ONNX model."""
    import litert_torch

    module, inputs = flat_module_of(source)
    litert_torch.convert(module, inputs).export(str(path))


def open_model(path: Path, source: Source) -> Run:
    """Return what runs it."""
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(path), num_threads=source.settings.threads)
    network.allocate_tensors()
    # args_0, args_1 ... and output_0, output_1 ... are in order; the interpreter's list need not be
    inputs = sorted(network.get_input_details(), key=lambda detail: _number(detail["name"]))
    outputs = network.get_output_details()
    names = [spec.name for spec in source.inputs]

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for name, detail in zip(names, inputs, strict=True):
            network.set_tensor(detail["index"], feed[name].astype(detail["dtype"], copy=False))
        network.invoke()
        return [network.get_tensor(detail["index"]) for detail in outputs]

    return run


def _number(name: str) -> int:
    digits = "".join(character for character in name.rsplit("args_", maxsplit=1)[-1] if character.isdigit())
    return int(digits or 0)
