"""Reshapes whose target a converter computes from open dims, as constants: what is pruned must be seen in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from agmc_onnx.data.samples import synthetic
from agmc_onnx.errors import AgmcError
from agmc_onnx.graph.edit import Made, edited
from agmc_onnx.measuring.random_inputs import runnable
from agmc_onnx.measuring.session import make_session, model_inputs, run_model

PROBES = ((2, 0), (3, 1), (5, 5))  # samples, and what is added to the usual size of open dims
Dims = tuple[int, ...]


def with_plain_shapes(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Return the model with constant targets for those Reshapes of the main graph that allow it.

    A converter that leaves the number of tokens open writes Reshape(x, Concat(batch, tokens, heads, -1)), with batch and tokens
    from Shape nodes. Its target is found by running the model on inputs of three different sizes in every open dim:
    a size that never changes is written as it is, one that is always that of x in the same place as 0, and one other as -1.
    Anything else stays as it is, but for a Gemm between a Reshape that flattens all dims but the last and one that brings
    them back: that becomes MatMul and Add on x itself. The comparison with the source comes after this.

    Args:
        model: A converted model; not changed.
        seed: Of the synthetic inputs.

    Returns:
        A new model, without what has become useless; or the same model, where there is nothing to do or the sizes cannot
        be changed.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    shaped = [node for node in model.graph.node if node.op_type == "Reshape" and node.domain in ("", "ai.onnx")]
    targets = [node.output[0] for node in shaped if node.input[1] not in constants]
    if not targets:
        return model
    nodes = {node.output[0]: node for node in model.graph.node if node.output}
    try:
        seen = _observe(model, [name for node in shaped for name in (node.input[0], node.output[0])], seed)
    except AgmcError:  # such sizes it does not take
        return model
    changes: list[Made] = []
    arrays: dict[str, np.ndarray] = {}
    for target in targets:
        shape = _target(seen[nodes[target].input[0]], seen[target])
        if shape is not None:  # without allowzero, which would read the zeros as sizes
            arrays[f"{target}_shape"] = np.array(shape, np.int64)
            changes.append(Made("Reshape", (nodes[target].input[0], f"{target}_shape"), (target,)))
        else:
            changes += _widened(model.graph, nodes, target, seen, arrays)
    return edited(model, changes, arrays) if changes else model


def _widened(
    graph: onnx.GraphProto,
    nodes: Mapping[str, onnx.NodeProto],
    target: str,
    seen: Mapping[str, Sequence[Dims]],
    arrays: dict[str, np.ndarray],
) -> list[Made]:
    """Return MatMul and Add for Reshape, Gemm, Reshape that flatten x and undo it, where they are that; note their numbers."""
    gemm = nodes.get(nodes[target].input[0])
    before = nodes.get(gemm.input[0]) if gemm is not None else None
    if gemm is None or before is None or gemm.op_type != "Gemm" or before.op_type != "Reshape":
        return []
    weights = {tensor.name: tensor for tensor in graph.initializer}
    options = {attribute.name: attribute.i or attribute.f for attribute in gemm.attribute}
    is_plain = not options.get("transA") and options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0
    n = len(seen[target][0]) - 1  # leading dims: flattened, and brought back
    is_flat = all(
        flat == (int(np.prod(given[:n])), int(np.prod(given[n:]))) and made[:-1] == given[:n]
        for given, flat, made in zip(seen[before.input[0]], seen[before.output[0]], seen[target], strict=True)
    )
    if not (is_plain and is_flat and gemm.input[1] in weights):
        return []
    weight = gemm.input[1]
    if options.get("transB"):
        weight = f"{target}_weight"
        arrays[weight] = np.ascontiguousarray(numpy_helper.to_array(weights[gemm.input[1]]).T)
    has_bias = len(gemm.input) > 2 and bool(gemm.input[2])
    product = f"{target}_product" if has_bias else target
    x, made = before.input[0], []
    if len(seen[x][0]) > n + 1:  # heads are joined on the way
        arrays[f"{target}_joined_shape"] = np.array([0] * n + [seen[before.output[0]][0][1]], np.int64)
        made.append(Made("Reshape", (x, f"{target}_joined_shape"), (f"{target}_joined",)))
        x = f"{target}_joined"
    made.append(Made("MatMul", (x, weight), (product,)))
    if has_bias:
        made.append(Made("Add", (product, gemm.input[2]), (target,)))
    return made


def _observe(model: onnx.ModelProto, names: Sequence[str], seed: int) -> dict[str, list[Dims]]:
    """Return the dims of values, one entry a probe."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    wanted = [name for name in dict.fromkeys(names) if name not in known]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = make_session(probe, optimise=False)
    outputs = [value.name for value in probe.graph.output]
    seen: dict[str, list[Dims]] = {name: [] for name in names}
    for n, more in PROBES:
        feed = _sized(model, n, more, seed)
        found = dict(zip(outputs, run_model(session, feed), strict=True)) | feed
        for name, dims in seen.items():
            dims.append(np.shape(found[name]))
    return seen


def _sized(model: onnx.ModelProto, n: int, more: int, seed: int) -> dict[str, np.ndarray]:
    """Return inputs of n samples whose open dims are larger than usual, every one by another number."""
    inputs = model_inputs(model)
    usual = runnable(model, 1, seed).read(np.arange(1))
    sizes: dict[str, int] = {}
    for spec in inputs:
        symbols = spec.symbols or (None,) * len(spec.shape)
        for dim, (size, symbol) in enumerate(zip(spec.shape, symbols, strict=True)):
            if dim and size is None:
                key = symbol or f"{spec.name}:{dim}"
                sizes.setdefault(key, usual[spec.name].shape[dim] + more * (len(sizes) + 1))
    return synthetic(inputs, n, seed, sizes).read(np.arange(n))


def _target(given: Sequence[Dims], made: Sequence[Dims]) -> Dims | None:
    """Return the constant target that gives what was made of what was given, or None where there is none."""
    if len({len(dims) for dims in made}) != 1:
        return None
    shape = []
    for place in range(len(made[0])):
        sizes = [dims[place] for dims in made]
        if len(set(sizes)) == 1 and sizes[0] > 0:
            shape.append(sizes[0])
        elif all(place < len(dims) and dims[place] == size for dims, size in zip(given, sizes, strict=True)):
            shape.append(0)
        else:
            shape.append(-1)
    return tuple(shape) if shape.count(-1) <= 1 else None
