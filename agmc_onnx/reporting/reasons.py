"""Why groups stay whole, once for all that are alike: what it costs, and what can be done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agmc_onnx.graph.naming import layer_name
from agmc_onnx.pruning.cost import macs_cost
from agmc_onnx.ties.groups import Channels

_ADVICE = (
    # what a reason says, and what to do about it
    (
        r"meets the input",
        "if that input holds keys and values of earlier calls, a model exported without them has no such limit",
    ),
    (
        r"open size|has no fixed size|shape of .* is not known|are not fixed",
        "an export with fixed sizes has no such limit",
    ),
    (r"inside its subgraph", "an export with fixed sizes often does without it"),
    (r"is not understood", "a report with this op's name is welcome"),
    (r"quantised", "compress the float model, then quantise the result"),
)


@dataclass(frozen=True)
class Reason:
    """Why some groups stay whole.

    Attributes:
        why: Of the first of them.
        layers: What they are called, each with its units.
        gain: Share of the MACs that could go if they need not stay, as far as they were followed, all others whole.
        do: What can be done about it, or "".
    """

    why: str
    layers: tuple[tuple[str, int], ...]
    gain: float
    do: str


def find_reasons(channels: Channels) -> list[Reason]:
    """Return why groups stay whole, what would gain most first."""
    alike: dict[str, list[int]] = {}
    for index, group in enumerate(channels.frozen):
        alike.setdefault(re.sub(r"\d+", "#", group.why_frozen or ""), []).append(index)
    gains = _gains(channels, list(alike.values()))
    found = []
    for members, gain in zip(alike.values(), gains, strict=True):
        groups = [channels.frozen[index] for index in members]
        why = groups[0].why_frozen or ""
        layers = tuple((layer_name(channels.graph, group.name), group.n_units) for group in groups)
        found.append(Reason(why, layers, gain, "" if why.startswith("graph output") else _advice(why)))
    return sorted(found, key=lambda reason: -reason.gain)


def _advice(why: str) -> str:
    return next((advice for pattern, advice in _ADVICE if re.search(pattern, why) and advice not in why), "")


def _gains(channels: Channels, kinds: Sequence[Sequence[int]]) -> list[float]:
    """Return for every kind the share of the MACs that its groups could give, all others whole."""
    whole = np.array([group.n_units for group in channels.frozen], np.int64)
    cost = macs_cost(replace(channels, groups=(*channels.groups, *channels.frozen), frozen=()))
    others = np.array([group.n_units for group in channels.groups], np.int64)
    everything = cost(np.concatenate([others, whole]))
    gains = []
    for members in kinds:
        freed = whole.copy()
        freed[list(members)] = [min(max(channels.frozen[index].step, 1), int(whole[index])) for index in members]
        gains.append(float(everything - cost(np.concatenate([others, freed]))) / max(everything, 1))
    return gains
