"""Reading and writing ONNX files: checked, with external data, replaced atomically."""

from __future__ import annotations

import glob
import hashlib
import math
import os
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import numpy_helper

from agmc_onnx.errors import ModelError, UsageError
from agmc_onnx.graph.commit import settle
from agmc_onnx.graph.external import is_external, is_part, part, stored_dims
from agmc_onnx.graph.soundness import PACKED_BITS, check_sound, stored_bytes

Array = np.ndarray
_LIMIT = 1_900_000_000  # protobuf cannot hold 2 GiB; leave room for the graph itself
_LOADED_BYTES = 256_000_000  # external data up to this size is loaded; of larger models only what is small
_SMALL_BYTES = 32_768  # shape inference and folding want to see numbers
_QUICKLY_HASHED = 1 << 20  # bytes
_INLINE_BYTES = 1024  # smaller initializers stay in the graph file, for the same reason
_ALIGNMENT = 4096  # of large external data, so that it can be memory-mapped (onnx.proto, TensorProto.external_data)


@dataclass(frozen=True)
class ModelFile:
    """A model as it lies on disk.

    Attributes:
        proto: The model; large tensors of a large model with external data are references, with absolute locations.
        path: The file it was read from; external data is found beside it.
        sha256: Digest of the file (of the graph file alone where weights are external), hexadecimal.
        file_bytes: Size of the file and of its external data.
    """

    proto: onnx.ModelProto
    path: Path
    sha256: str
    file_bytes: int


def read_model(path: str | Path) -> ModelFile:
    """Read an ONNX file, external data included.

    Args:
        path: An `.onnx` file.

    Returns:
        The model. External data of up to 256 MB in all is loaded; of more, the large tensors stay references, checked and
        with absolute locations, so that `read_array` needs no folder for them.

    Raises:
        ModelError: If the file is missing, is a folder, is no ONNX model, is truncated, or lacks its external data.
    """
    path = Path(path)
    settle(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file. Check the path of the model.") from None
    except OSError as error:
        if os.path.isdir(path):  # Path.is_dir raises where a name is too long
            raise ModelError(
                f"{path}: is a folder; expected an .onnx file. Name one of its models, "
                "or compress all of them with agmc-onnx batch."
            ) from None
        raise ModelError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
    digest = _Digest(raw)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(raw)
    except DecodeError:
        raise ModelError(
            f"{path}: not a complete ONNX model ({len(raw)} bytes do not parse); expected an .onnx file. "
            "Is it truncated, or of another format?"
        ) from None
    if not proto.ir_version or not proto.graph.node or not proto.opset_import:
        raise ModelError(f"{path}: not an ONNX model (no graph found); expected an .onnx file. Export the model again.")
    check_sound(proto, path.name)
    external = list(external_tensors(proto))
    _drop_part_names(external)
    file_bytes = len(raw) + sum(file.stat().st_size for file in _external_files(external, path.parent))
    referred = sum(_stored_bytes(tensor) for tensor in external)  # many may refer to the same bytes
    _load_external(external, path.parent, None if max(file_bytes, referred) <= _LOADED_BYTES else _SMALL_BYTES)
    for tensor in filter(is_external, external):
        next(e for e in tensor.external_data if e.key == "location").value = str(_location(tensor, path.parent)[0])
    return ModelFile(proto, path, digest.hexadecimal(), file_bytes)


class _Digest:
    """The SHA-256 of bytes; of many, it is made beside what else goes on."""

    def __init__(self, raw: bytes) -> None:
        self._found = ""
        self._thread = threading.Thread(target=self._make, args=(raw,), daemon=True)
        if len(raw) > _QUICKLY_HASHED:
            self._thread.start()
        else:
            self._make(raw)

    def _make(self, raw: bytes) -> None:
        self._found = hashlib.sha256(raw).hexdigest()

    def hexadecimal(self) -> str:
        """Return it, once it is there."""
        if self._thread.ident is not None:
            self._thread.join()
        return self._found


def model_files(path: str | Path) -> list[Path]:
    """Return the file of a model and those of its external data; of what is no model the path alone."""
    path, proto = Path(path), onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
        return [path, *_external_files(external_tensors(proto), path.parent)]
    except (OSError, DecodeError, ModelError):
        return [path]


def external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of the model, subgraphs and local functions included, whose data lies in another file."""
    for tensor in _tensors(proto):
        if is_external(tensor):
            yield tensor


def read_array(tensor: onnx.TensorProto, folder: Path | None = None) -> Array:
    """Return a tensor as a numpy array; external data is memory-mapped, not copied.

    Two exceptions: types of less than a byte (int4, float4) are unpacked, one element a byte, and of a reference to a part
    (`agmc_onnx.graph.external`) that part is copied.

    Args:
        tensor: Inline or external tensor.
        folder: Folder of the model file, needed for external data whose location is relative.

    Raises:
        ModelError: If external data is missing, too short, or lies outside of the model's folder.
    """
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    stored, dims = _read_external(tensor, folder), stored_dims(tensor)
    if tensor.data_type in PACKED_BITS:
        packed = onnx.TensorProto(dims=dims, data_type=tensor.data_type, raw_data=stored.tobytes())
        return part(tensor, numpy_helper.to_array(packed))
    return part(tensor, stored.view(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(dims))


def write_array(array: Array, tensor: onnx.TensorProto) -> None:
    """Let a tensor without data, of the array's type and shape, hold the array's elements."""
    if tensor.data_type in PACKED_BITS or sys.byteorder != "little":
        tensor.raw_data = numpy_helper.from_array(array).raw_data
    else:
        tensor.raw_data = array.tobytes()


def read_sparse(sparse: onnx.SparseTensorProto) -> Array:
    """Return a sparse tensor as a dense numpy array of the same element type.

    Args:
        sparse: Values of shape (n,) with int64 indices of shape (n,) into the flattened tensor or (n, rank).
    """
    values, index = read_array(sparse.values), read_array(sparse.indices)
    try:
        dense = np.zeros(tuple(sparse.dims), values.dtype)
    except MemoryError:
        raise ModelError(
            f"sparse initializer {sparse.values.name}: too large, got sizes {list(sparse.dims)}; expected what fits in memory"
            " as a dense array. Export the model again."
        ) from None
    if index.ndim == 2:
        dense[tuple(index.T)] = values
    else:
        dense.reshape(-1)[index] = values
    return dense


def write_model(
    proto: onnx.ModelProto, path: str | Path, external: bool | None = None, folder: Path | None = None
) -> int:
    """Write a model so that the file is either whole or untouched.

    Args:
        proto: Model; not changed.
        path: Target file; with external data its weights go to `<name>.data` beside it.
        external: Put the weights into a file of their own; None does so above 1.9 GB, and above 256 MB where the model
            has external data already.
        folder: Folder that tensors with external data refer to, needed where a location is relative. Their data is
            copied: what is written never refers to the original's files.

    Returns:
        Bytes written, external data included.

    Raises:
        UsageError: If the target cannot be written, or the model is too large for one file.
        ModelError: If external data that the model refers to cannot be read.
    """
    path = Path(path)
    if external is None:
        limit = _LOADED_BYTES if any(True for _ in external_tensors(proto)) else _LIMIT
        external = sum(_stored_bytes(tensor) for tensor in _tensors(proto)) > limit
    if not external:
        if any(True for _ in external_tensors(proto)):
            loaded = onnx.ModelProto()
            loaded.CopyFrom(proto)
            _load_external(list(external_tensors(loaded)), folder)
            proto = loaded
        data = _serialize(proto, path)
        write_atomically(path, data)
        return len(data)
    check_writable(path)
    slim = onnx.ModelProto()
    slim.CopyFrom(proto)
    data_path = path.with_name(path.name + ".data")
    # both files are whole before either is put in place; the weights go first, as nothing refers to them yet
    with _replacing(path) as partial, _replacing(data_path) as data_partial:
        with data_partial.open("wb") as out:
            _move_weights(slim, out, data_path.name, folder)
            n_bytes = out.tell()
        data = _serialize(slim, path)
        partial.write_bytes(data)
    return n_bytes + len(data)


def model_bytes(proto: onnx.ModelProto) -> int:
    """Return how many bytes a model takes in files, external data included."""
    return proto.ByteSize() + sum(_stored_bytes(tensor) for tensor in external_tensors(proto))


def without_external(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with graph inputs in place of its external initializers: enough for checks of its structure."""
    slim = onnx.ModelProto()
    slim.CopyFrom(proto)
    kept = [tensor for tensor in slim.graph.initializer if not is_external(tensor)]
    inputs = {value.name for value in slim.graph.input}
    slim.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in proto.graph.initializer
        if is_external(tensor) and tensor.name not in inputs
    )
    if len(kept) < len(slim.graph.initializer):
        del slim.graph.initializer[:]
        slim.graph.initializer.extend(kept)
    _load_external(list(external_tensors(slim)), None)
    return slim


def relative_to_folder(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Path] | None:
    """Return a model whose references are relative to one folder, and that folder; None where that cannot be.

    It cannot where a reference is to a part, or where the files of the references have no folder in common.
    """
    tensors = list(external_tensors(proto))
    places = [Path(entry.value) for t in tensors for entry in t.external_data if entry.key == "location"]
    if not places or any(is_part(t) for t in tensors) or not all(place.is_absolute() for place in places):
        return None
    folder = Path(os.path.commonpath([place.parent for place in places]))
    slim = onnx.ModelProto()
    slim.CopyFrom(proto)
    for tensor in external_tensors(slim):
        entry = next(e for e in tensor.external_data if e.key == "location")
        entry.value = str(Path(entry.value).relative_to(folder))
    return slim, folder


def write_atomically(path: Path, data: bytes) -> None:
    """Write bytes so that `path` holds either its old content or all of the new.

    Raises:
        UsageError: If the folder is missing or cannot be written, or the disk is full.
    """
    with _replacing(Path(path)) as partial:
        partial.write_bytes(data)


def check_writable(path: str | Path) -> None:
    """Raise now what writing `path` would raise later.

    Raises:
        UsageError: If the folder does not exist or cannot be written, or `path` is a folder.
    """
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; expected a file name such as {path / 'out.onnx'}. Give -o FILE.onnx.")
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UsageError(f"{path}: folder {folder} {problem}. Create it, or choose another output with -o.")
    try:
        with tempfile.TemporaryFile(dir=folder):  # without a name, where the system can: nothing to leave behind
            return
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}). Choose another output with -o.") from None


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # of processes that were killed
        if not _is_running(other.name.split(".")[-2]):
            other.unlink(missing_ok=True)
    try:
        yield partial
        with partial.open("rb+") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}). Choose another output with -o.") from None
    finally:
        with suppress(OSError):
            partial.unlink()


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of the main graph, of all subgraphs and of the local functions."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()),
                           *attribute.sparse_tensors):  # fmt: skip
                yield from (sparse.values, sparse.indices)
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graph_tensors(graph)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the dense initializers of a graph and of its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _initializers(inner)


def _stored_bytes(tensor: onnx.TensorProto, dims: tuple[int, ...] | None = None) -> int:
    """Return how many bytes a tensor's elements take in a file; `dims` where they are not its own."""
    found = stored_bytes(tensor, math.prod(tensor.dims if dims is None else dims))
    return len(tensor.raw_data) if found is None else found


def _load_external(tensors: Sequence[onnx.TensorProto], folder: Path | None, limit: int | None = None) -> None:
    """Read external data, of tensors of up to `limit` bytes or of all, into the tensors that refer to it, in place."""
    for tensor in tensors:
        if limit is None or _stored_bytes(tensor) <= limit:
            tensor.raw_data = external_bytes(tensor, folder).tobytes()
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")


def _move_weights(proto: onnx.ModelProto, out: BinaryIO, location: str, folder: Path | None) -> None:
    """Write large initializers, and all that is external already, to `out`, and refer to them there, in place."""
    large = [tensor for tensor in _initializers(proto.graph) if _stored_bytes(tensor) >= _INLINE_BYTES]
    large = [tensor for tensor in large if tensor.data_type != onnx.TensorProto.STRING]  # strings have no raw form
    moved = [tensor for tensor in large if not is_external(tensor)]
    for tensor in (*external_tensors(proto), *moved):
        if is_external(tensor):
            stored = external_bytes(tensor, folder)
        else:
            raw = tensor.raw_data if tensor.HasField("raw_data") else _raw_bytes(tensor)
            stored = np.frombuffer(raw, np.uint8)
        out.write(b"\0" * (-out.tell() % (_ALIGNMENT if stored.size >= _ALIGNMENT else 64)))
        offset = out.tell()
        out.write(stored.data)
        for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(name)
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", stored.size)):
            tensor.external_data.add(key=key, value=str(value))


def _raw_bytes(tensor: onnx.TensorProto) -> bytes:
    return numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


def _serialize(proto: onnx.ModelProto, path: Path) -> bytes:
    try:
        return proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError):
        raise UsageError(f"{path}: the model is larger than the 2 GB one file can hold. Write external data.") from None


def external_bytes(tensor: onnx.TensorProto, folder: Path | None) -> Array:
    """Return the bytes that an external tensor's own elements take, shape (bytes,)."""
    if not is_part(tensor):
        return _read_external(tensor, folder)
    if tensor.data_type in PACKED_BITS:
        return np.frombuffer(numpy_helper.from_array(read_array(tensor, folder)).raw_data, np.uint8)
    return read_array(tensor, folder).reshape(-1).view(np.uint8)


def _read_external(tensor: onnx.TensorProto, folder: Path | None) -> Array:
    """Return the bytes that a tensor with external data refers to, memory-mapped, shape (stored bytes,)."""
    location = Path(next((entry.value for entry in tensor.external_data if entry.key == "location"), ""))
    if folder is None and location.is_absolute():  # `read_model` has checked it
        folder = location.parent
    if folder is None:
        raise ModelError(
            f"tensor {tensor.name}: its numbers lie in another file, and the model's folder is not known here. "
            "Read the model with read_model, or give the folder."
        )
    path, offset, length = _location(tensor, folder)
    if not length:
        return np.empty(0, np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(length,))


def _location(tensor: onnx.TensorProto, folder: Path) -> tuple[Path, int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"tensor {tensor.name}"
    path = (folder / entries.get("location", "")).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ModelError(f"{where}: its external data lies outside of the model's folder, got {path}. Move it beside.")
    if not path.is_file():
        raise ModelError(
            f"{where}: its external data file {entries.get('location')} is missing; expected it in {folder}. "
            "Put the file beside the model."
        )
    wanted = _stored_bytes(tensor, stored_dims(tensor))
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", wanted))
    except ValueError:
        offset = length = -1
    if offset < 0 or length != wanted:
        raise ModelError(
            f"{where}: its external data has offset {entries.get('offset')} and length {entries.get('length')}; "
            f"expected {wanted} bytes for shape {list(tensor.dims)}. Export the model again."
        )
    if offset + length > path.stat().st_size:
        raise ModelError(f"{where}: its external data ends early; {path.name} is truncated. Copy the file again.")
    return path, offset, length


def _drop_part_names(tensors: Iterable[onnx.TensorProto]) -> None:
    """Forget what a file says under the keys that name parts: only this process may."""
    for tensor in tensors:
        if is_part(tensor):
            kept = [entry for entry in tensor.external_data if not entry.key.startswith("agmc.")]
            tensor.ClearField("external_data")
            tensor.external_data.extend(kept)


def _external_files(tensors: Iterable[onnx.TensorProto], folder: Path) -> list[Path]:
    return sorted({_location(tensor, folder)[0] for tensor in tensors})
