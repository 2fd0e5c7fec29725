import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import agmc_onnx
from agmc_onnx import CompressOptions, UsageError
from agmc_onnx.errors import PlanError, VerificationError
from agmc_onnx.graph.outputs import output_files
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.pruning.plan import read_plan
from agmc_onnx.pruning.sparsity import (
    Sparsity,
    check_zeros,
    dense,
    magnitude_mask,
    store,
    thin_by_magnitude,
    weakest_of_pattern,
    weights_of,
    zeros_wanted,
)
from agmc_onnx.refit.thin import METHODS, shrunk
from tests.nets import model

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
FAST = {"flops": 0.5, "data": "digits", "policy": "uniform", "latency_seconds": 0.1, "round_to": 4}


def mlp():
    text = """
    net (float[N, 16] x) => (float[N, 5] y) {
        h = Gemm<transB = 1>(x, w1, b1)
        r = Relu(h)
        y = MatMul(r, w2)
    }
    """
    return model(text, {"w1": (24, 16), "b1": (24,), "w2": (24, 5)})


def asked(share=0.5, method="magnitude", pattern=None, names=("w",)):
    return Sparsity(share, method, pattern, names)


def problem(channels=12, width=32, seed=0):
    """Weights, the second moments of correlated inputs, and their power."""
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((500, 8)) @ generator.standard_normal((8, width))
    inputs = mixed + 0.3 * generator.standard_normal((500, width)) * generator.uniform(0.2, 2, width)
    second = inputs.T @ inputs / 500
    return generator.standard_normal((channels, width)), second, second.diagonal().copy()


def thinned(method, share=0.5, pattern=None, run=None, **kind):
    rows, second, power = problem(**kind)
    one = np.ones((len(rows), 1))
    found = METHODS[method](rows, second, power, one, asked(share, method, pattern), "w", run or rows.shape[1])
    step = found - rows
    return found, float(np.einsum("ij,jk,ik->", step, second, step))


def test_which_weights_are_those_of_dense_layers():
    graph = graph_of(mlp())
    assert weights_of(graph, "dense") == {"w1": 1, "w2": 0}
    text = "net (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {\n a = Conv(x, w)\n y = Conv<group = 4>(a, d)\n }"
    kernels = graph_of(model(text, {"w": (4, 4, 1, 1), "d": (4, 1, 1, 1)}))
    assert weights_of(kernels, "dense") == {}
    assert weights_of(kernels, "all") == {"w": 1}


@pytest.mark.parametrize(("size", "share", "n"), [(10, 0.3, 3), (10, 0.31, 4), (3, 0.5, 2), (440, 0.3, 132)])
def test_a_share_of_zeros_is_at_least_reached(size, share, n):
    assert zeros_wanted(size, share) == n


def test_the_smallest_weights_go():
    array = np.array([[0.1, -3, 2], [0, 5, -0.2]], np.float32)
    assert magnitude_mask(array, 1, 0.5, None).tolist() == [[True, False, False], [True, False, True]]


def test_a_pattern_keeps_n_of_every_m_neighbours_of_a_run():
    scores = np.array([[4.0, 1, 3, 2, 9, 8, 1, 2, 3, 5]])
    goes = weakest_of_pattern(scores, (2, 4), 5)
    assert goes.astype(int).tolist() == [[0, 1, 0, 1, 0, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_every_method_reaches_the_share_exactly(method, share):
    found, _ = thinned(method, share)
    assert (found == 0).sum() == zeros_wanted(found.size, share)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_keeps_the_pattern(method):
    found, _ = thinned(method, pattern=(2, 4))
    assert ((found.reshape(len(found), -1, 4) != 0).sum(2) == 2).all()


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_compensation_leaves_less_error_than_looking_at_activations_and_that_less_than_magnitude(pattern):
    errors = {method: np.mean([thinned(method, pattern=pattern, seed=s)[1] for s in range(5)]) for method in METHODS}
    assert errors["obs"] < 0.7 * errors["wanda"]
    assert errors["wanda"] < errors["magnitude"]


def test_a_single_removal_moves_the_others_as_the_closed_form_says():
    rows, second, power = problem(channels=1, width=6)
    found = METHODS["obs"](rows, second, power, np.ones((1, 1)), asked(1 / 6), "w", 6)
    gone = int(np.flatnonzero(found[0] == 0)[0])
    later = np.argsort(power, kind="stable")
    later = later[list(later).index(gone) :]  # columns before it in the order are settled
    inverse = np.linalg.inv(second[np.ix_(later, later)])
    wanted = rows[0].copy()
    wanted[later] -= rows[0, gone] / inverse[0, 0] * inverse[0]
    assert np.allclose(found[0], wanted)


def test_few_samples_say_little_about_what_makes_up_for_what():
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((1000, 4)) @ generator.standard_normal((4, 40)) + generator.standard_normal(
        (1000, 40)
    )
    truth = np.cov(inputs.T)
    few = np.cov(inputs[:30].T)
    assert np.square(shrunk(few, 30) - truth).sum() < np.square(few - truth).sum()
    assert np.allclose(shrunk(truth, 10**9), truth)
    assert np.allclose(shrunk(few, 1), np.diag(few.diagonal()))


def test_weights_that_are_zero_count_and_nothing_else_is_cut():
    once = thin_by_magnitude(mlp(), asked(0.4, names=("w1", "w2")))
    assert thin_by_magnitude(once, asked(0.4, names=("w1", "w2"))) is once
    assert np.count_nonzero(graph_of(once).array("w1") == 0) == zeros_wanted(24 * 16, 0.4)


def test_a_stored_sparse_model_is_smaller_and_answers_the_same():
    thin = thin_by_magnitude(mlp(), asked(0.9, names=("w1", "w2")))
    stored = store(thin, ["w1", "w2"])
    assert [s.values.name for s in stored.graph.sparse_initializer] == ["w1", "w2"]
    assert stored.ByteSize() < thin.ByteSize()
    feed = {"x": np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)}
    assert np.array_equal(*(run_model(make_session(one), feed)[0] for one in (thin, stored)))
    assert np.array_equal(graph_of(dense(stored)).array("w1"), graph_of(thin).array("w1"))


def test_a_model_with_few_zeros_stays_dense():
    thin = thin_by_magnitude(mlp(), asked(0.5, names=("w1", "w2")))
    assert store(thin, ["w1", "w2"]) is thin
    assert dense(thin) is thin


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """A compressed and recovered model with 40 % of the classifier's weights zero."""
    output = tmp_path_factory.mktemp("sparse") / "small.onnx"
    return agmc_onnx.compress(DIGITS, output=output, sparsity=0.4, **FAST), output


def classifier(proto):
    return next(np.asarray(graph_of(proto).array(n)) for n in weights_of(graph_of(proto), "dense"))


def test_a_result_has_the_zeros_asked_for_and_says_so(sparse):
    result, output = sparse
    assert np.mean(classifier(onnx.load(output)) == 0) == pytest.approx(0.4, abs=0.003)
    found = json.loads(output_files(output)["report"].read_text())["sparsity"]
    assert found["nonzeros"] == np.count_nonzero(classifier(result.model))
    assert (found["method"], found["pattern"], found["layers"][0]["storage"]) == ("obs", None, "dense")
    assert found["zip_bytes"]["compressed"] < found["zip_bytes"]["original"]
    assert result.report["compressed"]["metric"]["value"] > 95


def test_a_written_sparse_model_is_verified(sparse):
    _, output = sparse
    assert agmc_onnx.verify(DIGITS, output).masked_equivalence


def test_verification_counts_zeros(sparse):
    result, _ = sparse
    name = next(iter(result.plan.sparsity))
    more = replace(result.plan, sparsity={name: 0.5})
    size = classifier(result.model).size
    with pytest.raises(
        VerificationError, match=rf"has {zeros_wanted(size, 0.4)} zeros of {size}; the plan has {size // 2}"
    ):
        check_zeros(result.model, more)
    with pytest.raises(PlanError, match=r"no tensor other in this model"):
        check_zeros(result.model, replace(result.plan, sparsity={"other": 0.5}))


def test_a_plan_with_sparsity_is_applied_as_cut(sparse, tmp_path):
    _, output = sparse
    made = agmc_onnx.apply(DIGITS, output_files(output)["plan"], tmp_path / "again.onnx")
    assert made.plan.sparsity == read_plan(output_files(output)["plan"]).sparsity
    assert np.mean(classifier(made.model) == 0) == pytest.approx(0.4, abs=0.003)
    assert made.verification.masked_equivalence


def test_a_pattern_is_written_into_the_plan_and_applied(tmp_path):
    output = tmp_path / "p.onnx"
    agmc_onnx.compress(DIGITS, output=output, sparse_pattern="2:4", sparse_method="wanda", **FAST)
    assert read_plan(output_files(output)["plan"]).pattern == "2:4"
    made = agmc_onnx.apply(DIGITS, output_files(output)["plan"])
    for proto in (onnx.load(output), made.model):
        rows = classifier(proto)
        assert ((rows.reshape(10, -1, 4) != 0).sum(2) <= 2).all()


def test_without_recovery_the_smallest_weights_go():
    result = agmc_onnx.compress(DIGITS, sparsity=0.5, recover="none", **FAST)
    assert result.report["sparsity"]["method"] == "magnitude"
    assert result.verification.masked_equivalence


def test_convolutions_are_thinned_where_asked_and_stored_sparse(tmp_path):
    output = tmp_path / "s.onnx"
    options = {"sparsity": 0.85, "sparse_layers": "all", "sparse_storage": "smallest"}
    result = agmc_onnx.compress(DIGITS, output=output, **options, **FAST)
    assert len(result.report["sparsity"]["layers"]) == 13
    assert onnx.load(output).graph.sparse_initializer
    assert result.report["compressed"]["file_bytes"] == output.stat().st_size
    assert agmc_onnx.verify(DIGITS, output).masked_equivalence
    assert agmc_onnx.measure(DIGITS, output, seconds=0.1)["models"][1]["params"] > 40_000


@pytest.fixture(scope="module")
def joint():
    """A search that decides widths and densities in one episode, and the environment it runs in."""
    options = FAST | {
        "policy": "agmc",
        "episodes": 13,
        "sparsity": 0.6,
        "sparse_layers": "all",
        "sparse_decide": "policy",
    }
    options |= {"search_samples": 32, "search_positions": 400, "finalists": 1}
    return agmc_onnx.compress(DIGITS, **options)


def test_widths_and_densities_are_decided_in_one_episode(joint):
    report = joint.report
    assert {len(record["kept"]) for record in report["history"]} == {len(joint.plan.groups) - 1 + 13}
    assert report["history"][-1]["kept"][-13:] != [16] * 13  # the first, the prior's, have 40 % of 40 steps everywhere
    assert report["target"]["reached"] <= 0.5
    assert 0.6 <= 1 - report["sparsity"]["density"] < 0.62


def test_a_policys_densities_are_those_of_the_result(joint):
    best = max(joint.report["history"], key=lambda record: record["reward"])
    for layer, count in zip(joint.report["sparsity"]["layers"], best["kept"][-13:], strict=True):
        assert layer["weights"] - layer["nonzeros"] == zeros_wanted(layer["weights"], 1 - count / 40)
    assert joint.verification.masked_equivalence


def test_both_budgets_are_met_whatever_is_proposed():
    from agmc_onnx.run.analysis import analyse_model
    from agmc_onnx.search.joint import JointEnvironment

    channels = analyse_model(DIGITS).channels
    names = tuple(weights_of(channels.graph, "all"))
    scores = np.random.default_rng(0).random(channels.n_units)
    environment = JointEnvironment(
        channels, scores, lambda model: None, names=names, share=0.7, thin=lambda kept, model, shares: model
    )
    full = environment.macs(environment.n_units)
    problem = environment.problem(environment.of_groups(environment._inner.macs), full // 2)
    generator = np.random.default_rng(1)
    for _ in range(20):
        found = problem.meet(generator.random(problem.n_groups))
        assert found.feasible
        assert problem.macs(found.kept) <= full // 2
        size, shares = environment.sizes(found.kept), environment.shares(found.kept)
        assert size @ np.array([shares[name] for name in names]) >= 0.7 * size.sum() - 1e-6
        assert problem.params(found.kept) < environment.params(found.kept)
    assert len(problem.features) == len(problem.scores) == len(problem.group_nodes) == problem.n_groups


def test_distillation_keeps_zeros():
    from agmc_onnx.data.samples import load_card, open_data
    from agmc_onnx.distill.distillation import distill
    from agmc_onnx.measuring.session import model_inputs
    from agmc_onnx.refit.options import RecoverOptions

    teacher = onnx.load(DIGITS)
    samples = open_data(load_card("digits"), model_inputs(teacher)).role("calibration")
    name = next(iter(weights_of(graph_of(teacher), "dense")))
    student = thin_by_magnitude(teacher, asked(0.9, names=(name,)))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tuned = distill(student, teacher, samples, RecoverOptions(n_steps=3), thinned=[name])
    finally:
        torch.set_num_threads(before)
    old, new = classifier(student), classifier(tuned)
    assert np.array_equal(old == 0, new == 0)
    assert not np.array_equal(old, new)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"--sparsity: the share of zeros is out of range, got 1.0; expected 0 < R < 1"),
        ({"sparse_pattern": "4:2"}, r"--sparse-pattern: not a pattern, got '4:2'; expected N:M with 0 < N < M"),
        ({"sparsity": 0.3, "sparse_pattern": "2:4"}, r"beside --sparse-pattern 2:4, which sets 0.5 of the weights"),
        ({"sparsity": 0.3, "sparse_method": "big"}, r"--sparse-method: unknown name, got 'big'"),
        ({"sparse_pattern": "2:4", "sparse_decide": "policy"}, r"--sparse-decide: got policy without --sparsity"),
        ({"sparsity": 0.3, "sparse_method": "obs", "recover": "none"}, r"obs looks at activations, got --recover none"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(UsageError, match=message):
        CompressOptions.of(flops=0.5, **options)


def test_a_model_without_dense_layers_is_told():
    from agmc_onnx.errors import ModelError
    from agmc_onnx.pruning.sparsity import sparsity_of

    text = "net (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {\n y = Conv(x, w)\n }"
    with pytest.raises(ModelError, match=r"no weights of dense layers .* Try --sparse-layers all"):
        sparsity_of(CompressOptions.of(flops=0.5, sparsity=0.5).sparsity, graph_of(model(text, {"w": (4, 4, 1, 1)})))


def test_a_model_with_sparse_weights_is_cut_and_stays_sparse(tmp_path):
    """Their channels are as prunable as others; the result stores them sparse where that is smaller."""
    whole = model("g (float[N, 16] x) => (float[N, 5] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }",
                  {"w1": (16, 64), "w2": (64, 5)})  # fmt: skip
    array = onnx.numpy_helper.to_array(whole.graph.initializer[0]).copy()
    array[np.abs(array) < np.quantile(np.abs(array), 0.9)] = 0
    whole.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w1"))
    onnx.save(store(whole, ["w1"]), tmp_path / "m.onnx")
    options = {"policy": "uniform", "recover": "none", "latency_seconds": 0.0}
    result = agmc_onnx.compress(tmp_path / "m.onnx", flops=0.5, output=tmp_path / "c.onnx", **options)
    assert [s.values.name for s in result.model.graph.sparse_initializer] == ["w1"]
    assert result.report["original"]["params"] == 64 * 21 and result.report["compressed"]["params"] == 32 * 21
    assert agmc_onnx.verify(tmp_path / "m.onnx", tmp_path / "c.onnx").masked_equivalence
    applied = agmc_onnx.apply(tmp_path / "m.onnx", tmp_path / "c.plan.json")
    assert [s.values.name for s in applied.model.graph.sparse_initializer] == ["w1"]
