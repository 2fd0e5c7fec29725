from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from agmc_onnx.errors import VerificationError
from agmc_onnx.graph import files
from agmc_onnx.graph.external import neutral, part_of, take
from agmc_onnx.graph.files import (
    external_tensors,
    model_bytes,
    read_array,
    read_model,
    relative_to_folder,
    without_external,
    write_model,
)
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.session import make_session
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.importance import choose, l1_norm, l2_norm
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import verify
from agmc_onnx.verbs.apply import apply

GROUPED = {0: np.array([1, 1, 0, 0, 1, 1, 0, 0], bool), 1: np.array([[1, 0, 1], [0, 1, 1]], bool)}


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every model with external data count as large, and every tensor of 64 bytes."""
    monkeypatch.setattr(files, "_LOADED_BYTES", 0)
    monkeypatch.setattr(files, "_SMALL_BYTES", 64)
    monkeypatch.setattr(files, "_INLINE_BYTES", 64)


def net() -> onnx.ModelProto:
    text = """g (float[N, 8, 4, 4] x) => (float[N, 3] y) {
        a = Conv(x, w) r = Relu(a)
        c = Conv<group = 2>(r, v) q = Relu(c)
        p = GlobalAveragePool(q) f = Flatten(p) y = Gemm<transB = 1>(f, u, b)
    }"""
    shapes = {"w": (16, 8, 1, 1), "v": (16, 8, 1, 1), "u": (3, 16), "b": (3,)}
    return nets.model(text, shapes)


def cut_to_half(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto, list[np.ndarray]]:
    channels = analyse(graph_of(model))
    kept = choose(channels, l2_norm(channels), [g.n_units // 2 for g in channels.groups])
    return model, Surgeon(channels).cut(kept), kept


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: read_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("masks", [{0: GROUPED[0]}, {1: np.array([1, 0, 1], bool)}, GROUPED])
@pytest.mark.parametrize("fill", [None, 0, 1])
def test_a_part_read_later_is_the_part_taken_now(
    tmp_path: Path, large: None, masks: dict[int, np.ndarray], fill: float | None
) -> None:
    model = nets.model("g (float[2] x) => (float[2] y, int64[4] s) { y = Relu(x) s = Shape(w) }", {"w": (8, 3, 2, 2)})
    write_model(model, tmp_path / "net.onnx", external=True)
    (tensor,) = external_tensors(read_model(tmp_path / "net.onnx").proto)
    if fill is None and masks is GROUPED:
        masks = {1: GROUPED[1]}
    array = numpy_helper.to_array(model.graph.initializer[0])
    part = part_of(tensor, masks, fill)
    wanted = take(array, masks) if fill is None else neutral(array, masks, fill)
    assert tuple(part.dims) == wanted.shape
    assert np.array_equal(read_array(part), wanted)


def test_weights_of_a_large_model_stay_references(tmp_path: Path, large: None) -> None:
    write_model(net(), tmp_path / "net.onnx", external=True)
    model, pruned, _ = cut_to_half(read_model(tmp_path / "net.onnx").proto)
    assert {t.name for t in external_tensors(pruned)} == {t.name for t in external_tensors(model)} == {"w", "v", "u"}
    _, inline, _ = cut_to_half(net())
    for name, array in arrays(inline).items():
        assert np.array_equal(arrays(pruned)[name], array)


def test_what_is_written_has_no_references_to_parts(tmp_path: Path, large: None) -> None:
    write_model(net(), tmp_path / "net.onnx", external=True)
    _, pruned, _ = cut_to_half(read_model(tmp_path / "net.onnx").proto)
    n_bytes = write_model(pruned, tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx.data").exists()
    written = onnx.load(tmp_path / "small.onnx", load_external_data=False)
    assert {entry.key for t in external_tensors(written) for entry in t.external_data} == {
        "location",
        "offset",
        "length",
    }
    assert n_bytes >= model_bytes(onnx.load(tmp_path / "small.onnx"))
    onnx.checker.check_model(str(tmp_path / "small.onnx"), full_check=True)


def test_verification_reads_references(tmp_path: Path, large: None) -> None:
    write_model(net(), tmp_path / "net.onnx", external=True)
    model, pruned, kept = cut_to_half(read_model(tmp_path / "net.onnx").proto)
    plan = make_plan(analyse(graph_of(model)), kept, "0" * 64)
    assert verify(model, pruned, plan).masked_equivalence
    wrong = onnx.ModelProto()
    wrong.CopyFrom(pruned)
    (tensor,) = (t for t in wrong.graph.initializer if t.name == "w")
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(read_array(tensor)[::-1]), "w"))
    with pytest.raises(VerificationError, match="differs from the masked original"):
        verify(model, wrong, plan)


def test_apply_gives_the_same_model_from_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(net(), tmp_path / "net.onnx", external=True)
    digest = read_model(tmp_path / "net.onnx").sha256
    _, inline, kept = cut_to_half(net())
    (tmp_path / "plan.json").write_text(make_plan(analyse(graph_of(net())), kept, digest).to_json())
    for limit in ("_LOADED_BYTES", "_SMALL_BYTES", "_INLINE_BYTES"):
        monkeypatch.setattr(files, limit, 64)
    result = apply(tmp_path / "net.onnx", tmp_path / "plan.json", tmp_path / "small.onnx")
    assert result.verification.masked_equivalence
    assert result.report["compressed"]["file_bytes"] < result.report["original"]["file_bytes"]
    written = onnx.load(tmp_path / "small.onnx")
    del written.metadata_props[:]  # the id of the set
    assert written == inline


def test_a_session_maps_what_it_can(tmp_path: Path, large: None) -> None:
    write_model(net(), tmp_path / "net.onnx", external=True)
    model, pruned, _ = cut_to_half(read_model(tmp_path / "net.onnx").proto)
    slim, folder = relative_to_folder(model) or (None, None)
    assert slim is not None and folder == tmp_path.resolve()
    assert {e.value for t in external_tensors(slim) for e in t.external_data if e.key == "location"} == {
        "net.onnx.data"
    }
    assert relative_to_folder(pruned) is None
    x = np.ones((1, 8, 4, 4), np.float32)
    for one in (model, pruned):
        (y,) = make_session(one).run(None, {"x": x})
        assert np.isfinite(y).all() and y.shape == (1, 3)


def test_without_external_is_checkable(tmp_path: Path, large: None) -> None:
    write_model(net(), tmp_path / "net.onnx", external=True)
    slim = without_external(read_model(tmp_path / "net.onnx").proto)
    onnx.checker.check_model(slim, full_check=True)
    assert [value.name for value in slim.graph.input] == ["x", "w", "v", "u"]


def test_a_file_cannot_name_parts(tmp_path: Path, large: None) -> None:
    write_model(net(), tmp_path / "net.onnx", external=True)
    crafted = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    for tensor in external_tensors(crafted):
        tensor.external_data.add(key="agmc.dims", value="1")
    (tmp_path / "crafted.onnx").write_bytes(crafted.SerializeToString())
    model = read_model(tmp_path / "crafted.onnx").proto
    assert np.array_equal(arrays(model)["w"], arrays(net())["w"])


@pytest.mark.parametrize("order", [1, 2])
def test_norms_of_large_and_small_weights_are_the_same(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from agmc_onnx.pruning import importance

    channels = analyse(graph_of(net()))
    norm = {1: l1_norm, 2: l2_norm}[order]
    whole = norm(channels)
    monkeypatch.setattr(importance, "_CHUNK", 32)
    assert np.allclose(norm(channels), whole, rtol=1e-12)
    w, v = (
        np.abs(numpy_helper.to_array(t).astype(np.float64)) ** order for t in channels.graph.model.graph.initializer[:2]
    )
    ids = channels.axes["w", 0].units
    wanted = w.sum(axis=(1, 2, 3)) + np.concatenate([v[:8].sum(axis=(0, 2, 3)), v[8:].sum(axis=(0, 2, 3))])
    assert np.allclose(whole[ids] ** order, wanted)
