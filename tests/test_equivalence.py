"""The oracle over every architecture family: cut at random, equal to the masked original, cost as predicted."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from agmc_onnx.channels.groups import Channels, analyse
from agmc_onnx.model.graph import view
from agmc_onnx.model.normalize import normalize
from agmc_onnx.pruning.cost import count_macs, count_params, macs_cost, params_cost
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.search.budget import meet_target
from agmc_onnx.verification import verify
from models.export import to_onnx
from models.zoo import build

SIDE = 32
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    # row: (builder, options, image side)
    "resnet, strided slice and pad": ("resnet20", {"depth": 14}, SIDE),
    "resnet, 1x1 shortcuts": ("resnet20", {"depth": 14, "shortcut": "B"}, SIDE),
    "bottleneck resnet": ("resnet50", {"blocks": (1, 2, 1, 1), "width": 0.25}, SIDE),
    "vgg, flatten to gemm": ("vgg16", {"width": 0.125, "size": SIDE, "n_classes": 10}, SIDE),
    "vgg, batch norm": ("vgg16_bn_cifar", {"width": 0.125}, SIDE),
    "mobilenet v1": ("mobilenet_v1", {"width": 0.25, "n_classes": 10}, SIDE),
    "mobilenet v2": ("mobilenet_v2", {"width": 0.25, "n_classes": 10}, SIDE),
    "shufflenet v1, 2 groups": ("shufflenet_v1", {"groups": 2, "width": 0.5, "n_classes": 10}, SIDE),
    "shufflenet v1, 3 groups": ("shufflenet_v1", {"groups": 3, "width": 0.5, "n_classes": 10}, SIDE),
    "shufflenet v2": ("shufflenet_v2", {"width": 0.5, "n_classes": 10}, SIDE),
}
EXPORTS: dict[str, dict[str, Any]] = {
    "folded": {"exporter": "torchscript"},
    "batch norm kept": {"exporter": "torchscript", "keep_batchnorm": True},
    "dynamo": {"exporter": "dynamo", "opset": 18},
}
QUICK_DYNAMO = ("resnet, strided slice and pad", "shufflenet v2")  # the others take 10 s each to export


def rows() -> list[Any]:
    return [
        pytest.param(family, export, marks=[pytest.mark.slow] if export == "dynamo" and family not in QUICK_DYNAMO else [])
        for family in FAMILIES
        for export in EXPORTS
    ]


@cache
def network(family: str, export: str) -> tuple[onnx.ModelProto, Channels]:
    name, options, side = FAMILIES[family]
    model = normalize(to_onnx(build(name, seed=1, **options), (1, 3, side, side), **EXPORTS[export]))
    return model, analyse(view(model))


def draw(channels: Channels, rng: np.random.Generator) -> list[int]:
    """Return random kept counts, each a multiple of its group's step."""
    return [int(rng.integers(1, g.n_units // g.step + 1)) * g.step for g in channels.groups]


@pytest.mark.parametrize(("family", "export"), rows())
def test_random_plans(family: str, export: str) -> None:
    model, channels = network(family, export)
    macs, params, surgeon = macs_cost(channels), params_cost(channels), Surgeon(channels)
    full = [g.n_units for g in channels.groups]
    assert macs(full) == sum(count_macs(channels.graph).values())
    rng = np.random.default_rng(7)
    for _ in range(2):
        counts = draw(channels, rng)
        kept = choose(channels, rng.random(channels.n_units), counts)
        pruned = surgeon.cut(kept)
        graph = view(pruned)
        assert sum(count_macs(graph).values()) == macs(counts)
        assert count_params(graph) == params(counts)
        checked = verify(model, pruned, make_plan(channels, kept, "0" * 64))
        assert checked.masked_equivalence and checked.checker and not checked.note
        assert checked.max_abs_output > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_half_the_macs(family: str) -> None:
    model, channels = network(family, "folded")
    cost = macs_cost(channels)
    full = np.array([g.n_units for g in channels.groups])
    step = np.array([g.step for g in channels.groups])
    budget = cost(full) // 2
    met = meet_target(np.full(full.size, 0.7), cost, full, step, step, budget)
    assert met.feasible
    assert 0.48 * cost(full) < met.reached <= budget
    kept = choose(channels, l2_norm(channels), met.kept)
    assert verify(model, Surgeon(channels).cut(kept), make_plan(channels, kept, "0" * 64)).masked_equivalence


def test_nothing_is_cut_when_all_stay() -> None:
    model, channels = network("shufflenet v2", "folded")
    pruned = Surgeon(channels).cut([np.arange(g.n_units) for g in channels.groups])
    assert pruned.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
