"""What a search needs is measured when it is first asked for, and how far that is is told."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from agmc_onnx.options import CompressOptions
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.candidates import environment_of
from agmc_onnx.run.progress import PREPARING
from agmc_onnx.run.samples import roles_of

DIGITS = "agmc_onnx/data/digits/digits_resnet.onnx"


def test_what_a_search_needs_is_told_step_by_step() -> None:
    told: list[Mapping[str, Any]] = []

    def tell(stage: str, facts: Mapping[str, Any]) -> None:
        assert stage == PREPARING
        told.append(facts)

    analysis = analyse_model(DIGITS)
    settings = CompressOptions.of(flops=0.5)
    environment = environment_of(analysis, roles_of(analysis, "digits", settings), settings, tell=tell)
    assert (
        [one["what"] for one in told] == ["the original"]
        and environment.curves is not None
        and environment.divergence is not None
    )
    environment.curves()
    environment.divergence()
    assert environment.depth is not None
    n, n_branches = len(environment.n_units), len(environment.depth.closer.branches)
    steps = {what: [(one["done"], one["n"]) for one in some] for what, some in groupby(told, lambda one: one["what"])}
    for what in ("error curves", "errors at the outputs"):
        assert steps[what] == [(done, n) for done in range(n)]
    assert steps["losses without layers"] == [(done, n_branches) for done in range(n_branches)]
    assert steps["activations"][0][0] == 0 and steps["activations"][-1][0] < steps["activations"][0][1]
    environment.depth.loss(frozenset({0, 1}))
    assert told[-1] == {"what": "losses without layers", "done": n_branches, "n": None}
