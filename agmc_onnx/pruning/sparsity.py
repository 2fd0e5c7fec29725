"""Single weights set to zero in tensors that keep their shape: which tensors, how many zeros, how they are stored."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from agmc_onnx import options
from agmc_onnx.arrays import FloatArray, Mask
from agmc_onnx.errors import ModelError, PlanError, VerificationError
from agmc_onnx.graph.edit import with_arrays
from agmc_onnx.graph.files import read_sparse
from agmc_onnx.graph.view import Graph, graph_of
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.ops.table import op_of
from agmc_onnx.options import pattern_of
from agmc_onnx.pruning.plan import Plan

_INDEX_BYTES = 8  # of a stored non-zero, beside its number: ONNX wants int64
_ZIP_LEVEL = 6


@dataclass(frozen=True)
class Sparsity:
    """How many weights of which tensors become zero, and how they are chosen.

    Attributes:
        share: Share of zeros of all the tensors together, 0..1.
        method: Row of `agmc_onnx.refit.thin.METHODS`, or "magnitude" where nothing is recovered.
        pattern: (n, m): of m weights one after the other along the inputs at most n are kept; None for any places.
        names: The tensors.
        shares: Share of zeros of each tensor; all have `share` unless a policy decided.
    """

    share: float
    method: str
    pattern: tuple[int, int] | None
    names: tuple[str, ...]
    shares: Mapping[str, float] = field(default_factory=dict)

    def share_of(self, name: str) -> float:
        """Return the share of zeros of one tensor."""
        return self.shares.get(name, self.share)


def sparsity_of(asked: options.Sparsity, graph: Graph, is_refitted: bool = True) -> Sparsity | None:
    """Return what a run asks for, or None where it asks for no zeros.

    Raises:
        ModelError: If the model has no such weights.
    """
    if not asked.is_sparse:
        return None
    pattern = None if asked.sparse_pattern is None else pattern_of(asked.sparse_pattern)
    share = asked.sparsity
    if share is None:
        assert pattern is not None
        share = 1 - pattern[0] / pattern[1]
    names = weights_of(graph, asked.sparse_layers)
    if not names:
        raise ModelError(
            f"--sparsity: this model has no weights of {asked.sparse_layers} layers to set to zero; expected a Gemm or a"
            " MatMul with a constant weight. Try --sparse-layers all, or leave it out."
        )
    method = asked.sparse_method or ("obs" if is_refitted else "magnitude")
    return Sparsity(share, method, pattern, tuple(names))


def weights_of(graph: Graph, layers: str) -> dict[str, int]:
    """Return the weights that may be thinned, with the dim of their inputs, in the order of the network.

    Args:
        graph: Any.
        layers: "dense": of Gemm and MatMul, two-dimensional; "all": of Conv and ConvTranspose too, where they mix channels
            (depthwise kernels stay whole: they hold few weights, and each is needed).
    """
    found: dict[str, int] = {}
    for node in graph.nodes:
        op = op_of(node)
        if not op.refit or op.out_dim is None or len(node.inputs) < 2 or node.inputs[1] not in graph.tensors:
            continue
        name = node.inputs[1]
        dims, is_float = tuple(graph.tensors[name].dims), graph.is_float(name)
        if not is_float or name in found or node.inputs[0] in graph.weights:
            continue
        at = 1 - op.out_dim(node, 2)  # the dim of inputs
        is_depthwise = dims[at] == (1 if at else node.attribute("group", 1))
        if len(dims) == 2 if not op.kernel else layers == "all" and len(dims) > 2 and not is_depthwise:
            found[name] = at
    return found


def zeros_wanted(size: int, share: float) -> int:
    """Return how many of `size` weights are zero at a share of zeros: at least the share, to the next whole weight."""
    return min(size, math.ceil(share * size - 1e-9))


def weakest(scores: FloatArray, n: int) -> Mask:
    """Return the n lowest scores of an array of any shape as a mask; ties go to the first."""
    flat = np.asarray(scores).reshape(-1)
    if n <= 0:
        return np.zeros(scores.shape, bool)
    limit = np.partition(flat, n - 1)[n - 1]
    chosen = flat < limit
    chosen[np.flatnonzero(flat == limit)[: n - int(chosen.sum())]] = True
    return chosen.reshape(scores.shape)


def weakest_of_pattern(scores: FloatArray, pattern: tuple[int, int], run: int) -> Mask:
    """Return which scores go so that of m neighbours along the last axis at most n stay.

    Args:
        scores: (rows, width); the width is made of runs.
        pattern: (n, m); of the rest of a run that is shorter than m, n stay too.
        run: Length of a run.
    """
    n, m = pattern
    rows = scores.shape[0]
    runs = scores.reshape(rows, -1, run)
    padding = -run % m
    padded = np.pad(runs, ((0, 0), (0, 0), (0, padding)), constant_values=-np.inf)
    blocks = padded.reshape(rows, -1, m)
    order = np.argsort(blocks, axis=2, kind="stable")
    goes = np.zeros(blocks.shape, bool)
    np.put_along_axis(goes, order[:, :, : m - n], True, axis=2)
    return goes.reshape(padded.shape)[:, :, :run].reshape(scores.shape)


def thin_by_magnitude(model: onnx.ModelProto, sparsity: Sparsity) -> onnx.ModelProto:
    """Return a model whose tensors have their smallest weights set to zero; zeros that are there count.

    Args:
        model: Not changed; what is right already is returned as it is.
        sparsity: Of which the method is not looked at.
    """
    graph = graph_of(model)
    dims = weights_of(graph, "all")
    changed = {}
    for name in sparsity.names:
        if name not in dims:
            continue
        array = graph.array(name)
        goes = magnitude_mask(array, dims[name], sparsity.share_of(name), sparsity.pattern)
        if (goes & (array != 0)).any():
            changed[name] = np.where(goes, np.zeros_like(array), array)
    return with_arrays(model, changed) if changed else model


def magnitude_mask(array: np.ndarray, input_dim: int, share: float, pattern: tuple[int, int] | None) -> Mask:
    """Return which weights of a tensor go when the smallest do.

    Args:
        array: The tensor.
        input_dim: Dim of its inputs, along which a pattern runs.
        share: Share of zeros; not looked at with a pattern.
        pattern: As in `Sparsity`.
    """
    size = np.abs(array.astype(np.float64))
    if pattern is None:
        return weakest(size, zeros_wanted(size.size, share))
    moved = np.moveaxis(size, input_dim, -1)
    goes = weakest_of_pattern(moved.reshape(-1, moved.shape[-1]), pattern, moved.shape[-1])
    return np.moveaxis(goes.reshape(moved.shape), -1, input_dim)


def sparse_plan(plan: Plan, model: onnx.ModelProto, sparsity: Sparsity) -> Plan:
    """Return a plan with the share of zeros that every thinned tensor of a model has."""
    graph = graph_of(model)
    arrays = {name: graph.array(name) for name in sparsity.names if name in graph.tensors}
    shares = {name: 1 - np.count_nonzero(array) / max(array.size, 1) for name, array in arrays.items()}
    return replace(plan, sparsity=shares, pattern=_text(sparsity.pattern))


def planned(plan: Plan) -> Sparsity:
    """Return the sparsity that a plan names.

    Raises:
        PlanError: If a share or the pattern is none.
    """
    for name, share in plan.sparsity.items():
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise PlanError(f"plan: the sparsity of {name} is no share, got {share!r}; expected 0..1.")
    pattern = None if plan.pattern is None else pattern_of(plan.pattern)
    return Sparsity(0.0, "magnitude", pattern, tuple(plan.sparsity), plan.sparsity)


def check_zeros(model: onnx.ModelProto, plan: Plan) -> None:
    """Count the zeros of every tensor that a plan names.

    Raises:
        PlanError: If the model has no such tensor.
        VerificationError: If a tensor has fewer zeros than planned.
    """
    graph = graph_of(model)
    for name, share in plan.sparsity.items():
        if name not in graph.tensors:
            raise PlanError(f"plan: no tensor {name} in this model. Is it this model's plan?")
        array = graph.array(name)
        zeros, wanted = array.size - np.count_nonzero(array), round(share * array.size)
        if zeros < wanted:
            raise VerificationError(
                f"verify: tensor {name} has {zeros:,} zeros of {array.size:,}; the plan has {wanted:,}."
            )


def _text(pattern: tuple[int, int] | None) -> str | None:
    return None if pattern is None else f"{pattern[0]}:{pattern[1]}"


def facts(original: onnx.ModelProto, compressed: onnx.ModelProto, sparsity: Sparsity) -> dict[str, Any]:
    """Return what a report says of a sparse result.

    Args:
        original: Whose zipped size is set beside.
        compressed: As it is stored.
        sparsity: What was asked for.
    """
    graph = graph_of(dense(compressed))
    stored = {sparse.values.name for sparse in compressed.graph.sparse_initializer}
    layers: list[dict[str, Any]] = []
    for name in sparsity.names:
        if name in graph.tensors:
            array = graph.array(name)
            n = int(np.count_nonzero(array))
            storage = "sparse_initializer" if name in stored else "dense"
            layers.append({"name": name, "weights": array.size, "nonzeros": n, "storage": storage})
    weights, nonzeros = sum(one["weights"] for one in layers), sum(one["nonzeros"] for one in layers)
    return {
        "asked": sparsity.share,
        "method": sparsity.method,
        "pattern": _text(sparsity.pattern),
        "weights": weights,
        "nonzeros": nonzeros,
        "density": nonzeros / max(weights, 1),
        "layers": layers,
        "zip_bytes": {"original": zip_bytes(original), "compressed": zip_bytes(compressed)},
    }


def zip_bytes(model: onnx.ModelProto) -> int:
    """Return the size of a model's file after deflate, which makes next to nothing of zeros."""
    return len(zlib.compress(model.SerializeToString(deterministic=True), _ZIP_LEVEL))


def store(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return a model whose sparse tensors are stored as sparse_initializer where that is smaller.

    ONNX stores a non-zero with an int64 index, 12 bytes for a float32, so a tensor needs two thirds of zeros.

    Args:
        model: With dense initializers; not changed.
        names: The tensors that may be stored sparse.
    """
    wanted = set(names)
    captured = graph_of(model).captured
    moved: dict[str, onnx.SparseTensorProto] = {}
    for tensor in model.graph.initializer:
        is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if tensor.name not in wanted or tensor.name in captured or is_external:
            continue
        array = numpy_helper.to_array(tensor)
        index = np.flatnonzero(array).astype(np.int64)
        if index.size and index.size * (array.itemsize + _INDEX_BYTES) + 64 < array.nbytes:
            values = numpy_helper.from_array(array.reshape(-1)[index], tensor.name)
            places = numpy_helper.from_array(index, f"{tensor.name}__index")
            moved[tensor.name] = onnx.helper.make_sparse_tensor(values, places, list(array.shape))
    return with_arrays(model, moved) if moved else model


def sparse_names(model: onnx.ModelProto) -> set[str]:
    """Return the names of a model's sparse initializers."""
    return {sparse.values.name for sparse in model.graph.sparse_initializer}


def smallest(model: onnx.ModelProto, names: Iterable[str], feeds: Sequence[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """Return a model that is `store`d, or itself where onnxruntime does not load that or it does not answer the same.

    Args:
        model: With dense initializers; not changed.
        names: The tensors that may be stored sparse.
        feeds: Inputs; the first is run.
    """
    stored = store(model, names)
    if stored is model:
        return model
    try:
        answers = [run_model(make_session(one), feeds[0]) for one in (model, stored)]
    except ModelError:
        return model
    same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*answers, strict=True) if isinstance(a, np.ndarray))
    return stored if same else model


def dense(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its sparse initializers as dense ones; the model itself where it has none."""
    arrays = {sparse.values.name: read_sparse(sparse) for sparse in model.graph.sparse_initializer}
    return with_arrays(model, arrays) if arrays else model
