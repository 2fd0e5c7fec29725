"""The verb `verify`: a compressed model against its original and plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from agmc_onnx.data.samples import load_card, open_data
from agmc_onnx.errors import VerificationError
from agmc_onnx.graph.commit import settle
from agmc_onnx.graph.files import read_model
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.outputs import check_set, output_files, twin_of
from agmc_onnx.graph.precision import is_half, to_float32
from agmc_onnx.graph.view import Graph, graph_of
from agmc_onnx.measuring.session import model_inputs, use_libraries
from agmc_onnx.measuring.sizes import samples_at, second_feeds
from agmc_onnx.pruning.plan import Plan, kept_units, read_plan
from agmc_onnx.pruning.sparsity import check_zeros
from agmc_onnx.pruning.verification import Verification, norms_of
from agmc_onnx.pruning.verification import verify as compare_with_masked
from agmc_onnx.run.analysis import Analysis, analyse_model
from agmc_onnx.verbs.given import Given, on_files, path_of


@on_files
def verify(
    model: Given,
    compressed: Given,
    plan: str | Path | None = None,
    data: str | Path | None = None,
    input_shape: Sequence[str] = (),
    custom_ops: Sequence[str] = (),
) -> Verification:
    """Check a compressed file against its original and plan; weights may have been recovered since.

    Args:
        model: The original.
        compressed: What was made of it; of a quantised X.onnx the twin X.float.onnx beside it is compared.
        plan: Default: `X.plan.json` beside X.onnx.
        data: A data card, an .npz, a folder, or "digits", whose calibration samples are compared on; None makes random inputs.
        input_shape: Texts NAME=1,3,H,W: sizes of these.
        custom_ops: As `inspect`.

    Raises:
        VerificationError: If it does not hold.
    """
    use_libraries(custom_ops)
    model, compressed = path_of(model), path_of(compressed)
    twin, is_quantised = twin_of(compressed), False
    analysis = analyse_model(model, (), data, input_shape)
    settle(compressed)
    beside = output_files(compressed)["plan"]
    if plan is None:
        check_set(Path(compressed), beside)
    wanted = read_plan(plan if plan is not None else beside)
    if wanted.precision and Path(twin).is_file():
        check_set(Path(compressed), twin)
        compressed, is_quantised = twin, True
    pruned = normalize(read_model(compressed).proto, dense=True)
    recovered = not _weights_kept(analysis.graph, graph_of(pruned), wanted)
    feeds = None
    if data is not None:
        samples = open_data(load_card(data), model_inputs(analysis.file.proto)).role("calibration")
        feeds = samples.take(3).feeds(1)
    found = checked(analysis, pruned, wanted, recovered, feeds)
    notes = [found.note] if found.note else []
    if recovered:
        notes.append("the weights were refitted, so the original was given the new ones")
    if is_quantised:
        notes.append(f"what was compared is {Path(compressed).name}, which it was quantised from")
    return replace(found, note="; ".join(notes))


def checked(
    analysis: Analysis,
    pruned: onnx.ModelProto,
    plan: Plan,
    recovered: bool,
    feeds: Sequence[dict[str, np.ndarray]] | None = None,
    seed: int = 0,
) -> Verification:
    """Verify a compressed model with dense initializers: its zeros are counted, then it is compared.

    Zeros are no part of the structure that the comparison is about, so thinned weights are given to the original, as
    refitted ones are. Where nothing was refitted, all that is not zero must be the original's.
    """
    check_zeros(pruned, plan)
    if plan.sparsity and not recovered and not _weights_kept(analysis.graph, graph_of(pruned), plan):
        raise VerificationError("verify: weights differ from the original's although nothing was recovered.")
    norms = norms_of(analysis.channels, kept_units(analysis.channels, plan))
    given = recovered or bool(plan.sparsity)
    sizes = analysis.sizes.inputs
    if feeds is None:
        feeds = samples_at(
            to_float32(analysis.model) if is_half(analysis.model) else analysis.model, sizes, 3, seed
        ).feeds(1)
    others = second_feeds(analysis.model, sizes, seed)
    return compare_with_masked(
        analysis.model, pruned, plan, feeds, recovered=given, norms=norms, seed=seed, others=others
    )


def _weights_kept(original: Graph, pruned: Graph, plan: Plan) -> bool:
    """Whether every floating tensor of a pruned model is the planned part of the original's."""
    from agmc_onnx.pruning.verification import kept_region

    for name in pruned.tensors:
        if not pruned.is_float(name):
            continue
        if name in original.producer:  # a number that the cut fixed: what computed it is gone
            continue
        if name not in original.tensors:
            return False
        array: npt.NDArray[Any] = original.array(name)
        wanted = array[kept_region(array.shape, plan.tensors[name], name)] if name in plan.tensors else array
        found = pruned.array(name)
        if name in plan.sparsity and found.shape == wanted.shape:
            wanted = np.where(found == 0, found, wanted)
        if not np.array_equal(found, wanted):
            return False
    return True
