"""Candidates measured by a Ray cluster."""

from __future__ import annotations

import os
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from agmc_onnx.errors import DataError, UsageError
from agmc_onnx.search import cluster
from agmc_onnx.search.problem import Outcome


def test_missing_ray_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'agmc-onnx\[ray\]'"):
        cluster.connect("local")


def _evaluator(folder):
    def evaluate(kept):
        if kept[0] == 13 and not os.path.exists(f"{folder}/died"):  # the first time only
            open(f"{folder}/died", "w").close()
            os._exit(1)
        if kept[0] == 99:
            raise DataError("data: bad, got 99; expected less.")
        return Outcome(float(kept.sum()), os.getpid())

    return evaluate


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    pytest.importorskip("ray", reason="ray is not installed")
    made = cluster.RayWorkers("local", 2, 1, partial(_evaluator, str(tmp_path_factory.mktemp("ray"))))
    yield made
    made.close()


def test_actors_measure_side_by_side_and_a_lost_one_costs_one_candidate(workers):
    candidates = [np.array([n, 1]) for n in (3, 13, 5, 7)]
    found = dict(workers(candidates))
    assert {place: outcome.metric for place, outcome in found.items()} == {0: 4.0, 1: 14.0, 2: 6.0, 3: 8.0}
    assert len({outcome.inference_s for outcome in found.values()}) > 1


def test_an_error_of_the_evaluator_is_told_as_it_is(workers):
    with pytest.raises(DataError, match="got 99"):
        list(workers([np.array([99, 1])]))


def test_too_many_workers_are_refused(workers):
    with pytest.raises(UsageError, match="too few processors"):
        cluster.RayWorkers("auto", 4096, 1, partial(_evaluator, "x"))


class _Ray:
    """What is asked of Ray where nothing ever comes back."""

    def __init__(self, nodes):
        self.found, self.n_waits = nodes, 0

    def wait(self, running, num_returns, timeout):
        self.n_waits += 1
        return ([], running)

    def nodes(self):
        if self.found is None:
            raise ConnectionError("no one answers")
        return [{"Alive": alive} for alive in (self.found.pop(0) if self.found else [False])]


@pytest.mark.parametrize(("nodes", "n_waits"), [([], 1), (None, 1), ([[True, False], [False, True]], 3)], ids=str)
def test_a_cluster_that_is_gone_is_an_error_not_a_wait_for_ever(nodes, n_waits):
    made = cluster.RayWorkers.__new__(cluster.RayWorkers)
    made._ray = _Ray(nodes)
    made._idle = [SimpleNamespace(evaluate=SimpleNamespace(remote=lambda *_: "task"))]
    with pytest.raises(UsageError, match=r"--ray: the cluster is gone.*--resume"):
        list(made([np.array([1, 2])]))
    assert made._ray.n_waits == n_waits
