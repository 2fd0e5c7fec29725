from __future__ import annotations

from pathlib import Path

import ml_dtypes
import nets
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agmc_onnx.errors import ModelError, UsageError
from agmc_onnx.graph import files
from agmc_onnx.graph.files import (
    check_writable,
    external_tensors,
    read_array,
    read_model,
    read_sparse,
    write_atomically,
    write_model,
)


def net(rows: int = 64) -> onnx.ModelProto:
    return nets.model(
        """g (float[N, 16] x) => (float[N, 2] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }""",
        {"w": (16, rows), "v": (rows, 2)},
    )


def references(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Write a model with external data, and return it as it stands in the file: nothing loaded."""
    write_model(model, folder / "net.onnx", external=True)
    return onnx.load(folder / "net.onnx", load_external_data=False)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- reading


def test_read_gives_model_path_digest_and_size(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    n_bytes = write_model(net(), path)
    file = read_model(str(path))
    assert file.proto == net()
    assert (file.path, file.file_bytes) == (path, n_bytes)
    assert n_bytes == path.stat().st_size
    write_model(net(), path)
    assert read_model(path).sha256 == file.sha256  # the same bytes every time
    assert len(file.sha256) == 64


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.onnx"
    with pytest.raises(ModelError) as error:
        read_model(path)
    assert str(error.value) == f"{path}: no such file. Check the path of the model."


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        read_model(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: is a folder; expected an .onnx file. Name one of its models, or compress all of them with agmc-onnx batch."
    )


def test_file_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 100)
    with pytest.raises(ModelError) as error:
        read_model(path)
    assert str(error.value) == f"{path}: cannot be read (File name too long). Check the path and its permissions."


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    whole = net().SerializeToString()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError) as error:
        read_model(path)
    assert str(error.value) == (
        f"{path}: not a complete ONNX model ({len(whole) // 2} bytes do not parse); expected an .onnx file. "
        "Is it truncated, or of another format?"
    )


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_every_truncation_is_noticed(tmp_path: Path, share: float) -> None:
    path = tmp_path / "net.onnx"
    whole = net().SerializeToString()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match=r"not a complete ONNX model|not an ONNX model"):
        read_model(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# Read me\n\nThis is no model.\n",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01",
        b"PK\x03\x04\x14\x00\x00\x00\x08\x00",
        np.random.default_rng(0).bytes(4096),
        helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0]).SerializeToString(),
    ],
    ids=["empty", "text", "png", "zip", "random", "tensor"],
)
def test_file_that_is_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_model(path)
    message = str(error.value)
    assert message.startswith(f"{path}: not a")
    assert "expected an .onnx file. " in message
    assert "\n" not in message


def test_empty_file_is_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    with pytest.raises(ModelError) as error:
        read_model(path)
    assert str(error.value) == (
        f"{path}: not an ONNX model (no graph found); expected an .onnx file. Export the model again."
    )


# -- external data


def test_external_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = net()
    model.graph.initializer[0].doc_string = "first"
    model.graph.initializer[0].metadata_props.add(key="a", value="b")
    n_bytes = write_model(model, path, external=True)
    assert listing(tmp_path) == ["net.onnx", "net.onnx.data"]
    assert n_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert path.stat().st_size < 1000
    file = read_model(path)
    assert file.proto == model
    assert file.file_bytes == n_bytes


def test_onnx_and_small_tensors(tmp_path: Path) -> None:
    model = references(net(rows=1), tmp_path)  # 64 and 8 bytes: not worth a file
    assert not list(external_tensors(model))
    model = references(net(), tmp_path)
    assert [tensor.name for tensor in external_tensors(model)] == ["w"]
    onnx.checker.check_model(str(tmp_path / "net.onnx"))
    assert np.array_equal(
        *(numpy_helper.to_array(m.graph.initializer[0]) for m in (onnx.load(tmp_path / "net.onnx"), net()))
    )


def test_arrays_are_memory_mapped(tmp_path: Path) -> None:
    (tensor,) = external_tensors(references(net(), tmp_path))
    array = read_array(tensor, tmp_path)
    assert isinstance(array.base, np.memmap) or isinstance(array, np.memmap)
    assert np.array_equal(array, numpy_helper.to_array(net().graph.initializer[0]))


def test_large_model_stays_external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_LIMIT", "_LOADED_BYTES", "_SMALL_BYTES"):
        monkeypatch.setattr(files, limit, 1000)
    write_model(net(), tmp_path / "net.onnx")
    assert listing(tmp_path) == ["net.onnx", "net.onnx.data"]
    model = read_model(tmp_path / "net.onnx").proto
    assert [tensor.name for tensor in external_tensors(model)] == ["w"]
    again = tmp_path / "again"
    again.mkdir()
    write_model(model, again / "copy.onnx", folder=tmp_path)
    assert listing(again) == ["copy.onnx", "copy.onnx.data"]
    write_model(model, tmp_path / "net.onnx", folder=tmp_path)  # over the files that it refers to
    monkeypatch.undo()
    assert read_model(again / "copy.onnx").proto == read_model(tmp_path / "net.onnx").proto == net()


def test_references_become_inline_where_they_fit(tmp_path: Path) -> None:
    model = references(net(), tmp_path)
    write_model(model, tmp_path / "one.onnx", folder=tmp_path)
    assert onnx.load(tmp_path / "one.onnx", load_external_data=False) == net()
    assert list(external_tensors(model))  # the argument is as it was


def test_references_without_a_folder(tmp_path: Path) -> None:
    model = references(net(), tmp_path)
    with pytest.raises(ModelError, match="tensor w: its numbers lie in another file, and the model's folder is"):
        write_model(model, tmp_path / "out.onnx")
    with pytest.raises(ModelError, match="Read the model with read_model, or give the folder"):
        read_array(next(external_tensors(model)))


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.int64, np.bool_, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, ml_dtypes.uint2],
)
def test_every_type_survives_external_data(tmp_path: Path, dtype: type) -> None:
    array = np.arange(2 * 4097).reshape(2, 4097).__mod__(2).astype(dtype)
    model = nets.model("g (float[2] x) => (float[2] y, int64[2] s) { y = Relu(x) s = Shape(w) }", {"w": array})
    slim = references(model, tmp_path)
    (tensor,) = external_tensors(slim)
    assert read_array(tensor, tmp_path).dtype == array.dtype
    assert read_array(tensor, tmp_path).tolist() == array.tolist()
    assert read_model(tmp_path / "net.onnx").proto == model


def test_tensors_without_raw_data_go_external_too(tmp_path: Path) -> None:
    model = net()
    numbers = numpy_helper.to_array(model.graph.initializer[0]).ravel()
    typed = helper.make_tensor("w", TensorProto.FLOAT, [16, 64], numbers)
    model.graph.initializer[0].CopyFrom(typed)
    assert [tensor.name for tensor in external_tensors(references(model, tmp_path))] == ["w"]
    assert read_model(tmp_path / "net.onnx").proto == net()


def test_external_tensors_are_found_everywhere() -> None:
    model = nets.model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (bool c, float[2] x) => (float[2] y) <float[2] top = {1, 2}> {
            k = Constant <value = float[2] {1, 2}> ()
            f = local.add(x)
            y = If (c) <
                then_branch = then_graph () => (float[2] t) <float[2] inner = {1, 2}> { t = Add(x, inner) },
                else_branch = else_graph () => (float[2] u) { u = Identity(x) }
            >
        }
        <domain: "local", opset_import: ["" : 17]>
        add (i) => (o) { a = Constant <value = float[2] {1, 2}> () o = Add(i, a) }"""
    )
    values = helper.make_tensor("values", TensorProto.FLOAT, [1], [1.0])
    index = helper.make_tensor("index", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, index, [2]))
    tensors = list(files._tensors(model))
    for number, tensor in enumerate(tensors):
        tensor.name = str(number)
        tensor.data_location = TensorProto.EXTERNAL
    assert len(tensors) == 6  # top, values and index, Constant, inner, Constant in the function
    assert len(list(external_tensors(model))) == 6


def external(tmp_path: Path, **entries: str) -> Path:
    """Write a model whose one large weight has these entries, and return its path."""
    model = references(net(), tmp_path)
    (tensor,) = external_tensors(model)
    known = {entry.key: entry.value for entry in tensor.external_data} | entries
    tensor.ClearField("external_data")
    for key, value in known.items():
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_missing_external_data(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        read_model(external(tmp_path, location="gone.bin"))
    assert str(error.value) == (
        f"tensor w: its external data file gone.bin is missing; expected it in {tmp_path}. "
        "Put the file beside the model."
    )


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin"])
def test_external_path_that_leaves_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    with pytest.raises(ModelError, match=r"tensor w: its external data lies outside of the model's folder, got /"):
        read_model(external(folder, location=location))


def test_external_link_that_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="lies outside of the model's folder"):
        read_model(external(folder, location="link.bin"))


def test_truncated_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = tmp_path / "net.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError) as error:
        read_model(path)
    assert str(error.value) == (
        "tensor w: its external data ends early; net.onnx.data is truncated. Copy the file again."
    )


@pytest.mark.parametrize("entries", [{"length": "7"}, {"offset": "-4"}, {"offset": "none"}])
def test_external_data_that_does_not_fit_its_tensor(tmp_path: Path, entries: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=r"tensor w: its external data has offset .*; expected 4096 bytes for"):
        read_model(external(tmp_path, **entries))


@pytest.mark.parametrize("index", [np.array([1, 5]), np.array([[0, 1], [1, 2]])])
def test_read_sparse(index: np.ndarray) -> None:
    values = numpy_helper.from_array(np.array([5, 7], np.float16), "s")
    dense = read_sparse(helper.make_sparse_tensor(values, numpy_helper.from_array(index), [2, 3]))
    assert dense.dtype == np.float16
    assert dense.tolist() == [[0, 5, 0], [0, 0, 7]]


# -- writing


def test_write_does_not_change_the_model(tmp_path: Path) -> None:
    model = net()
    write_model(model, tmp_path / "net.onnx", external=True)
    assert model == net()


@pytest.mark.parametrize("external", [False, True])
def test_failing_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool) -> None:
    path = tmp_path / "net.onnx"
    write_model(net(), path, external=True)
    old = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as out:
            out.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError) as error:
        write_model(net(rows=32), path, external=external)
    name = f"{path}.data" if external else path
    assert str(error.value) == f"{name}: cannot be written (No space left on device). Choose another output with -o."
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == old


def test_interrupted_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")

    def interrupt(self: Path, data: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_model(net(), path)
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["net.onnx"]


def test_data_file_that_cannot_be_replaced_leaves_the_graph_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    (tmp_path / "net.onnx.data").mkdir()
    with pytest.raises(UsageError, match=r"net.onnx.data: cannot be written \(Is a directory\)"):
        write_model(net(), path, external=True)
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["net.onnx", "net.onnx.data"]


@pytest.mark.parametrize("external", [False, True])
def test_output_folder_is_missing(tmp_path: Path, external: bool) -> None:
    path = tmp_path / "none" / "out.onnx"
    with pytest.raises(UsageError, match=r"out.onnx: .*(No such file or directory|does not exist).*another output"):
        write_model(net(), path, external=external)
    with pytest.raises(UsageError) as error:
        check_writable(path)
    assert str(error.value) == (
        f"{path}: folder {path.parent} does not exist. Create it, or choose another output with -o."
    )


def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    path = tmp_path / "file" / "out.onnx"
    with pytest.raises(UsageError, match=r"out.onnx: cannot be written \(Not a directory\). Choose another output"):
        write_atomically(path, b"new")
    with pytest.raises(UsageError, match=r"out.onnx: folder .*file is a file, not a folder. Create it, or choose"):
        check_writable(path)


def test_output_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        check_writable(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: is a folder; expected a file name such as {tmp_path / 'out.onnx'}. Give -o FILE.onnx."
    )
    with pytest.raises(UsageError, match=r"cannot be written \(Is a directory\)"):
        write_model(net(), tmp_path)
    assert listing(tmp_path) == []


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.onnx")
    assert listing(tmp_path) == []
