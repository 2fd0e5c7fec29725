"""The oracle: a pruned model answers as the original does with its removed entries set to zero.

It reads the two models and the plan; of the analysis that made them only which statistics run over cut channels
(`norms_of`), so it checks all the rest of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from agmc_onnx.arrays import Mask
from agmc_onnx.errors import AgmcError, PlanError, VerificationError
from agmc_onnx.graph.edit import Input, edited
from agmc_onnx.graph.external import is_external, part_of
from agmc_onnx.graph.files import external_tensors, without_external, write_array
from agmc_onnx.graph.precision import as_fed, is_half, to_float32
from agmc_onnx.graph.protobuf import without_initializers
from agmc_onnx.graph.view import Graph, graph_of
from agmc_onnx.measuring.random_inputs import runnable
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.ops.table import op_of
from agmc_onnx.pruning.comparing import differences, held_still, varies
from agmc_onnx.pruning.masked_norms import Norm, norms_of, over_kept
from agmc_onnx.pruning.plan import Plan

__all__ = ["Norm", "Verification", "kept_region", "masked", "norms_of", "verify"]

Feed = dict[str, np.ndarray]
_SAMPLES = 3
_ADVICE = "No such result is written; if the file is as agmc-onnx wrote it, please report this model."


@dataclass(frozen=True)
class Verification:
    """What was compared, and how close it came.

    Attributes:
        masked_equivalence: Whether the outputs agree; None where none of them could be compared.
        max_abs_diff: Largest difference of any output entry, of the output where it is nearest to what is allowed; of whole
            numbers the share of entries that differ.
        max_abs_output: Largest entry of the masked original's output there.
        tolerance: What was allowed there.
        checker: Whether onnx's checker accepts the model (None where it rejects the original too).
        n_samples: Inputs compared.
        note: What a reader must know, or "".
        statistics: Nodes whose statistics run over cut entries: in the masked original too they run over the kept ones.
        random: Nodes that draw random numbers, and were held still.
        sizes: Sizes of the open dims that it ran at, one text a setting.
    """

    masked_equivalence: bool | None
    max_abs_diff: float
    max_abs_output: float
    tolerance: float
    checker: bool | None
    n_samples: int
    note: str = ""
    statistics: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()


def verify(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    plan: Plan,
    feeds: Sequence[Feed] | None = None,
    recovered: bool = False,
    norms: Sequence[Norm] | None = (),
    seed: int = 0,
    others: Sequence[Feed] = (),
) -> Verification:
    """Check a pruned model against its original.

    Args:
        original: The normalised original (`agmc_onnx.graph.normal_form`).
        pruned: What was made of it.
        plan: Names what was kept.
        feeds: Inputs to compare on; None makes random ones.
        recovered: Weights may differ from the original's: their values are then taken from `pruned`, so that the
            structure is still checked.
        norms: Nodes that take statistics over cut channels (`norms_of`): they do so over the kept ones in the masked original
            too. None where one cannot be written that way: then the model is only checked and run.
        seed: Of the random inputs.
        others: Inputs of other sizes of the open dims, compared too where the original runs on them.

    Raises:
        VerificationError: If the checker or onnxruntime rejects the model, inputs or outputs differ, an output differs
            by more than rounding, or the model does not run at sizes at which its original does.
    """
    checker = _check(original, pruned)
    _same_signature(original, pruned)
    half = is_half(original)  # is compared in float32: its rounding hides nothing
    notes: list[str] = []
    statistics = tuple(dict.fromkeys(norm.output for norm in norms or () if not norm.is_weight))
    original, random = held_still(original)
    pruned, _ = held_still(pruned)
    names = [output.name for output in original.graph.output]
    try:
        if feeds is None:
            feeds = runnable(to_float32(original) if half else original, _SAMPLES, seed).feeds(1)
        reference = over_kept(masked(original, plan, pruned if recovered else None), norms or ())
        if half:
            notes += _run_as_it_is(original, pruned, feeds)
            reference, pruned, feeds = to_float32(reference), to_float32(pruned), [as_fed(feed) for feed in feeds]
            others = [as_fed(feed) for feed in others]
        want = _run(reference, feeds)
    except VerificationError:
        raise
    except AgmcError as error:
        raise VerificationError(
            f"verify: the original does not run on these inputs ({error}). Give real data with --data."
        ) from None
    tried, nan = [*feeds], float("nan")
    for feed in others:
        try:
            want += _run(reference, [feed])
        except AgmcError:
            continue  # no size of the original's
        tried.append(feed)
    try:
        got = _run(pruned, tried)
    except AgmcError as error:
        raise VerificationError(
            f"verify: onnxruntime cannot run the compressed model where it runs the original, at one of"
            f" {'; '.join(_sizes_of(tried))} ({error})."
        ) from None
    for feed, ours, theirs in zip(tried, got, want, strict=True):
        for name, one, other in zip(names, ours, theirs, strict=True):
            if np.shape(one) != np.shape(other):
                raise VerificationError(
                    f"verify: output {name} of the compressed model has other shapes than the original's, got"
                    f" {list(np.shape(one))}; expected {list(np.shape(other))} at {_sizes_of([feed])[0]}. {_ADVICE}"
                )
    facts: dict[str, Any] = {
        "checker": checker, "n_samples": len(tried), "statistics": statistics, "random": random, "sizes": _sizes_of(tried),
    }  # fmt: skip
    if norms is None:
        notes.append("a normalisation runs over cut channels, and is none that could be taken over the kept ones here")
        return Verification(None, nan, nan, nan, note="; ".join(notes), **facts)
    found = differences(names, want, got, lambda: _run(reference, tried, optimise=True))
    for one in found:
        if one.blind:
            notes.append(f"output {one.name} was not compared: {one.blind}")
        elif not one.holds:
            how = f"by {one.diff:.3g}, allowed {one.tolerance:.3g} (largest entry there {one.top:.3g})"
            how = "in where it is nan or infinite" if np.isinf(one.diff) else how
            raise VerificationError(
                f"verify: output {one.name} of the compressed model differs from the masked original's {how}. {_ADVICE}"
            )
    seen = [one for one in found if not one.blind]
    still = [name for k, name in enumerate(names) if not found[k].blind and not varies(want[: len(feeds)], k)]
    if len(feeds) > 1 and still:
        notes.append(f"{', '.join(still)} hardly depends on the inputs given, so agreement says little of it")
    if not seen:
        return Verification(None, nan, nan, nan, note="; ".join(notes), **facts)
    worst = max(seen, key=lambda one: one.diff / one.tolerance)
    return Verification(True, worst.diff, worst.top, worst.tolerance, note="; ".join(notes), **facts)


def _sizes_of(feeds: Sequence[Feed]) -> tuple[str, ...]:
    """Return the shapes of feeds as text, each once."""
    texts = (
        ", ".join(f"{name} {'x'.join(map(str, x.shape)) or 'scalar'}" for name, x in feed.items()) for feed in feeds
    )
    return tuple(dict.fromkeys(texts))


def masked(original: onnx.ModelProto, plan: Plan, values: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """Return the original with every removed entry neutral: 0, or 1 where 0 would divide.

    Args:
        original: The normalised original; not changed.
        plan: Names the kept entries of every cut tensor.
        values: Model whose weights (and new biases) stand in for the kept entries.

    Raises:
        PlanError: If the plan names a tensor or an index that the model does not have.
    """
    graph = graph_of(original)
    other = graph_of(values) if values is not None else None
    changed = set(plan.tensors)
    if other is not None:
        changed |= {name for name in graph.tensors if name in other.tensors and graph.is_float(name)}
    model = without_initializers(original)
    for tensor in original.graph.initializer:  # weights in other files stay there, see `part_of`
        model.graph.initializer.add().CopyFrom(onnx.TensorProto(name=tensor.name) if tensor.name in changed else tensor)
    constants = {p.output[0]: p for p in model.graph.node if p.op_type == "Constant"}
    initializers = {t.name: t for t in model.graph.initializer}
    ones = {node.inputs[at] for node in graph.nodes for at in op_of(node).divisors}
    zeros = _zero_points(graph)

    def put(name: str, array: np.ndarray) -> None:
        if name in initializers:
            tensor = initializers[name]
        else:
            del constants[name].attribute[:]
            tensor = constants[name].attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t
        tensor.data_type = graph.tensors[name].data_type
        tensor.dims.extend(array.shape)
        write_array(array, tensor)

    for name, axes in plan.tensors.items():
        if name not in graph.tensors:
            raise PlanError(f"plan: no tensor {name} in this model. Is it this model's plan?")
        shape, tensor = tuple(graph.tensors[name].dims), graph.tensors[name]
        region = kept_region(shape, axes, name)
        if is_external(tensor) and other is None and name in initializers and name not in zeros:
            initializers[name].CopyFrom(part_of(tensor, _masks(shape, axes), 1 if name in ones else 0))
            continue
        array = graph.array(name)
        kept = array[region]
        if other is not None and name in other.tensors:
            new = other.array(name)
            if new.shape != kept.shape:
                raise VerificationError(f"verify: tensor {name} has shape {new.shape}; the plan keeps {kept.shape}.")
            kept = new
        full = np.full(array.shape, zeros.get(name, 1 if name in ones else 0), array.dtype)
        full[region] = kept
        put(name, full)
    if other is not None:
        for name in changed - plan.tensors.keys():
            put(name, other.array(name))
        return _with_biases(model, graph, other, plan)
    return model


def kept_region(shape: tuple[int, ...], axes: Mapping[str, list[Any]], name: str = "tensor") -> tuple:
    """Return the index of the kept entries of a tensor, as the plan of the contract defines it.

    Args:
        shape: Shape of the original tensor.
        axes: By dim (as text) the kept indices; dim 1 may hold one list a group of consecutive entries of dim 0.
        name: For messages.

    Raises:
        PlanError: If a dim or an index is out of range.
    """
    index: list = [np.arange(size) for size in shape]
    for text, kept in axes.items():
        try:
            dim, rows = int(text), np.array(kept, np.int64)
        except (ValueError, TypeError, OverflowError):
            raise PlanError(
                f"plan: {name} keeps no indices along dimension {text!r}. Write it again with compress."
            ) from None
        if not 0 <= dim < len(shape):
            raise PlanError(f"plan: {name} has no dimension {dim}; its shape is {shape}. Is it this model's plan?")
        if rows.ndim != 1 and (rows.ndim != 2 or dim != 1 or not len(rows) or shape[0] % len(rows)):
            raise PlanError(
                f"plan: {name} keeps {list(rows.shape)} indices along dimension {dim}; expected one list of them."
            )
        index[dim] = rows
        if ((rows < 0) | (rows >= shape[dim])).any():
            raise PlanError(f"plan: {name} keeps indices outside of 0..{shape[dim] - 1} along dimension {dim}.")
    if len(shape) > 1 and index[1].ndim == 2:
        per_group = shape[0] // index[1].shape[0]
        columns = index[1][index[0] // per_group]  # (kept rows, kept columns)
        rest = np.ix_(index[0], np.arange(columns.shape[1]), *index[2:])
        return (rest[0], columns.reshape(columns.shape + (1,) * (len(shape) - 2)), *rest[2:])
    return np.ix_(*index)


def _masks(shape: tuple[int, ...], axes: Mapping[str, list[Any]]) -> dict[int, Mask]:
    """Return the kept entries of a tensor as masks; checked by `kept_region` before."""
    masks: dict[int, Mask] = {}
    for text, kept in axes.items():
        index = np.array(kept, np.int64)
        mask = np.zeros((*index.shape[:-1], shape[int(text)]), bool)
        np.put_along_axis(mask, index, True, axis=-1)
        masks[int(text)] = mask
    return masks


def _with_biases(model: onnx.ModelProto, graph: Graph, other: Graph, plan: Plan) -> onnx.ModelProto:
    """Give Conv and Gemm nodes the bias that recovery gave them, zero at removed channels."""
    biases: dict[Input, np.ndarray] = {}
    made = {node.outputs[0]: node for node in other.nodes if op_of(node).refit}
    for proto in model.graph.node:
        node = made.get(proto.output[0])
        if node is None or node.op_type != proto.op_type or (len(proto.input) > 2 and proto.input[2]):
            continue
        if len(node.inputs) < 3 or node.inputs[2] not in other.tensors or proto.input[1] not in graph.tensors:
            continue
        dims, out_dim = graph.tensors[proto.input[1]].dims, op_of(node).out_dim
        assert out_dim is not None
        dim = out_dim(node, len(dims))
        size = dims[dim]
        bias = np.zeros(size, graph.array(proto.input[1]).dtype)
        kept = plan.tensors.get(proto.input[1], {}).get(str(dim), list(range(size)))
        bias[kept] = other.array(node.inputs[2])
        biases[Input(proto.output[0], 2, f"{proto.output[0]}__masked_bias")] = bias
    return edited(model, biases, {change.value: bias for change, bias in biases.items()})


def _zero_points(graph: Graph) -> dict[str, np.ndarray]:
    """Return what stands for zero in quantised weights that have a zero point, so that it fits their shape."""
    found = {}
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear":
            continue
        x, rest = node.inputs[0], node.inputs[2:3]
        if x in graph.tensors and rest and rest[0] in graph.tensors:
            rank, zero = len(graph.tensors[x].dims), graph.array(rest[0])
            axis = node.attribute("axis", 1) % max(rank, 1)
            found[x] = (
                zero.reshape([-1 if dim == axis else 1 for dim in range(rank)]) if zero.size > 1 else zero.ravel()
            )
    return found


def _check(original: onnx.ModelProto, pruned: onnx.ModelProto) -> bool | None:
    try:
        onnx.checker.check_model(_checkable(pruned), full_check=True)
        return True
    except Exception as error:  # the checker raises several types; only whether it accepts matters here
        try:
            onnx.checker.check_model(_checkable(original), full_check=True)
        except Exception:  # it rejects the original too (custom ops, say): nothing was broken here
            return None
        line = str(error).strip().splitlines()[0]
        raise VerificationError(f"verify: onnx's checker rejects the compressed model ({line}).") from None


def _checkable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model, or where it has weights in other files, which the checker would read, one without them."""
    return without_external(model) if any(True for _ in external_tensors(model)) else model


def _same_signature(original: onnx.ModelProto, pruned: onnx.ModelProto) -> None:
    def signature(values: Sequence[onnx.ValueInfoProto]) -> list[tuple[str, int]]:
        return [(v.name, v.type.tensor_type.elem_type) for v in values]

    for what, one, other in (
        ("inputs", original.graph.input, pruned.graph.input),
        ("outputs", original.graph.output, pruned.graph.output),
    ):
        if signature(one) != signature(other):
            raise VerificationError(f"verify: the compressed model's graph {what} differ from the original's.")


def _run_as_it_is(original: onnx.ModelProto, pruned: onnx.ModelProto, feeds: Sequence[Feed]) -> list[str]:
    """Run a compressed model of half precision, where its original runs; return what a reader must know."""
    kinds = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in original.graph.input}
    first = [{name: x.astype(kinds[name]) for name, x in feeds[0].items()}]
    try:
        _run(original, first, optimise=True)
    except AgmcError:
        return ["compared in float32: this onnxruntime does not run the original in its own precision"]
    try:
        _run(pruned, first, optimise=True)
    except AgmcError as error:
        raise VerificationError(f"verify: onnxruntime cannot run the compressed model ({error}).") from None
    return []


def _run(model: onnx.ModelProto, feeds: Sequence[Feed], optimise: bool = False) -> list[list[Any]]:
    session = make_session(model, optimise=optimise)
    return [list(run_model(session, feed)) for feed in feeds]
