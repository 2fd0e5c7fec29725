"""Latency as a cost: op times inside the network, what is learned from them, widths, tables, the layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from agmc_onnx.errors import UsageError
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.latency import op_times as time_ops
from agmc_onnx.latency import tables as op_times
from agmc_onnx.latency.predict import _corrected, _Places, latency_cost, sample_counts
from agmc_onnx.latency.tables import LatencyTable, layout_block, read_table
from agmc_onnx.ops import analyse
from agmc_onnx.precision.int8 import TARGETS, plain, write_int8
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.widths import rounding
from agmc_onnx.ties.groups import Channels

FEED = {"x": np.ones((1, 3, 8, 8), np.float32)}


def conv(name: str, n_out: int, n_in: int, k: int = 3) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(abs(hash(name)) % 1000)
    return [
        onnx.numpy_helper.from_array(rng.normal(0, 0.1, (n_out, n_in, k, k)).astype(np.float32), f"{name}_w"),
        onnx.numpy_helper.from_array(rng.normal(0, 0.1, n_out).astype(np.float32), f"{name}_b"),
    ]


def net(text: str, tensors: list[onnx.TensorProto]) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 17]>\n'
    model = onnx.parser.parse_model(head + text)
    model.graph.initializer.extend(tensors)
    return normalize(model)


def chain(widths: tuple[int, ...] = (32, 48)) -> onnx.ModelProto:
    a, b = widths
    text = """g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) {
        c1 = Conv<pads = [1, 1, 1, 1]>(x, a_w, a_b)
        r1 = Relu(c1)
        c2 = Conv<pads = [1, 1, 1, 1]>(r1, b_w, b_b)
        r2 = Relu(c2)
        y = Conv(r2, c_w, c_b)
    }"""
    return net(text, conv("a", a, 3) + conv("b", b, a) + conv("c", 5, b, 1))


def test_the_ops_of_a_quantised_model_are_those_of_its_nodes() -> None:
    channels = analyse(graph_of(chain()))
    samples = []
    for widths in ((32, 48), (16, 24), (32, 16), (8, 40)):
        simple = plain(chain(widths))
        values = [value.name for value in (*simple.graph.value_info, *simple.graph.input, *simple.graph.output)]
        made = write_int8(simple, dict.fromkeys(values, (-3.0, 3.0)), TARGETS["avx2"])
        samples.append({"kept": list(widths), **time_ops.time_ops(made.SerializeToString(), FEED)})
    assert any("QLinearConv" in key for _, key, _ in samples[0]["ops"])
    cost = latency_cost(channels, samples)
    assert {kind[0] for kind in cost.kinds} >= {"Conv"}
    assert cost.constant_ms < 0.6 * cost.ms([32, 48])


def padded_shortcut() -> onnx.ModelProto:
    text = """g (float[N, 3, 8, 8] x) => (float[N, 5, 4, 4] y) {
        c1 = Conv<pads = [1, 1, 1, 1]>(x, a_w, a_b)
        r1 = Relu(c1)
        c2 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r1, b_w, b_b)
        s = Slice(r1, starts, ends, axes, steps)
        p = Pad(s, pads)
        sum = Add(p, c2)
        r2 = Relu(sum)
        y = Conv(r2, c_w, c_b)
    }"""
    numbers = {"starts": [0, 0], "ends": [99, 99], "axes": [2, 3], "steps": [2, 2], "pads": [0, 8, 0, 0, 0, 8, 0, 0]}
    tensors = [onnx.numpy_helper.from_array(np.array(v, np.int64), k) for k, v in numbers.items()]
    return net(text, conv("a", 16, 3) + conv("b", 32, 16) + conv("c", 5, 32, 1) + tensors)


def channels_of(model: onnx.ModelProto) -> Channels:
    return analyse(graph_of(model))


def cut(channels: Channels, counts: list[int]) -> onnx.ModelProto:
    return Surgeon(channels).cut([np.arange(n) for n in counts])


def fake_samples(channels: Channels, counts: list[list[int]], ms: Any) -> list[dict[str, Any]]:
    """Samples whose op times are a function of the channels, as if a device had timed them."""
    samples = []
    for kept in counts:
        a, b = kept
        ops = [["r1", f"Conv a{a}", ms(3, a)], ["r2", f"Conv a{a} b{b}", ms(a, b)], ["y", f"Conv b{b}", ms(b, 5)]]
        samples.append({"kept": kept, "ops": ops, "ms": sum(op[2] for op in ops)})
    return samples


def blocked(n_in: int, n_out: int) -> float:
    return 0.01 + 1e-4 * (-(-n_in // 16) * 16) * (-(-n_out // 16) * 16)


def test_every_op_that_runs_has_an_owner_in_the_model_and_a_time() -> None:
    model = chain()
    timed = time_ops.time_ops(model.SerializeToString(), FEED, runs=3)
    owners = {name for node in model.graph.node for name in node.output}
    assert {owner for owner, _, _ in timed["ops"]} <= owners
    assert sum("Conv" in key for _, key, _ in timed["ops"]) == 3
    assert all(ms >= 0 for _, _, ms in timed["ops"]) and timed["ms"] > 0


def test_known_sizes_are_looked_up_and_others_follow_the_blocks() -> None:
    channels = channels_of(chain())
    rng = np.random.default_rng(0)
    counts = [[32, 48], [16, 16], *[[int(a), int(b)] for a, b in rng.integers(1, 4, (12, 2)) * [8, 16]]]
    cost = latency_cost(channels, fake_samples(channels, counts, blocked))
    assert cost.ms([32, 48]) == pytest.approx(blocked(3, 32) + blocked(32, 48) + blocked(48, 5), rel=1e-6)
    for kept in ([24, 32], [8, 48], [32, 16]):
        assert cost.ms(kept) == pytest.approx(blocked(3, kept[0]) + blocked(*kept) + blocked(kept[1], 5), rel=0.05)
    assert cost([32, 48]) == round(1e6 * cost.ms([32, 48]))


def test_a_relu_fused_into_its_conv_knows_both_sizes_of_the_conv() -> None:
    channels = channels_of(chain())
    counts = [[32, 48], [16, 48], [32, 16], [16, 16]]
    cost = latency_cost(channels, fake_samples(channels, counts, lambda a, b: 1e-3 * a * b))
    assert cost.ms([16, 48]) == pytest.approx(1e-3 * (3 * 16 + 16 * 48 + 48 * 5), rel=1e-3)


def test_learned_from_real_times_the_smaller_network_is_faster() -> None:
    channels = channels_of(chain((64, 64)))
    samples = []
    for kept in ([64, 64], [16, 16], [32, 48], [48, 32], [64, 16], [16, 64]):
        timed = time_ops.time_ops(cut(channels, kept).SerializeToString(), FEED, runs=10)
        samples.append({"kept": kept, **timed})
    cost = latency_cost(channels, samples)
    assert 0 < cost([16, 16]) < cost([64, 64])


def test_samples_begin_with_the_original_and_keep_to_the_steps() -> None:
    units, step = np.array([64, 20]), np.array([16, 4])
    counts = sample_counts(units, step, np.array([16, 4]), 12, 3)
    assert counts[0].tolist() == [64, 20] and counts[1].tolist() == [16, 4] and len(counts) == 12
    assert all(((kept % step == 0) | (kept == units)).all() for kept in counts)
    assert all(
        np.array_equal(a, b) for a, b in zip(counts, sample_counts(units, step, np.array([16, 4]), 12, 3), strict=True)
    )


@pytest.mark.parametrize("block, steps", [(16, [16, 16, 8, 4]), (8, [8, 8, 8, 4]), (1, [4, 4, 4, 4])])
def test_widths_go_by_the_blocks_of_the_machine(monkeypatch: pytest.MonkeyPatch, block: int, steps: list[int]) -> None:
    from agmc_onnx.pruning import widths

    monkeypatch.setattr(widths, "layout_block", lambda provider: block)
    text = """g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) {
        c1 = Conv(x, a_w, a_b)
        c2 = Conv(c1, b_w, b_b)
        c3 = Conv(c2, c_w, c_b)
        c4 = Conv(c3, d_w, d_b)
        y = Conv(c4, e_w, e_b)
    }"""
    sizes = (64, 32, 16, 8)
    tensors = (
        conv("a", 64, 3, 1) + conv("b", 32, 64, 1) + conv("c", 16, 32, 1) + conv("d", 8, 16, 1) + conv("e", 5, 8, 1)
    )
    channels = channels_of(net(text, tensors))
    by_units = {group.n_units: step for group, step in zip(channels.groups, rounding(channels, "auto"), strict=True)}
    assert [by_units[n] for n in sizes] == steps
    assert rounding(channels, 3).tolist() == [3, 3, 3, 3]


def test_the_block_is_one_that_onnxruntime_has() -> None:
    assert layout_block() in (1, 4, 8, 16)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    channels = channels_of(chain())
    samples = fake_samples(channels, [[32, 48], [16, 16]], blocked)
    table = LatencyTable(time_ops.device(), 1, "cpu", 1).with_model("abc", samples)
    path = tmp_path / "table.json"
    path.write_text(table.to_json())
    again = read_table(path)
    assert (again.threads, again.provider, again.batch) == (1, "cpu", 1) and dict(again.device) == time_ops.device()
    want = latency_cost(channels, samples)
    assert latency_cost(channels, again.models["abc"]).ms([16, 16]) == pytest.approx(want.ms([16, 16]), rel=1e-3)


def test_a_table_keeps_the_latest_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_times, "MAX_MODELS", 2)
    table = LatencyTable(time_ops.device(), 1, "cpu", 1)
    for name in ("a", "b", "c"):
        table = table.with_model(name, [])
    assert list(table.models) == ["c", "b"]


TABLE = {
    "format": "agmc-onnx/latency-table@1", "device": {}, "setting": {"threads": 1, "provider": "cpu", "batch": 1},
    "ops": [{"op": "Relu", "ms": 1}], "models": {"a": [{"kept": [1], "ops": [["y", 0]], "ms": 1}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "not a latency table, got list; expected a JSON object."),
        ("{}", "not a latency table, got format None; expected 'agmc-onnx/latency-table@1'."),
        ("no json", "not JSON (Expecting value: line 1 column 1 (char 0)); expected a latency table."),
        (json.dumps(TABLE | {"ops": 5}), "not a latency table, ops: expected `array`, got `int`."),
        (json.dumps(TABLE | {"ops": []}), "not a latency table, models['a'][0].ops: names an op beyond the 0 there."),
        (json.dumps(TABLE | {"ops": [{"op": "Relu", "ms": 0}]}), "models['a'][0].ops: all of its times are 0."),
        (json.dumps(TABLE | {"setting": {}}), "setting: object missing required field `threads`."),
        (json.dumps(TABLE | {"models": {"a": [{"kept": [-1]}]}}), "models[...][0].kept[0]: expected `int` >= 0."),
    ],
)
def test_what_is_no_table_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE))
    assert read_table(path).models == {"a": [{"kept": [1], "ops": [["y", "Relu", 1]], "ms": 1}]}
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)
    with pytest.raises(UsageError, match="no latency table, got No such file"):
        read_table(tmp_path / "none.json")


def test_a_time_without_an_owner_belongs_to_no_node() -> None:
    assert _Places([])(None, "Relu") is None


def test_a_busy_moment_is_taken_out_of_the_times_of_a_sample():
    rng = np.random.default_rng(0)
    own = {f"op{i}": float(ms) for i, ms in enumerate(rng.uniform(0.01, 0.2, 12))}
    busy = np.where(np.arange(10) % 3 == 1, 1.6, 1.0)
    samples = []
    for factor in busy:
        keys = [*rng.permutation(sorted(own))[:8], f"alone{len(samples)}"]
        ms = [own.get(key, 0.1) * factor * rng.uniform(1.0, 1.02) for key in keys]
        samples.append({"kept": [1], "ops": [["v", key, one] for key, one in zip(keys, ms, strict=True)], "ms": 1.0})
    calm = time_ops.calmed(samples)
    for sample in calm:
        assert [ms for _, _, ms in sample["ops"]] == pytest.approx(
            [own.get(k, 0.1) for _, k, _ in sample["ops"]], rel=0.04
        )
    quiet = [sample for sample, factor in zip(samples, busy, strict=True) if factor == 1]
    assert [op[:2] for op in calm[0]["ops"]] == [op[:2] for op in samples[0]["ops"]]
    assert time_ops.calmed(quiet)[0]["ops"][0][2] == pytest.approx(quiet[0]["ops"][0][2], rel=0.03)
    assert time_ops.calmed([]) == []


def test_times_that_are_too_far_apart_are_said_in_one_line() -> None:
    samples = [{"kept": [1], "ms": 0.02, "ops": [["y", "Conv", 1e308]]}] * 2
    with pytest.raises(UsageError, match="table of op times: its times are too far apart"):
        _corrected(samples, {"Conv": 1e308})
