"""PyTorch to ONNX: exported programs, modules made by a function, TorchScript."""

from __future__ import annotations

import importlib.util
import inspect
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch.utils import _pytree as pytree

from agmc_onnx.errors import AgmcError, ModelError, UsageError
from agmc_onnx.exchange.importers.source import (
    Conversion,
    Feed,
    ImportOptions,
    InputShape,
    Source,
    converting,
    need,
    one_line,
    silence,
    version,
)
from agmc_onnx.exchange.importers.torch_weights import load_into, no_code, read_saved, read_weights, state_dict

DYNAMO_OPSET, TRACE_OPSET = 18, 17  # the lowest the newer exporter writes by itself; the highest the older is good at
EXPORT_BATCH = 2  # a batch of one would be taken for a constant by torch.export

Exporter = Callable[
    [torch.nn.Module, Sequence[torch.Tensor], Sequence[InputShape], ImportOptions, int], onnx.ModelProto
]


def convert_program(source: Source, options: ImportOptions) -> Conversion:
    """Convert a .pt2 file of torch.export.save; its dims are open where it was exported so."""
    need(source, "import-torch", "onnxscript")
    with converting(source, "torch.export.load"), no_code(source.path, options.allow_pickle):
        program = torch.export.load(source.path)
    with converting(source, "torch.onnx"):
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=options.opset or DYNAMO_OPSET, optimize=True, verbose=False
        )
    assert exported is not None
    model = exported.model_proto
    module, spec = program.module(), program.call_spec.in_spec

    def call(tensors: Sequence[torch.Tensor]) -> Any:
        args, kwargs = pytree.tree_unflatten(list(tensors), spec)
        return module(*args, **kwargs)

    notes = () if _has_open_batch(model) else ("the exported program fixes its batch: export it with dynamic_shapes",)
    return Conversion(model, answering(model, call), version("torch"), "torch.onnx (torch.export)", notes=notes)


def convert_module(source: Source, options: ImportOptions) -> Conversion:
    """Convert an nn.Module of `package.module:factory`, or, where pickles are allowed, one that torch.save wrote."""
    if source.is_reference:
        module = source.value
        if options.weights is not None:
            path = Path(options.weights)
            load_into(module, read_weights(path, options.allow_pickle), path)
    else:
        module = _saved_module(source, options)
    notes: tuple[str, ...] = ()
    if source.is_reference and options.weights is None and any(True for _ in module.parameters()):
        notes = (f"no --weights given: the weights are those that {source} makes",)
    return export_module(source, module, _shapes(source, options), options, notes)


def convert_torchscript(source: Source, options: ImportOptions) -> Conversion:
    """Convert a file of torch.jit.save, by the exporter that reads its graph; it is run, so only where pickles are allowed."""
    if not options.allow_pickle:
        raise UsageError(
            f"{source}: TorchScript, a program that runs here when it is imported and may write any file; expected"
            " --allow-pickle, given only to files you trust. Or export the network with torch.export.save."
        )
    shapes = _shapes(source, options)
    with converting(source, "torch.jit.load"):
        module = torch.jit.load(source.path, map_location="cpu").eval()
    tensors = tensors_of(shapes, options)
    try:
        with converting(source, "the network"), torch.no_grad():
            n_outputs = len(_leaves(module(*tensors)))
    except ModelError:
        _check_batch(module, shapes, options)
        raise
    with converting(source, "torch.onnx"):
        model = by_trace(module, tensors, shapes, options, n_outputs)
    call = lambda tensors: module(*tensors)  # noqa: E731
    return Conversion(model, answering(model, call), version("torch"), "torch.onnx (TorchScript)")


def export_module(
    source: Source,
    module: torch.nn.Module,
    shapes: Sequence[InputShape],
    options: ImportOptions,
    notes: tuple[str, ...] = (),
) -> Conversion:
    """Convert a module that takes and returns tensors.

    torch.export comes first where onnxscript is installed, then the older exporter, which records one run.
    """
    module = module.eval()
    tensors = tensors_of(shapes, options)
    with converting(source, "the network"), torch.no_grad():
        n_outputs = len(_leaves(module(*tensors)))
    problems = []
    ways: dict[str, Exporter] = {"torch.export": by_export, "TorchScript": by_trace}
    if importlib.util.find_spec("onnxscript") is None:
        del ways["torch.export"]
    for name, way in ways.items():
        try:
            with converting(source, f"torch.onnx ({name})"), torch.no_grad():
                model = way(module, tensors, shapes, options, n_outputs)
        except AgmcError as error:
            problems.append(error)
            continue
        if problems:
            notes = (
                *notes,
                f"the exporter torch.export failed, the older one was used ({one_line(str(problems[0]), 120)})",
            )
        call = lambda given: module(*given)  # noqa: E731
        return Conversion(model, answering(model, call), version("torch"), f"torch.onnx ({name})", notes=notes)
    raise problems[0]


def _check_batch(module: torch.nn.Module, shapes: Sequence[InputShape], options: ImportOptions) -> None:
    """Raise if a network that refuses its inputs takes them with one more dim in front."""
    longer = [replace(shape, dims=(1, *shape.dims)) for shape in shapes]
    try:
        with silence(), torch.no_grad():
            module(*tensors_of(longer, options))
    except Exception:  # whatever the network raises: it is something else that it does not like
        return
    text = ",".join(str(dim) for dim in shapes[0].dims)
    raise UsageError(
        f"--input-shape: the batch is missing, got {text}; expected it in front. Give --input-shape 1,{text}."
    )


def by_export(
    module: torch.nn.Module,
    tensors: Sequence[torch.Tensor],
    shapes: Sequence[InputShape],
    options: ImportOptions,
    n_outputs: int,
) -> onnx.ModelProto:
    """Return the graph of the newer exporter."""
    open_dims = tuple(_open(shape, options) for shape in shapes)
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())
    dynamic: Any = (open_dims,) if takes_any else open_dims  # what *args takes is one argument
    try:
        exported = torch.onnx.export(
            module,
            tuple(tensors),
            dynamo=True,
            input_names=_names(shapes),
            output_names=_output_names(n_outputs),
            dynamic_shapes=dynamic if any(open_dims) else None,
            opset_version=options.opset or DYNAMO_OPSET,
            optimize=True,
            verbose=False,
        )
    except Exception as error:
        raise error.__cause__ or error from None  # the outer error only says which step it was
    assert exported is not None
    return exported.model_proto


def by_trace(
    module: torch.nn.Module,
    tensors: Sequence[torch.Tensor],
    shapes: Sequence[InputShape],
    options: ImportOptions,
    n_outputs: int,
) -> onnx.ModelProto:
    """Return the graph of the older exporter, which records one run of the module."""
    names, out_names = _names(shapes), _output_names(n_outputs)
    axes = {name: _open(shape, options) for name, shape in zip(names, shapes, strict=True)}
    if any(axes.values()):
        axes |= {name: {0: "batch"} for name in out_names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        torch.onnx.export(
            module,
            tuple(tensors),
            path,
            dynamo=False,
            input_names=names,
            output_names=out_names,
            dynamic_axes={name: dims for name, dims in axes.items() if dims},
            opset_version=options.opset or TRACE_OPSET,
        )
        return onnx.load(path)


def answering(
    model: onnx.ModelProto, call: Callable[[Sequence[torch.Tensor]], Any]
) -> Callable[[Feed], list[np.ndarray]]:
    """Return what feeds a torch callable the graph's inputs in their order, and gives the tensors of its answer."""
    names = [value.name for value in model.graph.input]

    def answer(feed: Feed) -> list[np.ndarray]:
        with torch.no_grad():
            found = _leaves(call([torch.from_numpy(np.ascontiguousarray(feed[name])) for name in names]))
        return [tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy() for tensor in found]

    return answer


def tensors_of(shapes: Sequence[InputShape], options: ImportOptions) -> list[torch.Tensor]:
    """Return example inputs: normal numbers, zeros where the type is no float."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in shapes:
        first = shape.dims[0] if shape.dims else 1
        batch = first if options.fixed_batch and isinstance(first, int) else EXPORT_BATCH
        dtype = torch.from_numpy(np.zeros(1, shape.dtype)).dtype
        noise = torch.randn(shape.sizes(batch), generator=generator)
        made.append(noise.to(dtype) if dtype.is_floating_point else torch.zeros_like(noise, dtype=dtype))
    return made


def _saved_module(source: Source, options: ImportOptions) -> torch.nn.Module:
    saved = read_saved(source.path, options.allow_pickle)
    if isinstance(saved, torch.nn.Module):
        return saved
    state_dict(source.path, saved)
    raise UsageError(
        f"{source}: weights without a network, got a state dict; expected package.module:factory that makes the network."
        f" Run agmc-onnx import package.module:factory --weights {source} --input-shape 1,3,224,224 -o MODEL.onnx."
    )


def _shapes(source: Source, options: ImportOptions) -> Sequence[InputShape]:
    if not options.input_shapes:
        raise UsageError(
            f"{source}: does not say what it is fed, got no input shape; expected one per input. Give --input-shape, such"
            " as --input-shape 1,3,224,224."
        )
    return options.input_shapes


def _open(shape: InputShape, options: ImportOptions) -> dict[int, str]:
    dims = shape.open_dims
    if options.fixed_batch:
        dims.pop(0, None)
    return dims


def _names(shapes: Sequence[InputShape]) -> list[str]:
    if len(shapes) == 1:
        return [shapes[0].name or "input"]
    return [shape.name or f"input_{i}" for i, shape in enumerate(shapes)]


def _output_names(n: int) -> list[str]:
    return ["output"] if n == 1 else [f"output_{i}" for i in range(n)]


def _leaves(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _has_open_batch(model: onnx.ModelProto) -> bool:
    dims = [value.type.tensor_type.shape.dim for value in model.graph.input]
    return any(len(dim) and not dim[0].dim_value for dim in dims)
