from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from agmc_onnx.refit.compensation import compensate
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.refit.quick import QuickRefit
from tests import nets
from tests.refit.test_compensate import NETS, draw, error, prune

torch.set_num_threads(1)
OPTIONS = RecoverOptions(batch_size=16)


@pytest.mark.parametrize("name", NETS)
def test_a_quick_refit_comes_nearer_to_the_original(name: str) -> None:
    proto = nets.model(*NETS[name])
    channels, kept, pruned = prune(proto)
    data = pruned.SerializeToString()
    refitted = QuickRefit(channels, draw(proto), OPTIONS)(kept, pruned)
    onnx.checker.check_model(refitted)
    assert pruned.SerializeToString() == data
    assert error(proto, refitted) < error(proto, pruned)


def test_one_layer_is_refitted_as_the_full_refit_does() -> None:
    text = "f (float[n, 4, 6, 6] x) => (float[n, 3, 6, 6] y) { a = Conv (x, w1)  r = Relu (a)  y = Conv (r, w2, b) }"
    proto = nets.model(text, {"w1": (12, 4, 1, 1), "w2": (3, 12, 1, 1), "b": (3,)})
    channels, kept, pruned = prune(proto)
    exact = RecoverOptions(batch_size=16, ridges=(1e-6,), quick_ridge=1e-6, thin_ridge=0.0)
    full = compensate(channels, kept, pruned, draw(proto), exact)
    quick = QuickRefit(channels, draw(proto), exact)(kept, pruned)
    assert error(proto, quick) == pytest.approx(error(proto, full), rel=1e-2)


def test_a_candidate_is_refitted_the_same_whatever_came_before() -> None:
    proto = nets.model(*NETS["residual"])
    channels, kept, pruned = prune(proto)
    _, other, other_pruned = prune(proto, 0.75)
    small = RecoverOptions(batch_size=16, memory_bytes=1)  # nothing stays in the table
    refits = [QuickRefit(channels, draw(proto), options) for options in (OPTIONS, OPTIONS, small)]
    first = refits[0](kept, pruned).SerializeToString()
    for refit in refits[1:]:
        refit(other, other_pruned)
        assert refit(kept, pruned).SerializeToString() == first
        assert refit(kept, pruned).SerializeToString() == first


def test_wide_nodes_are_left_as_they_are() -> None:
    proto = nets.model(*NETS["residual"])
    channels, kept, pruned = prune(proto)
    refitted = QuickRefit(channels, draw(proto), RecoverOptions(batch_size=16, max_width=1))(kept, pruned)
    assert refitted.SerializeToString() == pruned.SerializeToString()
    assert np.isfinite(error(proto, refitted))
