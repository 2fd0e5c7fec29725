"""A TensorRT engine: OUT.engine, built on the GPU it is for."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agmc_onnx.data.card import InputSpec
from agmc_onnx.errors import ModelError, UsageError
from agmc_onnx.exchange.exporters.row import Source
from agmc_onnx.measuring.session import Run


def command(source: Source, output: Path) -> str:
    """Return the trtexec command line that builds the same engine on another machine."""
    words = ["trtexec", f"--onnx={source.path}", f"--saveEngine={output}"]
    shapes = [f"{spec.name}:{'x'.join(map(str, source.shapes[spec.name]))}" for spec in _open_inputs(source)]
    return shlex.join(words + ([f"--shapes={','.join(shapes)}"] if shapes else []))


def check(source: Source, output: Path) -> None:
    """Raise where no engine can be built, with the command that does it elsewhere.

    Raises:
        UsageError: Without tensorrt, or without a GPU.
    """
    import torch

    missing = [] if importlib.util.find_spec("tensorrt") else ["the tensorrt package"]
    missing += [] if torch.cuda.is_available() else ["a GPU"]
    if missing:
        raise UsageError(
            f"tensorrt: no engine can be built here, got no {' and no '.join(m.split(' ', 1)[1] for m in missing)}; expected"
            f" {' and '.join(missing)}. On the machine with the GPU run: {command(source, output)}"
        )


def convert(source: Source, path: Path) -> None:
    """Build an engine for batches of `settings.batch` samples, in the number types that the model has.

    For half precision or int8 export the model so first, then the result to tensorrt.

    Raises:
        UsageError: Without tensorrt, or without a GPU.
        ModelError: If TensorRT refuses the model.
    """
    import tensorrt

    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(source.path)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ModelError(
            f"tensorrt: it cannot read the model, got {reasons[:300]!r}; expected ops it knows. Simplify it."
        )
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for spec in _open_inputs(source):
        profile.set_shape(spec.name, *[source.shapes[spec.name]] * 3)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelError("tensorrt: it built no engine, got nothing; expected one. Run trtexec --verbose to see why.")
    path.write_bytes(bytes(engine))


def open_model(path: Path, source: Source) -> Run:
    """Return what runs it; the time includes the copies to and from the GPU."""
    import tensorrt
    import torch

    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    context, stream = engine.create_execution_context(), torch.cuda.Stream()

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        given = {name: torch.from_numpy(np.ascontiguousarray(array)).cuda() for name, array in feed.items()}
        for name, tensor in given.items():
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        found = []
        for name, answer in zip(source.outputs, source.answers, strict=True):
            kind = torch.from_numpy(np.empty(0, answer.dtype)).dtype
            output = torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device="cuda")
            context.set_tensor_address(name, output.data_ptr())
            found.append(output)
        stream.wait_stream(torch.cuda.current_stream())
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return [output.cpu().numpy() for output in found]

    return run


def _open_inputs(source: Source) -> list[InputSpec]:
    return [spec for spec in source.inputs if None in spec.shape]
