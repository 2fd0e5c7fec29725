"""The verb `apply`: the compressed model of a plan, without data or search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from agmc_onnx.errors import PlanError, UsageError
from agmc_onnx.graph.commit import settle
from agmc_onnx.graph.outputs import check_output, is_same, output_files, stamped, with_id, write_files
from agmc_onnx.measuring.sizes import samples_at
from agmc_onnx.pruning.plan import Plan, kept_units, make_plan, read_plan
from agmc_onnx.pruning.sparsity import planned, smallest, sparse_names, sparse_plan, thin_by_magnitude
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import Verification
from agmc_onnx.reporting.record import sizes_of, verified_facts
from agmc_onnx.reporting.schema import VerifiedFacts
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.inputs import inputs_of
from agmc_onnx.schema import Record
from agmc_onnx.verbs.compress import Made
from agmc_onnx.verbs.given import Given, on_files, path_of
from agmc_onnx.verbs.verify import checked


@dataclass(frozen=True, eq=False)
class Sizes(Record):
    """What a model is, without running it."""

    macs: int
    params: int
    file_bytes: int


@dataclass(frozen=True, eq=False)
class AppliedReport(Record):
    """What `apply` says: sizes before and after, and how the result was verified."""

    original: Sizes
    compressed: Sizes
    verified: VerifiedFacts


@dataclass(frozen=True, repr=False)
class Applied(Made):
    """What `apply` made.

    Attributes:
        model: The compressed model.
        plan: What was kept.
        report: Sizes and verification.
        verification: How it was checked.
    """

    model: onnx.ModelProto
    plan: Plan
    report: AppliedReport
    verification: Verification

    def _texts(self) -> dict[str, str]:
        return {"plan": self.plan.to_json()}


@on_files
def apply(model: Given, plan: str | Path, output: str | Path | None = None, *, force: bool = False) -> Applied:
    """Rebuild the compressed model of a plan, without data or search.

    Args:
        model: The original that the plan is of.
        plan: A plan.json.
        output: Where to write the model, and its plan beside it; None writes nothing.
        force: Write over files at the output that are not ours.

    Raises:
        ModelError, PlanError, VerificationError: As `compress`.
    """
    model = path_of(model)
    in_place = output is not None and is_same(output_files(output)["plan"], plan)  # then it is left as it is
    if output is not None:
        settle(output)
        check_output(output, inputs_of(model, the_plan=None if in_place else plan), force)
    wanted = read_plan(plan)
    if in_place and wanted.precision:
        raise UsageError(
            f"{output}: is quantised, and a plan alone gives its float twin, for want of samples; expected another name."
            " Choose another output with -o."
        )
    analysis = analyse_model(model)
    if wanted.sha256 != analysis.file.sha256:
        raise PlanError(
            f"{plan}: is the plan of another model, got sha256 {wanted.sha256[:12]}...; expected"
            f" {analysis.file.sha256[:12]}... of {analysis.file.path}. Give the file that the plan was made from."
        )
    kept = kept_units(analysis.channels, wanted)
    pruned = Surgeon(analysis.channels).cut(kept)
    made = make_plan(analysis.channels, kept, analysis.file.sha256, analysis.file.proto)
    if wanted.sparsity:
        sparsity = planned(wanted)
        pruned = thin_by_magnitude(pruned, sparsity)
        made = sparse_plan(made, pruned, sparsity)
    found = checked(analysis, pruned, made, recovered=False)
    if may_be_sparse := sparse_names(analysis.file.proto):
        pruned = smallest(pruned, may_be_sparse, samples_at(analysis.model, analysis.sizes.inputs, 1, 0).feeds(1))
    pruned, set_id = (with_id(pruned, wanted.set_id), wanted.set_id) if in_place else stamped(pruned, made.to_json())
    made = replace(made, set_id=set_id)
    report = AppliedReport(
        Sizes(**sizes_of(analysis.file.proto, analysis.sizes.inputs)),
        Sizes(**sizes_of(pruned, analysis.sizes.inputs)),
        verified_facts(found, False),
    )
    if output is not None:
        write_files(pruned, {} if in_place else {"plan": made.to_json()}, output, ["plan"])
    return Applied(pruned, made, report, found)
