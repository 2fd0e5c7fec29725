"""The plan: which units stay, and with that which entries of which tensors; plan@2 where groups keep nothing (docs/files.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.errors import PlanError
from agmc_onnx.pruning.depth import closer_of
from agmc_onnx.ties.cut import Cut
from agmc_onnx.ties.groups import Channels

FORMAT = "agmc-onnx/plan@1"
DEEP_FORMAT = "agmc-onnx/plan@2"  # where something is gone


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
        set_id: Of the set that the plan is written with, or None; plans of the same content are equal.
    """

    sha256: str
    opset: int
    groups: tuple[Mapping[str, Any], ...]
    tensors: Mapping[str, Mapping[str, list[Any]]]
    sparsity: Mapping[str, float] = field(default_factory=dict)
    pattern: str | None = None
    gone: tuple[str, ...] = ()
    set_id: str | None = field(default=None, compare=False)

    def to_json(self) -> str:
        """Return the plan as the contract's JSON, one line a group and a tensor."""
        groups = ",\n  ".join(json.dumps(g) for g in self.groups)
        tensors = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(axes)}" for name, axes in self.tensors.items())
        model = json.dumps({"sha256": self.sha256, "opset": self.opset})
        pattern = "" if self.pattern is None else f', "sparsity_pattern": {json.dumps(self.pattern)}'
        name = DEEP_FORMAT if self.gone else FORMAT
        gone = f',\n "gone": {json.dumps(self.gone)}, "folded": {{}}' if self.gone else ""
        set_id = "" if self.set_id is None else f' "set": {json.dumps(self.set_id)},\n'
        return (
            f'{{"format": "{name}",\n{set_id} "model": {model},\n "groups": [\n  {groups}],\n "tensors": {{\n  {tensors}}},\n'
            f' "sparsity": {json.dumps(dict(self.sparsity))}{pattern}{gone}}}\n'
        )


def make_plan(channels: Channels, kept: Sequence[IntArray], sha256: str) -> Plan:
    """Return the plan of a choice of units.

    Args:
        channels: The analysis.
        kept: For each prunable group the kept positions, ascending.
        sha256: Digest of the original's file.
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
    return Plan(sha256, channels.graph.opset, tuple(groups), tensors, gone=tuple(gone))


def _nothing(kept: Sequence[IntArray]) -> list[int]:
    """Return the numbers of the groups that keep nothing."""
    return [i for i, positions in enumerate(kept) if not len(positions)]


def read_plan(path: str | Path) -> Plan:
    """Read a plan.json.

    Raises:
        PlanError: If the file is missing, is no JSON, or is no plan.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}). Check the path of the plan.") from None
    except ValueError as error:
        raise PlanError(f"{path}: not JSON ({error}). Give a plan.json that compress wrote.") from None
    if not isinstance(data, dict) or data.get("format") not in (FORMAT, DEEP_FORMAT):
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise PlanError(
            f"{path}: not a plan, got format {found!r}; expected {FORMAT} or {DEEP_FORMAT}. Give a plan.json that compress wrote."
        )
    try:
        model = data["model"]
        sparse = data.get("sparsity", {}), data.get("sparsity_pattern")
        gone = tuple(data["gone"]) if data["format"] == DEEP_FORMAT else ()
        return Plan(model["sha256"], model["opset"], tuple(data["groups"]), data["tensors"], *sparse, gone)
    except (KeyError, TypeError) as error:
        raise PlanError(f"{path}: a plan without {error}. Write it again with compress.") from None


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
