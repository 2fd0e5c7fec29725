"""The plan: which units stay, and with that which entries of which tensors; plan@2 where groups keep nothing (docs/files.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
from msgspec import Meta

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.errors import PlanError
from agmc_onnx.graph.commit import settle
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.schema import Count, checked, parse
from agmc_onnx.ties.cut import Cut
from agmc_onnx.ties.groups import Channels

FORMAT = "agmc-onnx/plan@1"
_ADVICE = "Give a plan.json that compress wrote."
DEEP_FORMAT = "agmc-onnx/plan@2"  # where something is gone, or not all is float


@dataclass(frozen=True)
class Plan:
    """What is kept of a model.

    Attributes:
        sha256: Digest of the original's file.
        opset: Its default operator set.
        groups: For each group, frozen ones included: name, units, kept positions, why_frozen.
        tensors: Kept indices of every cut axis, ascending, by tensor and dim; for a grouped Conv's dim 1 one list a group
            where groups keep different inputs.
        sparsity: Share of zeros in dense weights that keep their shape.
        pattern: "N:M" where of every M neighbours at most N are kept there, else None.
        gone: First outputs of the original's nodes that are not in the file.
        derived: Names among `tensors` that the original's file has no tensor of: statistics of weights that are fixed, copies
            of shared vectors, and what stood in functions and branches.
        precision: What every node of X.float.onnx computes in in X.onnx, by its first output; empty where all is float.
        set_id: Of the set that the plan is written with, or None; plans of the same content are equal.
    """

    sha256: str
    opset: int
    groups: tuple[Mapping[str, Any], ...]
    tensors: Mapping[str, Mapping[str, list[Any]]]
    sparsity: Mapping[str, float] = field(default_factory=dict)
    pattern: str | None = None
    gone: tuple[str, ...] = ()
    derived: frozenset[str] = frozenset()
    precision: Mapping[str, str] = field(default_factory=dict)
    set_id: str | None = field(default=None, compare=False)

    def to_json(self) -> str:
        """Return the plan as the contract's JSON, one line a group and a tensor."""
        groups = ",\n  ".join(json.dumps(g) for g in self.groups)
        tensors, derived = (
            ",\n  ".join(
                f"{json.dumps(name)}: {json.dumps(axes)}"
                for name, axes in self.tensors.items()
                if (name in self.derived) == is_derived
            )
            for is_derived in (False, True)
        )
        model = json.dumps({"sha256": self.sha256, "opset": self.opset})
        pattern = "" if self.pattern is None else f', "sparsity_pattern": {json.dumps(self.pattern)}'
        name = DEEP_FORMAT if self.gone or self.precision else FORMAT
        precision = f',\n "precision": {json.dumps(dict(self.precision))}' if self.precision else ""
        gone = f',\n "gone": {json.dumps(self.gone)}, "folded": {{}}' if self.gone else ""
        derived = f',\n "derived": {{\n  {derived}}}' if derived else ""
        set_id = "" if self.set_id is None else f' "set": {json.dumps(self.set_id)},\n'
        return (
            f'{{"format": "{name}",\n{set_id} "model": {model},\n "groups": [\n  {groups}],\n "tensors": {{\n  {tensors}}},\n'
            f' "sparsity": {json.dumps(dict(self.sparsity))}{pattern}{derived}{gone}{precision}}}\n'
        )


def make_plan(
    channels: Channels, kept: Sequence[IntArray], sha256: str, original: onnx.ModelProto | None = None
) -> Plan:
    """Return the plan of a choice of units.

    Args:
        channels: The analysis.
        kept: For each prunable group the kept positions, ascending.
        sha256: Digest of the original's file.
        original: As it lies in the file, where it is not the model that was analysed.
    """
    groups: list[dict[str, Any]] = [
        {"name": g.name, "units": g.n_units, "keep": np.asarray(k).tolist(), "why_frozen": None}
        for g, k in zip(channels.groups, kept, strict=True)
    ]
    groups += [
        {"name": g.name, "units": g.n_units, "keep": list(range(g.n_units)), "why_frozen": g.why_frozen}
        for g in channels.frozen
    ]
    closed = closer_of(channels)(_nothing(kept))
    tensors = {
        name: {"0": []} if name in closed.neutral else {str(dim): _indices(mask) for dim, mask in sorted(masks.items())}
        for name, masks in Cut(channels, kept).tensor_axes().items()
    }
    tensors.update((name, {"0": []}) for name in channels.graph.tensors if name in closed.neutral)
    gone = [next(filter(None, channels.graph.nodes[i].outputs)) for i in sorted(closed.gone)]
    derived = frozenset() if original is None else tensors.keys() - _tensor_names(original.graph)
    return Plan(sha256, channels.graph.opset, tuple(groups), tensors, gone=tuple(gone), derived=frozenset(derived))


def _tensor_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of initializers, of outputs of Constants, and of Identities of these."""
    names = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    for node in graph.node:
        if node.op_type == "Constant" or (node.op_type == "Identity" and node.input[0] in names):
            names.add(node.output[0])
    return names


def _nothing(kept: Sequence[IntArray]) -> list[int]:
    """Return the numbers of the groups that keep nothing."""
    return [i for i, positions in enumerate(kept) if not len(positions)]


@dataclass(frozen=True)
class ModelFacts:
    """The original."""

    sha256: Annotated[str, Meta(description="digest of its file")]
    opset: int


@dataclass(frozen=True)
class GroupFacts:
    """One group of channels."""

    name: str
    units: Count
    keep: Annotated[list[Count], Meta(description="kept positions, ascending; empty where the group is gone")]
    why_frozen: Annotated[str | None, Meta(description="why it stays whole")] = None


@dataclass(frozen=True)
class PlanFile:
    """X.plan.json."""

    format: Annotated[str, Meta(description="agmc-onnx/plan@1, or plan@2 where something is gone or quantised")]
    model: ModelFacts
    groups: list[GroupFacts]
    tensors: Annotated[
        dict[str, dict[str, list[int | list[int]]]],
        Meta(
            description="kept indices of every cut axis, ascending, by tensor and dim; one list a group of a grouped Conv"
        ),
    ]
    sparsity: Annotated[
        dict[str, Annotated[float, Meta(ge=0, le=1)]],
        Meta(description="share of zeros of tensors that keep their shape"),
    ] = field(default_factory=dict)
    sparsity_pattern: Annotated[str, Meta(description="N:M", pattern="^[1-9][0-9]*:[1-9][0-9]*$")] | None = None
    derived: Annotated[
        dict[str, dict[str, list[int | list[int]]]],
        Meta(
            description="the same of what the original's file has no tensor of: statistics of weights that are fixed, copies of"
            " shared vectors, and what stood in functions and branches"
        ),
    ] = field(default_factory=dict)
    gone: Annotated[list[str], Meta(description="first outputs of the original's nodes that are not in the file")] = (
        field(default_factory=list)
    )
    folded: dict[str, Any] = field(default_factory=dict)
    precision: Annotated[
        dict[str, str], Meta(description="int8 or float by the first output of a node of X.float.onnx")
    ] = field(default_factory=dict)
    set: Annotated[str | None, Meta(description="id of the set")] = None


def read_plan(path: str | Path) -> Plan:
    """Read a plan.json.

    Raises:
        PlanError: If the file is missing, is no JSON, or is no plan.
    """
    settle(path)
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}). Check the path of the plan.") from None
    data = parse(raw, path, "a plan", _ADVICE, PlanError)
    if data.get("format") not in (FORMAT, DEEP_FORMAT):
        raise PlanError(
            f"{path}: not a plan, got format {data.get('format')!r}; expected {FORMAT} or {DEEP_FORMAT}. {_ADVICE}"
        )
    found = checked(data, PlanFile, path, "a plan", _ADVICE, PlanError)
    groups = tuple(asdict(group) for group in found.groups)
    facts = (
        found.sparsity,
        found.sparsity_pattern,
        tuple(found.gone),
        frozenset(found.derived),
        found.precision,
        found.set,
    )
    return Plan(found.model.sha256, found.model.opset, groups, found.tensors | found.derived, *facts)


def kept_units(channels: Channels, plan: Plan) -> list[IntArray]:
    """Return the kept positions that a plan names for the groups of a model.

    Raises:
        PlanError: If the plan's groups are not the model's.
    """
    named = {g["name"]: g for g in plan.groups}
    kept = []
    for group in channels.groups:
        entry = named.get(group.name)
        if entry is None or entry["units"] != group.n_units:
            got = "none" if entry is None else f"{entry['units']} units"
            raise PlanError(
                f"plan: group {group.name} has {group.n_units} units in this model, got {got}. Is it this model's plan?"
            )
        keep = np.asarray(entry["keep"], np.int64)
        if (
            (not keep.size and not plan.gone)
            or (np.diff(keep) <= 0).any()
            or (keep < 0).any()
            or (keep >= group.n_units).any()
        ):
            raise PlanError(
                f"plan: group {group.name} keeps positions that are not ascending in 0..{group.n_units - 1}."
            )
        for blocks in group.partitions:
            counts = np.bincount(blocks[keep], minlength=int(blocks.max()) + 1)
            if (counts * group.n_units != np.bincount(blocks) * keep.size).any():
                raise PlanError(
                    f"plan: group {group.name} keeps {counts.tolist()} in its blocks; expected equally many."
                )
        kept.append(keep)
    nothing = _nothing(kept)
    closed = closer_of(channels)(nothing)
    if closed.why_not is not None:
        raise PlanError(
            f"plan: what keeps nothing cannot go in this model ({closed.why_not}). Is it this model's plan?"
        )
    if more := sorted(closed.groups - set(nothing)):
        raise PlanError(
            f"plan: group {channels.groups[more[0]].name} keeps units of what is gone; expected none, as nothing is left of it."
        )
    return kept


def _indices(mask: Mask) -> list[Any]:
    if mask.ndim == 1:
        return np.flatnonzero(mask).tolist()
    rows = [np.flatnonzero(row).tolist() for row in mask]
    return rows[0] if all(row == rows[0] for row in rows) else rows
